"""Searches with the seconds of each phase, what early stopping saves, and an iteration against the published code's.

Besides what every row has (measure.py): serve, state, engines, stop_early, particles, iterations, prompts, tokens,
prompts_per_second and phases of a search's summary (`total` has the engine's start, `setup`, and the tests in it).

Rows of early stopping (early.py) have the moves of a search in them, beside the base model:

    task                               a skill, whose expert scores high from the start
    share_of_base                      prompts of a full evaluation a second, over those of the base model
    evaluated_share                    of the examples of a full evaluation, those that were evaluated
    least_share                        and those that no exact order could have left out
    same_moves                         moves whose decisions were those of the full search, until the first that was not
    full_seconds                       of the moves of the full search, which ran before
    personal_bests, each_move          before each move, and of it

Rows of an iteration against the published code (--model-swarm) have the fact `published` and two baselines: in float16,
which it asks for, and in bfloat16, in which ours runs; without float16 arithmetic a CPU is faster in it. Each round
measures another one of its particles in both, and then ours. Besides seconds and ratio these say measured_particles
(the seconds are their median, times the particles) and, of a particle, the median seconds of update and evaluate, and
of the pauses that were left out (sleep). `products_seconds` are those of the matrix products of the model (products.py)
alone, for as many tokens on all threads, the median of the rounds.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks.engine.early import stopped_early
from benchmarks.engine.engines import (
    DATA,
    EXAMPLES,
    MAX_MODEL_LEN,
    PARTICLES,
    SERVES,
    config,
    engine,
    experts,
    write_data,
)
from benchmarks.engine.iterations import iterate, utility_of_benchmark
from benchmarks.engine.products import seconds_of
from benchmarks.measure import CORES, Measure
from benchmarks.published.published import published_iteration
from modelswarms_fast import search
from modelswarms_fast.engines.start import start_engine
from modelswarms_fast.weights.base_model import resolve_base
from modelswarms_fast.weights.packaged import SMOLLM2

pytest.importorskip("vllm")


def published(clone: Path, prompts: int, particle: int, dtype: str) -> dict[str, Any]:
    """A particle's iteration by the published code."""
    folders = [EXAMPLES / "experts" / name for name in experts().names]
    with tempfile.TemporaryDirectory() as folder:
        data = write_data(Path(folder, "data.json"), prompts)
        return published_iteration(clone, folders, resolve_base(SMOLLM2), data, measured=[particle], dtype=dtype)


@pytest.mark.parametrize("engines", [1, 2])
def test_published(measure: Measure, model_swarm: Path, engines: int) -> None:
    """One iteration of eight particles, one an expert, the same prompts and the same limit of new tokens.

    On most CPUs measured, two engines on half the cores each are faster than one on all.

    It comes first: vLLM's groups of processes, which engines in one process share, end with the engine of a search.
    """
    particles, (prompts, rounds) = len(experts().names), (20, 1) if measure.quick else (200, 3)
    server, ours, theirs = engine("merged"), list[Any](), dict[str, list[dict[str, Any]]]()
    read = sum(map(len, server.tokenizer(utility_of_benchmark(prompts).prompts["dev"])["input_ids"]))
    products: list[float] = []
    if engines > 1:
        server = start_engine(resolve_base(SMOLLM2), experts(), config("merged", engines=engines))

    def run(dtype: str) -> None:
        found = theirs.setdefault(dtype or "float16", [])
        found.append(published(model_swarm, prompts, len(found), dtype))

    def iteration() -> None:
        ours.append(iterate(server, "merged", prompts=prompts, particles=particles))
        # The last token of an answer is not read by the model.
        products.append(seconds_of(particles * (read - prompts) + ours[-1].tokens, ours[-1].tokens))

    measure.row(
        f"iteration, {particles} particles" + (f", {engines} engines" if engines > 1 else ""),
        iteration,
        baselines={"float16": lambda: run(""), "bfloat16": lambda: run("bfloat16")},
        rounds=rounds, warmup=False, memory=False, serve="merged", state="weights", particles=particles,
        prompts=particles * prompts, engines=engines, stop_early=False, published=True, threads=CORES,
    )  # fmt: skip
    seconds = statistics.median(one.seconds for one in ours)
    baselines: dict[str, dict[str, Any]] = {}
    for dtype, found in theirs.items():
        median = {
            name: statistics.median(one[name] for one in found) for name in ("seconds", "update", "evaluate", "sleep")
        }
        baselines[f"published code, {dtype}"] = {
            **median,
            "ratio": median["seconds"] / seconds,
            "measured_particles": len(found),
            "particle_seconds": [one["update"] + one["evaluate"] for one in found],
            "dtype": found[0]["dtype"],
        }
    facts = {"seconds": seconds, "baselines": baselines, "phases": ours[-1].phases}
    facts["products_seconds"] = statistics.median(products)
    facts["dtype"] = str(server.dtype).removeprefix("torch.")
    measure.benchmark.extra_info.update(facts)
    server.restore()
    if engines > 1:
        server.close()


