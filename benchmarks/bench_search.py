"""Whole searches with the seconds of each phase, and one iteration against the published code's.

Besides what every row has (measure.py): serve, state, engines, stop_early, particles, iterations, prompts, tokens,
prompts_per_second and phases of a search's summary (`total` has the engine's start, `setup`, and the tests in it).

Rows of an iteration against the published code (--model-swarm) have the fact `published` and two baselines: in float16,
which it asks for, and in bfloat16, in which ours runs; without float16 arithmetic a CPU is faster in it. Besides
seconds and ratio these say measured_particles (so many were measured; the seconds are scaled to all) and, of one
particle, the seconds of update and evaluate, and of the pauses that were left out (sleep).
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
from engines import DATA, EXAMPLES, MAX_MODEL_LEN, SERVES, engine, experts, write_data
from iterations import Iteration, iterate, known
from measure import CORES, Measure
from published import published_iteration

from modelswarms_fast import search
from modelswarms_fast.base import PACKAGED, resolve_base
from modelswarms_fast.config import EngineConfig

pytest.importorskip("vllm")
SETTINGS = EngineConfig.__dataclass_fields__


@functools.cache
def published(clone: Path, prompts: int, measured: int) -> dict[str, dict[str, Any]]:
    """An iteration of the published code in both dtypes, by the name of the baseline."""
    folders = [EXAMPLES / "experts" / name for name in experts().names]
    with tempfile.TemporaryDirectory() as folder:
        data = write_data(Path(folder, "data.json"), prompts)
        base = resolve_base(PACKAGED)
        return {
            f"published code, {dtype or 'float16'}": published_iteration(
                clone, folders, base, data, measured=measured, dtype=dtype
            )
            for dtype in ("", "bfloat16")
        }


@pytest.mark.parametrize("stop_early", [False, True])
def test_published(measure: Measure, model_swarm: Path, stop_early: bool) -> None:
    """One iteration of eight particles, one an expert, the same prompts and the same limit of new tokens.

    It comes first: vLLM's groups of processes, which engines in one process share, end with the engine of a search.
    """
    if stop_early and "stop_early" not in SETTINGS:
        pytest.skip("no early stopping")
    prompts, particles = 20 if measure.quick else 200, len(experts().names)
    server, found = engine("merged"), list[Iteration]()
    since = known(particles, prompts) if stop_early else None
    settings = {"stop_early": True} if stop_early else {}
    theirs = published(model_swarm, prompts, 1)

    def ours() -> None:
        found.append(iterate(server, "merged", prompts=prompts, particles=particles, since=since, **settings))

    measure.row(
        f"iteration{', stop_early' if stop_early else ''}, {particles} particles", ours, rounds=2, warmup=False,
        memory=False, serve="merged", state="weights", particles=particles, prompts=particles * prompts,
        stop_early=stop_early, published=True, threads=CORES,
    )  # fmt: skip
    seconds = sum(one.seconds for one in found) / len(found)
    measure.benchmark.extra_info.update(
        {
            "seconds": seconds,
            "baselines": {name: one | {"ratio": one["seconds"] / seconds} for name, one in theirs.items()},
            "phases": found[-1].phases,
        }
    )
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


@pytest.mark.skipif("stop_early" not in SETTINGS, reason="no early stopping")
def test_stop_early(measure: Measure, tmp_path: Path) -> None:
    measure_search(measure, tmp_path, "merged, stop_early", stop_early=True)


@pytest.mark.usefixtures("full")
@pytest.mark.skipif("engines" not in SETTINGS, reason="one engine only")
def test_engines(measure: Measure, tmp_path: Path) -> None:
    """Two engines share the cores that one has in the other rows."""
    measure_search(measure, tmp_path, "merged, 2 engines", engines=2)


def measure_search(measure: Measure, tmp_path: Path, row: str, **settings: Any) -> None:
    """Eight experts as particles on a few dev examples, the engine's start and the test included in `total`."""
    found: dict[str, Any] = {}

    def run() -> None:
        found["summary"] = search(
            EXAMPLES / "experts",
            base=PACKAGED,
            task="exact_match",
            data=DATA,
            out=tmp_path / "run",
            limit_dev=4 if measure.quick else 40,
            limit_test=4,
            iterations=1 if measure.quick else 3,
            max_model_len=MAX_MODEL_LEN,
            canary="off",
            seed=1,
            **settings,
        )

    facts = {"serve": "merged", "state": "weights", "engines": 1, "stop_early": False} | settings
    measure.row(row, run, rounds=1, warmup=False, memory=False, threads=CORES, **facts)
    summary = found["summary"]
    names = ("particles", "iterations", "prompts", "tokens", "prompts_per_second")
    measure.benchmark.extra_info.update({name: summary[name] for name in names})
    measure.benchmark.extra_info["phases"] = summary["seconds"]
