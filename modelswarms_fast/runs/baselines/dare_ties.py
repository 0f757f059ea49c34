"""DARE-TIES: drop weights at random and rescale (arXiv 2311.03099), elect signs and add (arXiv 2306.01708)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from modelswarms_fast.runs.baselines import Choice, tensors
from modelswarms_fast.runs.experiment import Experiment
from modelswarms_fast.swarm import Floats, best_of
from modelswarms_fast.weights.experts import Experts
from modelswarms_fast.weights.layout import TensorSpec

GRID = [(density, scale) for scale in (1.0, 0.5) for density in (0.9, 0.7, 0.5, 0.3, 0.1)]

Numbers = Callable[[TensorSpec], Floats]
"""One number an expert [n], for each tensor."""


def run(experiment: Experiment, budget: int, seed: int) -> Choice:
    """Density and scale (λ) are chosen on dev; experts have equal weights. See `modelswarms_fast.runs.baselines`."""
    base, count, grid = experiment.base_row(), len(experiment.experts.names), GRID[:budget]

    def made(density: float, scale: float) -> torch.Tensor:
        densities = np.full(count, density)
        return merge(
            experiment.experts, base, lambda spec: np.ones(count), lambda spec: densities, seed, mean=True, scale=scale
        )

    utilities = experiment.rows_on_dev([partial(made, *recipe) for recipe in grid])
    best = best_of(utilities)
    density, scale = grid[best]
    row = made(density, scale)
    return Choice(
        {"density": density, "scale": scale},
        float(utilities[best]),
        len(grid),
        lambda: experiment.score_rows([lambda: row], "test")[0],
        looks_at_experts=False,
    )


def merge(
    experts: Experts,
    base: torch.Tensor | None,
    weights: Numbers,
    densities: Numbers,
    seed: int,
    *,
    mean: bool,
    scale: float = 1.0,
) -> torch.Tensor:
    """The row [D] of base + scale · the sum over the experts of weight · what is left of their difference to the base.

    Of each difference the share `density` is kept, drawn for every weight by itself, and divided by it. Then only the
    differences whose sign is that of the weighted sum of all are added. With `mean` the sum is divided by the weights
    of those that were added.
    """
    row = torch.zeros(experts.layout.size, dtype=experts.layout.dtype)
    for number, (spec, rows, origin) in enumerate(tensors(experts, base)):
        differences = rows - origin
        for expert, density in enumerate(densities(spec)):
            if density < 1:
                differences[expert] *= keep(spec.numel, float(density), seed, number, expert) / density
        row[spec.offset : spec.end] = origin + scale * elect(differences, torch.from_numpy(weights(spec)), mean=mean)
    return row


def keep(size: int, density: float, seed: int, tensor: int, expert: int) -> torch.Tensor:
    """[size] which weights of a tensor of an expert are kept: those that are at a smaller density, and others."""
    # A counter-based generator, so that no draw depends on what else was drawn.
    philox = np.random.Philox(key=[seed, 0], counter=[0, tensor, expert, 0])
    return torch.from_numpy(np.random.Generator(philox).random(size, dtype=np.float32) < density)


def elect(differences: torch.Tensor, weights: torch.Tensor, *, mean: bool) -> torch.Tensor:
    """[N] the weighted sum of those of the differences [n, N] whose sign is that of the weighted sum of all."""
    weighted = differences * weights.to(differences.dtype)[:, None]
    sign = torch.where(weighted.sum(dim=0) >= 0, 1.0, -1.0)
    agree = weighted.sign() == sign
    total = (weighted * agree).sum(dim=0)
    if mean:
        share = (weights.to(differences.dtype)[:, None] * agree).sum(dim=0)
        total /= torch.where(share == 0, 1.0, share)
    return total
