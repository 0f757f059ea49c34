"""Many searches on one engine, each in a folder of its own, within a budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.early_stopping import PartialScores
from modelswarms_fast.records import checks, schemas
from modelswarms_fast.records.run_folder import CONFIG, SUMMARY, read_json
from modelswarms_fast.runs.experiment import Experiment
from modelswarms_fast.runs.scheduler import Scheduler
from modelswarms_fast.runs.started import RAISED, read_config
from modelswarms_fast.runs.trial import BUDGET, Trial, TrialSpec
from modelswarms_fast.runs.trial_folder import begin_trial, close_trial, finish_trial, open_trial

SEARCHES = "searches"


def run_searches(
    experiment: Experiment,
    specs: Sequence[TrialSpec],
    folder: Path,
    *,
    inputs: Mapping[str, Any],
    at_once: int = 2,
    budget: int | None = None,
    minutes: float | None = None,
    ended: Callable[[dict[str, Any]], None] = lambda record: None,
) -> list[dict[str, Any]]:
    """Run searches on an experiment that has started, each in a folder of its own in `folder`/searches.

    A search that has ended is not run again, unless it ended for want of budget and there is more now, or iterations or
    patience were raised.

    Args:
        inputs: what all searches share, for their config.json and summary.json.
        at_once: searches under way. One more than the engine needs to be full is enough.
        budget: evaluations of all searches together, those of the experts (once) and of earlier calls among them. A
            search begins when all before it have left it enough for an iteration, with as many iterations as fit. What
            is run depends on the searches alone, not on which was faster, and is never more.
        minutes: of this call; then no search begins any more, and those under way stop after their iteration.
        ended: told of each search that ends, also those that had.

    Returns:
        The summaries of the searches that have ended, in their order.

    Raises:
        InputError: a folder holds something else, or the budget is too small for one search.
    """
    queue = _Queue(experiment, specs, folder / SEARCHES, inputs, at_once, budget, minutes, ended)
    try:
        experts = [_whole(experiment, scores) for scores in experiment.initial_scores]
        Scheduler(experiment.evaluator, queue, experts=experts).run()
    finally:
        queue.close()
    if not queue.records and budget is not None and not queue.late:
        raise InputError(f"the budget is {budget} evaluations, too few for an iteration of one search; give more")
    return [queue.records[one.name] for one in specs if one.name in queue.records]


class _Queue:
    """The searches that have not begun, and what those that have may still cost."""

    def __init__(
        self,
        experiment: Experiment,
        specs: Sequence[TrialSpec],
        folder: Path,
        inputs: Mapping[str, Any],
        at_once: int,
        budget: int | None,
        minutes: float | None,
        ended: Callable[[dict[str, Any]], None],
    ) -> None:
        self._experiment, self._left, self._folder, self._inputs = experiment, list(specs), folder, inputs
        self._at_once, self._budget, self._minutes, self._told = at_once, budget, minutes, ended
        self._began = time.perf_counter()
        self._spent = len(experiment.names)  # by searches that have ended
        self._most: dict[str, int] = {}  # of those under way: what each can still come to
        self._open: list[Trial] = []
        self.records: dict[str, dict[str, Any]] = {}
        """Summaries of the searches that have ended, by name."""

    @property
    def late(self) -> bool:
        """Whether the minutes are over."""
        return self._minutes is not None and time.perf_counter() - self._began >= 60 * self._minutes

    def admit(self) -> Callable[[], Trial] | None:
        """What opens the next search, if it may begin now."""
        while self._left:
            spec, room = self._left[0], self._room(self._left[0])
            if (record := self._known(spec)) is not None and not self._goes_on(record, room):
                del self._left[0]
                self.records[spec.name] = record
                self._spent += record["evaluations"]
                self._told(record)
                continue
            if self.late or len(self._most) >= self._at_once:
                return None
            if room is None:
                return None  # what those under way will leave is not known yet
            if room == 0:
                self._left.clear()
                return None
            del self._left[0]
            self._most[spec.name] = _cost(spec, self._experiment, room)
            clipped = room if room < spec.config.iterations else None
            return partial(self._opened, spec, clipped)
        return None

    def finish(self, trial: Trial) -> None:
        """Export its winner and write its summary."""
        self.records[trial.name] = finish_trial(self._experiment, trial, self._inputs)

    def ended(self, trial: Trial) -> None:
        """Free its rows, and what it has not spent."""
        record = self.records[trial.name]
        self._spent += record["evaluations"]
        del self._most[trial.name]
        close_trial(trial)
        self._open.remove(trial)
        self._told(record)

    def stop(self) -> str | None:
        """Why searches stop after their iteration."""
        return BUDGET if self.late else None

    def close(self) -> None:
        """Let go of the searches that have not ended."""
        for trial in self._open:
            close_trial(trial)

    def _opened(self, spec: TrialSpec, most: int | None) -> Trial:
        folder = self._folder / spec.name
        begin_trial(self._experiment, spec, folder, self._inputs)
        trial = open_trial(self._experiment, spec, folder, most=most)
        self._open.append(trial)
        return trial

    def _known(self, spec: TrialSpec) -> dict[str, Any] | None:
        """The summary of a search that has ended, if it was to have no more iterations than now."""
        folder = self._folder / spec.name
        if not (folder / SUMMARY).exists() or not (folder / CONFIG).exists():
            return None
        record, config = read_json(folder / SUMMARY), read_config(folder)
        if not record.get("ended") or any(config.get(name) != getattr(spec.config, name) for name in RAISED):
            return None
        checks.check(schemas.Ended, record, folder / SUMMARY)
        return record

    def _goes_on(self, record: dict[str, Any], room: int | None) -> bool:
        """Whether a search that ended for want of budget has more now."""
        return record["stopped"] == BUDGET and not self.late and (room is None or room > record["iterations"])

    def _room(self, spec: TrialSpec) -> int | None:
        """Iterations of a search that the budget allows, at most its own; 0: none; None: that is not known yet."""
        whole = max(spec.config.iterations, 1)
        if self._budget is None:
            return whole
        left = self._budget - self._spent
        if self._most and left - sum(self._most.values()) < _cost(spec, self._experiment, spec.config.iterations):
            return None
        return max(min(whole, (left - _cost(spec, self._experiment, 0)) // spec.config.particles), 0)


def _cost(spec: TrialSpec, experiment: Experiment, iterations: int) -> int:
    """The most evaluations of a search with so many iterations, those of the experts left out."""
    blends = spec.config.particles - len(spec.first or experiment.names)
    return blends + spec.config.particles * iterations


def _whole(experiment: Experiment, scores: Sequence[float]) -> PartialScores:
    found = experiment.evaluator.partial_scores("dev")
    found.scores = list(scores)
    return found
