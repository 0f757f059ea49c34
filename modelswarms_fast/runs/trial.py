"""A trial: one search with a record of its iterations, which goes on where an earlier record ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from modelswarms_fast.config import Budget, SwarmConfig
from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.early_stopping import PartialScores
from modelswarms_fast.evaluation.evaluator import Evaluator
from modelswarms_fast.records.progress import log
from modelswarms_fast.records.run_folder import to_json_types
from modelswarms_fast.records.score_file import Cost
from modelswarms_fast.runs.loop import Meter, SearchLoop
from modelswarms_fast.swarm import Swarm, best_of
from modelswarms_fast.weights.population import Particle

Stop = Callable[[], str | None]
"""Why a search is to stop after its iteration, other than by its own settings; None: it goes on."""

BUDGET = "budget"
"""Why a search has stopped for want of budget. It can go on with more."""
INTERRUPTED = "interrupted"
"""Why a search has stopped that was asked to by a signal. It can go on."""


class Record(Protocol):
    """What takes one line an iteration: the journal of a run folder, or a list."""

    def append(self, line: dict[str, Any], /) -> None:
        """Keep the line."""


@dataclass(frozen=True)
class TrialSpec:
    """A search to be run."""

    name: str
    """Of its folder."""
    config: SwarmConfig
    first: tuple[int, ...] | None = None
    """The experts that its first particles are, as `Swarm` has it."""
    first_patience: int | None = None
    """The patience that it was first started with, if it was raised since."""


class Trial:
    """One search: its loop, and its record, which may hold iterations of an earlier call.

    What is recorded is told again instead of being scored: iterations by the lines of the record, particles of the last
    one by the evaluator's file. Moves, those of a policy too, depend on seed, iteration and scores alone and repeat
    to the bit, so the trial arrives where it was.
    """

    def __init__(
        self,
        name: str,
        loop: SearchLoop[Swarm],
        evaluator: Evaluator,
        record: Record,
        *,
        recorded: Sequence[dict[str, Any]] = (),
        most: int | None = None,
        budget: Budget | None = None,
        meter: Meter | None = None,
        told: Callable[[dict[str, Any]], None] = lambda line: None,
    ) -> None:
        """`recorded`: lines that the record holds already. `most`: stop after so many iterations for want of budget.
        `budget`: stop after the iteration in which it is reached, and before one that may take more evaluations; it
        needs a meter. `meter`: note the cost of each iteration. `told`: called with each line that is recorded."""
        self.name, self.loop = name, loop
        self._evaluator, self.record, self._recorded = evaluator, record, list(recorded)
        self._known_iterations = len(self._recorded)
        self._most, self.meter, self._told = most, meter, told
        self._budget = budget
        self._taken = {"evaluations": 0.0, "prompts": 0.0, "minutes": 0.0}
        self._update_seconds = 0.0
        self.began = time.perf_counter()
        self.evaluations = 0
        """Particles scored up to now, the experts at its start left out."""
        self.without_score: list[dict[str, int]] = []
        """Iteration and particle of each evaluation that gave no score."""
        self.stopped: str | None = None
        """Why it has ended."""
        self.known: dict[int, PartialScores] = {}
        """Scores of this iteration so far."""
        self.waiting: set[int] = set()
        """Particles whose scores are missing."""

    def begin(self, experts: Sequence[PartialScores] | None, stop: Stop) -> dict[int, Particle]:
        """The particles to score first, or where its record ends; none if it has ended.

        `experts`: their scores on dev, if they are known. Else they are scored as any particle.
        """
        self._evaluator.trace.now = {"iteration": 0}
        known = {} if experts is None else {p: experts[e] for p, e in enumerate(self.loop.swarm.first)}
        known |= self._from_record()
        if len(known) == len(self.loop.wanted):
            return self._advance(known, stop)
        return self._wait_for(known)

    def advance(self, stop: Stop) -> dict[int, Particle]:
        """Tell the scores that were waited for, and move; the particles to score next, none if it has ended."""
        return self._advance(self.known, stop)

    def collect(self, particle: int, scores: PartialScores) -> bool:
        """Take in the scores of a particle; whether they were the last of the iteration."""
        self.known[particle] = scores
        self.waiting.discard(particle)
        return not self.waiting

    @property
    def has_a_best(self) -> bool:
        """Whether the initial particles have been scored."""
        return self.loop.swarm.global_best_particle >= 0

    @property
    def replaying(self) -> bool:
        """Whether the iteration is one of an earlier record, which is told again."""
        return self.loop.swarm.iteration < self._known_iterations

    def interrupt(self) -> None:
        """End where it is; an iteration that is not complete is dropped."""
        self.stopped = INTERRUPTED

    @property
    def iterations(self) -> int:
        """Iterations that were told."""
        return self.loop.swarm.iteration - self.loop.swarm.waiting

    def start_and_end(self, names: Sequence[str]) -> dict[str, Any]:
        """The best initial expert, the winner on dev, and what the winner is made of."""
        swarm, initial = self.loop.swarm, self.loop.initial
        start = best_of(initial[: len(swarm.first)])
        coefficients = self.loop.population.global_best_mixture()
        return {
            "start": {"particle": start, "expert": names[swarm.first[start]], "dev": float(initial[start])},
            "end": {"particle": swarm.global_best_particle, "dev": swarm.global_best},
            "mixture": None if coefficients is None else dict(zip(names, coefficients, strict=True)),
        }

    def _advance(self, found: Mapping[int, PartialScores], stop: Stop) -> dict[int, Particle]:
        trace = self._evaluator.trace
        while True:
            trace.now = {"iteration": self.loop.swarm.iteration}
            with trace.span("tell"):
                line = self.loop.tell(found)
            first = len(self.loop.swarm.first) if self.loop.swarm.iteration == 0 else 0
            self.evaluations += sum(line["evaluated"]) - first
            self._keep(line)
            if stopped := self._why_stopped(stop):
                self.stopped = stopped
                return {}
            trace.now = {"iteration": self.loop.swarm.iteration + 1}
            start, policy = time.perf_counter(), self.loop.policy_seconds or 0.0
            with trace.span("update"):
                self.loop.move(self._recorded[0].get("mixtures") if self._recorded else None)
            self._update_seconds = time.perf_counter() - start - ((self.loop.policy_seconds or 0.0) - policy)
            found = self._from_record()
            if len(found) < len(self.loop.wanted):  # none are in an iteration that is not evaluated
                return self._wait_for(found)

    def _wait_for(self, known: dict[int, PartialScores]) -> dict[int, Particle]:
        self.known = known
        self.waiting = {particle for particle in self.loop.wanted if particle not in known}
        return self.loop.population.candidates(particle for particle in self.loop.wanted if particle in self.waiting)

    def _why_stopped(self, stop: Stop) -> str | None:
        if stopped := self.loop.swarm.stopped():
            return stopped
        if self._recorded:
            return None
        if self._most is not None and self.loop.swarm.iteration >= self._most:
            return BUDGET
        return BUDGET if self._at_budget() else stop()

    def _at_budget(self) -> bool:
        if self._budget is None:
            return False
        amount, unit = self._budget
        if unit == "evaluations":
            return self._taken[unit] + self.loop.swarm.config.particles > amount
        return self._taken[unit] >= amount

    def _keep(self, line: dict[str, Any]) -> None:
        iteration = line["iteration"]
        self.without_score += [{"iteration": iteration, "particle": one} for one in line["without_score"]]
        if self._recorded:
            old, new = self._recorded.pop(0), to_json_types(line)
            if {name: old.get(name) for name in new} != new:
                raise InputError(
                    f"the history of {self.name} does not repeat, since something that it was made with has changed; "
                    "remove its folder to run this search anew"
                )
            if self.meter is not None:
                self.meter.skip(old, self.loop.policy_seconds)
            self._take(old)
            return
        for particle in line["without_score"]:
            scores = line["scores"][particle]
            log.warning(
                "Iteration %d: particle %d has no score, since %d of its %d answers gave NaN or infinity.",
                iteration, particle, scores.count("nan"), len(scores),
            )  # fmt: skip
        if self.meter is not None:
            line |= self.meter.lap(self._update_seconds, self.loop.policy_seconds)
        self._take(line)
        with self._evaluator.trace.span("journal"):
            self.record.append(line)
        self._told(line)

    def _take(self, line: Mapping[str, Any]) -> None:
        """Count what an iteration took, of whatever call."""
        self._taken["evaluations"] += sum(line["evaluated"])
        self._taken["prompts"] += line.get("prompts") or 0
        self._taken["minutes"] += ((line.get("seconds") or {}).get("total") or 0.0) / 60

    def _from_record(self) -> dict[int, PartialScores]:
        """What is recorded of the particles that are wanted."""
        line, found = self._recorded[0] if self._recorded else None, {}
        for particle in self.loop.wanted:
            limits = None if self.loop.limits is None else self.loop.limits[particle]
            one = self._evaluator.partial_scores("dev", limits)
            scores, cost = self._visit(particle)
            if scores is None and line is not None:
                scores = line["scores"][particle]
            if scores is None or len(scores) != len(one.scores):
                continue
            one.scores = [None if score is None else float(score) for score in scores]
            if one.decided:
                found[particle] = one
                self._evaluator.spent.add(cost, one.scores.count(None))
        return found

    def _visit(self, particle: int) -> tuple[list[float | None] | None, Cost]:
        """The scores of a particle in this iteration by the file of scores, and what they took."""
        file = self._evaluator.file
        line = None if file is None else file.visit((self.name, self.loop.swarm.iteration, particle))
        return (None, Cost()) if line is None else (line.content, line.cost)
