"""What the methods have in common that combine experts by what they say rather than by their weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from modelswarms_fast.engines.protocol import Engine
from modelswarms_fast.engines.ensemble.engine import EnsembleEngine, Fuse, Member, Route
from modelswarms_fast.engines.transformers import TransformersEngine
from modelswarms_fast.evaluation.evaluator import Evaluator
from modelswarms_fast.evaluation.early_stopping import Scores
from modelswarms_fast.runs.experiment import Session


class Ensemble:
    """The experts of a session as an ensemble, beside the session's engine: a second base model is loaded for it."""

    def __init__(self, session: Session, fuse: Fuse) -> None:
        dtype = str(session.engine.dtype).removeprefix("torch.")
        longest = session.engine.max_model_len
        model = TransformersEngine(session.base_folder, session.experts, dtype=dtype, max_model_len=longest)
        self.engine = EnsembleEngine([Member(model, row) for row in session.experts.rows], fuse=fuse)
        self._session, self._evaluator = session, Evaluator(self.engine, session.utility)

    def scores(self, route: Route, split: str) -> Scores:
        """Scores on each example of a split with the coefficients that `route` gives each prompt.

        The session counts a prompt for each expert that has read it.
        """
        before, spent = self.engine.passes, self._session.evaluator.spent
        tally = self._evaluator.rows(_Routed(route), [0], split)[0]
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
