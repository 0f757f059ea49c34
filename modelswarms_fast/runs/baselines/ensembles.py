"""What the methods have in common that combine experts by what they say rather than by their weights."""

from __future__ import annotations

from dataclasses import replace

from modelswarms_fast.engines.ensemble.engine import EnsembleEngine, Fuse, Member, Route
from modelswarms_fast.engines.transformers import TransformersEngine
from modelswarms_fast.evaluation.early_stopping import Scores
from modelswarms_fast.evaluation.evaluator import Evaluator
from modelswarms_fast.runs.experiment import Experiment


class Ensemble:
    """The experts of an experiment as an ensemble, with a base model of its own beside the experiment's engine."""

    def __init__(self, experiment: Experiment, fuse: Fuse) -> None:
        dtype = str(experiment.engine.dtype).removeprefix("torch.")
        longest = experiment.engine.max_model_len
        experts = replace(experiment.experts, combine="factors")  # each serves alone, in the rank that it has
        model = TransformersEngine(experiment.base_folder, experts, dtype=dtype, max_model_len=longest)
        self.engine = EnsembleEngine([Member(model, row) for row in experts.rows], fuse=fuse)
        self._experiment, self._evaluator = experiment, Evaluator(self.engine, experiment.utility)

    def scores(self, route: Route, split: str) -> Scores:
        """Scores on each example of a split with the coefficients that `route` gives each prompt.

        The experiment counts a prompt for each expert that has read it.
        """
        before, spent = self.engine.passes, self._experiment.evaluator.spent
        self.engine.load_route(0, route)
        scores = self._evaluator.score_loaded(split)
        spent.prompts += self.engine.passes - before
        return scores

    def dev(self, route: Route) -> float:
        """Utility on dev."""
        return self._experiment.utility_of("dev", self.scores(route, "dev"))
