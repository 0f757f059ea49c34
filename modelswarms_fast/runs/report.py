"""The report of a run, written again from its folder."""

from __future__ import annotations

from pathlib import Path

from modelswarms_fast.records.report import write_plots, write_report
from modelswarms_fast.runs.final_test import evaluate_run


def report(run: str | Path, *, evaluate: bool = False, plots: str | Path | None = None) -> list[Path]:
    """Write report.html of a run folder again, with all analyses that its files allow.

    Args:
        run: the folder of a search, ended or not.
        evaluate: score the run's experts and particles on test first, which starts an engine.
        plots: a folder for the plots as SVG files.

    Returns:
        The files that were written.

    Raises:
        InputError: a file of the run is missing or damaged, or a file cannot be written.
    """
    if evaluate:
        evaluate_run(run)
    written = [write_report(run)]
    return written if plots is None else written + write_plots(run, Path(plots))
