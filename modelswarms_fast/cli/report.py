"""`report`: the report of a run, written again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modelswarms_fast.errors import InputError


def report_command(
    run: Annotated[Path, typer.Argument(help="The folder of a search, ended or not.")],
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Score its experts and particles on test first; starts an engine.")
    ] = False,
    plots: Annotated[Path | None, typer.Option(help="Folder for the plots as SVG files.")] = None,
) -> None:
    """Write report.html of RUN again, with all analyses that its files allow."""
    from modelswarms_fast.records.analysis import read_run
    from modelswarms_fast.records.analysis.registry import analyse, draw
    from modelswarms_fast.records.report import write_report
    from modelswarms_fast.records.run_folder import write_text

    if evaluate:
        from modelswarms_fast.runs.final_test import evaluate_run

        evaluate_run(run)
    written = [write_report(run)]
    if plots is not None:
        found = analyse(read_run(run))
        try:
            plots.mkdir(parents=True, exist_ok=True)
            for name, numbers in found.items():
                write_text(plots / f"{name}.svg", draw(name, numbers).decode())
                written.append(plots / f"{name}.svg")
        except OSError as error:
            raise InputError(f"cannot make {plots}: {error.strerror}; choose another folder for --plots.") from error
    print("\n".join(map(str, written)))
