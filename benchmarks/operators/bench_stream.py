"""Rows that do not fit where they are computed: from a file through memory, from pinned memory through a GPU."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.engine.cold import evict
from benchmarks.measure import CORES, CPU, GPU, Call, Measure, random_rows, shares, short
from benchmarks.operators.bench_rows import PARTICLES, make_experts, rows_moved, tables
from modelswarms_fast.config import EngineConfig, SwarmConfig
from modelswarms_fast.ops import swarm_update_rows_
from modelswarms_fast.swarm import Swarm
from modelswarms_fast.weights.arena import empty_rows, row_stride
from modelswarms_fast.weights.placement import LEAST_CACHED, Placement, plan_memory
from modelswarms_fast.weights.population import Population
from modelswarms_fast.weights.streaming import stream_update_rows_

LARGE, LARGE_QUICK, GPU_SIZE = 8_000_000, 2_000_000, 50_000_000
DTYPES = (torch.bfloat16, torch.float32)


def passing(table: Tensor) -> tuple[list[int], list[int]]:
    """Rows that come in, and rows that go out."""
    x_in, x_out, v_in, v_out, p = table.t().tolist()
    return sorted({*x_in, *v_in, *p, 0, 1} - {-1}), [*x_out, *v_out]


def copies_on_cpu(rows: Tensor, table: Tensor) -> tuple[int, Call]:
    """The same bytes in and out by two threads, with nothing between: out of the rows, and into them."""
    read, written = passing(table)
    columns = 32_768
    scratch = torch.zeros(2, columns, dtype=rows.dtype)

    def come() -> None:
        for number in read:
            for part in rows[number].split(columns):
                scratch[0, : len(part)].copy_(part)

    def go() -> None:
        for number in written:
            for part in rows[number].split(columns):
                part.copy_(scratch[1, : len(part)])

    def call() -> None:
        with ThreadPoolExecutor(2) as pool:
            for one in [pool.submit(come), pool.submit(go)]:
                one.result()

    return (len(read) + len(written)) * rows.shape[1] * rows.element_size(), call


def copies_over_pcie(rows: Tensor, table: Tensor) -> tuple[int, Call]:
    """Pinned rows to the device and back, both directions at once."""
    read, written = passing(table)
    inner = torch.zeros(2, rows.shape[1], dtype=rows.dtype, device=GPU)
    coming, going = torch.cuda.Stream(), torch.cuda.Stream()

    def call() -> None:
        now = torch.cuda.current_stream()
        coming.wait_stream(now)
        going.wait_stream(now)
        with torch.cuda.stream(coming):
            for number in read:
                inner[0].copy_(rows[number], non_blocking=True)
        with torch.cuda.stream(going):
            for number in written:
                rows[number].copy_(inner[1], non_blocking=True)
        now.wait_stream(coming)
        now.wait_stream(going)

    return (len(read) + len(written)) * rows.shape[1] * rows.element_size(), call


@pytest.mark.parametrize("source", ["memory", "file"])
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_cpu(measure: Measure, tmp_path: Path, dtype: torch.dtype, source: str) -> None:
    """A file's pages are in the page cache when the clock starts, and the disk gets them when the system pleases."""
    size = LARGE_QUICK if measure.quick else LARGE
    resident = random_rows(3 * PARTICLES + 2, size, dtype)
    rows = resident if source == "memory" else empty_rows(len(resident), size, dtype, tier="file", folder=tmp_path)
    rows.copy_(resident)
    table, coefficients = tables()["nobody improved"], shares(PARTICLES)
    arguments = (table, 0, 1, coefficients, 0.5)
    measure.row(
        f"{short(dtype)} from {source}, P={PARTICLES} D={size:,}",
        lambda: stream_update_rows_(rows, *arguments),
        bytes_moved=rows_moved(table) * size * dtype.itemsize,
        limit={"copies in and out": copies_on_cpu(rows, table)},
        baselines={"resident rows": lambda: swarm_update_rows_(resident, *arguments)},
        rows_bytes=0 if source == "file" else rows.nbytes,
        backend="cpp",
        dtype=short(dtype),
        particles=PARTICLES,
        size=size,
        source=source,
        threads=CORES,
    )


