"""What a call costs beside the work: microseconds of Python, checks and the way into C++."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import fmean
from unittest.mock import create_autospec

import numpy as np
import pytest
import torch

from benchmarks.measure import CORES, Measure, random_rows, shares, short, threads
from benchmarks.operators.bench_mix import make_mixture
from benchmarks.operators.bench_update import make_swarm
from modelswarms_fast.config import EngineConfig, SwarmConfig
from modelswarms_fast.evaluation.early_stopping import PartialScores
from modelswarms_fast.evaluation.evaluator import Evaluator
from modelswarms_fast.evaluation.objectives import Utility
from modelswarms_fast.evaluation.spent import Spent
from modelswarms_fast.ops import _C, mix_, swarm_update_, swarm_update_rows_
from modelswarms_fast.ops.validation import DTYPE_CODES
from modelswarms_fast.records.progress import Progress
from modelswarms_fast.records.run_folder import Journal
from modelswarms_fast.records.trace import Trace
from modelswarms_fast.runs.loop import Meter, SearchLoop
from modelswarms_fast.runs.scheduler import run_alone
from modelswarms_fast.runs.trial import Trial
from modelswarms_fast.swarm import Swarm
from modelswarms_fast.weights.experts import Experts
from modelswarms_fast.weights.layout import Layout
from modelswarms_fast.weights.population import Population
from modelswarms_fast.weights.row_table import RowTable, count_rows
from modelswarms_fast.weights.rows import SwarmRows

PARTICLES, CALLS = 4, 1000
Arrivals = Callable[[bool], Mapping[int, object]]


@pytest.mark.parametrize("size", [16, 100_000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=short)
def test_swarm_update(measure: Measure, dtype: torch.dtype, size: int) -> None:
    """swarm_update_ against the C++ function with the same arguments, on one thread: the difference is the call."""
    swarm = make_swarm(PARTICLES, size, dtype)
    strided = [number for rows in swarm.rows[:3] for number in (rows.data_ptr(), rows.stride(0))]
    arguments = (
        *(*strided, swarm.global_best.data_ptr(), swarm.global_worst.data_ptr(), 0, swarm.coefficients.data_ptr()),
        *(swarm.step_length, PARTICLES, size, DTYPE_CODES[dtype], 0, False, 0, 0, 0),
    )
    with threads(1):
        info = measure.row(
            f"swarm_update_, {short(dtype)} P={PARTICLES} D={size:,}",
            lambda: swarm_update_(*swarm.all),
            baselines={"the C++ function": lambda: _C.swarm_update(*arguments)},
            calls=CALLS if size < 1000 else CALLS // 10,
            memory=False,
            dtype=short(dtype),
            particles=PARTICLES,
            size=size,
            threads=1,
        )
    overhead = info["seconds"] - info["baselines"]["the C++ function"]["seconds"]
    measure.benchmark.extra_info["overhead_seconds"] = overhead


def test_swarm_update_rows(measure: Measure) -> None:
    rows = random_rows(3 * PARTICLES + 2, 16, torch.bfloat16)
    table = torch.from_numpy(RowTable(PARTICLES).update(np.zeros(PARTICLES, dtype=np.bool_)))
    coefficients = shares(PARTICLES)
    call_overhead(measure, "swarm_update_rows_", lambda: swarm_update_rows_(rows, table, 0, 1, coefficients, 0.5))


def test_mix(measure: Measure) -> None:
    experts, out = random_rows(PARTICLES, 16, torch.bfloat16), random_rows(PARTICLES, 16, torch.bfloat16)
    mixture = make_mixture(PARTICLES, PARTICLES)
    call_overhead(measure, "mix_", lambda: mix_(out, experts, mixture))


def test_swarm_rows_update(measure: Measure) -> None:
    """What one iteration of a search calls, row numbers included."""
    swarm = Swarm(SwarmConfig(particles=PARTICLES), PARTICLES)
    experts, rows = (random_rows(count, 16, torch.bfloat16) for count in (PARTICLES, count_rows(PARTICLES)))
    held = SwarmRows(experts, swarm.initial_positions(), rows)
    told = swarm.tell(np.arange(PARTICLES, dtype=np.float64))
    held.promote(told.improved, told.global_best, told.global_worst)
    moves = swarm.ask()
    arguments = moves.restarts, moves.coefficients, moves.step_length, moves.iteration
    call_overhead(measure, "SwarmRows.update", lambda: held.update(*arguments))


def test_driver(measure: Measure, tmp_path: Path) -> None:
    """The loop of a search without its evaluations: ask, update, tell, promote, and the journal with its fsync."""
    particles, experts, iterations = 100, 10, 20
    rows = random_rows(experts, 16, torch.bfloat16)
    layout = Layout.of({"weight": torch.empty(16, dtype=torch.bfloat16, device="meta")})
    names = tuple(f"expert-{index}" for index in range(experts))
    pool = Experts("full", names, layout, rows, rows, (), {}, names)
    random = np.random.default_rng(0)

    def stream(split: str, arrivals: Arrivals, limits: object, visits: object) -> Iterator[tuple[int, PartialScores]]:
        while arrived := arrivals(True):
            for number in arrived:
                scores = PartialScores(1, fmean)
                scores.scores[0] = float(random.random())
                yield number, scores

    evaluator = create_autospec(Evaluator, instance=True, spent=Spent(), trace=Trace())
    utility = create_autospec(Utility, instance=True)
    evaluator.stream, evaluator.file, evaluator.engine = stream, None, None
    bar = create_autospec(Progress, instance=True, asked=False)

    def search() -> None:
        swarm = Swarm(SwarmConfig(particles=particles, iterations=iterations - 1, patience=iterations), experts)
        positions = swarm.initial_positions()
        held = Population(pool, positions, EngineConfig(state="mixture"), torch.device("cpu"))
        loop = SearchLoop(swarm, held, utility)
        run_alone(Trial("driver", loop, evaluator, journal, meter=Meter(evaluator)), evaluator, bar)

    with Journal(tmp_path / "history.jsonl") as journal:
        info = measure.row(
            f"{iterations} iterations of the driver, P={particles} n={experts}",
            search,
            memory=False,
            particles=particles,
            iterations=iterations,
            threads=CORES,
        )
    measure.benchmark.extra_info["seconds_an_iteration"] = info["seconds"] / iterations


def call_overhead(measure: Measure, name: str, call: object) -> None:
    """A call that has next to nothing to compute."""
    measure.row(
        f"{name}, bfloat16 P={PARTICLES} D=16",
        call,
        calls=CALLS,
        memory=False,
        dtype="bfloat16",
        particles=PARTICLES,
        size=16,
        threads=CORES,
    )
