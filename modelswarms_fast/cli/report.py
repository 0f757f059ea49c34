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
    from modelswarms_fast.records.report import write_plots, write_report

    if evaluate:
        from modelswarms_fast.runs.final_test import evaluate_run

        evaluate_run(run)
    written = [write_report(run)]
    if plots is not None:
        written += write_plots(run, plots)
    print("\n".join(map(str, written)))
