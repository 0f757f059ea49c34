"""Model Swarms itself (arXiv 2410.11163)."""

from __future__ import annotations

from typing import Any

from modelswarms_fast.config import SwarmConfig
from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.early_stopping import Scores
from modelswarms_fast.runs.baselines import Choice, named
from modelswarms_fast.runs.experiment import Experiment


def run(experiment: Experiment, budget: int, seed: int, **settings: Any) -> Choice:
    """One search whose evaluations, the initial particles' among them, are at most `budget`.

    `settings` are fields of SwarmConfig; `particles` is the number of experts without them. See
    `modelswarms_fast.runs.baselines`.
    """
    particles = settings.get("particles", len(experiment.experts.names))
    if particles > budget:
        raise InputError(f"the budget is {budget} evaluations, less than the {particles} particles; give more.")
    most = {"iterations": min(budget // particles - 1, settings.get("iterations", budget))}
    config = SwarmConfig(**{"seed": seed, "particles": particles} | settings | most)
    found = experiment.search(config)

    def test() -> Scores:
        if found.mixture is not None and experiment.engine_config.state == "mixture":
            return experiment.score_mixtures([found.mixture], "test")[0]
        return experiment.score_rows([lambda: found.row], "test")[0]

    recipe: dict[str, Any] = {"particles": particles, "iterations": len(found.history) - 1, "stopped": found.stopped}
    if found.mixture is not None:
        recipe["mixture"] = named(experiment, found.mixture)
    evaluations = sum(sum(line["evaluated"]) for line in found.history)
    # Large rows have no name: then the search has evaluated the experts again, and that is counted already.
    return Choice(recipe, found.dev, evaluations, test, looks_at_experts=found.spent.reused > 0)
