"""SearchLoop of a search on an engine that runs: the loop of `search` itself, without its start and its tests."""

from __future__ import annotations

import functools
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine.base_model import BaseModel, Pass, beside
from benchmarks.engine.engines import EXAMPLES, PARTICLES, config, engine, write_data
from modelswarms_fast.config import SwarmConfig
from modelswarms_fast.evaluation.early_stopping import DecisionBounds, PartialScores
from modelswarms_fast.evaluation.evaluator import Evaluator
from modelswarms_fast.evaluation.objectives import Utility, load_utility
from modelswarms_fast.records.run_folder import open_run
from modelswarms_fast.runs.loop import limits_of, run_iterations
from modelswarms_fast.swarm import Swarm
from modelswarms_fast.weights.arena import empty_rows
from modelswarms_fast.weights.experts import read_experts
from modelswarms_fast.weights.population import Population
from modelswarms_fast.weights.row_table import count_rows

SEED = 1
# What a line of the history says of what was decided.
DECISIONS = ("evaluated", "restarts", "improved", "global_best", "global_worst")


@dataclass(frozen=True)
class Iteration:
    """What one iteration took: `seconds` in all, by phase, and those in which the engine made a step."""

    seconds: float
    phases: dict[str, float]
    busy: float
    prompts: int
    tokens: int
    decisions: dict[str, Any]
    scores: dict[int, list[float | None]]
    """By particle; None where an example was left out."""
    limits: dict[int, DecisionBounds]
    """What each utility was compared with; none of them where the particles start."""

    @property
    def idle_share(self) -> float:
        """Of the iteration's time, the part in which the engine made no step."""
        return 1 - self.busy / self.seconds


class NotingEvaluator(Evaluator):
    """Keeps all scores and limits. Those of the initial particles may be known."""

    known: Mapping[int, Sequence[float | None]] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rounds: list[dict[int, PartialScores]] = []

    def score_population(self, *args: Any, **kwargs: Any) -> dict[int, PartialScores]:
        """What is known, once; then what the engine says."""
        if not self.rounds and self.known is not None:
            utility = functools.partial(self.utility.utility_of, "dev")
            tallies = {particle: PartialScores(len(scores), utility) for particle, scores in self.known.items()}
            for particle, tally in tallies.items():
                tally.scores = list(self.known[particle])
        else:
            tallies = super().score_population(*args, **kwargs)
        self.rounds.append(tallies)
        return tallies


class Bar:
    """In the place of the bar of a search: notes how long the base model has worked by the end of each iteration."""

    asked = False

    def __init__(self, base: BaseModel | None) -> None:
        self._base = base
        self.others = [0.0]

    def particle(self, prompts: int) -> None:
        """Nothing to do."""

    def iteration(self, *numbers: float) -> None:
        """One has ended."""
        self.others.append(0.0 if self._base is None else self._base.seconds)


@functools.cache
def utility_of_benchmark(prompts: int, skill: str | None = None) -> Utility:
    """So many prompts, of one skill or those of the examples, mixed."""
    with tempfile.TemporaryDirectory() as folder:
        return load_utility("exact_match", write_data(Path(folder, "data.json"), prompts, skill))


@contextmanager
def noted(server: Any) -> Iterator[list[Pass]]:
    """What an engine is asked for: a pass for each load, its prompts with as many tokens as each was answered with."""
    passes: list[Any] = []
    of_slot: dict[int, list[Any]] = {}
    asked: dict[int, tuple[list[Any], int]] = {}
    own = {name: getattr(server, name) for name in ("load", "load_mixture", "submit", "step")}

    def loading(name: str) -> Any:
        def load(slot: int, values: torch.Tensor) -> None:
            own[name](slot, values)
            of_slot[slot] = []
            passes.append(of_slot[slot])

        return load

    def submit(key: int, request: Any, max_tokens: int) -> None:
        own["submit"](key, request, max_tokens)
        asked[key] = of_slot[request.slot], len(of_slot[request.slot])
        of_slot[request.slot].append((request.prompt, max_tokens))

    def step() -> Any:
        ended = own["step"]()
        for key, completion in ended:
            one, index = asked.pop(key)
            one[index] = one[index][0], completion.tokens
        return ended

    replaced = {"load": loading("load"), "load_mixture": loading("load_mixture"), "submit": submit, "step": step}
    for name, method in replaced.items():
        setattr(server, name, method)
    try:
        yield passes
    finally:
        for name in replaced:
            delattr(server, name)


