"""Evaluation of a whole swarm against the plain base model, and what it costs beside the engine.

Most rows hold one iteration of the loop of a search (iterations.py), measured beside the plain base model on an engine
of the same settings (base_model.py): the same prompts, as many new tokens each, those of all particles in one
continuous batch, and none with cached prefixes of another particle. The two take turns at every step. Besides what
every row has (measure.py):

    serve, state, particles, prompts    what was evaluated; prompts are those of all particles
    prompts/s                           prompts of a full evaluation / seconds of the iteration
    share_of_base                       prompts/s over those of the base model in the same row, the median of the
                                        iterations in shares_of_base; the other facts are of that iteration
    idle_share                          of the iteration, the part in which the engine made no step
    phases                              seconds of update, load, generate and score
    stop_early                          whether examples that could decide nothing were dropped (bench_search.py)
    evaluated_prompts, tokens           what was generated for
    particles_in_a_step                 the most that had tokens in one step of the engine
    overhead_seconds                    row "driver": of an iteration of 100 particles of four prompts, everything but
                                        the time within a fake engine that answers at once; the median of the
                                        searches in overheads_seconds
    beyond_bytes                        row "start": peak memory of a process less that of vLLM alone and of the rows
    checkpoints_bytes                   rows "whole checkpoints": peak memory of a whole search over ten of them less
                                        that of vLLM alone; unmapped: without pages of files, which the system may drop
"""

from __future__ import annotations

import functools
import gc
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.engine.base_model import BaseModel, llm_beside
from benchmarks.engine.engines import PARTICLES, SERVES, config, engine, experts
from benchmarks.engine.iterations import (
    Iteration,
    fresh_experts,
    fresh_population,
    fresh_swarm,
    initial_passes,
    iterate,
    utility_of_benchmark,
)
from benchmarks.measure import CORES, Measure
from modelswarms_fast.engines.protocol import Completion, Request
from modelswarms_fast.evaluation.evaluator import Evaluator
from modelswarms_fast.records.progress import Progress
from modelswarms_fast.records.run_folder import Journal, read_history
from modelswarms_fast.runs.loop import Meter, SearchLoop
from modelswarms_fast.runs.scheduler import run_alone
from modelswarms_fast.runs.trial import Trial
from modelswarms_fast.weights.base_model import resolve_base
from modelswarms_fast.weights.packaged import SMOLLM2
from modelswarms_fast.weights.row_table import count_rows

pytest.importorskip("vllm")

MANY = 1024
ROUNDS = 3
DRIVEN = 100
ROOT = Path(__file__).parents[2]


def prompts_of(measure: Measure) -> int:
    """A particle's prompts."""
    return 20 if measure.quick else 200


@pytest.mark.parametrize("serve", SERVES)
def test_serve(measure: Measure, serve: str) -> None:
    """Ten particles beside the base model."""
    server, prompts = engine(serve), prompts_of(measure)
    passes, llm = initial_passes(PARTICLES, prompts), llm_beside(serve)
    found, shares, bases = list[Iteration](), list[float](), list[BaseModel]()

    def ours() -> None:
        bases.append(BaseModel(llm, [passes]))
        found.append(iterate(server, serve, prompts=prompts, base=bases[-1]))
        shares.append(bases[-1].seconds / found[-1].seconds)

    measure.row(
        f"{serve}, {PARTICLES} particles", ours, rounds=ROUNDS, warmup=False, memory=False, serve=serve,
        state=config(serve).state, particles=PARTICLES, prompts=PARTICLES * prompts, stop_early=False, threads=CORES,
    )  # fmt: skip
    share = statistics.median_low(shares)
    one, base = next(pair for pair, its in zip(zip(found, bases, strict=True), shares, strict=True) if its == share)
    measure.benchmark.extra_info.update(
        facts_of(one, PARTICLES * prompts)
        | {
            "baselines": {"base model": {"seconds": base.seconds, "ratio": share}},
            "share_of_base": share,
            "shares_of_base": shares,
            "base_tokens": base.tokens,
        }
    )
    server.restore()


