"""`token-swarm`: a search over mixtures of what experts say next."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from modelswarms_fast.cli.options import Force, Inputs, Out, Resume, Reuse, command_of, settings
from modelswarms_fast.cli.summary import show
from modelswarms_fast.config import EngineConfig, SwarmConfig, TaskConfig


@settings(Inputs, TaskConfig, SwarmConfig, EngineConfig, only=("dtype", "max_model_len"), particles=None, base=None)
def token_swarm_command(
    experts: Annotated[list[str], typer.Argument(help="Full checkpoints of any architectures, or LoRA adapters.")],
    out: Out,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in --out.")] = False,
    resume: Resume = False,
    force: Force = False,
    reuse: Reuse = None,
    **given: Any,
) -> None:
    """Search over mixtures of what EXPERTS say next, token by token: for experts of different architectures."""
    from modelswarms_fast.runs.token_swarm import token_swarm

    own: dict[str, Any] = {"resume": resume, "force": force, "reuse": reuse or []}
    again = command_of("token-swarm", {"experts": experts, "out": out} | given)
    summary = token_swarm(experts, out=out, overwrite=overwrite, command=again, progress=True, **own, **given)
    show(summary, out, "global_best/mixture.json")
