"""`search`: from experts to a better model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from modelswarms_fast.cli.dry_run import show_dry_run
from modelswarms_fast.cli.options import Experts, Force, Inputs, Out, Resume, Reuse, command_of, settings
from modelswarms_fast.cli.summary import show
from modelswarms_fast.config import Choose, EngineConfig, SwarmConfig, TaskConfig


@settings(Inputs, TaskConfig, SwarmConfig, EngineConfig, particles=None)
def search_command(
    experts: Experts,
    out: Out,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in --out.")] = False,
    resume: Resume = False,
    force: Force = False,
    reuse: Reuse = None,
    log: Annotated[
        Literal["tensorboard", "wandb"] | None, typer.Option(help="Write the numbers of each iteration for this tool.")
    ] = None,
    trace: Annotated[Path | None, typer.Option(help="File for a Chrome trace of the run.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Most evaluations, prompts or minutes of the search: 200, 20000p or 30m.")
    ] = None,
    confirm: Annotated[
        int, typer.Option(help="Dev examples to keep back, on which the winner is chosen among the last candidates.")
    ] = 0,
    choose: Annotated[
        Choose | None,
        typer.Option(
            help="How the winner is chosen; by default confirm where it keeps examples back, else best.",
        ),
    ] = None,
    final_test: Annotated[
        bool, typer.Option("--final-test", help="Score all experts and particles on test too, for the report.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be sent and what it would take; start and write nothing.")
    ] = False,
    **given: Any,
) -> None:
    """Search for a better model among the mixtures of EXPERTS, and export the best one found."""
    own: dict[str, Any] = {"overwrite": overwrite, "resume": resume, "log": log, "trace": trace, "confirm": confirm}
    own |= {"choose": choose, "budget": budget, "final_test": final_test, "force": force, "reuse": reuse or []}
    if dry_run:
        from modelswarms_fast.runs.search import search

        show_dry_run(search(experts, out=out, dry_run=True, progress=True, **own, **given))
        return
    # What was not given stays out, so that the command that repeats the run is short.
    run_search({"experts": experts, "out": out} | {name: value for name, value in own.items() if value} | given)


def run_search(arguments: dict[str, Any]) -> None:
    """Run a search, show what is being done, and show its end."""
    from modelswarms_fast.runs.search import search

    again = command_of("search", {name: value for name, value in arguments.items() if name not in ("resume", "force")})
    show(search(**arguments, command=again, progress=True), arguments["out"], "global_best")
