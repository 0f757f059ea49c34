"""CMA-ES over affine mixtures, by the policy `cma-es`: what another optimiser makes of the swarm's search space."""

from __future__ import annotations

import math

import numpy as np

from modelswarms_fast.policies import problem_of
from modelswarms_fast.policies.cma_es import CmaEs
from modelswarms_fast.policies.space import space_of
from modelswarms_fast.runs.baselines import Choice, mixture_choice
from modelswarms_fast.runs.experiment import Experiment
from modelswarms_fast.swarm import best_of


def run(experiment: Experiment, budget: int, seed: int) -> Choice:
    """The experts themselves, and whole generations from their weighted mean on.

    A generation has the library's own size, 4 + ⌊3 ln d⌋ in d dimensions: ten for ten experts. See
    `modelswarms_fast.runs.baselines`.
    """
    count = len(experiment.initial)
    mixtures, utilities = list(np.eye(count)), experiment.initial.tolist()
    space = space_of("affine", count)
    generation = 4 + math.floor(3 * math.log(space.size))
    policy = CmaEs(problem_of(space, generation, seed))
    policy.tell(np.eye(count), experiment.initial)
    while len(mixtures) < budget:
        asked = policy.ask()[: budget - len(mixtures)]
        found = experiment.mixtures_on_dev(asked)
        if len(asked) == generation:  # the last generation may be a part of one
            policy.tell(asked, found)
        mixtures += list(asked)
        utilities += found.tolist()
    best = best_of(np.array(utilities))
    return mixture_choice(experiment, mixtures[best], utilities[best], len(mixtures))
