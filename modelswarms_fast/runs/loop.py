"""The loop of one swarm, an iteration at a time: ask, update, score, tell, promote."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import numpy as np

from modelswarms_fast.evaluation.early_stopping import DecisionBounds, DifficultyOrder, PartialScores
from modelswarms_fast.evaluation.evaluator import Evaluator
from modelswarms_fast.evaluation.objectives import Utility
from modelswarms_fast.evaluation.racing import Limits, Race
from modelswarms_fast.policies import Policy
from modelswarms_fast.records.progress import log
from modelswarms_fast.swarm import AnySwarm, Bools, Floats, Moves
from modelswarms_fast.weights.population import Population

S = TypeVar("S", bound=AnySwarm)


class SearchLoop(Generic[S]):
    """The loop of one swarm, for whoever scores its particles.

    while True:
        found = ...                     # scores of loop.wanted on dev, within loop.limits
        line = loop.tell(found)
        if loop.swarm.stopped(): break
        loop.move()
    """

    def __init__(
        self,
        swarm: S,
        population: Population,
        utility: Utility,
        order: DifficultyOrder | None = None,
        policy: Policy | None = None,
        race: Race | None = None,
    ) -> None:
        """`order`: stop early, and learn here which examples to ask for first. `policy`: what is asked for the next
        positions before the swarm is; None: the particles move as the swarm says. `race`: stop the hopeless."""
        self.swarm, self.population = swarm, population
        self._utility, self._order = utility, order
        self._policy, self._race = policy, race
        self._moves: Moves | None = None  # the initial particles are scored where they are
        self._placed = False
        self.policy_seconds: float | None = None if policy is None else 0.0
        """What the policy has taken up to now; None without one."""
        self.initial: Floats = swarm.utilities
        """[P] utilities of the initial particles, once they are told."""
        self.wanted: list[int] = list(range(swarm.particles))
        """Particles to score."""
        self.limits: Mapping[int, Limits] | None = None
        """What their utilities are compared with; None: every example is wanted."""

    @property
    def restarts(self) -> Bools:
        """[P] True for particles that have restarted in the last moves."""
        return np.zeros(self.swarm.particles, dtype=np.bool_) if self._moves is None else self._moves.restarts

    def move(self, recorded: Sequence[Sequence[float]] | None = None) -> None:
        """Ask for the next positions, and move the particles there.

        `recorded` [P, n]: where a run that goes on has placed them. A policy on another processor, or of another
        version, may ask for others: what was evaluated stands.
        """
        moves = self._moves = self.swarm.ask()
        mixtures = None
        if self._policy is not None:
            with self._timed():
                mixtures = self._policy.ask()
        self._placed = mixtures is not None
        if mixtures is not None:
            if recorded is not None and not np.array_equal(mixtures, recorded):
                log.warning(
                    "Iteration %d: the policy asks for other positions than before; those that were evaluated stand.",
                    moves.iteration,
                )
                mixtures = np.array(recorded, dtype=np.float64)
            self.population.place(mixtures)
        else:
            self.population.update(moves.restarts, moves.coefficients, moves.step_length, moves.iteration)
        self.wanted = np.flatnonzero(moves.evaluate).tolist()
        if self._order is not None:
            self.limits = limits_of(self.swarm, self._utility, self._order)
        elif self._race is not None and self._race.limits is not None:
            self.limits = dict.fromkeys(range(self.swarm.particles), self._race.limits)

    def tell(self, found: Mapping[int, PartialScores]) -> dict[str, Any]:
        """Take in the scores, promote, and return what happened: a line of the history without its cost."""
        swarm, moves = self.swarm, self._moves
        if self._order is not None:
            self._order.learn({particle: one.scores for particle, one in found.items()})
        utilities, bounded = swarm.utilities.copy(), []
        for particle, one in found.items():
            _, utilities[particle] = one.bounds
            if not one.complete:
                bounded.append({"particle": particle} | one.facts)
        update = swarm.tell(utilities)
        if self._race is not None and update.global_best is not None:
            self._race.follow(found[update.global_best].scores, float(utilities[update.global_best]))
        self.population.promote(update.improved, update.global_best, update.global_worst)
        if moves is None:
            self.initial = utilities
            self.population.start(swarm.initial_velocities(swarm.initial_positions()))
        everyone = range(swarm.particles)
        mixtures = self.population.mixtures()
        if self._policy is not None:
            assert mixtures is not None
            with self._timed():
                self._policy.tell(mixtures, utilities)
        moved = None if self._placed else moves
        return {
            "iteration": swarm.iteration,
            "utilities": utilities,
            "evaluated": [particle in found for particle in everyone],
            "bounded": sorted(bounded, key=lambda one: one["particle"]),
            "without_score": [particle for particle in sorted(found) if math.isnan(utilities[particle])],
            "restarts": [] if moved is None else np.flatnonzero(moved.restarts),
            "improved": np.flatnonzero(update.improved),
            **swarm.bests(),
            "step_length": None if moved is None else moved.step_length,
            "global_best_mixture": self.population.global_best_mixture(),
            "mixtures": mixtures,
            "scores": [_to_json(found[particle].scores) if particle in found else None for particle in everyone],
        }

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Count the seconds of the block as the policy's."""
        start = time.perf_counter()
        yield
        self.policy_seconds = (self.policy_seconds or 0.0) + time.perf_counter() - start


