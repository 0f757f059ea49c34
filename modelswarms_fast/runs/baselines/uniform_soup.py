"""The mean of all experts (model soups, arXiv 2203.05482)."""

from __future__ import annotations

import numpy as np

from modelswarms_fast.runs.baselines import Choice, mixture_choice
from modelswarms_fast.runs.experiment import Experiment


def run(experiment: Experiment, budget: int, seed: int) -> Choice:
    """See `modelswarms_fast.runs.baselines`."""
    count = len(experiment.experts.names)
    mixture = np.full(count, 1 / count)
    dev = float(experiment.mixtures_on_dev([mixture])[0])
    return mixture_choice(experiment, mixture, dev, 1, looks_at_experts=False)