@pytest.mark.parametrize("fit", [24, 16])
def test_budget(measure: Measure, tmp_path: Path, fit: int) -> None:
    """An iteration's update and loads, and the disk has what was written, of a swarm of which only so many rows fit.

    Between two calls memory lets go of the file, as it does when there is no room for it.
    """
    size = LARGE_QUICK if measure.quick else LARGE
    row = row_stride(size, torch.bfloat16) * torch.bfloat16.itemsize

    def planned(rows: int | None) -> Placement:
        budget = None if rows is None else f"{rows * row} bytes"
        config = EngineConfig(state="weights", host_memory=budget, spill=str(tmp_path))
        shape = {"particles": PARTICLES, "experts": PARTICLES, "size": size, "dtype": torch.bfloat16}
        return plan_memory(config, **shape, device=CPU, out=tmp_path)

    plan, least = planned(fit), planned(LEAST_CACHED)
    plans = {
        "ours": plan,
        "all rows in a file, copies in memory": replace(least, cache_rows=min(fit, 2 * PARTICLES + 2)),
        "all rows in memory": planned(None),
    }
    phases: dict[str, list[dict[str, float]]] = {}
    with ExitStack() as stack:
        calls = {}
        for name, one in plans.items():
            phases[name] = []
            calls[name] = Iterations(one, size, phases[name])
            stack.callback(calls[name].particles.close)
        names = [name for name in plans if name != "ours"]
        measure.row(
            f"bfloat16, {fit} of {plan.rows} rows in memory, the disk cold, P={PARTICLES} D={size:,}",
            calls["ours"],
            baselines={name: calls[name] for name in names},
            memory=False,
            rounds=5,
            dtype="bfloat16",
            particles=PARTICLES,
            size=size,
            source="memory and file",
            tiers=plan.tiers,
            held=plan.bytes,
            threads=CORES,
        )
    medians = {
        name: {phase: statistics.median(one[phase] for one in found) for phase in found[0]}
        for name, found in phases.items()
    }
    measure.benchmark.extra_info.update({"phases": medians.pop("ours"), "phases_of_baselines": medians})


class Iterations:
    """Of a swarm where a plan puts its rows: a call is one iteration without an engine, and notes its phases."""

    def __init__(self, plan: Placement, size: int, phases: list[dict[str, float]]) -> None:
        room = plan.allocate(size, torch.bfloat16)
        experts = make_experts(PARTICLES, size, PARTICLES)
        room[:PARTICLES].copy_(random_rows(PARTICLES, size, torch.bfloat16))
        self.swarm = Swarm(SwarmConfig(particles=PARTICLES, iterations=10**6, patience=10**6), PARTICLES)
        found = replace(experts, rows=room[:PARTICLES], room=room)
        positions = self.swarm.initial_positions()
        self.particles = Population(found, positions, EngineConfig(state="weights"), CPU, placement=plan)
        self.phases, self.draw = phases, np.random.default_rng(0)
        self.slot = random_rows(1, size, torch.bfloat16)[0]
        self.promote()
        self.particles.start(self.swarm.initial_velocities(positions))

    def promote(self) -> None:
        """By utilities at random."""
        told = self.swarm.tell(self.draw.random(PARTICLES))
        self.particles.promote(told.improved, told.global_best, told.global_worst)

    def __call__(self) -> None:
        """The next one."""
        times = [time.perf_counter()]
        moves = self.swarm.ask()
        self.particles.update(moves.restarts, moves.coefficients, moves.step_length, moves.iteration)
        times.append(time.perf_counter())
        for particle in range(PARTICLES):
            row = self.particles.row(particle)
            if particle + 1 < PARTICLES:
                self.particles.prefetch(particle + 1)
            self.slot.copy_(row)  # the engine's part
        times.append(time.perf_counter())
        evict()
        times.append(time.perf_counter())
        spans = [end - start for start, end in pairwise(times)]
        self.phases.append(dict(zip(("update", "load", "write back"), spans, strict=True)))
        self.promote()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_gpu(measure: Measure, dtype: torch.dtype) -> None:
    rows = torch.empty(3 * PARTICLES + 2, GPU_SIZE, dtype=dtype, pin_memory=True)
    rows.copy_(random_rows(1, GPU_SIZE, dtype, CPU).expand_as(rows))
    table = tables()["nobody improved"]
    measure.row(
        f"{short(dtype)} from pinned memory, P={PARTICLES} D={GPU_SIZE:,}",
        lambda: stream_update_rows_(rows, table, 0, 1, shares(PARTICLES), 0.5, device=GPU),
        bytes_moved=rows_moved(table) * GPU_SIZE * dtype.itemsize,
        limit={"copies in and out over PCIe": copies_over_pcie(rows, table)},
        device=GPU,
        dtype=short(dtype),
        particles=PARTICLES,
        size=GPU_SIZE,
        source="pinned memory",
        headline=True,
    )
