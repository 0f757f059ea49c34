"""The loop: plan, update, load, generate, score, tell, promote."""

from __future__ import annotations

import time
from typing import Any, Protocol

import numpy as np

from modelswarms_fast.evaluate import Evaluator
from modelswarms_fast.particles import Particles
from modelswarms_fast.progress import Interrupted, Progress
from modelswarms_fast.scores import Limits
from modelswarms_fast.swarm import Floats, Plan, Swarm
from modelswarms_fast.utilities import Utility


class Record(Protocol):
    """What takes one line an iteration: the journal of a run, or a list."""

    def append(self, line: dict[str, Any], /) -> None:
        """Keep the line."""


def run_iterations(
    swarm: Swarm,
    particles: Particles,
    evaluator: Evaluator,
    journal: Record,
    bar: Progress,
    *,
    stop_early: bool = False,
) -> tuple[Floats, float, str, float]:
    """Run a swarm until it stops; the journal gets a line an iteration.

    Returns the initial utilities [P], the seconds of all updates, why it stopped, and the idle share of the engine.
    """
    plan: Plan | None = None  # the initial particles are evaluated where they are
    initial, update_seconds = swarm.utilities, 0.0
    everyone = list(range(swarm.config.particles))
    trace = evaluator.trace
    began, busy_before = time.perf_counter(), trace.busy()
    mark, busy = began, busy_before  # an iteration begins where the last one was measured, before its line was written

    def result(stopped: str) -> tuple[Floats, float, str, float]:
        return initial, update_seconds, stopped, trace.idle(busy - busy_before, mark - began)

    while True:
        before = evaluator.spent.copy()
        trace.now = {"iteration": swarm.iteration}
        start = time.perf_counter()
        if plan is not None:
            with trace.span("update"):
                particles.update(plan)
        updated = time.perf_counter() - start
        evaluated = everyone if plan is None else np.flatnonzero(plan.evaluate).tolist()
        limits = limits_of(swarm, evaluator.utility) if stop_early and plan is not None else None
        try:
            tallies = evaluator.rows(particles, evaluated, "dev", bar.particle, limits)
        except Interrupted:
            if plan is None:
                raise KeyboardInterrupt from None  # nothing has been found yet
            return result("interrupted")
        trace.now = {"iteration": swarm.iteration}
        with trace.span("tell"):
            utilities, bounded = swarm.utilities.copy(), []
            for particle, tally in tallies.items():
                lower, utilities[particle] = tally.bounds
                if not tally.complete:
                    bounds = {"lower": lower, "upper": utilities[particle], "examples": len(tally.known)}
                    bounded.append({"particle": particle} | bounds)
            told = swarm.tell(utilities)
            particles.promote(told)
            if plan is None:
                initial = utilities
                particles.start(swarm)
        spent = evaluator.spent.since(before)
        update_seconds += updated
        now, working = time.perf_counter(), trace.busy()
        total, idle = now - mark, trace.idle(working - busy, now - mark)
        mark, busy = now, working
        with trace.span("journal"):
            journal.append(
                {
                    "iteration": swarm.iteration,
                    "utilities": utilities,
                    "evaluated": [particle in tallies for particle in everyone],
                    "bounded": sorted(bounded, key=lambda one: one["particle"]),
                    "restarts": [] if plan is None else np.flatnonzero(plan.restarts),
                    "improved": np.flatnonzero(told.improved),
                    **swarm.bests(),
                    "step_length": None if plan is None else plan.step_length,
                    "global_best_mixture": particles.global_best_mixture(),
                    "prompts": spent.prompts,
                    "tokens": spent.tokens,
                    "engine_idle_share": idle,
                    "seconds": {"update": updated} | spent.seconds | {"total": total},
                }
            )
        bar.iteration(swarm.iteration, swarm.global_best, evaluator.spent.prompts)
        if stopped := ("interrupted" if bar.asked else swarm.stopped()):
            return result(stopped)
        plan = swarm.plan()


def limits_of(swarm: Swarm, utility: Utility) -> dict[int, Limits]:
    """What the next utilities are compared with, by particle."""
    assert utility.score_range is not None
    worst, bests = swarm.global_worst, swarm.personal_best.tolist()
    return {particle: Limits(best, worst, *utility.score_range) for particle, best in enumerate(bests)}
