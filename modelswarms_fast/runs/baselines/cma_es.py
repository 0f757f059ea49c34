"""CMA-ES over affine mixtures (library `cmaes`): what another optimiser makes of the swarm's own search space."""

from __future__ import annotations

import numpy as np
from cmaes import CMA

from modelswarms_fast.runs.baselines import Choice, loss, mixture_choice
from modelswarms_fast.runs.baselines.random_search import SPREAD, affine
from modelswarms_fast.runs.experiment import Experiment
from modelswarms_fast.swarm import best_of


def run(experiment: Experiment, budget: int, seed: int) -> Choice:
    """The experts themselves, and whole generations from their mean on. See `modelswarms_fast.runs.baselines`."""
    count = len(experiment.initial)
    mixtures, utilities = list(np.eye(count)), experiment.initial.tolist()
    optimizer = CMA(mean=np.zeros(count), sigma=SPREAD, seed=seed % 2**32)
    while len(mixtures) < budget:
        asked = [optimizer.ask() for _ in range(min(optimizer.population_size, budget - len(mixtures)))]
        new = [affine(point) for point in asked]
        found = experiment.mixtures_on_dev(new).tolist()
        if len(asked) == optimizer.population_size:  # the last generation may be a part of one
            optimizer.tell([(point, loss(utility)) for point, utility in zip(asked, found, strict=True)])
        mixtures += new
        utilities += found
    best = best_of(np.array(utilities))
    return mixture_choice(experiment, mixtures[best], utilities[best], len(mixtures))
