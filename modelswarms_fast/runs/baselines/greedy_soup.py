"""The mean of some experts: the best first, each further one kept if dev does not fall (arXiv 2203.05482, recipe 1)."""

from __future__ import annotations

import numpy as np

from modelswarms_fast.runs.baselines import Choice, by_dev, loss, mixture_choice
from modelswarms_fast.runs.experiment import Experiment
from modelswarms_fast.swarm import Floats


def run(experiment: Experiment, budget: int, seed: int) -> Choice:
    """See `modelswarms_fast.runs.baselines`."""
    count, order = len(experiment.initial), by_dev(experiment)
    kept, dev, evaluations = order[:1], float(experiment.initial[order[0]]), count
    for expert in order[1 : 1 + budget - count]:
        utility = float(experiment.mixtures_on_dev([soup([*kept, expert], count)])[0])
        evaluations += 1
        if loss(utility) <= loss(dev):
            kept, dev = [*kept, expert], utility
    ingredients = [experiment.experts.names[expert] for expert in kept]
    return mixture_choice(experiment, soup(kept, count), dev, evaluations, ingredients=ingredients)


def soup(kept: list[int], count: int) -> Floats:
    """[count] the mean of those that are kept, as a mixture."""
    mixture = np.zeros(count)
    mixture[kept] = 1 / len(kept)
    return mixture
