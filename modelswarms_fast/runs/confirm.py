"""The choice of a winner among the last candidates of a search, by dev examples that the search has not seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from modelswarms_fast.evaluation.evaluator import Evaluator
from modelswarms_fast.evaluation.holdout import CONFIRM
from modelswarms_fast.swarm import Floats, Swarm
from modelswarms_fast.weights.population import Population

# The global best and the next personal bests: among more of them the highest of noisy scores wins, not the best model.
CANDIDATES = 5


@dataclass(frozen=True)
class Confirmed:
    """The winner on the examples that were kept back."""

    particle: int
    """Whose personal best is the winner."""
    dev: float
    confirm: float
    candidates: list[dict[str, Any]]
    """particle, dev and confirm of each, the best on dev first."""
    scores: Floats
    """[candidates, E] of each on each of the examples."""


def confirm(evaluator: Evaluator, swarm: Swarm, population: Population) -> Confirmed:
    """Score the personal bests that are best on dev on the examples kept back, and choose the best there.

    Of equals the best on dev is chosen.
    """
    bests = np.where(np.isfinite(swarm.personal_best), swarm.personal_best, -np.inf)
    order = [int(one) for one in np.argsort(-bests, kind="stable") if np.isfinite(bests[one])]
    order.remove(swarm.global_best_particle)  # of equals the one found first is the global best
    candidates = [swarm.global_best_particle, *order][:CANDIDATES]
    found = evaluator.score_population(population.candidates(candidates, best=True), CONFIRM)
    scores = {one: evaluator.utility.utility_of(CONFIRM, found[one].known) for one in candidates}
    winner = max(candidates, key=lambda one: (np.nan_to_num(scores[one], nan=-np.inf), bests[one]))
    return Confirmed(
        winner,
        float(bests[winner]),
        scores[winner],
        [{"particle": one, "dev": float(bests[one]), CONFIRM: scores[one]} for one in candidates],
        np.array([found[one].known for one in candidates]),
    )
