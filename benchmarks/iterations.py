"""Whole iterations of a search on an engine that runs: the loop of `search` itself, without its start and its tests."""

from __future__ import annotations

import functools
import json
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from engines import EXAMPLES, PARTICLES, config, engine, write_data

from modelswarms_fast import loop
from modelswarms_fast.config import SwarmConfig
from modelswarms_fast.engines import Request, complete
from modelswarms_fast.evaluate import Evaluator
from modelswarms_fast.experts import read_experts
from modelswarms_fast.journal import open_run
from modelswarms_fast.memory import empty_rows
from modelswarms_fast.particles import Particles
from modelswarms_fast.progress import Progress
from modelswarms_fast.rows import count_rows
from modelswarms_fast.scores import Tally
from modelswarms_fast.swarm import Swarm
from modelswarms_fast.utilities import Utility, load_utility

SEED = 1


@dataclass(frozen=True)
class Iteration:
    """What one iteration took: `seconds` in all, by phase, and those in which the engine made a step."""

    seconds: float
    phases: dict[str, float]
    busy: float
    prompts: int
    tokens: int

    @property
    def idle_share(self) -> float:
        """Of the iteration's time, the part in which the engine made no step."""
        return 1 - self.busy / self.seconds


@dataclass(frozen=True)
class Known:
    """Scores [P][N] of the initial particles, and how many tokens each of their completions has."""

    scores: dict[int, list[float]]
    tokens: dict[int, list[int]]


@functools.cache
def utility_of_benchmark(prompts: int) -> Utility:
    """So many of the example prompts."""
    with tempfile.TemporaryDirectory() as folder:
        return load_utility("exact_match", write_data(Path(folder, "data.json"), prompts))


class HeadStart(Evaluator):
    """Knows the scores of the initial particles, so that the first iteration begins at once."""

    known: Known | None = None

    def rows(self, *args: Any, **kwargs: Any) -> Any:
        """What is known, once; then what the engine says."""
        if self.known is not None:
            tallies = {}
            for particle, scores in self.known.scores.items():
                tallies[particle] = Tally(len(scores))
                tallies[particle].scores = list(scores)
            self.known = None
            self._expected["dev"].learn({particle: tally.scores for particle, tally in tallies.items()})
            return tallies
        return super().rows(*args, **kwargs)


@functools.cache
def known(particles: int, prompts: int) -> Known:
    """Of the initial particles, by the merged engine."""
    server, utility = engine("merged"), utility_of_benchmark(prompts)
    moved = Particles(fresh_experts(0), fresh_swarm(particles, 0), config("merged", state="mixture"), server.device)
    tokenized = [list(ids) for ids in server.tokenizer(utility.prompts["dev"])["input_ids"]]
    scores, tokens = {}, {}
    for particle in range(particles):
        server.load(0, moved.row(particle))
        completions = complete(server, [Request(0, prompt) for prompt in tokenized], utility.max_tokens)
        scores[particle] = utility.score("dev", [completion.text for completion in completions])
        tokens[particle] = [completion.tokens for completion in completions]
    server.restore()
    return Known(scores, tokens)


def fresh_experts(particles: int) -> Any:
    """The example experts with the room of a swarm (0: none), which a search moves in."""

    def place(count: int, size: int, dtype: torch.dtype) -> torch.Tensor:
        return empty_rows(max(count, count_rows(particles)) if particles else count, size, dtype)

    return read_experts(EXAMPLES / "experts", place=place)


def fresh_swarm(particles: int, iterations: int) -> Swarm:
    """A swarm that has not begun."""
    count = sum(path.is_dir() for path in (EXAMPLES / "experts").iterdir())
    return Swarm(SwarmConfig(particles=particles, iterations=iterations, seed=SEED), count)


def iterate(
    server: Any, serve: str, *, prompts: int, particles: int = PARTICLES, since: Known | None = None, **settings: Any
) -> Iteration:
    """One iteration of the loop on a running engine, its update and its line in the journal included.

    The particles are evaluated where they start, or, with what is known of that, where their first move brings them.
    """
    chosen = config(serve, **settings)
    swarm = fresh_swarm(particles, 0 if since is None else 1)
    rows = Particles(fresh_experts(particles if chosen.state == "weights" else 0), swarm, chosen, server.device)
    evaluator = HeadStart(server, utility_of_benchmark(prompts), splits=("dev",))
    evaluator.known = since
    steps: list[tuple[float, float]] = []

    def watch(what: str, lane: int, start: float, end: float) -> None:
        evaluator.trace.watch(what, lane, start, end)
        if what == "step":
            steps.append((start, end))

    server.watch = watch
    with tempfile.TemporaryDirectory() as folder:
        with open_run(Path(folder, "run"), {}) as journal, Progress(False, 1, particles) as bar:
            loop._run(swarm, rows, evaluator, journal, bar, stop_early=chosen.stop_early)
        line = json.loads(Path(folder, "run", "history.jsonl").read_text().splitlines()[-1])
    server.watch = None
    phases = dict(line["seconds"])
    seconds = phases.pop("total")
    if since is None:
        plan = swarm.plan()
        start = time.perf_counter()
        rows.update(plan)
        phases["update"] = time.perf_counter() - start
        seconds += phases["update"]
    return Iteration(seconds, phases, covered(steps), line["prompts"], line["tokens"])


def covered(spans: list[tuple[float, float]]) -> float:
    """Seconds in which at least one of the spans ran."""
    total, end = 0.0, -math.inf
    for first, last in sorted(spans):
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total


def base_model(work: Known, prompts: int) -> None:
    """The plain base model on the merged engine: the same prompts and numbers of tokens, prefixes anew a particle."""
    from vllm import SamplingParams

    server, utility = engine("merged"), utility_of_benchmark(prompts)
    server.restore()
    tokenized = [{"prompt_token_ids": list(ids)} for ids in server.tokenizer(utility.prompts["dev"])["input_ids"]]
    for counts in work.tokens.values():
        server.llm.reset_prefix_cache()
        lengths = [
            SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False) for count in counts
        ]
        server.llm.generate(tokenized, lengths, use_tqdm=False)
