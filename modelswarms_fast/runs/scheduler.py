"""Trials side by side on one engine, so that it never waits for one of them.

The particles of all trials that are under way share the engine's slots and batches. When the last particle of one trial
is scored, that trial tells, promotes, writes its line and moves in a thread of its own, while the engine works on the
particles of the others. A trial by itself does the same without a thread.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from functools import partial
from typing import Protocol

import torch

from modelswarms_fast.evaluation.early_stopping import PartialScores
from modelswarms_fast.evaluation.evaluator import Evaluator
from modelswarms_fast.evaluation.racing import Limits
from modelswarms_fast.records.progress import Interrupted, Progress
from modelswarms_fast.records.score_file import Visit
from modelswarms_fast.runs.trial import INTERRUPTED, Trial
from modelswarms_fast.weights.population import Particle


class Trials(Protocol):
    """Where a scheduler gets its trials from."""

    def admit(self) -> Callable[[], Trial] | None:
        """What opens the next trial, if one may begin now."""

    def finish(self, trial: Trial) -> None:
        """A trial has ended; called in the thread of its moves."""

    def ended(self, trial: Trial) -> None:
        """A trial has ended and is finished; called in the scheduler's thread."""

    def stop(self) -> str | None:
        """Why trials are to stop after their iteration; None: they go on."""


class Scheduler:
    """Runs the trials that it is given until there are no more."""

    def __init__(
        self,
        evaluator: Evaluator,
        trials: Trials,
        *,
        experts: Sequence[PartialScores] | None = None,
        progress: Progress | None = None,
        alone: bool = False,
    ) -> None:
        """`experts`: their scores on dev, shared by all trials. `alone`: there is never more than one trial at once,
        and it moves in this thread."""
        self._evaluator, self._trials, self._experts, self._progress = evaluator, trials, experts, progress
        self._pool = None if alone else ThreadPoolExecutor(1, "moves")
        self._jobs: list[Future[tuple[Trial, dict[int, Particle]]]] = []
        self._under_way: list[Trial] = []
        self._owners: dict[int, tuple[Trial, int]] = {}
        self._limits: dict[int, Limits] = {}
        self._visits: dict[int, Visit] = {}
        self._numbers = itertools.count()

    def run(self) -> None:
        """Run them.

        Raises:
            KeyboardInterrupt: the user stopped the run before a trial had scored its initial particles.
        """
        try:
            with closing(self._evaluator.stream("dev", self._arrivals, self._limits, self._visits)) as stream:
                told = self._evaluator.spent.prompts
                for number, scores in stream:
                    self._limits.pop(number, None)
                    self._visits.pop(number)
                    trial, particle = self._owners.pop(number)
                    if trial.collect(particle, scores):
                        self._begin(partial(self._advanced, trial))
                    elif self._progress is not None:
                        prompts, told = self._evaluator.spent.prompts - told, self._evaluator.spent.prompts
                        self._progress.particle(prompts)
        except Interrupted:
            for trial in self._under_way:
                if not trial.has_a_best:
                    raise KeyboardInterrupt from None  # nothing has been found yet
                trial.interrupt()
                self._trials.finish(trial)
                self._trials.ended(trial)
        finally:
            for job in self._jobs:
                job.cancel()
            if self._pool is not None:
                self._pool.shutdown()

    def _stop(self) -> str | None:
        if self._progress is not None and self._progress.asked:
            return INTERRUPTED
        return self._trials.stop()

    def _begin(self, move: Callable[[], tuple[Trial, dict[int, Particle]]]) -> None:
        """Have a trial move, here or in the thread for it."""

        def job() -> tuple[Trial, dict[int, Particle]]:
            trial, wanted = move()
            if trial.stopped is not None:
                self._trials.finish(trial)
            elif self._pool is not None and self._evaluator.engine.device.type == "cuda":
                # The engine reads these rows from another thread, perhaps on another stream.
                torch.cuda.current_stream(self._evaluator.engine.device).synchronize()
            return trial, wanted

        if self._pool is not None:
            self._jobs.append(self._pool.submit(job))
            return
        done: Future[tuple[Trial, dict[int, Particle]]] = Future()
        done.set_result(job())
        self._jobs.append(done)

    def _arrivals(self, idle: bool) -> Mapping[int, Particle]:
        """Particles to score next; waits for some if the engine has nothing to do."""
        found: dict[int, Particle] = {}
        while True:
            while (opening := self._trials.admit()) is not None:
                self._begin(partial(self._opened, opening))
            if not self._jobs:
                return found
            done, _ = wait(self._jobs, None if idle and not found else 0, FIRST_COMPLETED)
            for job in [job for job in self._jobs if job in done]:
                self._jobs.remove(job)
                found.update(self._take_in(*job.result()))
            if not done:
                return found

    def _opened(self, opening: Callable[[], Trial]) -> tuple[Trial, dict[int, Particle]]:
        trial = opening()
        self._under_way.append(trial)
        return trial, trial.begin(self._experts, self._stop)

    def _advanced(self, trial: Trial) -> tuple[Trial, dict[int, Particle]]:
        return trial, trial.advance(self._stop)

    def _take_in(self, trial: Trial, wanted: dict[int, Particle]) -> dict[int, Particle]:
        """Number the particles of a trial, or take leave of it if it has ended."""
        if trial.stopped is not None:
            self._under_way.remove(trial)
            self._trials.ended(trial)
        numbered = {}
        for particle, candidate in wanted.items():
            number = particle if self._pool is None else next(self._numbers)
            self._owners[number] = (trial, particle)
            self._visits[number] = trial.name, trial.loop.swarm.iteration, particle
            if trial.loop.limits is not None:
                self._limits[number] = trial.loop.limits[particle]
            numbered[number] = candidate
        return numbered


class _One:
    """One trial."""

    def __init__(self, trial: Trial) -> None:
        self._left = [trial]

    def admit(self) -> Callable[[], Trial] | None:
        return self._left.pop if self._left else None

    def finish(self, trial: Trial) -> None:
        pass

    def ended(self, trial: Trial) -> None:
        pass

    def stop(self) -> str | None:
        return None


def run_alone(trial: Trial, evaluator: Evaluator, progress: Progress | None = None) -> None:
    """Run one trial to its end. Raises as `Scheduler.run`."""
    Scheduler(evaluator, _One(trial), progress=progress, alone=True).run()
