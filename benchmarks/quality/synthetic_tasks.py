"""Tasks without a model: the utility of a mixture of experts as a known function, for tuning searches.

    task = SyntheticTask(number)
    task.scores(mixtures, "dev")        # [k, 200] of 0 and 1

A task has ten experts in a space of twelve dimensions, four domains, 200 dev examples and 5,000 test examples, drawn
from the same distribution. An expert lies part of the way from the origin, the base model, to the optimum of one
domain, displaced at random. The logit of example e of domain k at the weights w is

    height · exp(-|w - w_k|² / 2R²) + r_e(w) - δ_e

where w_k is the optimum of the domain, r_e a smooth random function of the example alone, and δ_e its difficulty. The
answer is right (1) where the logit is above 0, else wrong (0): as with greedy decoding, nothing is drawn anew when a
position is scored again. How far experts go, how far apart the optima are, R, and how much examples differ are drawn
once a task, from its number.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

EXPERTS, DOMAINS, DIMENSIONS = 10, 4, 12
EXAMPLES = {"dev": 200, "test": 5000}
FEATURES = 48
"""Cosines that the random functions of examples are made of."""
_WORLD, _SPLIT = range(2)


class SyntheticTask:
    """The task of a number; `dev` names the sample of dev examples, so that a task can be searched on several."""

    def __init__(self, number: int, dev: int = 0) -> None:
        """Draw the experts, the domains, and the functions that examples are drawn from."""
        self.number, self._dev = number, dev
        random = np.random.default_rng([number, _WORLD])
        reach, apart = random.uniform(0.35, 0.7), random.uniform(0.5, 1.0)
        self._height, self._width = random.uniform(4.0, 6.0), random.uniform(0.8, 1.2)
        self._own = random.uniform(0.5, 1.0)
        directions = np.linalg.qr(random.standard_normal((DIMENSIONS, DOMAINS + 1)))[0].T
        optima = directions[0] * 0.8 + apart * directions[1:] + 0.15 * random.standard_normal((DOMAINS, DIMENSIONS))
        domains = np.arange(EXPERTS) % DOMAINS
        displaced = 0.1 * random.standard_normal((EXPERTS, DIMENSIONS))
        reaches = reach * random.uniform(0.7, 1.3, size=(EXPERTS, 1))
        self._optima: Floats = optima
        self._experts: Floats = reaches * optima[domains] + displaced
        self._frequencies: Floats = random.standard_normal((DIMENSIONS, FEATURES)) / 0.8
        self._phases: Floats = random.uniform(0, 2 * np.pi, FEATURES)

    @property
    def products(self) -> Floats:
        """[n, n] inner products of the experts."""
        found: Floats = self._experts @ self._experts.T
        return found

    @cached_property
    def _examples(self) -> dict[str, tuple[npt.NDArray[np.int64], Floats, Floats]]:
        """By split the domain [E], amplitudes [E, F] and difficulty [E] of each example."""
        found = {}
        for number, (split, count) in enumerate(EXAMPLES.items()):
            key = [self.number, _SPLIT, number, self._dev if split == "dev" else 0]
            random = np.random.default_rng(key)
            amplitudes = self._own * np.sqrt(2 / FEATURES) * random.standard_normal((count, FEATURES))
            found[split] = (np.arange(count) % DOMAINS, amplitudes, random.normal(4.5, 1.5, count))
        return found

    def scores(self, mixtures: Floats, split: str) -> Floats:
        """[k, E] the score of each example at mixtures [k, n]."""
        domain, amplitudes, difficulty = self._examples[split]
        weights = mixtures @ self._experts
        squares = ((weights[:, None] - self._optima) ** 2).sum(axis=2)
        skill = self._height * np.exp(-squares / (2 * self._width**2))
        cosines = np.cos(weights @ self._frequencies + self._phases)
        found: Floats = (skill[:, domain] + cosines @ amplitudes.T - difficulty > 0).astype(np.float64)
        return found
