"""LoraHub (arXiv 2307.13269): one free coefficient an expert, by Nevergrad with a small L1 penalty."""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import nevergrad

from modelswarms_fast.runs.baselines import Choice, loss, mixture_choice, named, tensors
from modelswarms_fast.runs.experiment import Experiment
from modelswarms_fast.swarm import Floats
from modelswarms_fast.weights.experts import Experts

RANGE = 1.5
PENALTY = 0.05


def run(experiment: Experiment, budget: int, seed: int) -> Choice:
    """Coefficients in [-1.5, 1.5] from 0 on, of any sum; the loss is 0.05 · mean |coefficient| minus the utility.

    The paper's loss is the cross-entropy of a few examples; here it is the utility that all methods share. Of full
    checkpoints it is their differences to the base that have the coefficients. See `modelswarms_fast.runs.baselines`.
    """
    experts, base = experiment.experts, experiment.base_row()
    count = len(experts.names)
    space = nevergrad.p.Array(init=np.zeros(count)).set_bounds(-RANGE, RANGE)
    space.random_state.seed(seed % 2**32)
    optimizer = nevergrad.optimizers.NGOpt(parametrization=space, budget=budget)
    best, dev, lowest = np.zeros(count), float("nan"), float("inf")
    for _ in range(budget):
        candidate = optimizer.ask()
        coefficients = np.asarray(candidate.value, dtype=np.float64)
        if base is None:
            utility = float(experiment.mixtures_on_dev([coefficients])[0])
        else:
            utility = float(experiment.rows_on_dev([partial(add, experts, base, coefficients)])[0])
        value = loss(utility) + PENALTY * float(np.abs(coefficients).mean())
        optimizer.tell(candidate, value)
        if value < lowest:
            best, dev, lowest = coefficients, utility, value
    if base is None:
        return mixture_choice(experiment, best, dev, budget, looks_at_experts=False, loss=lowest)
    recipe = {"differences": named(experiment, best), "loss": lowest}
    winner = partial(add, experts, base, best)
    return Choice(recipe, dev, budget, lambda: experiment.score_rows([winner], "test")[0], looks_at_experts=False)


def add(experts: Experts, base: torch.Tensor, coefficients: Floats) -> torch.Tensor:
    """The row [D] of the base plus, of each expert, its coefficient times its difference to the base."""
    row = torch.zeros(experts.layout.size, dtype=experts.layout.dtype)
    factors = torch.from_numpy(coefficients).float()
    for spec, rows, origin in tensors(experts, base):
        row[spec.offset : spec.end] = origin + factors @ (rows - origin)
    return row
