"""Scores of particles on a split: load, generate, score, without a pause between two particles."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch

from modelswarms_fast.engines.parity_check import ParityCheck
from modelswarms_fast.engines.protocol import Completion, Engine
from modelswarms_fast.evaluation.early_stopping import (
    DecisionBounds,
    DifficultyOrder,
    PartialScores,
    ScoreCache,
    Scores,
    digest,
    longest_first,
)
from modelswarms_fast.evaluation.objectives import SPLITS, Answer, Utility
from modelswarms_fast.evaluation.requests import PendingExample, RequestTracker
from modelswarms_fast.records.trace import Trace

# Examples under way in an engine, of all its particles together, even where fewer could decide them: a step has a cost
# of its own, and an example that is dropped has cost its prompt. Measured in docs/log.md, but for GPUs.
FLOOR = 48


class Source(Protocol):
    """Positions that can be evaluated."""

    def key(self, particle: int) -> bytes | None:
        """Names the exact position; None if it is too large to be worth naming."""

    def load(self, engine: Engine, slot: int, particle: int) -> None:
        """Have the engine serve a particle from a slot."""

    def row(self, particle: int) -> torch.Tensor:
        """Weights [D] of a particle."""

    def prefetch(self, particles: Sequence[int]) -> None:
        """These are loaded next."""


class _Clock:
    """A context, several of which every particle has: made by contextlib it would take three times as long."""

    __slots__ = ("_phase", "_seconds", "_start")

    def __init__(self, seconds: dict[str, float], phase: str) -> None:
        self._seconds, self._phase = seconds, phase

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *raised: object) -> None:
        self._seconds[self._phase] += time.perf_counter() - self._start


@dataclass
class Spent:
    """What evaluation has cost so far."""

    evaluations: int = 0
    """Population that were served."""
    prompts: int = 0
    """Completed."""
    tokens: int = 0
    """Generated for them, the ends of sequences included, or looked at in a continuation."""
    reused: int = 0
    """Scores known from an earlier evaluation of the same position."""
    skipped: int = 0
    """Scores that could change no decision any more."""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("load", "generate", "score"), 0.0))

    def clock(self, phase: str) -> _Clock:
        """Add the seconds of a block to a phase."""
        return _Clock(self.seconds, phase)

    def since(self, before: Spent) -> Spent:
        """What was spent after `before` was copied."""
        seconds = {phase: total - before.seconds[phase] for phase, total in self.seconds.items()}
        return Spent(
            self.evaluations - before.evaluations,
            self.prompts - before.prompts,
            self.tokens - before.tokens,
            self.reused - before.reused,
            self.skipped - before.skipped,
            seconds,
        )

    def copy(self) -> Spent:
        """The amounts as they are now."""
        return Spent(self.evaluations, self.prompts, self.tokens, self.reused, self.skipped, dict(self.seconds))


@dataclass
class _Running:
    """A particle in a slot."""

    particle: int
    key: bytes | None
    tally: PartialScores
    waiting: deque[int]
    """Examples that have not been asked for, those of a low score first."""
    asked: dict[int, PendingExample] = field(default_factory=dict)
    """Examples that have been asked for and have no score yet."""

    def next_examples(self, floor: int) -> Iterator[int]:
        """The examples to ask for now: about as many as will be needed, but at least `floor` under way.

        Without limits that is all. With them wrong answers come first, since they keep a particle from its personal
        best; once they have, right answers, which keep it above the global worst. If hardly any would be left they are
        asked for too, since more steps for those that turn out to be needed cost more.
        """
        lows, highs = self.tally.need
        count = max(lows or highs, floor) - len(self.asked)
        if len(self.waiting) - count <= floor // 2:
            count = len(self.waiting)
        for _ in range(min(count, len(self.waiting))):
            yield self.waiting.popleft() if lows else self.waiting.pop()


@dataclass
class _Round:
    """The evaluation of some particles on a split."""

    source: Source
    split: str
    limits: Mapping[int, DecisionBounds]
    queue: list[int]
    """Population that have no slot yet."""
    running: dict[int, _Running] = field(default_factory=dict)
    """By slot."""
    busy: set[bytes | None] = field(default_factory=set)
    """Keys of what runs."""
    ended: list[PendingExample] = field(default_factory=list)
    """Have all their answers but no score yet."""
    keys: dict[int, bytes | None] = field(default_factory=dict)

    def take(self) -> tuple[int, bytes | None] | None:
        """The first of the queue whose position is not being evaluated, and its key; None if all that are left are."""
        for particle in self.queue:
            if particle not in self.keys:
                self.keys[particle] = self.source.key(particle)
            if self.keys[particle] not in self.busy:
                self.queue.remove(particle)
                return particle, self.keys[particle]
        return None

    def begin(self, slot: int, one: _Running) -> None:
        """A particle has the slot from now on."""
        self.running[slot] = one
        if one.key is not None:
            self.busy.add(one.key)

    def end(self, slot: int) -> _Running:
        """The particle of the slot leaves it."""
        one = self.running.pop(slot)
        self.busy.discard(one.key)
        return one


class Evaluator:
    """Scores particles with a utility on an engine. What is asked first is tokenised once, here.

    Raises:
        InputError: a prompt does not fit the engine; the message names the example.
    """

    def __init__(
        self, engine: Engine, utility: Utility, splits: Sequence[str] = SPLITS, trace: Trace | None = None
    ) -> None:
        self.engine, self.utility = engine, utility
        self._batch = utility.batch or 1
        self.parity_check: ParityCheck | None = None
        """Checks loads, as many as it is set to."""
        self.spent = Spent()
        self.trace = trace or Trace()
        engine.watch = self.trace.watch
        self._tracker = RequestTracker(engine, utility, splits)
        self._longest_first = {split: longest_first(self._tracker.lengths(split)) for split in splits}
        self._cache = ScoreCache()

    def prompts(self, split: str) -> list[list[int]]:
        """Token ids of all that the examples of a split ask first, continuations included."""
        return self._tracker.prompts(split)

    def score_population(
        self,
        source: Source,
        particles: Sequence[int],
        split: str,
        between: Callable[[int], None] = lambda prompts: None,
        limits: Mapping[int, DecisionBounds] | None = None,
    ) -> dict[int, PartialScores]:
        """Scores of each particle on the examples of the split: all, or with limits as many as decide it.

        A slot gets its next particle as soon as it is done with the last, while the others go on. between(prompts) is
        called after a particle that is not the last with the prompts completed since the call before, and may raise
        to stop: then what runs is dropped.
        """
        found: dict[int, PartialScores] = {}
        given, told = iter([list(particles)]), self.spent.prompts
        with closing(self.stream(source, split, lambda idle: next(given, []), limits or {})) as stream:
            for particle, tally in stream:
                found[particle] = tally
                if len(found) < len(particles):
                    prompts, told = self.spent.prompts - told, self.spent.prompts
                    between(prompts)
        return found

    def stream(
        self,
        source: Source,
        split: str,
        arrivals: Callable[[bool], Sequence[int]],
        limits: Mapping[int, DecisionBounds],
    ) -> Generator[tuple[int, PartialScores]]:
        """Tallies of particles as they are complete or, where they have limits, decided, while others are worked on.

        Before each step of the engine arrivals(idle) gives further particles, by numbers that it has not given before.
        If idle, there is nothing else to do: it may wait for some, and if it gives none the stream ends. Closed before
        that, it drops what runs. A particle must stay as it is until its tally is there.
        """
        work = _Round(source, split, limits, [])
        try:
            while True:
                work.queue += arrivals(not (work.queue or work.running))
                if not (work.queue or work.running):
                    return
                # Population whose scores are known need no slot; only when there are none is it the engine's turn.
                for one in self._fill(work) or self._step(work):
                    self._cache.keep(split, one.key, one.tally)
                    self.spent.skipped += one.tally.scores.count(None)
                    yield one.particle, one.tally
        except BaseException:
            with suppress(Exception):  # an engine that has died is not what the caller should read about
                self._tracker.drop([asked for one in work.running.values() for asked in one.asked.values()])
            raise

    def score_model(self, row: torch.Tensor, split: str, slots: int = 1) -> Scores:
        """Scores of one row [D] on each example of the split, served from so many slots at once: several engines have
        one each."""
        key, tally = digest(row), self.tally(split)
        self.spent.reused += self._cache.fill(split, key, tally)
        if not tally.complete:
            self._load(row, slots)
            self._complete(split, tally, range(slots))
            self._cache.keep(split, key, tally)
        return tally.known

    def score_base(self, split: str) -> Scores:
        """Scores of the base model on each example of the split."""
        self.engine.restore()
        tally = self.tally(split)
        self._complete(split, tally, [None])
        return tally.known

    def generate(self, row: torch.Tensor, split: str) -> list[list[Answer]]:
        """Answers of one row [D] to each example of the split, not scored and not kept."""
        self._load(row, 1)
        answers = self._ask(split, self._longest_first[split], [0])
        return [answers[example] for example in range(self._tracker.count(split))]

    def _load(self, row: torch.Tensor, slots: int) -> None:
        for slot in range(slots):
            with self.spent.clock("load"):
                self.engine.load(slot, row)
            if self.parity_check is not None:
                self.parity_check.after_load(slot, row)

    def expectation(self, split: str) -> DifficultyOrder:
        """What a search that stops early is to learn from its evaluations on the split."""
        return DifficultyOrder(self._tracker.lengths(split))

    def tally(self, split: str, limits: DecisionBounds | None = None) -> PartialScores:
        """A tally of a particle on a split, without scores."""
        return PartialScores(self._tracker.count(split), partial(self.utility.utility_of, split), limits)

    def _complete(self, split: str, tally: PartialScores, slots: Sequence[int | None]) -> None:
        """Give every example that has no score yet its score."""
        order = [example for example in self._longest_first[split] if tally.scores[example] is None]
        answers = self._ask(split, order, slots)
        with self.spent.clock("score"):
            scores = self.utility.score(split, order, [answers[example] for example in order])
        for example, score in zip(order, scores, strict=True):
            tally.scores[example] = score

    def _ask(self, split: str, order: Sequence[int], slots: Sequence[int | None]) -> dict[int, list[Answer]]:
        """Ask the slots in turn for these examples."""
        answers: dict[int, list[Answer]] = {}
        with self.spent.clock("generate"):
            for place, example in enumerate(order):
                self._tracker.submit(split, example, slots[place % len(slots)])
            while not self._tracker.idle:
                answers |= {asked.example: asked.given for asked in self._take(self.engine.step())}
        self.spent.evaluations += 1
        return answers

    def _take(self, ended: Sequence[tuple[int, Completion]]) -> list[PendingExample]:
        """The examples of which that was the last answer."""
        self.spent.prompts += len(ended)
        self.spent.tokens += sum(completion.tokens for _, completion in ended)
        return self._tracker.collect(ended)

    def _fill(self, work: _Round) -> list[_Running]:
        """Put particles of the queue into the free slots; returns those whose scores are known and need no slot."""
        known: list[_Running] = []
        for slot in range(self.engine.slots) if work.queue else ():
            while slot not in work.running and work.queue:
                check = self.parity_check
                check = check if check is not None and check.wanted(slot) else None
                if check is not None and check.hindered(slot, work.running):
                    break
                if (one := self._next(work)) is None:
                    return known
                if one.tally.decided:
                    known.append(one)
                    continue
                work.begin(slot, one)
                self.trace.now["particles"] = [one.particle]
                with self.spent.clock("load"):
                    work.source.load(self.engine, slot, one.particle)
                if check is not None:
                    check.after_load(slot, work.source.row(one.particle))
                self.spent.evaluations += 1
                self._submit(slot, work)
                work.source.prefetch(work.queue[: self.engine.slots])
        return known

    def _next(self, work: _Round) -> _Running | None:
        """A particle of the queue with what is known of it, if there is one that should be evaluated now."""
        with self.trace.span("prepare"):
            if (taken := work.take()) is None:
                return None
            particle, key = taken
            tally = self.tally(work.split, work.limits.get(particle))
            order = (tally.limits and tally.limits.order) or self._longest_first[work.split]
            if known := self._cache.fill(work.split, key, tally):
                self.spent.reused += known
                order = [example for example in order if tally.scores[example] is None]
            return _Running(particle, key, tally, deque(order))

    def _submit(self, slot: int, work: _Round) -> None:
        """Ask for the examples of the particle in a slot that may be needed."""
        one, floor = work.running[slot], max(FLOOR, self._batch) * self.trace.engines
        floor = math.ceil(floor / min(self.engine.slots, len(work.running) + len(work.queue)))
        with self.spent.clock("generate"):
            begin, split = self._tracker.submit, work.split
            for example in one.next_examples(floor):
                one.asked[example] = begin(split, example, slot)

    def _step(self, work: _Round) -> list[_Running]:
        """One step of the engine; the particles that it completed or decided, which leave their slots."""
        self.trace.now["particles"] = [one.particle for one in work.running.values()]
        if not self._tracker.idle:
            with self.spent.clock("generate"):
                ended = self.engine.step()
            with self.spent.clock("score"):
                work.ended += self._take(ended)
        if not work.ended or (len(work.ended) < self._batch and not self._tracker.idle):
            return []
        with self.spent.clock("score"), self.trace.span("score"):
            self._score(work)
            touched = sorted({asked.slot for asked in work.ended if asked.slot is not None})
            work.ended = []
            decided = {slot for slot in touched if work.running[slot].tally.decided}
        for slot in touched:
            if slot not in decided:
                self._submit(slot, work)
        done = [work.end(slot) for slot in sorted(decided)]
        self._tracker.drop([asked for one in done for asked in one.asked.values()])
        return done

    def _score(self, work: _Round) -> None:
        """Score the examples that have ended, of all particles together."""
        numbers = [asked.example for asked in work.ended]
        scores = self.utility.score(work.split, numbers, [asked.given for asked in work.ended])
        running = work.running
        for asked, score in zip(work.ended, scores, strict=True):
            assert asked.slot is not None
            one, example = running[asked.slot], asked.example
            one.tally.scores[example] = score
            del one.asked[example]
