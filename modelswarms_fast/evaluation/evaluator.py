"""Scores of particles on a split: load, generate, score, without a pause between two particles."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch

from modelswarms_fast.engines.parity_check import ParityCheck
from modelswarms_fast.engines.protocol import Completion, Engine
from modelswarms_fast.evaluation.early_stopping import DifficultyOrder, PartialScores, Scores, longest_first
from modelswarms_fast.evaluation.objectives import SPLITS, Answer, Utility
from modelswarms_fast.evaluation.racing import Limits, RacedScores, RaceLimits
from modelswarms_fast.evaluation.requests import PendingExample, RequestTracker
from modelswarms_fast.evaluation.score_cache import ScoreCache
from modelswarms_fast.evaluation.spent import Spent
from modelswarms_fast.records.score_file import Cost, ScoreFile, Visit
from modelswarms_fast.records.trace import Trace
from modelswarms_fast.weights.population import Position
from modelswarms_fast.weights.row_name import row_name

# Examples under way in an engine, of all its particles together, even where fewer could decide them: a step has a cost
# of its own, and an example that is dropped has cost its prompt. Measured in docs/log.md, but for GPUs.
FLOOR = 48

# Candidates whose rows are brought near while others are served. A cache of rows has few places more.
AHEAD = 4


What = Callable[[dict[str, Any], Sequence[Answer]], Any]
"""What is kept of an example and its answers."""


class Candidate(Protocol):
    """A position that can be scored. It must stay as it is until its scores are there."""

    def name(self) -> bytes | None:
        """Names the exact position, so that it is scored once; None where it has no name."""

    def position(self) -> Position:
        """What an engine is given to serve it, valid until the next call."""

    def row(self) -> torch.Tensor:
        """[D] its weights, valid until the next call."""

    def prefetch(self) -> None:
        """It is loaded soon: begin to bring its row to where it is served."""


@dataclass
class _Running:
    """A candidate in a slot."""

    number: int
    candidate: Candidate
    name: bytes | None
    scores: PartialScores
    waiting: deque[int]
    """Examples that have not been asked for, those of a low score first."""
    reused: int = 0
    """Scores that were known."""
    asked: dict[int, PendingExample] = field(default_factory=dict)
    """Examples that have been asked for and have no score yet."""
    served: bool = False
    """Whether it was given a slot."""
    prompts: int = 0
    tokens: int = 0

    def spend(self, asked: PendingExample) -> None:
        """An example has ended, or is given up."""
        self.prompts += asked.prompts
        self.tokens += asked.tokens

    @property
    def cost(self) -> Cost:
        """What it has taken."""
        return Cost(int(self.served), self.prompts, self.tokens, self.reused)

    def next_examples(self, floor: int) -> Iterator[int]:
        """The examples to ask for now: about as many as will be needed, but at least `floor` under way.

        Without limits that is all. With limits wrong answers come first, since they keep a particle from its personal
        best. Once they have, right answers come, which keep it above the global worst. If hardly any would be left,
        they are asked for too: more steps for those that turn out to be needed cost more. In a race it is those up to
        the next look, and no more.
        """
        if (count := self.scores.to_look) is not None:
            for _ in range(count - len(self.asked)):
                yield self.waiting.popleft()
            return
        lows, highs = self.scores.need
        count = max(lows or highs, floor) - len(self.asked)
        if len(self.waiting) - count <= floor // 2:
            count = len(self.waiting)
        for _ in range(min(count, len(self.waiting))):
            yield self.waiting.popleft() if lows else self.waiting.pop()


@dataclass
class _Round:
    """The evaluation of some candidates on a split."""

    split: str
    limits: Mapping[int, Limits]
    queue: dict[int, Candidate] = field(default_factory=dict)
    """Candidates that have no slot yet, by number."""
    running: dict[int, _Running] = field(default_factory=dict)
    """By slot."""
    busy: set[bytes | None] = field(default_factory=set)
    """Names of what runs."""
    ended: list[PendingExample] = field(default_factory=list)
    """Have all their answers but no score yet."""
    names: dict[int, bytes | None] = field(default_factory=dict)

    def take(self) -> tuple[int, Candidate, bytes | None] | None:
        """The first of the queue whose position is not being evaluated; None if there is none."""
        for number, candidate in self.queue.items():
            if number not in self.names:
                self.names[number] = candidate.name()
            if self.names[number] not in self.busy:
                del self.queue[number]
                return number, candidate, self.names.pop(number)
        return None

    def begin(self, slot: int, one: _Running) -> None:
        """A candidate has the slot from now on."""
        self.running[slot] = one
        if one.name is not None:
            self.busy.add(one.name)

    def end(self, slot: int) -> _Running:
        """The candidate of the slot leaves it."""
        one = self.running.pop(slot)
        self.busy.discard(one.name)
        return one


def load(engine: Engine, slot: int, position: Position) -> None:
    """Serve a position from a slot."""
    if position.row is not None:
        engine.load(slot, position.row)
    else:
        assert position.mixture is not None
        engine.load_mixture(slot, position.mixture)


class Evaluator:
    """Scores positions with a utility on an engine. What is asked first is tokenised once, here.

    Raises:
        InputError: a prompt does not fit the engine; the message names the example.
    """

    def __init__(
        self,
        engine: Engine,
        utility: Utility,
        splits: Sequence[str] = SPLITS,
        trace: Trace | None = None,
        engines: int = 1,
    ) -> None:
        """`engines`: how many the engine is made of; slot i is one of engine i mod `engines`."""
        self.engine, self.utility = engine, utility
        self._engines = engines
        self._batch = utility.batch or 1
        self.parity_check: ParityCheck | None = None
        """Compares loads, as many as it is set to."""
        self.spent = Spent()
        self.trace = trace or Trace()
        engine.watch = self.trace.watch
        self._tracker = RequestTracker(engine, utility, splits)
        self._longest_first = {split: longest_first(self._tracker.lengths(split)) for split in splits}
        self.file: ScoreFile | None = None
        """What `keep_in` has named."""
        self.asked_by = ""
        """Who asks for evaluations, as the file names it."""
        self._cache = ScoreCache()
        self._passes = 0
        self._what: What | None = None
        self._said: dict[tuple[str, bytes | None], dict[int, Any]] = {}

    def keep_in(self, file: ScoreFile) -> None:
        """From now on write what is evaluated into a file, and do not evaluate what is there."""
        self.file = file
        self._cache = ScoreCache(file=file)

    def keep_answers(self, what: What) -> None:
        """From now on keep what(example, its answers) of each example that is scored, such as the choice they name."""
        self._what = what

    def answers(self, split: str, name: bytes | None) -> list[Any]:
        """What was kept of the position of this name (`Candidate.name`), by example; None where nothing was."""
        kept = self._said.get((split, name), {})
        return [kept.get(example) for example in range(self._tracker.count(split))]

    def prompts(self, split: str) -> list[list[int]]:
        """Token ids of all that the examples of a split ask first, continuations included."""
        return self._tracker.prompts(split)

    def probes(self, split: str) -> list[list[int]]:
        """Token ids of the prompts alone, each once, as they are sent."""
        asked = (one.prompt for asks in self._tracker.asked(split) for one in asks)
        return list(map(list, dict.fromkeys(map(tuple, asked))))

    def sent(self, split: str, example: int) -> str:
        """The text of an example's first prompt as it is sent, with its chat template if there is one."""
        return self._tracker.sent(split, example)

    def score_population(
        self,
        candidates: Mapping[int, Candidate],
        split: str,
        between: Callable[[int], None] = lambda prompts: None,
        limits: Mapping[int, Limits] | None = None,
    ) -> dict[int, PartialScores]:
        """Scores of each candidate on the examples of the split: all, or with limits as many as decide it.

        A slot gets its next candidate as soon as it is done with the last, while the others go on. between(prompts) is
        called after each but the last, with the prompts completed since the call before. It may raise to stop: then
        what runs is dropped.
        """
        found: dict[int, PartialScores] = {}
        given, told = iter([candidates]), self.spent.prompts
        with closing(self.stream(split, lambda idle: next(given, {}), limits or {})) as stream:
            for number, scores in stream:
                found[number] = scores
                if len(found) < len(candidates):
                    prompts, told = self.spent.prompts - told, self.spent.prompts
                    between(prompts)
        return found

    def stream(
        self,
        split: str,
        arrivals: Callable[[bool], Mapping[int, Candidate]],
        limits: Mapping[int, Limits],
        visits: Mapping[int, Visit] | None = None,
    ) -> Generator[tuple[int, PartialScores]]:
        """Scores of candidates as they are complete or, where they have limits, decided, while others are worked on.

        Before each step of the engine arrivals(idle) gives further candidates, by numbers that none under way has.
        If idle, there is nothing else to do: it may wait for some, and if it gives none the stream ends. Closed before
        that, it drops what runs. `visits` says which particles of which searches they are.
        """
        work = _Round(split, limits)
        try:
            while True:
                work.queue.update(arrivals(not (work.queue or work.running)))
                if not (work.queue or work.running):
                    return
                # Candidates whose scores are known need no slot; only when there are none is it the engine's turn.
                for one in self._fill(work) or self._step(work):
                    self._keep(split, one, None if visits is None else visits.get(one.number))
                    self.spent.skipped += one.scores.scores.count(None)
                    yield one.number, one.scores
        except BaseException:
            with suppress(Exception):  # an engine that has died is not what the caller should read about
                self._tracker.drop([asked for one in work.running.values() for asked in one.asked.values()])
            raise

    def score_model(self, row: torch.Tensor, split: str) -> Scores:
        """Scores of one row [D] on each example of the split, from a slot of each engine at once."""
        name, scores = row_name(row), self.partial_scores(split)
        known = self._fill_in(split, name, scores)
        if not scores.complete:
            before = self.spent.copy()
            self._complete(split, scores, self._load_everywhere(row), name)
            self._cache.keep(split, name, scores)
            self._write("scores", split, name, scores.scores, self._cost_since(before, known))
        elif self.file is not None and not self.file.holds("scores", split, name):
            self._write("scores", split, name, scores.scores, Cost(reused=known))
        return scores.known

    def score_loaded(self, split: str, slots: Sequence[int | None] = (0,)) -> Scores:
        """Scores of what the slots serve, on each example of the split; None is the base model."""
        scores = self.partial_scores(split)
        self._complete(split, scores, slots, None)
        return scores.known

    def score_base(self, split: str) -> Scores:
        """Scores of the base model on each example of the split."""
        self.engine.restore()
        return self.score_loaded(split, [None])

    def generate(self, row: torch.Tensor, split: str) -> list[list[Answer]]:
        """Answers of one row [D] to each example of the split, from a slot of each engine; not scored.

        They are kept in the file, if there is one.
        """
        name, count = row_name(row), self._tracker.count(split)
        if self.file is not None and (known := self.file.position("answers", split, name)) is not None:
            if (cost := self.file.unpaid("answers", split, name, self.asked_by)) is not None:
                self.spent.add(cost)
            if not self.file.holds("answers", split, name):
                self._write("answers", split, name, known, Cost())
            return [[Answer.of(one) for one in given] for given in known]
        before = self.spent.copy()
        answers = self._ask(split, self._longest_first[split], self._load_everywhere(row), name)
        found = [answers[example].given for example in range(count)]
        self._write("answers", split, name, found, self._cost_since(before))
        return found

    def _load_everywhere(self, row: torch.Tensor) -> range:
        slots = range(min(self._engines, self.engine.slots))
        for slot in slots:
            with self.spent.clock("load"):
                self.engine.load(slot, row)
            if self.parity_check is not None:
                self.parity_check.after_load(slot, row)
        return slots

    def difficulty_order(self, split: str) -> DifficultyOrder:
        """What a search that stops early learns from its evaluations on the split."""
        return DifficultyOrder(self._tracker.lengths(split))

    def partial_scores(self, split: str, limits: Limits | None = None) -> PartialScores:
        """The scores of a candidate on a split, none of them known yet."""
        count, utility = self._tracker.count(split), partial(self.utility.utility_of, split)
        if isinstance(limits, RaceLimits):
            return RacedScores(count, utility, limits)
        return PartialScores(count, utility, limits)

    def _fill_in(self, split: str, name: bytes | None, scores: PartialScores) -> int:
        """Fill in the scores that are known of a position, and count them; how many these are."""
        known = self._cache.fill(split, name, scores)
        cost = self.file.unpaid("scores", split, name, self.asked_by) if known and self.file is not None else None
        if cost is None:
            self.spent.reused += known
        else:
            self.spent.add(cost)
        return known

    def _keep(self, split: str, one: _Running, visit: Visit | None) -> None:
        """Remember what was found, in the file too unless it is there."""
        self._cache.keep(split, one.name, one.scores)
        if self.file is None:
            return
        if one.served or not one.scores.complete or not self.file.holds("scores", split, one.name):
            cost = one.cost._replace(passes=self._count_passes())
            self._write("scores", split, one.name, one.scores.scores, cost, visit)

    def _write(
        self, kind: str, split: str, name: bytes | None, found: Sequence[Any], cost: Cost, visit: Visit | None = None
    ) -> None:
        if self.file is not None:
            with self.trace.span("journal"):
                self.file.append(kind, split, name, found, cost, self.asked_by, visit)

    def _cost_since(self, before: Spent, reused: int = 0) -> Cost:
        self._count_passes()
        spent = self.spent.since(before)
        return Cost(spent.evaluations, spent.prompts, spent.tokens, reused, spent.passes)

    def _count_passes(self) -> int:
        """Count what an ensemble's experts have read since the last call; how much that is."""
        passes = getattr(self.engine, "passes", 0)
        new, self._passes = passes - self._passes, passes
        self.spent.passes += new
        return new

    def _complete(self, split: str, scores: PartialScores, slots: Sequence[int | None], name: bytes | None) -> None:
        """Give every example that has no score yet its score."""
        order = [example for example in self._longest_first[split] if scores.scores[example] is None]
        asked = self._ask(split, order, slots, name)
        with self.spent.clock("score"):
            found = self._scores(split, [asked[example] for example in order])
        for example, score in zip(order, found, strict=True):
            scores.scores[example] = score

    def _ask(
        self, split: str, order: Sequence[int], slots: Sequence[int | None], name: bytes | None
    ) -> dict[int, PendingExample]:
        """Ask the slots, which serve a position of this name, in turn for these examples; they have all answers."""
        answers: dict[int, PendingExample] = {}
        with self.spent.clock("generate"):
            for index, example in enumerate(order):
                self._tracker.submit(split, example, slots[index % len(slots)], name)
            while not self._tracker.idle:
                answers |= {asked.example: asked for asked in self._collect(self.engine.step())}
        self.spent.evaluations += 1
        return answers

    def _collect(self, ended: Sequence[tuple[int, Completion]]) -> list[PendingExample]:
        """The examples of which that was the last answer."""
        self.spent.prompts += len(ended)
        self.spent.tokens += sum(completion.tokens for _, completion in ended)
        return self._tracker.collect(ended)

    def _fill(self, work: _Round) -> list[_Running]:
        """Put candidates of the queue into the free slots; returns those whose scores are known and need no slot."""
        known: list[_Running] = []
        for slot in range(self.engine.slots) if work.queue else ():
            while slot not in work.running and work.queue:
                check = self.parity_check if self.parity_check is not None and self.parity_check.wanted(slot) else None
                if check is not None and check.hindered(slot, work.running):
                    break
                if (one := self._next(work)) is None:
                    return known
                if one.scores.decided:
                    known.append(one)
                    continue
                work.begin(slot, one)
                one.served = True
                self.trace.now["particles"] = [one.number]
                with self.spent.clock("load"):
                    load(self.engine, slot, one.candidate.position())
                if check is not None:
                    check.after_load(slot, one.candidate.row())
                self.spent.evaluations += 1
                self._submit(slot, work)
                for candidate in itertools.islice(work.queue.values(), min(self.engine.slots, AHEAD)):
                    candidate.prefetch()
        return known

    def _next(self, work: _Round) -> _Running | None:
        """A candidate of the queue with what is known of it, if there is one that should be evaluated now."""
        with self.trace.span("prepare"):
            if (taken := work.take()) is None:
                return None
            number, candidate, name = taken
            scores = self.partial_scores(work.split, work.limits.get(number))
            order = scores.order or self._longest_first[work.split]
            if known := self._fill_in(work.split, name, scores):
                order = [example for example in order if scores.scores[example] is None]
            return _Running(number, candidate, name, scores, deque(order), known)

    def _submit(self, slot: int, work: _Round) -> None:
        """Ask for the examples of the candidate in a slot that may be needed."""
        one, floor = work.running[slot], max(FLOOR, self._batch) * self.trace.engines
        floor = math.ceil(floor / min(self.engine.slots, len(work.running) + len(work.queue)))
        with self.spent.clock("generate"):
            submit, split = self._tracker.submit, work.split
            for example in one.next_examples(floor):
                one.asked[example] = submit(split, example, slot, one.name)

    def _step(self, work: _Round) -> list[_Running]:
        """One step of the engine; the candidates that it completed or decided, which leave their slots."""
        self.trace.now["particles"] = [one.number for one in work.running.values()]
        if not self._tracker.idle:
            with self.spent.clock("generate"):
                ended = self.engine.step()
            with self.spent.clock("score"):
                work.ended += self._collect(ended)
        if not work.ended or (len(work.ended) < self._batch and not self._tracker.idle):
            return []
        with self.spent.clock("score"), self.trace.span("score"):
            self._score(work)
            touched = sorted({asked.slot for asked in work.ended if asked.slot is not None})
            work.ended = []
            decided = {slot for slot in touched if work.running[slot].scores.decided}
        for slot in touched:
            if slot not in decided:
                self._submit(slot, work)
        done = [work.end(slot) for slot in sorted(decided)]
        for one in done:
            for asked in one.asked.values():
                one.spend(asked)
        self._tracker.drop([asked for one in done for asked in one.asked.values()])
        return done

    def _scores(self, split: str, ended: Sequence[PendingExample]) -> list[float]:
        """The score of each example from its answers: NaN where the model computed what is no number."""
        good = [asked for asked in ended if asked.finite]
        found = iter(self.utility.score(split, [asked.example for asked in good], [asked.given for asked in good]))
        if self._what is not None:
            for asked in ended:
                kept = self._said.setdefault((split, asked.name), {})
                kept[asked.example] = self._what(self.utility.examples[split][asked.example], asked.given)
        return [next(found) if asked.finite else math.nan for asked in ended]

    def _score(self, work: _Round) -> None:
        """Score the examples that have ended, of all candidates together."""
        found, running = self._scores(work.split, work.ended), work.running
        for asked, score in zip(work.ended, found, strict=True):
            assert asked.slot is not None
            one, example = running[asked.slot], asked.example
            one.scores.scores[example] = score
            one.spend(one.asked.pop(example))
