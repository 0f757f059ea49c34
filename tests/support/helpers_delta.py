"""Experts of unequal ranks whose update matrices are mixed, and what that means, in float64."""

from dataclasses import replace
from pathlib import Path

import torch
from helpers_models import ALL_LINEAR, make_adapter

from modelswarms_fast.weights.experts import Experts, read_experts

COUNT = 3


def delta_experts(base: Path, folder: Path, dtype: torch.dtype) -> Experts:
    """Three experts of ranks and alphas of their own, of which one lacks a module."""
    some = [name for name in ALL_LINEAR if name != "down_proj"]
    make_adapter(base, folder / "a", seed=0, rank_pattern={"v_proj": 2, "q_proj": 1}, use_rslora=True)
    make_adapter(base, folder / "b", seed=1, rank_pattern={"v_proj": 2}, lora_alpha=6, target_modules=some)
    make_adapter(base, folder / "c", seed=2, rank_pattern={"v_proj": 2, "q_proj": 3, "down_proj": 2})
    return replace(read_experts(folder, dtype=dtype), combine="delta")


def updates(experts: Experts, row: torch.Tensor) -> dict[str, torch.Tensor]:
    """scaling · B A of each module of a row, in float64."""
    views = experts.layout.views(row)
    return {one.name: one.scaling * views[one.b].double() @ views[one.a].double() for one in experts.modules}


def dense(experts: Experts, mixture: torch.Tensor) -> dict[str, torch.Tensor]:
    """What delta means: the sum of the experts' update matrices, each with its coefficient, read from their files."""
    total: dict[str, torch.Tensor] = {}
    for share, source in zip(mixture.tolist(), experts.sources, strict=True):
        alone = read_experts([source], dtype=experts.layout.dtype, minimum=1)
        for name, update in updates(alone, alone.rows[0]).items():
            total[name] = total.get(name, 0) + share * update
    return total