def test_stop_early(measure: Measure) -> None:
    """Before the searches, for the same reason."""
    measure_stop_early(measure, "merged")


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize("serve", ["slots", "mixture"])
def test_stop_early_in_one_batch(measure: Measure, serve: str) -> None:
    """Several particles at once."""
    measure_stop_early(measure, serve)


def measure_stop_early(measure: Measure, serve: str) -> None:
    """The moves of a search, with and without."""
    task, (prompts, moves) = "addition", (12, 2) if measure.quick else (200, 10)
    found: dict[str, Any] = {}
    server = engine(serve)

    def run() -> None:
        found.update(stopped_early(server, serve, utility_of_benchmark(prompts, task), moves))

    measure.row(
        f"{task}, {serve}, stop_early, {PARTICLES} particles", run, rounds=1, warmup=False, memory=False, serve=serve,
        state=config(serve).state, task=task, particles=PARTICLES, iterations=moves, stop_early=True, threads=CORES,
    )  # fmt: skip
    measure.benchmark.extra_info.update(found)
    server.restore()


def test_weights(measure: Measure, tmp_path: Path) -> None:
    measure_search(measure, tmp_path, "merged, state weights", state="weights")


@pytest.mark.usefixtures("full")
def test_mixture(measure: Measure, tmp_path: Path) -> None:
    measure_search(measure, tmp_path, "merged, state mixture", state="mixture")


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize("serve", [serve for serve in SERVES if serve != "merged"])
def test_serve(measure: Measure, tmp_path: Path, serve: str) -> None:
    state = "mixture" if serve == "mixture" else "weights"
    measure_search(measure, tmp_path, f"{serve}, state {state}", serve=serve, state=state)


@pytest.mark.usefixtures("full")
def test_engines(measure: Measure, tmp_path: Path) -> None:
    """Two engines share the cores that one has in the other rows."""
    measure_search(measure, tmp_path, "merged, 2 engines", engines=2)


def measure_search(measure: Measure, tmp_path: Path, row: str, **settings: Any) -> None:
    """Eight experts as particles on a few dev examples, the engine's start and the test included in `total`."""
    found: dict[str, Any] = {}

    def run() -> None:
        found["summary"] = search(
            EXAMPLES / "experts",
            base=SMOLLM2,
            task="exact_match",
            data=DATA,
            out=tmp_path / "run",
            limit_dev=4 if measure.quick else 40,
            limit_test=4,
            iterations=1 if measure.quick else 3,
            max_model_len=MAX_MODEL_LEN,
            parity_check="off",
            seed=1,
            **settings,
        )

    facts = {"serve": "merged", "state": "weights", "engines": 1, "stop_early": False} | settings
    measure.row(row, run, rounds=1, warmup=False, memory=False, threads=CORES, **facts)
    summary = found["summary"]
    names = ("particles", "iterations", "prompts", "tokens", "prompts_per_second")
    measure.benchmark.extra_info.update({name: summary[name] for name in names})
    measure.benchmark.extra_info["phases"] = summary["seconds"]
