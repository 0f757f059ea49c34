"""`demo`: a search over the example experts."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from modelswarms_fast.cli.options import command_of
from modelswarms_fast.cli.search import run_search
from modelswarms_fast.errors import InputError
from modelswarms_fast.records.progress import say

# The middle of the ranges that the published code draws from; few iterations, to end within minutes on two cores.
DEMO: dict[str, Any] = {
    "inertia": 0.2,
    "cognitive_coeff": 0.3,
    "social_coeff": 0.4,
    "repel_coeff": 0.05,
    "limit_dev": 96,
    "iterations": 6,
    "max_model_len": 512,
}


def demo_command(
    examples: Annotated[Path, typer.Option(help="The repository's examples folder.")] = Path("examples"),
    out: Annotated[Path, typer.Option(help="Run folder to write; an earlier run in it is replaced.")] = Path(
        "runs/demo"
    ),
) -> None:
    """Search over the example experts for a mix of skills that none of them covers."""
    if not (examples / "experts").is_dir():
        raise InputError(f"{examples} holds no experts; run the demo in a clone of the repository, or give --examples.")
    arguments = {
        "experts": examples / "experts",
        "base": "smollm2-135m-instruct",
        "task": "exact_match",
        "data": examples / "data" / "skills_mix.json",
        "out": out,
        "overwrite": True,
    } | DEMO
    say(f"The demo runs: {shlex.join(command_of('search', arguments))}")
    run_search(arguments)
