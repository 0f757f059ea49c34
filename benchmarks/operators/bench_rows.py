"""Promotion and restart as row numbers: what they move, against copying rows; and the memory of a swarm."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.measure import (
    CORES,
    Measure,
    added_bytes,
    calls_for,
    device_of,
    gpu_backends,
    random_rows,
    shares,
    short,
    update_limit,
)
from benchmarks.operators.torch_baselines import Tensors
from modelswarms_fast.config import EngineConfig, SwarmConfig
from modelswarms_fast.ops import swarm_update_, swarm_update_rows_
from modelswarms_fast.swarm import Swarm
from modelswarms_fast.weights.arena import empty_rows
from modelswarms_fast.weights.experts import Experts
from modelswarms_fast.weights.layout import Layout
from modelswarms_fast.weights.population import Population
from modelswarms_fast.weights.row_table import RowTable, count_rows
from modelswarms_fast.weights.rows import SwarmRows

PARTICLES, LARGE, LARGE_QUICK = 10, 8_000_000, 2_000_000
NOBODY, EVERYBODY = np.zeros(PARTICLES, dtype=np.bool_), np.ones(PARTICLES, dtype=np.bool_)


def tables() -> dict[str, Tensor]:
    """[P, 5] of an update after nobody improved, after everybody did, and of one in which everybody restarts."""
    table = RowTable(PARTICLES)
    improved = table.update(NOBODY)  # at the start every particle is its own personal best
    moved = table.update(NOBODY)
    restarted = table.update(EVERYBODY)
    found = {"nobody improved": moved, "all improved": improved, "all restart": restarted}
    return {name: torch.from_numpy(numbers) for name, numbers in found.items()}


def rows_moved(table: Tensor) -> int:
    """Rows that an update has to read or write: p only where it is not x, v only where it is not 0; g and w."""
    x_in, _, v_in, _, p = table.unbind(1)
    return int(3 * len(table) + (v_in >= 0).sum() + (p != x_in).sum()) + 2


def by_copying(case: str, rows: Tensor) -> Callable[[], None]:
    """The same with rows that stay where they are: copy what improved, or go back to the personal best."""
    position, velocity, personal_best = rows[: 3 * PARTICLES].view(3, PARTICLES, -1).unbind()
    swarm = Tensors(position, velocity, personal_best, rows[-2], rows[-1], shares(PARTICLES).to(rows.device))

    def call() -> None:
        if case == "all improved":
            personal_best.copy_(position)
        if case == "all restart":
            position.copy_(personal_best)
            velocity.zero_()
        swarm_update_(*swarm.all)

    return call


@pytest.mark.parametrize("case", ["nobody improved", "all improved", "all restart"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=short)
@pytest.mark.parametrize("backend", ["cpp", *gpu_backends()])
def test_update(measure: Measure, backend: str, dtype: torch.dtype, case: str) -> None:
    device = device_of(backend)
    size = LARGE_QUICK if measure.quick else LARGE
    rows = random_rows(3 * PARTICLES + 2, size, dtype, device)
    table, coefficients = tables()[case], shares(PARTICLES).to(device)
    moved = rows_moved(table) * size * dtype.itemsize
    measure.row(
        f"{backend} {short(dtype)} {case}, P={PARTICLES} D={size:,}",
        lambda: swarm_update_rows_(rows, table, 0, 1, coefficients, 0.5, backend=backend),
        bytes_moved=moved,
        calls=calls_for(moved, device) if device.type == "cuda" else 1,
        limit=update_limit(moved, device),
        baselines={"copied rows": by_copying(case, rows)},
        rows_bytes=rows.nbytes,
        device=device,
        backend=backend,
        dtype=short(dtype),
        particles=PARTICLES,
        size=size,
        case=case,
        threads=CORES,
    )


def test_promote(measure: Measure) -> None:
    """All particles, the global best and the global worst: numbers change, no row is copied."""
    size = LARGE_QUICK if measure.quick else LARGE
    experts = random_rows(PARTICLES, size, torch.bfloat16)
    held = SwarmRows(experts, np.eye(PARTICLES), empty_rows(count_rows(PARTICLES), size, torch.bfloat16))
    held.promote(EVERYBODY, 0, 1)
    rows, bests = random_rows(2 * PARTICLES + 4, size, torch.bfloat16).view(2, PARTICLES + 2, size).unbind()
    measure.row(
        f"SwarmRows.promote, P={PARTICLES} D={size:,}",
        lambda: held.promote(EVERYBODY, 0, 1),
        baselines={"copied rows": lambda: bests.copy_(rows)},
        calls=100,
        dtype="bfloat16",
        particles=PARTICLES,
        size=size,
        threads=CORES,
        memory=False,
    )


def make_experts(count: int, size: int, room: int) -> Experts:
    """Experts of one tensor, in memory with room for so many rows, as a search reads them."""
    layout = Layout.of({"weight": torch.empty(size, dtype=torch.bfloat16, device="meta")})
    names = tuple(f"expert-{index}" for index in range(count))
    memory = empty_rows(room, layout.size, layout.dtype)
    rows = memory[:count].fill_(0.5)
    return Experts("full", names, layout, rows, memory, (), {}, names)


@pytest.mark.parametrize("state", ["weights", "mixture"])
def test_memory(measure: Measure, state: str) -> None:
    """What experts and swarm take together, through a few iterations with promotions, restarts and loads.

    No engine: what it takes to apply a row or a mixture is its own.
    """
    size, particles = LARGE_QUICK if measure.quick else LARGE, 2 * PARTICLES
    rows = count_rows(particles) if state == "weights" else PARTICLES

    def live() -> None:
        swarm = Swarm(SwarmConfig(particles=particles, patience=1, restart_patience=1), PARTICLES)
        experts = make_experts(PARTICLES, size, rows)
        positions = swarm.initial_positions()
        held = Population(experts, positions, EngineConfig(state=state), torch.device("cpu"))
        utilities = np.linspace(0, 1, particles)
        for iteration in range(3):
            told = swarm.tell(utilities)
            held.promote(told.improved, told.global_best, told.global_worst)
            if iteration == 0:
                held.start(swarm.initial_velocities(positions))
            moves = swarm.ask()
            held.update(moves.restarts, moves.coefficients, moves.step_length, moves.iteration)
            utilities = utilities[::-1] + 0.3 * iteration
        for particle in range(particles):
            held.position(particle)

    live()
    taken = added_bytes(live)
    row_bytes = size * torch.bfloat16.itemsize
    bound = rows * row_bytes + (1_000_000 if state == "weights" else particles * PARTICLES * 32)
    measure.row(
        f"memory of a swarm, state {state}, P={particles} n={PARTICLES} D={size:,}",
        live,
        rounds=1,
        warmup=False,
        memory=False,
        state=state,
        particles=particles,
        experts=PARTICLES,
        size=size,
        row_bytes=row_bytes,
        taken_bytes=taken,
        bound_bytes=bound,
        threads=CORES,
    )