@functools.cache
def initial_passes(particles: int, prompts: int) -> Sequence[Pass]:
    """What the initial particles are asked, and how long their answers are, by the merged engine."""
    server = engine("merged")
    with noted(server) as passes:
        iterate(server, "merged", prompts=prompts, particles=particles)
    server.restore()
    return passes


def fresh_experts(particles: int) -> Any:
    """The example experts with the room of a swarm (0: none), which a search moves in."""

    def place(count: int, size: int, dtype: torch.dtype) -> torch.Tensor:
        return empty_rows(max(count, count_rows(particles)) if particles else count, size, dtype)

    return read_experts(EXAMPLES / "experts", place=place)


def fresh_swarm(particles: int, iterations: int, **settings: Any) -> Swarm:
    """A swarm that has not begun."""
    count = sum(path.is_dir() for path in (EXAMPLES / "experts").iterdir())
    return Swarm(SwarmConfig(particles=particles, iterations=iterations, seed=SEED, **settings), count)


def iterate(
    server: Any,
    serve: str,
    *,
    prompts: int,
    skill: str | None = None,
    particles: int = PARTICLES,
    base: BaseModel | None = None,
) -> Iteration:
    """One iteration of the loop on a running engine: the particles are evaluated where they start, and moved once."""
    swarm, rows, ran = _loop(server, serve, utility_of_benchmark(prompts, skill), particles, 0, base=base)
    plan, one = swarm.ask(), ran[-1]
    start = time.perf_counter()
    rows.update(plan)
    seconds = time.perf_counter() - start
    return Iteration(**(vars(one) | {"seconds": one.seconds + seconds, "phases": one.phases | {"update": seconds}}))


def search_moves(
    server: Any,
    serve: str,
    utility: Utility,
    moves: int,
    *,
    particles: int = PARTICLES,
    stop_early: bool = False,
    known: Mapping[int, Sequence[float | None]] | None = None,
    base: BaseModel | None = None,
    pace: float = 1.0,
) -> list[Iteration]:
    """The evaluation of the initial particles (or what is known of it), and the iterations of so many moves."""
    settings = {"stop_early": stop_early, "known": known, "base": base, "pace": pace}
    return _loop(server, serve, utility, particles, moves, **settings)[-1]


def _loop(
    server: Any,
    serve: str,
    utility: Utility,
    particles: int,
    moves: int,
    *,
    stop_early: bool = False,
    known: Mapping[int, Sequence[float | None]] | None = None,
    base: BaseModel | None = None,
    pace: float = 1.0,
) -> tuple[Swarm, Population, list[Iteration]]:
    chosen = config(serve, stop_early=stop_early)
    swarm = fresh_swarm(particles, moves)
    rows = Population(fresh_experts(particles if chosen.state == "weights" else 0), swarm, chosen, server.device)
    evaluator, bar = NotingEvaluator(server, utility, splits=("dev",)), Bar(base)
    evaluator.known = known
    limits: list[dict[int, DecisionBounds]] = []
    ask = swarm.ask

    def planned() -> Any:
        limits.append(limits_of(swarm, utility))
        return ask()

    swarm.ask = planned  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        with open_run(Path(folder, "run"), {}) as journal, beside(server, base, pace):
            run_iterations(swarm, rows, evaluator, journal, bar, stop_early=stop_early)  # type: ignore[arg-type]
        lines = [json.loads(line) for line in Path(folder, "run", "history.jsonl").read_text().splitlines()]
    server.watch, swarm.ask = None, ask  # type: ignore[method-assign]
    ran = []
    for index, line in enumerate(lines):
        other = bar.others[index + 1] - bar.others[index]
        phases = dict(line["seconds"])
        total = phases.pop("total")
        phases["generate"] -= other
        ran.append(
            Iteration(
                seconds=total - other,
                phases=phases,
                busy=(1 - line["engine_idle_share"]) * total,
                prompts=line["prompts"],
                tokens=line["tokens"],
                decisions={name: line[name] for name in DECISIONS},
                scores={particle: tally.scores for particle, tally in evaluator.rounds[index].items()},
                limits=limits[index - 1] if index else {},
            )
        )
    return swarm, rows, ran
