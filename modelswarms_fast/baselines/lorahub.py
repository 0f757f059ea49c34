"""LoraHub (arXiv 2307.13269): one free coefficient an expert, by Nevergrad with a small L1 penalty."""

from __future__ import annotations

import warnings

import numpy as np

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import nevergrad

from modelswarms_fast.baselines import Choice, loss, mixture_choice
from modelswarms_fast.session import Session

RANGE = 1.5
PENALTY = 0.05


def run(session: Session, budget: int, seed: int) -> Choice:
    """Coefficients in [-1.5, 1.5] from 0 on, of any sum; the loss is 0.05 · mean |coefficient| minus the utility.

    The paper's loss is the cross-entropy of a few examples; here it is the utility that all methods share. See
    `modelswarms_fast.baselines`.
    """
    count = len(session.experts.names)
    space = nevergrad.p.Array(init=np.zeros(count)).set_bounds(-RANGE, RANGE)
    space.random_state.seed(seed % 2**32)
    optimizer = nevergrad.optimizers.NGOpt(parametrization=space, budget=budget)
    best, dev, lowest = np.zeros(count), float("nan"), float("inf")
    for _ in range(budget):
        candidate = optimizer.ask()
        coefficients = np.asarray(candidate.value, dtype=np.float64)
        utility = float(session.mixtures_on_dev([coefficients])[0])
        value = loss(utility) + PENALTY * float(np.abs(coefficients).mean())
        optimizer.tell(candidate, value)
        if value < lowest:
            best, dev, lowest = coefficients, utility, value
    return mixture_choice(session, best, dev, budget, looks_at_experts=False, loss=lowest)
