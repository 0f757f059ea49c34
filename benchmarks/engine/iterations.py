"""Iterations of a search on an engine that runs: the loop of `search` itself, without its start and its tests."""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine.base_model import BaseModel, Pass, beside
from benchmarks.engine.engines import EXAMPLES, PARTICLES, config, engine, write_data
from modelswarms_fast.config import EngineConfig, SwarmConfig
from modelswarms_fast.evaluation.early_stopping import DecisionBounds
from modelswarms_fast.evaluation.evaluator import Evaluator
from modelswarms_fast.evaluation.objectives import Utility, load_utility
from modelswarms_fast.records.run_folder import Journal, read_history
from modelswarms_fast.records.score_file import ScoreFile
from modelswarms_fast.runs.loop import Meter, SearchLoop, limits_of
from modelswarms_fast.runs.scheduler import run_alone
from modelswarms_fast.runs.trial import Trial
from modelswarms_fast.swarm import Swarm
from modelswarms_fast.weights.arena import empty_rows
from modelswarms_fast.weights.experts import Experts, read_experts
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
    line: dict[str, Any]
    """What the record says of it."""
    limits: dict[int, DecisionBounds]
    """What each utility was compared with; none of them where the particles start."""
    written: float = 0.0
    """Of the seconds, those in which scores were written into a file."""

    @property
    def decisions(self) -> dict[str, Any]:
        """What was decided."""
        return {name: self.line[name] for name in DECISIONS}

    @property
    def scores(self) -> dict[int, list[float | None]]:
        """By particle; None where an example was left out."""
        return {particle: scores for particle, scores in enumerate(self.line["scores"]) if scores is not None}

    @property
    def idle_share(self) -> float:
        """Of the iteration's time, the part in which the engine made no step."""
        return 1 - self.busy / self.seconds


class NotingLoop(SearchLoop):
    """Notes what the utilities of each iteration are compared with, also where no evaluation stops early."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.compared: list[dict[int, DecisionBounds]] = [{}]

    def move(self, recorded: Sequence[Sequence[float]] | None = None) -> None:
        """Note it, and move the particles."""
        self.compared.append(limits_of(self.swarm, self._utility))
        super().move(recorded)


class TimedScores(ScoreFile):
    """Knows how long it has written."""

    seconds = 0.0

    def append(self, *arguments: Any) -> None:
        """Write a line."""
        start = time.perf_counter()
        super().append(*arguments)
        self.seconds += time.perf_counter() - start


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


def fresh_experts(particles: int) -> Experts:
    """The example experts with the room of a swarm (0: none), which a search moves in."""

    def place(count: int, size: int, dtype: torch.dtype) -> torch.Tensor:
        return empty_rows(max(count, count_rows(particles)) if particles else count, size, dtype)

    return read_experts(EXAMPLES / "experts", place=place)


def fresh_swarm(particles: int, iterations: int, **settings: Any) -> Swarm:
    """A swarm that has not begun."""
    count = sum(path.is_dir() for path in (EXAMPLES / "experts").iterdir())
    return Swarm(SwarmConfig(particles=particles, iterations=iterations, seed=SEED, **settings), count)


def fresh_population(pool: Experts, swarm: Swarm, chosen: EngineConfig, device: torch.device) -> Population:
    """The particles of a swarm where they begin."""
    draws: dict[str, Any] = {"randomness": swarm.config.randomness, "seed": swarm.config.seed}
    return Population(pool, swarm.initial_positions(), chosen, device, **draws)


def iterate(
    server: Any,
    serve: str,
    *,
    prompts: int,
    skill: str | None = None,
    particles: int = PARTICLES,
    base: BaseModel | None = None,
    durable: bool = False,
) -> Iteration:
    """One iteration of the loop on a running engine: the particles are evaluated where they start, and moved once.

    `durable`: their scores are on the disk as they come.
    """
    utility = utility_of_benchmark(prompts, skill)
    loop, ran = _loop(server, serve, utility, particles, 0, base=base, durable=durable)
    start = time.perf_counter()
    loop.move()
    seconds, one = time.perf_counter() - start, ran[-1]
    return replace(one, seconds=one.seconds + seconds, phases=one.phases | {"update": seconds})


def search_moves(
    server: Any,
    serve: str,
    utility: Utility,
    moves: int,
    *,
    particles: int = PARTICLES,
    stop_early: bool = False,
    known: Mapping[str, Any] | None = None,
    base: BaseModel | None = None,
    pace: float = 1.0,
) -> list[Iteration]:
    """The evaluation of the initial particles, and the iterations of so many moves.

    `known`: the line that another search of this swarm recorded of the initial particles. It is told instead of
    evaluating them, and is not among what is returned.
    """
    ran = _loop(server, serve, utility, particles, moves, stop_early=stop_early, known=known, base=base, pace=pace)
    return ran[-1]


def _loop(
    server: Any,
    serve: str,
    utility: Utility,
    particles: int,
    moves: int,
    *,
    stop_early: bool = False,
    known: Mapping[str, Any] | None = None,
    base: BaseModel | None = None,
    pace: float = 1.0,
    durable: bool = False,
) -> tuple[SearchLoop, list[Iteration]]:
    chosen = config(serve, stop_early=stop_early)
    swarm = fresh_swarm(particles, moves)
    rows = fresh_population(fresh_experts(particles if chosen.state == "weights" else 0), swarm, chosen, server.device)
    stack = ExitStack()
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    file = TimedScores(folder, "benchmark") if durable else None
    evaluator = Evaluator(server, utility, splits=("dev",))
    if file is not None:
        evaluator.keep_in(file)
    loop = NotingLoop(swarm, rows, utility, evaluator.difficulty_order("dev") if stop_early else None)
    others = [0.0]  # seconds that the base model has worked by the end of each iteration

    def told(line: Mapping[str, Any]) -> None:
        others.append(0.0 if base is None else base.seconds)

    with stack:
        path = folder / "history.jsonl"
        with Journal(path) as journal, beside(server, base, pace):
            recorded = [] if known is None else [dict(known)]
            trial = Trial("search", loop, evaluator, journal, recorded=recorded, meter=Meter(evaluator), told=told)
            run_alone(trial, evaluator)
        lines = read_history(path)
        if file is not None:
            file.close()
    server.watch = None
    ran = []
    for line, (before, after) in zip(lines, pairwise(others), strict=True):
        phases = dict(line["seconds"])
        total = phases.pop("total")
        phases["generate"] -= after - before
        ran.append(
            Iteration(
                seconds=total - (after - before),
                phases=phases,
                busy=(1 - line["engine_idle_share"]) * total,
                prompts=line["prompts"],
                tokens=line["tokens"],
                line=line,
                limits=loop.compared[line["iteration"]],
                written=0.0 if file is None else file.seconds,
            )
        )
    return loop, ran
