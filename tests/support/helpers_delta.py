"""Experts of unequal ranks whose update matrices are mixed, and what that means, in float64."""

from dataclasses import replace
from pathlib import Path

import torch
from helpers_models import make_adapter

from modelswarms_fast.weights.experts import Experts, read_experts

COUNT = 3


def delta_experts(base: Path, folder: Path, dtype: torch.dtype) -> Experts:
    """Three experts of ranks that differ between modules and, but for the attention, between experts."""
    for seed, name in enumerate("abc"):
        make_adapter(base, folder / name, seed=seed, rank_pattern={"v_proj": 2}, use_rslora=True)
    experts = read_experts(folder, dtype=dtype)
    modules = []
    for module in experts.modules:
        own = {"q_proj": (1, 4, 3), "down_proj": (4, 0, 2)}.get(module.name.rpartition(".")[2])
        for row, rank in zip(experts.rows, own or (), strict=own is not None):
            views = experts.layout.views(row)
            views[module.a][rank:] = 0
            views[module.b][:, rank:] = 0
        modules.append(replace(module, ranks=own or (module.rank,) * COUNT))
    return replace(experts, modules=tuple(modules), combine="delta")


def updates(experts: Experts, row: torch.Tensor) -> dict[str, torch.Tensor]:
    """scaling · B A of each module of a row, in float64."""
    views = experts.layout.views(row)
    return {one.name: one.scaling * views[one.b].double() @ views[one.a].double() for one in experts.modules}


def dense(experts: Experts, mixture: torch.Tensor) -> dict[str, torch.Tensor]:
    """What delta means: the sum of the experts' update matrices, each with its coefficient."""
    own = [updates(experts, row) for row in experts.rows]
    return {
        name: sum(float(share) * one[name] for share, one in zip(mixture, own, strict=True))  # type: ignore[misc]
        for name in own[0]
    }
