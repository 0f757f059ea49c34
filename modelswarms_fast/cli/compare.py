"""`compare`: Model Swarms beside other methods."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from modelswarms_fast.cli.options import Experts, Force, Inputs, Out, Resume, Reuse, settings, split_settings
from modelswarms_fast.cli.summary import line, wide_console
from modelswarms_fast.config import EngineConfig, SwarmConfig, TaskConfig


@settings(Inputs, TaskConfig, SwarmConfig, EngineConfig, particles=None)
def compare_command(
    experts: Experts,
    out: Out,
    budget: Annotated[int, typer.Option(help="Evaluations on dev for each method, those of the experts among them.")],
    methods: Annotated[str | None, typer.Option(help="Names with commas between them; by default all.")] = None,
    train: Annotated[
        Path | None, typer.Option(help="What the experts were trained on, for the methods that need it.")
    ] = None,
    resume: Resume = False,
    force: Force = False,
    reuse: Reuse = None,
    **given: Any,
) -> None:
    """Compare Model Swarms with other ways to compose EXPERTS, each with the same budget of evaluations."""
    from modelswarms_fast.runs.compare import compare

    swarm, others = split_settings(given)
    if "seed" in swarm:  # of every method, not of the swarm alone
        others["seed"] = swarm.pop("seed")
    if methods is not None:
        others["methods"] = [name.strip() for name in methods.split(",") if name.strip()]
    others |= {"resume": resume, "force": force, "reuse": reuse or []}
    content = compare(experts, out=out, budget=budget, train=train, swarm=swarm, progress=True, **others)
    show_comparison(content, out)


def show_comparison(content: dict[str, Any], out: Path) -> None:
    """Print the table of a comparison."""
    from modelswarms_fast.runs.compare import table_of

    console = wide_console()
    console.print(table_of(content))
    line(console, f"All numbers are in {out / 'baselines.json'}.")
