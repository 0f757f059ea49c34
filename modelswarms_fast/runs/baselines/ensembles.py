"""What the methods have in common that combine experts by what they say rather than by their weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from modelswarms_fast.engines.protocol import Engine
from modelswarms_fast.engines.ensemble.engine import EnsembleEngine, Fuse, Member, Route
from modelswarms_fast.engines.transformers import TransformersEngine
from modelswarms_fast.evaluation.evaluator import Evaluator
from modelswarms_fast.evaluation.early_stopping import Scores
from modelswarms_fast.runs.experiment import Experiment


class Ensemble:
    """The experts of an experiment as an ensemble, beside the experiment's engine: a second base model is loaded for it."""

    def __init__(self, experiment: Experiment, fuse: Fuse) -> None:
        dtype = str(experiment.engine.dtype).removeprefix("torch.")
        longest = experiment.engine.max_model_len
        model = TransformersEngine(experiment.base_folder, experiment.experts, dtype=dtype, max_model_len=longest)
        self.engine = EnsembleEngine([Member(model, row) for row in experiment.experts.rows], fuse=fuse)
        self._session, self._evaluator = experiment, Evaluator(self.engine, experiment.utility)

    def scores(self, route: Route, split: str) -> Scores:
        """Scores on each example of a split with the coefficients that `route` gives each prompt.

        The experiment counts a prompt for each expert that has read it.
        """
        before, spent = self.engine.passes, self._session.evaluator.spent
        tally = self._evaluator.score_population(_Routed(route), [0], split)[0]
        spent.prompts += self.engine.passes - before
        return tally.known

    def dev(self, route: Route) -> float:
        """Utility on dev."""
        return self._session.utility_of("dev", self.scores(route, "dev"))


class _Routed:
    """One position whose coefficients depend on the prompt."""

    def __init__(self, route: Route) -> None:
        self._route = route

    def key(self, particle: int) -> bytes | None:
        return None

    def load(self, engine: Engine, slot: int, particle: int) -> None:
        assert isinstance(engine, EnsembleEngine)
        engine.load_route(slot, self._route)

    def row(self, particle: int) -> torch.Tensor:
        raise NotImplementedError("a route is no row")

    def prefetch(self, particles: Sequence[int]) -> None:
        pass
