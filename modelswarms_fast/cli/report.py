"""`report`: the report of a run, written again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report_command(
    run: Annotated[Path, typer.Argument(help="The folder of a search, ended or not.")],
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Score its experts and particles on test first; starts an engine.")
    ] = False,
    plots: Annotated[Path | None, typer.Option(help="Folder for the plots as SVG files.")] = None,
) -> None:
    """Write report.html of RUN again, with all analyses that its files allow."""
    from modelswarms_fast.runs.report import report as write

    print("\n".join(map(str, write(run, evaluate=evaluate, plots=plots))))
