"""Whole iterations of a search, with the seconds of each phase."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engines import DATA, EXAMPLES, MAX_MODEL_LEN
from measure import CORES, Measure

from modelswarms_fast import search

pytest.importorskip("vllm")


def test_weights(measure: Measure, tmp_path: Path) -> None:
    measure_search(measure, tmp_path, "weights")


@pytest.mark.usefixtures("full")
def test_mixture(measure: Measure, tmp_path: Path) -> None:
    measure_search(measure, tmp_path, "mixture")


def measure_search(measure: Measure, tmp_path: Path, state: str) -> None:
    """Eight experts as particles on a few dev examples, the engine's start and the test included in `total`."""
    found: dict[str, Any] = {}

    def run() -> None:
        found["summary"] = search(
            EXAMPLES / "experts",
            base="smollm2-135m-instruct",
            task="exact_match",
            data=DATA,
            out=tmp_path / "run",
            limit_dev=4 if measure.quick else 16,
            limit_test=4,
            iterations=1 if measure.quick else 3,
            state=state,
            max_model_len=MAX_MODEL_LEN,
            canary="off",
            seed=1,
        )

    measure.row(f"state {state}", run, rounds=1, warmup=False, memory=False, state=state, threads=CORES)
    summary = found["summary"]
    facts = ("particles", "iterations", "prompts", "tokens", "prompts_per_second")
    measure.benchmark.extra_info.update({name: summary[name] for name in facts})
    measure.benchmark.extra_info["phases"] = summary["seconds"]
