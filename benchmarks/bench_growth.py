"""Time against P and against D, over two decades each: a straight line, and how far the worst point is from it."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import pytest
import torch
from baselines import SwarmRows
from bench_update import bytes_of
from measure import CORES, PAUSE_SECONDS, Measure, clock, random_rows, shares, short
from torch import Tensor

from modelswarms_fast.ops import swarm_update_

# The smallest of each holds twice as many bytes as the last cache.
GROWTH = {"P": ([1, 2, 5, 10, 20, 50, 100], 4_000_000), "D": (10, [10**6 * n for n in (1, 2, 5, 10, 20, 50, 100)])}
GROWTH_QUICK = {"P": ([1, 2, 5, 10], 4_000_000), "D": (10, [10**6 * n for n in (1, 2, 5, 10)])}
DTYPE = torch.bfloat16


def cut(memory: Tensor, particles: int, size: int) -> SwarmRows:
    """A swarm of this shape at the beginning of the memory, rows one after the other."""
    rows = memory[: (3 * particles + 2) * size].view(-1, size)
    position, velocity, personal_best = rows[: 3 * particles].view(3, particles, size).unbind()
    return SwarmRows(position, velocity, personal_best, rows[-2], rows[-1], shares(particles))


def line_through(points: list[int], seconds: list[float]) -> dict[str, Any]:
    """Least squares of the relative error: seconds = fixed + each · points; the worst point's share of its value."""
    design = np.stack([np.ones(len(points)), np.array(points, dtype=np.float64)], axis=1)
    weights = 1 / np.array(seconds)
    (fixed, each), *_ = np.linalg.lstsq(design * weights[:, None], np.ones(len(points)), rcond=None)
    fitted = design @ np.array([fixed, each])
    return {
        "fixed": float(fixed),
        "each": float(each),
        "worst_deviation": float(np.abs(fitted * weights - 1).max()),
    }


@pytest.mark.parametrize("against", ["P", "D"])
def test_growth(measure: Measure, against: str) -> None:
    particles, sizes = (GROWTH_QUICK if measure.quick else GROWTH)[against]
    points: list[int] = particles if against == "P" else sizes
    shapes = [(point, sizes) if against == "P" else (particles, point) for point in points]
    largest = max((3 * p + 2) * d for p, d in shapes)
    memory = random_rows(1, largest, DTYPE)[0]
    swarms = [cut(memory, *shape) for shape in shapes]
    # Small points are timed several times at once, so that each point takes about as long.
    calls = [max(1, round(2e9 / bytes_of(*shape, DTYPE))) for shape in shapes]
    times: list[list[float]] = [[] for _ in shapes]

    def every_point() -> None:
        for swarm, count, found in zip(swarms, calls, times, strict=True):
            time.sleep(PAUSE_SECONDS)
            found.append(clock(lambda swarm=swarm: swarm_update_(*swarm.all), count))

    every_point()
    for found in times:
        found.clear()
    particles_of_last, size_of_last = shapes[-1]
    moved = bytes_of(particles_of_last, size_of_last, DTYPE)
    measure.row(
        f"against {against}, {short(DTYPE)}, " + (f"D={sizes:,}" if against == "P" else f"P={particles}"),
        every_point,
        warmup=False,
        memory=False,
        against=against,
        dtype=short(DTYPE),
        threads=CORES,
    )
    medians = [statistics.median(found) for found in times]
    info = {"points": points, "point_seconds": medians, **line_through(points, medians)}
    info |= {"seconds": medians[-1], "bytes": moved, "GB/s": moved / medians[-1] / 1e9}
    info |= {"particles": particles, "size": sizes}
    measure.benchmark.extra_info.update(info)
