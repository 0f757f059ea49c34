"""Spherical interpolation (Shoemake 1985), tensor by tensor.

It takes two models. More are folded, the best on dev first: the next expert is interpolated with what there is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from modelswarms_fast.runs.baselines import Choice, by_dev
from modelswarms_fast.runs.experiment import Experiment
from modelswarms_fast.swarm import best_of
from modelswarms_fast.weights.layout import Layout

PARALLEL = 0.9995
"""Cosine from which on two tensors are interpolated linearly."""


def run(experiment: Experiment, budget: int, seed: int) -> Choice:
    """How many experts are folded, and with equal shares (t = 1/2, 1/3, ...) or halfway each time, is chosen on dev.

    See `modelswarms_fast.runs.baselines`.
    """
    count, order = len(experiment.initial), by_dev(experiment)
    recipes = [(number, share) for number in range(2, count + 1) for share in ("equal", "half")]
    recipes.remove((2, "half"))  # the same as with equal shares
    recipes = recipes[: budget - count]
    rows, layout = experiment.experts.rows, experiment.experts.layout

    def made(number: int, share: str) -> torch.Tensor:
        steps = [1 / place if share == "equal" else 0.5 for place in range(2, number + 1)]
        return fold(layout, [rows[expert] for expert in order[:number]], steps)

    utilities = [float(experiment.initial[order[0]])]
    utilities += experiment.rows_on_dev([partial(made, *recipe) for recipe in recipes]).tolist()
    best = best_of(np.array(utilities))
    number, share = (1, "equal") if best == 0 else recipes[best - 1]
    row = made(number, share)
    recipe = {"experts": [experiment.experts.names[expert] for expert in order[:number]], "share": share}
    return Choice(
        recipe,
        utilities[best],
        count + len(recipes),
        lambda: experiment.score_rows([lambda: row], "test")[0],
    )


def fold(layout: Layout, rows: Sequence[torch.Tensor], steps: Sequence[float]) -> torch.Tensor:
    """The row [D] of all rows [D] in turn, each `steps` of the way from what there is to the next one."""
    done = rows[0].to(torch.float32, copy=True)
    for row, step in zip(rows[1:], steps, strict=True):
        for spec in layout.specs:
            part = slice(spec.offset, spec.end)
            done[part] = slerp(done[part], row[part], step)
    return done.to(layout.dtype)


def slerp(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    """[N] sin((1 - t) θ)/sin θ · a + sin(t θ)/sin θ · b, where θ is the angle between a and b, in float64."""
    a, b = a.double(), b.double()
    norms = [float(norm) if (norm := vector.norm()) > 1e-8 else 1.0 for vector in (a, b)]
    cosine = min(max(float(a @ b) / (norms[0] * norms[1]), -1.0), 1.0)
    if abs(cosine) > PARALLEL:
        return (1 - t) * a + t * b
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)
