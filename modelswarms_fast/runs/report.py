"""The report of a run, written again from its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from modelswarms_fast.errors.arguments import checked
from modelswarms_fast.records.report import write_plots, write_report
from modelswarms_fast.runs.final_test import evaluate_run


@checked
def report(
    run: str | Path,
    *,
    evaluate: bool = False,
    plots: str | Path | None = None,
    given: Mapping[str, Any] | None = None,
    ask: Callable[[str], bool] | None = None,
) -> list[Path]:
    """Write report.html of a run folder again, with all analyses that its files allow.

    Args:
        run: the folder of a search, ended or not.
        evaluate: score the run's experts and particles on test first, which starts an engine.
        plots: a folder for the plots as SVG files.
        given: settings of the run that import code or call a server, given again for `evaluate`: task, options,
            engine_options.
        ask: puts to the user whether they trust those that are not given; None: they are refused.

    Returns:
        The files that were written.

    Raises:
        InputError: a file of the run is missing or damaged, or a file cannot be written, or what the run would import
            or call is not trusted.
    """
    if evaluate:
        evaluate_run(run, given, ask)
    written = [write_report(run)]
    return written if plots is None else written + write_plots(run, Path(plots))