def facts_of(one: Iteration, prompts: int) -> dict[str, Any]:
    """Of an iteration with so many prompts in a full evaluation, the base model's seconds taken off."""
    return {
        "seconds": one.seconds,
        "prompts/s": prompts / one.seconds,
        "idle_share": one.idle_share,
        "evaluated_prompts": one.prompts,
        "tokens": one.tokens,
        "phases": one.phases,
    }


def test_many_in_one_batch(measure: Measure) -> None:
    """As many particles as there are slots for mixtures (with --quick a tenth), and as many requests in a step.

    One short prompt each, so that the first has not ended before the last has begun. No base model beside them.
    """
    particles, prompts = MANY // 10 if measure.quick else MANY, 1
    server, found, most = engine("mixture", max_num_seqs=MANY), list[Iteration](), list[int]()

    def ours() -> None:
        with particles_in_steps() as counts:
            found.append(iterate(server, "mixture", prompts=prompts, skill="units", particles=particles))
        most.append(max(counts))

    measure.row(
        f"mixture, {particles:,} particles", ours, rounds=1, warmup=False, memory=False, serve="mixture",
        state="mixture", particles=particles, prompts=particles * prompts, stop_early=False, max_num_seqs=MANY,
        threads=CORES,
    )  # fmt: skip
    measure.benchmark.extra_info.update(facts_of(found[-1], particles * prompts) | {"particles_in_a_step": most[-1]})
    server.restore()


@contextmanager
def particles_in_steps() -> Iterator[list[int]]:
    """How many particles have tokens in each step of an engine that serves mixtures in this process."""
    from vllm.v1.core.sched.scheduler import Scheduler

    counts, own = [0], Scheduler.schedule

    def schedule(self: Any, *arguments: Any) -> Any:
        planned = own(self, *arguments)
        named = (self.requests[request].sampling_params.extra_args for request in planned.num_scheduled_tokens)
        counts.append(len({one["particle"] for one in named if one}))
        return planned

    Scheduler.schedule = schedule
    try:
        yield counts
    finally:
        Scheduler.schedule = own


class FakeEngine:
    """Answers every request at once with the same text, and adds up the seconds that it takes for it."""

    def __init__(self, slots: int) -> None:
        self.slots, self.max_model_len, self.device = slots, 512, torch.device("cpu")
        self.dtype, self.watch = torch.bfloat16, None
        self.serve, self.auto_timings = "slots", dict[str, float]()
        self._keys: list[int] = []
        self.seconds = 0.0

    def tokenizer(self, prompts: list[str]) -> dict[str, list[list[int]]]:
        """One token a prompt."""
        return {"input_ids": [[1] for _ in prompts]}

    def load(self, slot: int, row: Any) -> None:
        """Nothing to do."""

    load_mixture = load

    def restore(self) -> None:
        """Nothing to do."""

    def submit(self, key: int, request: Request, max_tokens: int) -> None:
        """To be answered in the next step."""
        self._keys.append(key)

    def step(self) -> list[tuple[int, Completion]]:
        """All that was submitted."""
        start = time.perf_counter()
        keys, self._keys = self._keys, []
        answers = [(key, Completion("= leg.", 1)) for key in keys]
        self.seconds += time.perf_counter() - start
        return answers

    def drop(self, keys: Any) -> None:
        """Give them up."""
        self._keys = [key for key in self._keys if key not in set(keys)]


