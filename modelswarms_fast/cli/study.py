"""`study`: searches that differ in one thing."""

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
def study_command(
    kind: Annotated[str, typer.Argument(help="ablation, diversity, drop, seeds or weak.")],
    experts: Experts,
    out: Out,
    seeds: Annotated[int, typer.Option(help="Searches of each variant, with seeds from --seed on.")] = 3,
    at_once: AtOnce = 2,
    resume: Resume = False,
    force: Force = False,
    reuse: Reuse = None,
    **given: Any,
) -> None:
    """Run searches that differ in one thing, with several seeds each, and show them side by side."""
    from modelswarms_fast.runs.study import study

    swarm, others = split_settings(given)
    others |= {"resume": resume, "force": force, "reuse": reuse or []}
    content = study(kind, experts, out=out, seeds=seeds, at_once=at_once, swarm=swarm, say=say, **others)
    show_study(content, out)


def show_study(content: dict[str, Any], out: Path) -> None:
    """Print the variants of a study side by side."""
    table = Table("variant", "runs", "dev", "test ± over seeds", "test beside the first", "evaluations")
    for name, one in content["summary"].items():
        deviation = "" if one["test"]["deviation"] is None else f" ± {one['test']['deviation']:.4f}"
        beside = "" if one["test_beside_the_first"] is None else f"{one['test_beside_the_first']['mean']:+.4f}"
        test = f"{one['test']['mean']:.4f}{deviation}"
        cost = f"{one['evaluations']['mean']:.0f}"
        table.add_row(name, str(one["runs"]), f"{one['dev']['mean']:.4f}", test, beside, cost)
    console = wide_console()
    console.print(table)
    best = content["best_expert"]
    line(console, f"best expert {best['expert']}: dev {best['dev']:.4f}, test {best['test']:.4f}")
    line(console, f"Open {out / 'study.svg'} first; all numbers are in {out / 'study.json'}.")
