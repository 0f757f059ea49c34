"""What it costs to have each score on the disk, and what brings the particles of a run that was cut back sooner.

Rows of an iteration have besides what every row has (measure.py), on the disk of the folder for temporary files:

    particles, prompts      scores that are written, and examples of each
    written_seconds         of the iteration, those in which a score was written and synced; median of the rounds
    share                   written_seconds over seconds

Rows of a replay compare the move of all particles in one iteration, which a run that goes on repeats for each
iteration that it had, with a checkpoint of positions, velocities and personal bests: written and synced (baseline
`write`, to be paid by every run, as often as a checkpoint is made) and read from a cold cache (baseline `read`).
"""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.engine.engines import PARTICLES, engine
from benchmarks.engine.iterations import iterate
from benchmarks.measure import CORES, Measure, random_rows, shares
from modelswarms_fast.weights.row_table import count_rows
from modelswarms_fast.weights.rows import SwarmRows


@pytest.mark.parametrize("megabytes", [1, 32])
def test_replay(measure: Measure, tmp_path: Path, megabytes: int) -> None:
    """Adapters of this size, in bfloat16."""
    particles, size = PARTICLES, (megabytes << 20) // 2 // (8 if measure.quick else 1)
    experts, table = random_rows(2, size, torch.bfloat16), np.linspace(0, 1, particles)
    rows = random_rows(count_rows(particles), size, torch.bfloat16)
    swarm = SwarmRows(experts, np.stack([table, 1 - table], axis=1), rows)
    file, nobody = tmp_path / "rows", np.zeros(particles, dtype=np.bool_)
    kept = torch.empty((3 * particles, size), dtype=torch.bfloat16)

    def write() -> None:
        with file.open("wb") as target:
            for row in rows[: 3 * particles]:
                target.write(memoryview(row.view(torch.uint8).numpy()))
            target.flush()
            os.fsync(target.fileno())

    def read() -> None:
        with file.open("rb") as source:
            for row in kept:
                source.readinto(memoryview(row.view(torch.uint8).numpy()))  # type: ignore[attr-defined]

    def cold() -> None:
        handle = os.open(file, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)

    write()
    measure.row(
        f"one move, {particles} particles of {megabytes} MB",
        lambda: swarm.update(nobody, shares(particles).numpy(), 0.5, 1),
        baselines={"write": write, "read": read},
        before=cold,
        rounds=3 if measure.quick else 7,
        memory=False,
        particles=particles,
        size=size,
        dtype="bfloat16",
        threads=CORES,
    )


@pytest.mark.parametrize("prompts", [20, 200])
def test_scores(measure: Measure, prompts: int) -> None:
    """One iteration with each score on the disk before the next, and with scores in memory alone."""
    pytest.importorskip("vllm")
    prompts, rounds = (4, 1) if measure.quick else (prompts, 5)
    server, written = engine("merged"), list[float]()

    def durable() -> None:
        written.append(iterate(server, "merged", prompts=prompts, durable=True).written)

    facts: dict[str, Any] = {"particles": PARTICLES, "prompts": prompts, "threads": CORES}
    info = measure.row(
        f"one iteration, {PARTICLES} particles, {prompts} prompts each",
        durable,
        baselines={"in memory": lambda: iterate(server, "merged", prompts=prompts)},
        rounds=rounds,
        warmup=False,
        memory=False,
        serve="merged",
        state="weights",
        **facts,
    )
    seconds = statistics.median(written)
    measure.benchmark.extra_info.update({"written_seconds": seconds, "share": seconds / info["seconds"]})
    server.restore()
