"""Several searches on one engine at once, so that it never waits for one of them.

The particles of all searches that are under way share the engine's slots and batches. When the last particle of one
search is scored, that search tells, promotes, writes its line and moves in a thread of its own, while the engine works
on the particles of the others. The experts are evaluated once for all.

A search that was cut goes on: what its history.jsonl holds is told again instead of being evaluated. Its numbers are
drawn by seed, iteration and particle, and its moves repeat to the bit, so it arrives where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from modelswarms_fast.engines.protocol import Engine
from modelswarms_fast.errors import InputError
from modelswarms_fast.records.run_folder import SUMMARY, read_json
from modelswarms_fast.runs.trial import TrialSpec, Search
from modelswarms_fast.evaluation.early_stopping import DecisionBounds, PartialScores
from modelswarms_fast.runs.experiment import Experiment

SEARCHES = "searches"


class _Shared:
    """The particles of all searches, by numbers that are given once."""

    def __init__(self) -> None:
        self.of: dict[int, tuple[Search, int]] = {}
        self.limits: dict[int, DecisionBounds] = {}
        self._next = 0

    def add(self, search: Search, particles: Iterable[int]) -> list[int]:
        """Numbers for these particles where they are now."""
        numbers = []
        for particle in particles:
            self.of[self._next] = (search, particle)
            if search.steps.limits is not None:
                self.limits[self._next] = search.steps.limits[particle]
            numbers.append(self._next)
            self._next += 1
        return numbers

    def remove(self, number: int) -> tuple[Search, int]:
        self.limits.pop(number, None)
        return self.of.pop(number)

    def key(self, number: int) -> bytes | None:
        search, particle = self.of[number]
        return search.particles.key(particle)

    def load(self, engine: Engine, slot: int, number: int) -> None:
        search, particle = self.of[number]
        search.particles.load(engine, slot, particle)

    def row(self, number: int) -> torch.Tensor:
        search, particle = self.of[number]
        return search.particles.row(particle)

    def prefetch(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            search, particle = self.of[number]
            search.particles.prefetch([particle])


def run_searches(
    experiment: Experiment,
    planned: Sequence[TrialSpec],
    folder: Path,
    *,
    inputs: Mapping[str, Any],
    at_once: int = 2,
    budget: int | None = None,
    minutes: float | None = None,
    ended: Callable[[dict[str, Any]], None] = lambda record: None,
) -> list[dict[str, Any]]:
    """Run searches on an experiment that has started, each in a folder of its own in `folder`/searches.

    A search whose folder holds a summary.json has ended and is not run again.

    Args:
        inputs: what all searches share, for their config.json and summary.json.
        at_once: searches under way. One more than the engine needs to be full is enough.
        budget: evaluations of all searches together, those of the experts (once) and of earlier calls among them. A
            search begins when all before it have left it enough for an iteration, with as many iterations as fit; so
            what is run depends on the searches alone, not on which was faster, and is never more.
        minutes: of this call; then no search begins any more, and those under way stop after their iteration.
        ended: told of each search that ends, also those that had.

    Returns:
        The summaries of the searches that have ended, in their order.

    Raises:
        InputError: a folder holds something else, or the budget is too small for one search.
    """
    records: dict[str, dict[str, Any]] = {}
    clock = time.perf_counter()

    def late() -> bool:
        return minutes is not None and time.perf_counter() - clock >= 60 * minutes

    queue = list(planned)
    spent = len(experiment.experts.names)  # by searches that have ended
    running: dict[str, tuple[int, Search | None]] = {}  # with the most that each can still come to

    def admit() -> TrialSpec | None:
        """The next search, if it may begin now."""
        nonlocal spent
        while queue and (path := folder / SEARCHES / queue[0].name / SUMMARY).exists():
            one = queue.pop(0)
            records[one.name] = read_json(path)
            spent += records[one.name]["evaluations"]
            ended(records[one.name])
        if not queue or late() or len(running) >= at_once:
            return None
        config = queue[0].config
        blends = config.particles - len(queue[0].first or experiment.experts.names)
        whole = blends + config.particles * config.iterations
        if budget is not None:
            left = budget - spent
            if running and left - sum(most for most, _ in running.values()) < whole:
                return None  # what those under way will leave is not known yet
            fits = (left - blends) // config.particles
            if fits < 1:
                queue.clear()
                return None
            config = replace(config, iterations=min(config.iterations, fits))
            whole = blends + config.particles * config.iterations
        one = replace(queue.pop(0), config=config)
        running[one.name] = (whole, None)
        return one

    shared = _Shared()
    waiting: dict[str, set[int]] = {}
    tallies: dict[str, dict[int, PartialScores]] = {}
    jobs: dict[Future[tuple[Search, dict[int, PartialScores], list[int]]], None] = {}
    open_searches: list[Search] = []

    def begin(one: TrialSpec) -> tuple[Search, dict[int, PartialScores], list[int]]:
        search = Search(experiment, one, folder / SEARCHES / one.name, inputs)
        open_searches.append(search)
        known, wanted = search.begin(experts, late)
        return search, known, settled(wanted)

    def advance(search: Search, found: dict[int, PartialScores]) -> tuple[Search, dict[int, PartialScores], list[int]]:
        return search, {}, settled(search.advance(found, late))

    def settled(wanted: list[int]) -> list[int]:
        """Once their rows are written: the engine reads them from another thread, perhaps on another stream."""
        if experiment.engine.device.type == "cuda":
            torch.cuda.current_stream(experiment.engine.device).synchronize()
        return wanted

    def take_in(search: Search, known: dict[int, PartialScores], wanted: list[int]) -> list[int]:
        """What a job has come to: particles to evaluate, or the end of its search."""
        nonlocal spent
        name = search.planned.name
        if search.record is not None:
            records[name] = search.record
            spent += search.record["evaluations"]
            del running[name]
            search.close()
            open_searches.remove(search)
            ended(search.record)
            return []
        if not wanted:  # all of its particles are experts
            jobs[pool.submit(advance, search, known)] = None
            return []
        tallies[name], waiting[name] = dict(known), set(wanted)
        return shared.add(search, wanted)

    def arrivals(idle: bool) -> list[int]:
        """Population to evaluate next; waits for some if the engine has nothing to do."""
        numbers: list[int] = []
        while True:
            while (one := admit()) is not None:
                jobs[pool.submit(begin, one)] = None
            if not jobs:
                return numbers
            done, _ = wait(jobs, None if idle and not numbers else 0, FIRST_COMPLETED)
            for job in [job for job in jobs if job in done]:
                del jobs[job]
                numbers += take_in(*job.result())
            if not done:
                return numbers

    with ThreadPoolExecutor(1, "moves") as pool:
        try:
            experts = [_whole(experiment, scores) for scores in experiment.initial_scores]
            with closing(experiment.evaluator.stream(shared, "dev", arrivals, shared.limits)) as stream:
                for number, tally in stream:
                    search, particle = shared.remove(number)
                    name = search.planned.name
                    tallies[name][particle] = tally
                    waiting[name].remove(particle)
                    if not waiting[name]:
                        jobs[pool.submit(advance, search, tallies.pop(name))] = None
        finally:
            for job in jobs:
                job.cancel()
            pool.shutdown()
            for search in open_searches:
                search.close()
    if not records and budget is not None and not late():
        raise InputError(f"the budget is {budget} evaluations, too few for an iteration of one search; give more")
    return [records[one.name] for one in planned if one.name in records]


def _whole(experiment: Experiment, scores: Sequence[float]) -> PartialScores:
    tally = experiment.evaluator.tally("dev")
    tally.scores = list(scores)
    return tally
