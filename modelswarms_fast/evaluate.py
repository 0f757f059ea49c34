"""Scores of particles on a split: load, generate, score, without a pause between two particles."""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

import torch

from modelswarms_fast.canary import Canary
from modelswarms_fast.engines import Engine, Request, complete
from modelswarms_fast.errors import InputError
from modelswarms_fast.scores import (
    Expectation,
    Limits,
    ScoreCache,
    Scores,
    Tally,
    digest,
)
from modelswarms_fast.trace import Trace
from modelswarms_fast.utilities import SPLITS, Utility

# Examples under way in an engine, of all its particles together, even where fewer could decide them: a step costs
# nearly as much for one sequence as for several, and the transformers engine takes 16 at once. But an example that is
# dropped has cost its prompt.
FLOOR = 16


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


@dataclass
class Spent:
    """What evaluation has cost so far."""

    evaluations: int = 0
    """Particles that were served."""
    prompts: int = 0
    """Completed."""
    tokens: int = 0
    """Generated for them, the ends of sequences included."""
    reused: int = 0
    """Scores known from an earlier evaluation of the same position."""
    skipped: int = 0
    """Scores that could change no decision any more."""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("load", "generate", "score"), 0.0))

    @contextmanager
    def clock(self, phase: str) -> Iterator[None]:
        """Add the seconds of the block to a phase."""
        start = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - start

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
    tally: Tally
    waiting: deque[int]
    """Examples that have not been asked for, those of a low score first."""
    under_way: dict[int, int] = field(default_factory=dict)
    """Name of a request → its example."""

    def next_examples(self, floor: int) -> Iterator[int]:
        """The examples to ask for now: no more than could be needed, but at least `floor` under way.

        Without limits that is all. With them wrong answers come first, since they keep a particle from its personal
        best; once they have, right answers, which keep it above the global worst.
        """
        lows, highs = self.tally.need
        for _ in range(min(max(lows or highs, floor) - len(self.under_way), len(self.waiting))):
            yield self.waiting.popleft() if lows else self.waiting.pop()


@dataclass
class _Round:
    """The evaluation of some particles on a split."""

    source: Source
    split: str
    limits: Mapping[int, Limits]
    queue: list[int]
    """Particles that have no slot yet."""
    running: dict[int, _Running] = field(default_factory=dict)
    """By slot."""
    slots: dict[int, int] = field(default_factory=dict)
    """Name of a request under way → its slot."""
    keys: dict[int, bytes | None] = field(default_factory=dict)

    def take(self) -> tuple[int, bytes | None] | None:
        """The first of the queue whose position is not being evaluated, and its key; None if all that are left are."""
        busy = {one.key for one in self.running.values()} - {None}
        for particle in self.queue:
            if particle not in self.keys:
                self.keys[particle] = self.source.key(particle)
            if self.keys[particle] not in busy:
                self.queue.remove(particle)
                return particle, self.keys[particle]
        return None


