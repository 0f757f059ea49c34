"""`sweep`: many searches with settings drawn at random."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from modelswarms_fast.cli.options import AtOnce, Experts, Force, Inputs, Out, Resume, Reuse, settings, split_settings
from modelswarms_fast.cli.summary import line, wide_console
from modelswarms_fast.config import EngineConfig, SwarmConfig, TaskConfig
from modelswarms_fast.records.progress import say


@settings(Inputs, TaskConfig, SwarmConfig, EngineConfig, particles=None)
def sweep_command(
    experts: Experts,
    out: Out,
    searches: Annotated[int, typer.Option(help="Most searches.")] = 20,
    ranges: Annotated[
        list[str] | None,
        typer.Option("--range", help="Setting and its ends, as in inertia=0.1:0.3; by default the published ones."),
    ] = None,
    evaluations: Annotated[int | None, typer.Option(help="Most particles evaluated by all searches.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Minutes after which no search begins.")] = None,
    at_once: AtOnce = 2,
    resume: Resume = False,
    force: Force = False,
    reuse: Reuse = None,
    **given: Any,
) -> None:
    """Search many times with settings drawn from ranges, on one engine, and keep the best by dev."""
    from modelswarms_fast.runs.sweep import parse_range, sweep

    swarm, others = split_settings(given)
    content = sweep(
        experts,
        out=out,
        searches=searches,
        ranges=None if ranges is None else dict(parse_range(text) for text in ranges),
        evaluations=evaluations,
        minutes=minutes,
        at_once=at_once,
        swarm=swarm,
        say=say,
        resume=resume,
        force=force,
        reuse=reuse or [],
        **others,
    )
    show_sweep(content, out)


def show_sweep(content: dict[str, Any], out: Path) -> None:
    """Print the searches of a sweep, the best first."""
    table = Table("search", *content["ranges"], "dev", "iterations", "evaluations", "stopped")
    for one in content["searches"]:
        drawn = [f"{one[name]:.3f}" for name in content["ranges"]]
        counts = str(one["iterations"]), str(one["evaluations"])
        table.add_row(one["name"], *drawn, f"{one['dev']:.4f}", *counts, one["stopped"])
    console = wide_console()
    console.print(table)
    for who, one in ((content["best"]["model"], content["best"]), ("best expert", content["best_expert"])):
        test = f"{one['test']:.4f} ± {one['test_standard_error']:.4f}"
        line(console, f"{who}: dev {one['dev']:.4f}, test {test}, dev - test {one['dev'] - one['test']:+.4f}")
    line(console, f"{content['evaluations']} evaluations; all numbers are in {out / 'sweep.json'}.")
