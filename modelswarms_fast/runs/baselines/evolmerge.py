"""Evolutionary model merging in parameter space (arXiv 2403.13187): CMA-ES over the recipe of a DARE-TIES merge."""

from __future__ import annotations

import re
from functools import partial

import numpy as np
import torch
from cmaes import CMA

from modelswarms_fast.runs.baselines import Choice, loss, named
from modelswarms_fast.runs.baselines.dare_ties import merge
from modelswarms_fast.runs.experiment import Experiment
from modelswarms_fast.swarm import Floats, best_of
from modelswarms_fast.weights.layout import TensorSpec

LEAST_DENSITY = 0.1
SPREAD = 0.2
_LAYER = re.compile(r"\.(?:layers|h|blocks?)\.(\d+)\.")


def run(experiment: Experiment, budget: int, seed: int) -> Choice:
    """A weight in [0, 1] and a density in [0.1, 1] for every expert and block of layers.

    The paper has one of each a layer and thousands of evaluations; here there are as many blocks of consecutive
    layers as give each unknown ten evaluations, at least one. The search starts at the mean of all experts, whole. See
    `modelswarms_fast.runs.baselines`.
    """
    base, count = experiment.base_row(), len(experiment.experts.names)
    layers = 1 + max(layer_of(spec) for spec in experiment.experts.layout.specs)
    blocks = min(max(budget // (20 * count), 1), layers)

    def made(point: Floats) -> torch.Tensor:
        numbers = point.reshape(blocks, 2, count)
        place = {spec.name: layer_of(spec) * blocks // layers for spec in experiment.experts.layout.specs}
        return merge(
            experiment.experts,
            base,
            lambda spec: numbers[place[spec.name], 0],
            lambda spec: LEAST_DENSITY + (1 - LEAST_DENSITY) * numbers[place[spec.name], 1],
            seed,
            mean=False,
        )

    start = np.tile(np.concatenate([np.full(count, 1 / count), np.ones(count)]), blocks)
    bounds = np.tile([0.0, 1.0], (len(start), 1))
    optimizer = CMA(mean=start, sigma=SPREAD, bounds=bounds, seed=seed % 2**32)
    points: list[Floats] = []
    utilities: list[float] = []
    while len(points) < budget:
        points += [optimizer.ask() for _ in range(min(optimizer.population_size, budget - len(points)))]
        new = points[len(utilities) :]
        found = experiment.rows_on_dev([partial(made, point) for point in new]).tolist()
        if len(new) == optimizer.population_size:  # the last generation may be a part of one
            optimizer.tell([(point, loss(utility)) for point, utility in zip(new, found, strict=True)])
        utilities += found
    best = best_of(np.array(utilities))
    row, numbers = made(points[best]), points[best].reshape(blocks, 2, count)
    recipe = [
        {
            "weights": named(experiment, block[0]),
            "densities": named(experiment, LEAST_DENSITY + (1 - LEAST_DENSITY) * block[1]),
        }
        for block in numbers
    ]
    return Choice(
        {"blocks": recipe},
        utilities[best],
        len(points),
        lambda: experiment.score_rows([lambda: row], "test")[0],
        looks_at_experts=False,
    )


def layer_of(spec: TensorSpec) -> int:
    """The number of the layer that a tensor is part of; 0 of embeddings and whatever has none."""
    found = _LAYER.search(spec.name)
    return int(found[1]) if found else 0
