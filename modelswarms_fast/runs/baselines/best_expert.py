"""The single expert that is best on dev."""

from __future__ import annotations

import numpy as np

from modelswarms_fast.runs.baselines import Choice, mixture_choice
from modelswarms_fast.runs.experiment import Experiment
from modelswarms_fast.swarm import best_of


def run(experiment: Experiment, budget: int, seed: int) -> Choice:
    """See `modelswarms_fast.runs.baselines`."""
    best = best_of(experiment.initial)
    mixture = np.eye(len(experiment.initial))[best]
    return mixture_choice(
        experiment,
        mixture,
        float(experiment.initial[best]),
        len(experiment.initial),
        expert=experiment.experts.names[best],
    )
