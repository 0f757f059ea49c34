"""`search`: from experts to a better model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from modelswarms_fast.cli.options import Experts, Inputs, Out, settings
from modelswarms_fast.cli.summary import show
from modelswarms_fast.config import EngineConfig, SwarmConfig


@settings(Inputs, SwarmConfig, EngineConfig, particles=None)
def search_command(
    experts: Experts,
    out: Out,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in --out.")] = False,
    trace: Annotated[Path | None, typer.Option(help="File for a Chrome trace of the run.")] = None,
    confirm: Annotated[
        int, typer.Option(help="Dev examples to keep back, on which the winner is chosen among the last candidates.")
    ] = 0,
    final_test: Annotated[
        bool, typer.Option("--final-test", help="Score all experts and particles on test too, for the report.")
    ] = False,
    **given: Any,
) -> None:
    """Search for a better model among the mixtures of EXPERTS, and export the best one found."""
    arguments = {"experts": experts, "out": out, "overwrite": overwrite, "trace": trace}
    run_search(arguments | {"confirm": confirm, "final_test": final_test} | given)


def run_search(arguments: dict[str, Any]) -> None:
    """Run a search with a progress bar, and show its end."""
    from modelswarms_fast.runs.search import search

    show(search(**arguments, progress=True), arguments["out"], "global_best")