class Evaluator:
    """Scores particles with a utility on an engine. Prompts are tokenised once, here.

    Raises:
        InputError: a prompt does not fit the engine; the message names the example.
    """

    def __init__(
        self, engine: Engine, utility: Utility, splits: Sequence[str] = SPLITS, trace: Trace | None = None
    ) -> None:
        self.engine, self.utility = engine, utility
        self.canary: Canary | None = None
        """Checks loads, as many as it is set to."""
        self.spent = Spent()
        self.trace = trace or Trace()
        engine.watch = self.trace.watch
        self._prompts = {split: self._tokenize(split, utility.prompts[split]) for split in splits}
        self._expected = {split: Expectation([len(ids) for ids in self._prompts[split]]) for split in splits}
        self._cache = ScoreCache()
        self._names = itertools.count()

    def _tokenize(self, split: str, prompts: list[str]) -> list[list[int]]:
        tokens = [list(ids) for ids in self.engine.tokenizer(prompts)["input_ids"]]
        room = self.engine.max_model_len - self.utility.max_tokens
        for index, ids in enumerate(tokens):
            if not 0 < len(ids) <= room:
                raise InputError(
                    f"Prompt {index} of the {split} split has {len(ids)} tokens; with {self.utility.max_tokens} new "
                    f"tokens it must have from 1 to {room}: raise max_model_len or leave the example out."
                )
        return tokens

    def prompts(self, split: str) -> list[list[int]]:
        """Token ids of the prompts of a split."""
        return self._prompts[split]

    def rows(
        self,
        source: Source,
        particles: Sequence[int],
        split: str,
        between: Callable[[int], None] = lambda prompts: None,
        limits: Mapping[int, Limits] | None = None,
    ) -> dict[int, Tally]:
        """Scores of each particle on the examples of the split: all, or with limits as many as decide it.

        A slot gets its next particle as soon as it is done with the last, while the others go on. between(prompts) is
        called after a particle that is not the last with the prompts completed since the call before, and may raise
        to stop: then what runs is dropped.
        """
        found: dict[int, Tally] = {}
        work, told = _Round(source, split, limits or {}, list(particles)), self.spent.prompts
        try:
            while work.queue or work.running:
                # Particles whose scores are known need no slot; only when there are none is it the engine's turn.
                for one in self._fill(work) or self._step(work):
                    found[one.particle] = one.tally
                    self._cache.keep(split, one.key, one.tally)
                    self.spent.skipped += one.tally.scores.count(None)
                    if len(found) < len(particles):
                        prompts, told = self.spent.prompts - told, self.spent.prompts
                        between(prompts)
        except BaseException:
            with suppress(Exception):  # an engine that has died is not what the caller should read about
                self.engine.drop([name for one in work.running.values() for name in one.under_way])
            raise
        self._expected[split].learn({particle: tally.scores for particle, tally in found.items()})
        return found

    def one(self, row: torch.Tensor, split: str, slots: int = 1) -> Scores:
        """Scores of one row [D] on each example of the split, served from so many slots at once: several engines have
        one each."""
        key, tally = digest(row), Tally(len(self._prompts[split]))
        self.spent.reused += self._cache.fill(split, key, tally)
        if not tally.complete:
            for slot in range(slots):
                with self.spent.clock("load"):
                    self.engine.load(slot, row)
                if self.canary is not None:
                    self.canary.after_load(slot, row)
            self._complete(split, tally, range(slots))
            self._cache.keep(split, key, tally)
        return tally.known

    def base(self, split: str) -> Scores:
        """Scores of the base model on each example of the split."""
        self.engine.restore()
        tally = Tally(len(self._prompts[split]))
        self._complete(split, tally, [None])
        return tally.known

    def _complete(self, split: str, tally: Tally, slots: Sequence[int | None]) -> None:
        """Ask the slots in turn for the examples that have no score yet."""
        order = [example for example in self._expected[split].longest_first if tally.scores[example] is None]
        prompts = [self._prompts[split][example] for example in order]
        with self.spent.clock("generate"):
            requests = [Request(slot, prompt) for slot, prompt in zip(itertools.cycle(slots), prompts)]
            completions = complete(self.engine, requests, self.utility.max_tokens)
        with self.spent.clock("score"):
            for example, completion in zip(order, completions, strict=True):
                tally.scores[example] = self.utility.score_one(split, example, completion.text)
        self.spent.evaluations += 1
        self.spent.prompts += len(requests)
        self.spent.tokens += sum(completion.tokens for completion in completions)

    def _fill(self, work: _Round) -> list[_Running]:
        """Put particles of the queue into the free slots; returns those whose scores are known and need no slot."""
        known: list[_Running] = []
        for slot in range(self.engine.slots) if work.queue else ():
            while slot not in work.running and work.queue:
                checked = self.canary is not None and self.canary.wanted
                if checked and work.running:
                    return known  # the canary looks only at an engine that does nothing else
                if (one := self._next(work)) is None:
                    return known
                if one.tally.decided:
                    known.append(one)
                    continue
                work.running[slot] = one
                self.trace.now["particles"] = [one.particle]
                with self.spent.clock("load"):
                    work.source.load(self.engine, slot, one.particle)
                if checked and self.canary is not None:
                    self.canary.after_load(slot, work.source.row(one.particle))
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
            tally = Tally(len(self._prompts[work.split]), work.limits.get(particle))
            self.spent.reused += self._cache.fill(work.split, key, tally)
            expected = self._expected[work.split]
            order = expected.longest_first if tally.limits is None else expected.order(particle)
            return _Running(particle, key, tally, deque(example for example in order if tally.scores[example] is None))

    def _submit(self, slot: int, work: _Round) -> None:
        """Ask for the examples of the particle in a slot that may be needed."""
        one, prompts = work.running[slot], self._prompts[work.split]
        floor = math.ceil(FLOOR * self.trace.engines / min(self.engine.slots, len(work.running) + len(work.queue)))
        with self.spent.clock("generate"):
            for example in one.next_examples(floor):
                name = next(self._names)
                one.under_way[name], work.slots[name] = example, slot
                self.engine.submit(name, Request(slot, prompts[example]), self.utility.max_tokens)

    def _step(self, work: _Round) -> list[_Running]:
        """One step of the engine; the particles that it completed or decided, which leave their slots."""
        self.trace.now["particles"] = [one.particle for one in work.running.values()]
        with self.spent.clock("generate"):
            ended = self.engine.step()
        if not ended:
            return []
        slots = {name: work.slots.pop(name) for name, _ in ended}
        with self.spent.clock("score"), self.trace.span("score"):
            examples = [work.running[slots[name]].under_way.pop(name) for name, _ in ended]  # all, before one can fail
            for (name, completion), example in zip(ended, examples, strict=True):
                score = self.utility.score_one(work.split, example, completion.text)
                work.running[slots[name]].tally.scores[example] = score
                self.spent.prompts += 1
                self.spent.tokens += completion.tokens
            touched = sorted(set(slots.values()))
            decided = {slot for slot in touched if work.running[slot].tally.decided}
        for slot in touched:
            if slot not in decided:
                self._submit(slot, work)
        done = [work.running.pop(slot) for slot in sorted(decided)]
        left = [name for one in done for name in one.under_way]
        for name in left:
            del work.slots[name]
        if left:
            self.engine.drop(left)
        return done