class Meter:
    """What each iteration of a search costs that has the engine for itself."""

    def __init__(self, evaluator: Evaluator, *, policy: bool = False) -> None:
        """`policy`: whether there are seconds of a policy."""
        self._spent, self._trace = evaluator.spent, evaluator.trace
        self._lost: list[str] = getattr(evaluator.engine, "lost", [])
        """Sentences on engines that have ended, which a pool goes on without."""
        self._before = evaluator.spent.copy()
        own = ("update", "policy") if policy else ("update",)
        self._seconds = dict.fromkeys((*own, *self._before.seconds), 0.0)
        self._policy = 0.0
        self._total = self._worked = 0.0
        # An iteration begins where the last one was measured, before its line was written.
        self._mark()

    def lap(self, update_seconds: float, policy_seconds: float | None = None) -> dict[str, Any]:
        """The cost of the iteration that ends now, `update_seconds` of it for the update.

        `policy_seconds`: of the policy up to now, those of earlier iterations among them.
        """
        spent, busy = self._spent.since(self._lap), self._trace.busy() - self._busy
        total = time.perf_counter() - self._began
        line: dict[str, Any] = {
            "prompts": spent.prompts,
            "tokens": spent.tokens,
            "engine_idle_share": self._trace.idle(busy, total),
            "seconds": {"update": update_seconds} | spent.seconds | {"total": total},
        }
        if self._lost:
            line["engines_lost"] = list(self._lost)
            self._lost.clear()
        if policy_seconds is not None:
            line["seconds"]["policy"] = policy_seconds - self._policy
            self._policy = policy_seconds
        self._mark()
        self._add(line)
        return line

    def skip(self, line: Mapping[str, Any], policy_seconds: float | None = None) -> None:
        """An iteration was told again that an earlier call has measured: its line says what it took."""
        self._policy = policy_seconds or 0.0
        self._mark()
        self._add(line)

    def total(self) -> dict[str, Any]:
        """The cost of all iterations so far, those of earlier calls included."""
        spent = self._spent.since(self._before)
        return {
            "evaluations": spent.evaluations,
            "prompts": spent.prompts,
            "tokens": spent.tokens,
            "reused_scores": spent.reused,
            "skipped_examples": spent.skipped,
            "engine_idle_share": 1 - self._worked / max(self._total, 1e-9),
            "prompts_per_second": spent.prompts / max(sum(self._seconds.values()), 1e-9),
            "seconds": dict(self._seconds),
        }

    def _mark(self) -> None:
        self._lap, self._began, self._busy = self._spent.copy(), time.perf_counter(), self._trace.busy()

    def _add(self, line: Mapping[str, Any]) -> None:
        seconds = line.get("seconds") or {}  # without it the iteration was not measured
        for phase in self._seconds:
            self._seconds[phase] += seconds.get(phase, 0.0)
        self._total += seconds.get("total", 0.0)
        self._worked += (1 - line.get("engine_idle_share", 1.0)) * seconds.get("total", 0.0)


def _to_json(scores: Sequence[float | None]) -> list[float | str | None]:
    """JSON has no NaN, and null is a score that is missing."""
    return ["nan" if score is not None and math.isnan(score) else score for score in scores]


def limits_of(swarm: AnySwarm, utility: Utility, order: DifficultyOrder | None = None) -> dict[int, DecisionBounds]:
    """What the next utilities are compared with, by particle."""
    assert utility.score_range is not None
    worst, bests = swarm.global_worst, swarm.personal_best.tolist()
    orders = [None if order is None else order.order(particle) for particle in range(len(bests))]
    return {
        particle: DecisionBounds(best, worst, *utility.score_range, examples)
        for particle, (best, examples) in enumerate(zip(bests, orders, strict=True))
    }
