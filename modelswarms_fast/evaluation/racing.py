"""Racing: a particle is stopped once a paired test against the global best says that it is hopeless.

All particles are asked the examples in one random order, so that those that are there are a random sample. At fixed
numbers of them, the looks, the differences to the best's scores on the same examples are tested. The answers that come
between two looks decide nothing: what a search does depends on no timing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from modelswarms_fast.evaluation.early_stopping import DecisionBounds, PartialScores

ALPHA = 0.05
"""Of particles that are as good as the best on all examples, the most that may be stopped."""
FIRST_LOOK = 20
"""Examples of the first look. Each further one has twice as many."""


@dataclass(frozen=True)
class RaceLimits:
    """What a particle is tested against."""

    reference: Sequence[float]
    """[E] scores of the global best."""
    utility: float
    """Its utility, their mean."""
    gain: float
    """The most that a score can be above another."""
    order: Sequence[int]
    """All examples, in the order in which they are asked."""


Limits = DecisionBounds | RaceLimits
"""What ends the evaluation of a particle before its last example."""


class Race:
    """The race of one search."""

    def __init__(self, seed: int, examples: int, gain: float) -> None:
        """`gain`: the most that a score can be above another."""
        random = np.random.Generator(np.random.Philox(key=np.array([seed, _ORDER], dtype=np.uint64)))
        self._order: list[int] = random.permutation(examples).tolist()
        self._gain = gain
        self.limits: RaceLimits | None = None
        """Of all particles of the next iteration."""

    def follow(self, scores: Sequence[float | None], utility: float) -> None:
        """Take in the scores of a new global best."""
        self.limits = RaceLimits([math.nan if one is None else one for one in scores], utility, self._gain, self._order)


_ORDER = 7  # what the random number is for


def looks_of(examples: int) -> list[int]:
    """Numbers of examples at which a particle is tested."""
    found, look = [], FIRST_LOOK
    while look < examples:
        found.append(look)
        look *= 2
    return found


def is_hopeless(differences: Sequence[float], gain: float, looks: int) -> bool:
    """Whether a particle is behind, by its differences to the best on some examples, in one of so many looks.

    The upper bound of their mean is below 0: mean + z · sd / √m, with z of ALPHA over the number of looks. One further
    example counts as if the particle gained the most there. Without it, differences of which a few large gains have not
    been seen yet would look certain.
    """
    values = [*differences, gain]
    mean = math.fsum(values) / len(values)
    variance = math.fsum((one - mean) ** 2 for one in values) / (len(values) - 1)
    z = NormalDist().inv_cdf(1 - ALPHA / looks)
    return mean + z * math.sqrt(variance / len(values)) < 0


class RacedScores(PartialScores):
    """The scores of one particle in a race.

    Its utility, if it was stopped, is estimated: that of the best and the mean difference on the examples of the look.
    """

    def __init__(self, count: int, utility: Callable[[Sequence[float]], float], race: RaceLimits) -> None:
        super().__init__(count, utility)
        self._race, self._looks = race, looks_of(count)

    @property
    def order(self) -> Sequence[int]:
        """All examples, in the order in which they are asked."""
        return self._race.order

    @property
    def decided(self) -> bool:
        """Whether it was stopped, or every example has its score."""
        return self.complete or self._stopped_at() is not None

    @property
    def bounds(self) -> tuple[float, float]:
        """The utility, or its estimate, twice. NaN if a score is NaN."""
        look = None if self.complete else self._stopped_at()
        if look is None:
            return super().bounds
        differences = self._differences(look) or []
        estimate = self._race.utility + math.fsum(differences) / len(differences)
        return (min(estimate, self._race.utility),) * 2 if not math.isnan(estimate) else (math.nan,) * 2

    @property
    def facts(self) -> dict[str, float]:
        """What the history says of a particle that was stopped."""
        return {"estimate": self.bounds[0], "examples": self._stopped_at() or 0}

    @property
    def to_look(self) -> int:
        """Examples without a score up to the next look."""
        for look in (*self._looks, len(self.scores)):
            missing = sum(self.scores[example] is None for example in self._race.order[:look])
            if missing:
                return missing
        return 0

    def _differences(self, look: int) -> list[float] | None:
        """To the best, on the examples of a look; None if some have no score yet."""
        found = []
        for example in self._race.order[:look]:
            if (score := self.scores[example]) is None:
                return None
            found.append(score - self._race.reference[example])
        return found

    def _stopped_at(self) -> int | None:
        """The first look that stops it, by a score that is NaN too; None: it goes on."""
        for look in self._looks:
            if (differences := self._differences(look)) is None:
                return None
            behind = is_hopeless(differences, self._race.gain, len(self._looks))
            if behind or any(map(math.isnan, differences)):
                return look
        return None
