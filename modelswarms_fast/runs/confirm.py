"""Dev examples that a search never sees, on which its last candidates are scored before one of them is chosen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.evaluator import Evaluator
from modelswarms_fast.weights.population import Bests, Population
from modelswarms_fast.swarm import Swarm
from modelswarms_fast.evaluation.objectives import Utility
from modelswarms_fast.evaluation.objectives.utility import mean

CONFIRM = "confirm"
"""The split of the examples that are kept back."""

# The global best and the next personal bests: among more of them the highest of noisy scores wins, not the best model.
CANDIDATES = 5


@dataclass(frozen=True)
class Confirmed:
    """What came of it."""

    particle: int
    """Whose personal best is the winner."""
    dev: float
    confirm: float
    candidates: list[dict[str, Any]]
    """particle, dev and confirm of each, the best on dev first."""


def hold_back(utility: Utility, count: int) -> Utility:
    """The utility with `count` of its dev examples in a split of their own, evenly spread over the file.

    Which ones depends on nothing but how many there are, so that searches can be compared. Of several tasks each keeps
    back as many, the first ones one more where `count` cannot be divided.

    Raises:
        InputError: no dev example would be left, or parts of dev say nothing about the utility.
    """
    if utility.of_parts is not None:
        many = len(utility.parts)
        if count < many:
            raise InputError(f"confirm is {count} but {utility.name} has {many} tasks; give an example a task or more.")
        shares = [(count + many - 1 - number) // many for number in range(many)]
        return utility.of_parts([hold_back(part, share) for part, share in zip(utility.parts, shares, strict=True)])
    total = len(utility.examples["dev"])
    if not 0 < count < total:
        raise InputError(f"confirm is {count} but there are {total} dev examples; give from 1 to {total - 1}.")
    if utility.reduce is not mean:
        raise InputError(
            f"confirm keeps back examples of a task whose utility is the mean of its scores; that of {utility.name} "
            "is not, leave confirm out."
        )
    back = {(2 * index + 1) * total // (2 * count) for index in range(count)}
    kept = [index for index in range(total) if index not in back]

    def divide(splits: dict[str, list[Any]]) -> dict[str, list[Any]]:
        dev = splits["dev"]
        return splits | {"dev": [dev[index] for index in kept], CONFIRM: [dev[index] for index in sorted(back)]}

    return replace(utility, examples=divide(utility.examples), asks=divide(utility.asks))


def confirm(evaluator: Evaluator, swarm: Swarm, particles: Population) -> Confirmed:
    """Score the personal bests that are best on dev on the examples kept back, and choose the best there; of equals
    the best on dev."""
    bests = np.where(np.isfinite(swarm.personal_best), swarm.personal_best, -np.inf)
    order = [int(one) for one in np.argsort(-bests, kind="stable") if np.isfinite(bests[one])]
    order.remove(swarm.global_best_particle)  # of equals the one found first is the global best
    candidates = [swarm.global_best_particle, *order][:CANDIDATES]
    tallies = evaluator.score_population(Bests(particles), candidates, CONFIRM)
    scores = {one: evaluator.utility.utility_of(CONFIRM, tallies[one].known) for one in candidates}
    winner = max(candidates, key=lambda one: (np.nan_to_num(scores[one], nan=-np.inf), bests[one]))
    return Confirmed(
        winner,
        float(bests[winner]),
        scores[winner],
        [{"particle": one, "dev": float(bests[one]), CONFIRM: scores[one]} for one in candidates],
    )