def test_driver(measure: Measure) -> None:
    """Whole iterations of four prompts a particle, for a fake engine."""
    iterations = 5 if measure.quick else 40
    phases: dict[str, float] = {}
    wall: list[float] = []
    engines: list[FakeEngine] = []

    gc.collect()
    gc.freeze()  # as a vLLM engine does at its start; else a collection of all modules' objects may fall into the loop

    def run() -> None:
        swarm = fresh_swarm(DRIVEN, iterations, patience=iterations + 1)  # all moves score alike, none is the last
        rows = fresh_population(fresh_experts(0), swarm, config("merged", state="mixture"), torch.device("cpu"))
        engines.append(FakeEngine(DRIVEN))
        utility = utility_of_benchmark(4)
        evaluator = Evaluator(engines[-1], utility, splits=("dev",))  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "history.jsonl")
            start = time.perf_counter()
            with Journal(path) as journal, Progress(False, iterations, DRIVEN) as bar:

                def told(line: dict[str, Any]) -> None:
                    bar.iteration(line["iteration"], line["global_best"]["utility"], evaluator.spent.prompts)

                loop = SearchLoop(swarm, rows, utility)
                run_alone(Trial("driver", loop, evaluator, journal, meter=Meter(evaluator), told=told), evaluator, bar)
            wall.append(time.perf_counter() - start)
            lines = read_history(path)
        for line in lines:
            for phase, seconds in line["seconds"].items():
                phases[phase] = phases.get(phase, 0.0) + seconds / len(lines) / ROUNDS

    measure.row(f"driver, {DRIVEN} particles, fake engine", run, rounds=ROUNDS, warmup=False, memory=False,
                particles=DRIVEN, iterations=iterations, threads=CORES)  # fmt: skip
    phases.pop("total")
    each = [seconds / (iterations + 1) for seconds in wall]
    beside = [one.seconds / (iterations + 1) for one in engines]
    over = [mine - fake for mine, fake in zip(each, beside, strict=True)]
    measure.benchmark.extra_info.update(
        {
            "seconds": statistics.median(each),
            "overhead_seconds": statistics.median(over),
            "overheads_seconds": over,
            "phases": phases,
        }
    )


def fresh(*arguments: str) -> list[int]:
    """Peaks of a process of its own: without pages of files, and with them."""
    command = [sys.executable, "-m", "benchmarks.engine.fresh", *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise RuntimeError(f"fresh.py {' '.join(arguments)} failed: {ended.stderr[-2000:]}")
    return [int(line) for line in ended.stdout.splitlines()[-2:]]


@functools.cache
def plain_iteration() -> list[int]:
    """Peaks of vLLM alone."""
    return fresh("plain", "iteration")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Ten whole checkpoints, 2.7 GB: the base model with every weight moved a little, by another number each."""
    folder, base = tmp_path_factory.mktemp("checkpoints"), resolve_base(SMOLLM2)
    weights = load_file(base / "model.safetensors")
    for number in range(PARTICLES):
        to = folder / f"expert-{number}"
        to.mkdir()
        shutil.copy(base / "config.json", to)
        save_file({name: tensor * (1 + number / 128) for name, tensor in weights.items()}, to / "model.safetensors")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize(("state", "host_memory"), [("mixture", "none"), ("mixture", "1GB"), ("weights", "2GB")])
def test_checkpoints(measure: Measure, checkpoints: Path, state: str, host_memory: str) -> None:
    """The memory of a search over full weights, from its start to the winner's test."""
    peaks: list[list[int]] = []
    name = f"whole checkpoints, state {state}" + ("" if host_memory == "none" else f", host_memory {host_memory}")
    measure.row(
        name, lambda: peaks.append(fresh("search", str(checkpoints), state, host_memory)), rounds=1, warmup=False,
        memory=False, serve="merged", state=state, host_memory=host_memory, particles=PARTICLES, experts=PARTICLES,
        prompts=16 * PARTICLES, threads=CORES,
    )  # fmt: skip
    plain = plain_iteration()
    measure.benchmark.extra_info.update(
        {
            "peak_bytes": {"ours": peaks[0][1], "plain": plain[1]},
            "unmapped_peak_bytes": {"ours": peaks[0][0], "plain": plain[0]},
            "checkpoints_bytes": peaks[0][1] - plain[1],
            "unmapped_checkpoints_bytes": peaks[0][0] - plain[0],
        }
    )


def test_start(measure: Measure) -> None:
    """From nothing to the first evaluated prompt, in fresh processes; then the memory of an iteration."""
    measure.row(
        "start to the first prompt", lambda: fresh("ours", "start"),
        baselines={"vLLM alone": lambda: fresh("plain", "start")},
        rounds=1 if measure.quick else 2, warmup=False, memory=False, serve="merged", threads=CORES,
    )  # fmt: skip
    peaks = {"plain": plain_iteration()[1], "ours": fresh("ours", "iteration")[1]}
    rows_bytes = count_rows(PARTICLES) * experts().layout.nbytes
    measure.benchmark.extra_info.update(
        {
            "peak_bytes": peaks,
            "rows_bytes": rows_bytes,
            "beyond_bytes": peaks["ours"] - peaks["plain"] - rows_bytes,
        }
    )
