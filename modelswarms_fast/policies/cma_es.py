"""CMA-ES (library `cmaes`) in the coordinates of a space, from the mean of the experts weighted by their scores."""

from __future__ import annotations

import numpy as np
from cmaes import CMA

from modelswarms_fast.policies import Floats, Problem

SPREAD = 0.2
"""Standard deviation of the first steps; an expert is at a distance of nearly 1 from the mean of all."""
LEAST = 4
"""Fewest positions of a generation: with fewer the library learns no shape from them, its rank-µ rate is 0."""


class CmaEs:
    """One generation an iteration, or two where an iteration has fewer than four positions.

    A position without a score counts as the worst.
    """

    def __init__(self, problem: Problem) -> None:
        """See `Problem`."""
        self._problem = problem
        self._generation = problem.particles * -(-LEAST // problem.particles)
        self._optimizer: CMA | None = None
        self._points: list[Floats] = []  # [size] each, of this generation
        self._losses: list[float] = []

    def ask(self) -> Floats:
        """[P, n] the next mixtures."""
        assert self._optimizer is not None
        points = [self._optimizer.ask() for _ in range(self._problem.particles)]
        return self._problem.space.decode(np.array(points))

    def tell(self, mixtures: Floats, utilities: Floats) -> None:
        """Take in the utilities [P] of the initial positions [P, n], or of the last ones."""
        space = self._problem.space
        if self._optimizer is None:
            self._optimizer = CMA(
                mean=space.clip(space.encode(warm_mean(mixtures, utilities))),
                sigma=SPREAD,
                bounds=space.bounds,
                seed=self._problem.seed % 2**32,
                population_size=self._generation,
            )
            return
        self._points += list(space.clip(space.encode(mixtures)))
        self._losses += [-float(one) if np.isfinite(one) else np.inf for one in utilities]
        if len(self._losses) == self._generation:
            worst = max((one for one in self._losses if one < np.inf), default=0.0)
            losses = [min(one, worst + 1) for one in self._losses]
            self._optimizer.tell(list(zip(self._points, losses, strict=True)))
            self._points, self._losses = [], []


def warm_mean(mixtures: Floats, utilities: Floats) -> Floats:
    """[n] the mean of the experts among positions [P, n], weighted by softmax((u - max u) / sd u) of their utilities.

    An expert without a score has no weight. All weights are equal where the scores are, or where there are none.
    """
    experts = (np.count_nonzero(mixtures, axis=1) == 1) & (mixtures.sum(axis=1) == 1)
    finite = experts & np.isfinite(utilities)
    if not finite.any():
        return np.full(mixtures.shape[1], 1 / mixtures.shape[1])
    known = utilities[finite]
    spread = known.std()
    weights = np.exp((known - known.max()) / spread) if spread > 0 else np.ones(len(known))
    mean: Floats = weights @ mixtures[finite] / weights.sum()
    return mean
