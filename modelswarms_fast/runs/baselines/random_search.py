"""Mixtures drawn at random, as many as the budget allows: what any search has to beat."""

from __future__ import annotations

import numpy as np

from modelswarms_fast.runs.baselines import Choice, mixture_choice
from modelswarms_fast.runs.experiment import Experiment
from modelswarms_fast.swarm import Floats, best_of

SPREAD = 0.3
"""Standard deviation of the first steps from the mean of all experts; an expert itself is at a distance of nearly 1."""


def run(experiment: Experiment, budget: int, seed: int) -> Choice:
    """The experts themselves, and draws of two kinds in turn. See `modelswarms_fast.runs.baselines`."""
    count = len(experiment.initial)
    draws = draw(budget - count, count, seed)
    mixtures = np.concatenate([np.eye(count), draws])
    utilities = np.concatenate([experiment.initial, experiment.mixtures_on_dev(draws)])
    best = best_of(utilities)
    kind = "expert" if best < count else "Dirichlet" if (best - count) % 2 == 0 else "affine"
    return mixture_choice(experiment, mixtures[best], float(utilities[best]), len(mixtures), drawn_as=kind)


def draw(number: int, count: int, seed: int) -> Floats:
    """[number, count] mixtures whose coefficients sum to 1.

    In turn Dirichlet(1, ..., 1), uniform among those without negative coefficients, and what CMA-ES starts with:
    1/count plus normal numbers that are moved to sum 0.
    """
    random = np.random.default_rng(seed)
    mixtures = np.empty((number, count))
    for index in range(number):
        if index % 2 == 0:
            mixtures[index] = random.dirichlet(np.ones(count))
        else:
            mixtures[index] = affine(random.normal(0, SPREAD, count))
    return mixtures


def affine(point: Floats) -> Floats:
    """[n] the mixture of sum 1 that is nearest to the mean of all plus this point [n]."""
    mixture: Floats = 1 / len(point) + point - point.mean()
    return mixture
