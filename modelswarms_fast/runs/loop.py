"""The loop: ask, update, load, generate, score, tell, promote."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from modelswarms_fast.evaluation.evaluator import Evaluator
from modelswarms_fast.weights.population import Population
from modelswarms_fast.records.progress import Interrupted, Progress
from modelswarms_fast.evaluation.early_stopping import DifficultyOrder, DecisionBounds, PartialScores
from modelswarms_fast.swarm import Floats, Moves, Swarm
from modelswarms_fast.evaluation.objectives import Utility


class Record(Protocol):
    """What takes one line an iteration: the journal of a run, or a list."""

    def append(self, line: dict[str, Any], /) -> None:
        """Keep the line."""


class SearchLoop:
    """The loop of one swarm, an iteration at a time, for whoever evaluates its particles.

    while True:
        tallies = ...                   # of steps.wanted on dev, within steps.limits
        line = steps.tell(tallies)
        if steps.swarm.stopped(): break
        steps.move()
    """

    def __init__(
        self, swarm: Swarm, particles: Population, utility: Utility, expected: DifficultyOrder | None = None
    ) -> None:
        """`expected`: stop early, and learn here which examples to ask for first."""
        self.swarm, self.particles = swarm, particles
        self._utility, self._expected = utility, expected
        self._moves: Moves | None = None  # the initial particles are evaluated where they are
        self.initial: Floats = swarm.utilities
        """[P] utilities of the initial particles, once they are told."""
        self.wanted: list[int] = list(range(swarm.config.particles))
        """Population to evaluate."""
        self.limits: dict[int, DecisionBounds] | None = None
        """What their utilities are compared with; None: every example is wanted."""

    def move(self) -> None:
        """Moves, and move the particles."""
        moves = self._moves = self.swarm.ask()
        self.particles.update(moves)
        self.wanted = np.flatnonzero(moves.evaluate).tolist()
        self.limits = None if self._expected is None else limits_of(self.swarm, self._utility, self._expected)

    def tell(self, tallies: Mapping[int, PartialScores]) -> dict[str, Any]:
        """Take in what the evaluation found, promote, and say what happened: a line of the history but its cost."""
        swarm, moves = self.swarm, self._moves
        if self._expected is not None:
            self._expected.learn({particle: tally.scores for particle, tally in tallies.items()})
        utilities, bounded = swarm.utilities.copy(), []
        for particle, tally in tallies.items():
            lower, utilities[particle] = tally.bounds
            if not tally.complete:
                bounds = {"lower": lower, "upper": utilities[particle], "examples": len(tally.known)}
                bounded.append({"particle": particle} | bounds)
        update = swarm.tell(utilities)
        self.particles.promote(update)
        if moves is None:
            self.initial = utilities
            self.particles.start(swarm)
        everyone = range(swarm.config.particles)
        return {
            "iteration": swarm.iteration,
            "utilities": utilities,
            "evaluated": [particle in tallies for particle in everyone],
            "bounded": sorted(bounded, key=lambda one: one["particle"]),
            "restarts": [] if moves is None else np.flatnonzero(moves.restarts),
            "improved": np.flatnonzero(update.improved),
            **swarm.bests(),
            "step_length": None if moves is None else moves.step_length,
            "global_best_mixture": self.particles.global_best_mixture(),
            "mixtures": self.particles.mixtures(),
            "scores": [_written(tallies[particle].scores) if particle in tallies else None for particle in everyone],
        }


def run_iterations(
    swarm: Swarm,
    particles: Population,
    evaluator: Evaluator,
    journal: Record,
    bar: Progress,
    *,
    stop_early: bool = False,
) -> tuple[Floats, float, str, float]:
    """Run a swarm until it stops; the journal gets a line an iteration.

    Returns the initial utilities [P], the seconds of all updates, why it stopped, and the idle share of the engine.
    """
    steps = SearchLoop(swarm, particles, evaluator.utility, evaluator.expectation("dev") if stop_early else None)
    update_seconds, first = 0.0, True
    trace = evaluator.trace
    began, busy_before = time.perf_counter(), trace.busy()
    mark, busy = began, busy_before  # an iteration begins where the last one was measured, before its line was written

    def result(stopped: str) -> tuple[Floats, float, str, float]:
        return steps.initial, update_seconds, stopped, trace.idle(busy - busy_before, mark - began)

    while True:
        before = evaluator.spent.copy()
        trace.now = {"iteration": swarm.iteration + (not first)}
        start = time.perf_counter()
        if not first:
            with trace.span("update"):
                steps.move()
        updated = time.perf_counter() - start
        try:
            tallies = evaluator.score_population(particles, steps.wanted, "dev", bar.particle, steps.limits)
        except Interrupted:
            if first:
                raise KeyboardInterrupt from None  # nothing has been found yet
            return result("interrupted")
        first = False
        trace.now = {"iteration": swarm.iteration}
        with trace.span("tell"):
            line = steps.tell(tallies)
        spent = evaluator.spent.since(before)
        update_seconds += updated
        now, working = time.perf_counter(), trace.busy()
        total, idle = now - mark, trace.idle(working - busy, now - mark)
        mark, busy = now, working
        cost = {
            "prompts": spent.prompts,
            "tokens": spent.tokens,
            "engine_idle_share": idle,
            "seconds": {"update": updated} | spent.seconds | {"total": total},
        }
        with trace.span("journal"):
            journal.append(line | cost)
        bar.iteration(swarm.iteration, swarm.global_best, evaluator.spent.prompts)
        if stopped := ("interrupted" if bar.asked else swarm.stopped()):
            return result(stopped)


def _written(scores: Sequence[float | None]) -> list[float | str | None]:
    """JSON has no NaN, and null is a score that is missing."""
    return ["nan" if score is not None and math.isnan(score) else score for score in scores]


def limits_of(swarm: Swarm, utility: Utility, expected: DifficultyOrder | None = None) -> dict[int, DecisionBounds]:
    """What the next utilities are compared with, by particle."""
    assert utility.score_range is not None
    worst, bests = swarm.global_worst, swarm.personal_best.tolist()
    orders = [None if expected is None else expected.order(particle) for particle in range(len(bests))]
    return {
        particle: DecisionBounds(best, worst, *utility.score_range, order)
        for particle, (best, order) in enumerate(zip(bests, orders, strict=True))
    }
