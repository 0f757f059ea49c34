"""Scores of a particle as they come in, what its utility can still become, and which examples settle it soonest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Scores = list[float]


@dataclass(frozen=True)
class DecisionBounds:
    """What a search asks of a utility: is it above `personal_best`, is it below `global_worst`?

    Every score is NaN or lies in [lowest, highest].
    """

    personal_best: float
    global_worst: float
    lowest: float
    highest: float
    order: Sequence[int] | None = field(default=None, compare=False)
    """All examples, those that may settle it first: the likeliest low scores."""


class PartialScores:
    """The scores of one particle so far, None where an example has none yet.

    With limits it is decided as soon as no score that is still missing can change an answer. This is exact: `utility`
    never falls when a score rises, so that with every missing score at its highest (lowest) it is a bound of the
    computed utility, rounding included.

    What `Swarm.tell` does with the upper bound of a decided particle is what it would do with the utility: both are
    at most the personal best, which is at most the global best, so neither becomes one; both are at least the global
    worst, so neither falls under it; and the largest and smallest of all that `tell` looks for are only looked for
    beyond these two. The same holds in later rounds in which the particle is not evaluated, since a personal best
    only rises and the global worst only falls. A NaN stays NaN and is never a best or worst.
    """

    def __init__(
        self, count: int, utility: Callable[[Sequence[float]], float], limits: DecisionBounds | None = None
    ) -> None:
        self.scores: list[float | None] = [None] * count
        self.limits = limits
        self._utility = utility

    @property
    def known(self) -> Scores:
        """The scores that there are."""
        return [score for score in self.scores if score is not None]

    @property
    def order(self) -> Sequence[int] | None:
        """All examples in the order in which they may be asked; None if it does not matter."""
        return None if self.limits is None else self.limits.order

    @property
    def to_look(self) -> int | None:
        """Examples without a score up to the next look of a race; None where there is none."""
        return None

    @property
    def facts(self) -> dict[str, float]:
        """What the history says of a particle that was stopped early."""
        lower, upper = self.bounds
        return {"lower": lower, "upper": upper, "examples": len(self.known)}

    @property
    def complete(self) -> bool:
        """Whether every example has its score."""
        return None not in self.scores

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest utility that is possible: the utility itself once all scores are known, NaN if one is NaN.

        A missing score that would be NaN is not counted with: the utility would be NaN and change nothing either.
        """
        if self.complete:
            return (self._utility(self.known),) * 2
        assert self.limits is not None
        low, high = self.limits.lowest, self.limits.highest
        return self._utility(self._filled(low)), self._utility(self._filled(high))

    def _filled(self, value: float) -> Scores:
        return [value if score is None else score for score in self.scores]

    @property
    def decided(self) -> bool:
        """Whether the missing scores, if any, can change no decision of the search."""
        if self.limits is None or self.complete:
            return self.complete
        lower, upper = self.bounds
        return math.isnan(upper) or (upper <= self.limits.personal_best and lower >= self.limits.global_worst)

    @property
    def need(self) -> tuple[int, int]:
        """About how many further examples make it no personal best, and how many make it no global worst.

        Estimates of what is worth asking for, not of when to stop, as if every missing score counted alike. The first
        expects low scores as often as so far, the next one being low; the second the highest scores alone, since those
        that are likely high have not been asked for yet.
        """
        missing = self.scores.count(None)
        if self.limits is None or not missing:
            return missing, 0
        lower, upper = self.bounds
        one = (upper - lower) / missing
        distances = upper - self.limits.personal_best, self.limits.global_worst - lower
        lows, highs = (_steps(distance, one, missing) for distance in distances)
        known, span = self.known, self.limits.highest - self.limits.lowest
        low = sum(self.limits.highest - score for score in known) / (span or 1.0)
        if lows:
            lows = min(math.ceil(lows * (len(known) + 1) / (low + 1)), missing)
        return lows, highs


def _steps(distance: float, one: float, most: int) -> int:
    """How many of `one` make up the distance."""
    if not distance > 0:
        return 0
    return min(math.ceil(distance / one - 1e-6), most) if distance < one * most else most


class DifficultyOrder:
    """Which examples will score low, judged by the evaluations of a search so far."""

    def __init__(self, lengths: Sequence[int]) -> None:
        """`lengths` of the prompts: among equals the longest comes first, so that no long one is left for the end."""
        self._lengths = np.array(lengths, dtype=np.float64)
        self._sum, self._count = np.zeros(len(lengths)), np.zeros(len(lengths))
        self._last: dict[int, npt.NDArray[np.float64]] = {}

    def order(self, particle: int) -> list[int]:
        """All examples, the likeliest lowest score first: by its own last scores, then by the mean of all."""
        means = self._sum / np.maximum(self._count, 1)
        last = self._last.get(particle, means)
        order: list[int] = np.lexsort((-self._lengths, means, last)).tolist()
        return order

    def learn(self, scores: Mapping[int, Sequence[float | None]]) -> None:
        """Take in the scores of particles. A NaN, which decides at once, counts as very low."""
        if not scores:
            return
        given = np.array([[value is not None for value in values] for values in scores.values()])
        found = np.nan_to_num(np.array(list(scores.values()), dtype=np.float64), nan=-1e9)  # None, too, until masked
        for particle, values, known in zip(scores, found, given, strict=True):
            np.copyto(self._last.setdefault(particle, np.zeros(len(self._lengths))), values, where=known)
        self._sum += np.where(given, found, 0.0).sum(axis=0)
        self._count += given.sum(axis=0)


def longest_first(lengths: Sequence[int]) -> list[int]:
    """All examples, the longest prompt first."""
    order: list[int] = np.argsort(-np.array(lengths), kind="stable").tolist()
    return order
