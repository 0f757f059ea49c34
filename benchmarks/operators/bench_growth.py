"""Time against P and against D, over two decades each: a straight line, and how far the worst point is from it.

The memory's speed drifts while points are measured, by more than what is looked for. So each point is timed between two
runs of the limit loop, always the same, and its time is the ratio to theirs times their median over the whole run.
"""

from __future__ import annotations

import itertools
import statistics
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.measure import CORES, PAUSE_SECONDS, Measure, clock, random_rows, shares, short, update_limit
from benchmarks.operators.bench_update import bytes_of
from benchmarks.operators.torch_baselines import Tensors
from modelswarms_fast.ops import swarm_update_
from modelswarms_fast.weights.arena import row_stride

# The smallest of each holds twice as many bytes as the last cache, or more; the largest 7 GB.
GROWTH = {"P": ([1, 2, 5, 10, 20, 50, 100], 12_000_000), "D": (10, [10**6 * n for n in (1, 2, 5, 10, 20, 50, 100)])}
GROWTH_QUICK = {"P": ([1, 2, 5, 10], 4_000_000), "D": (10, [10**6 * n for n in (1, 2, 5, 10)])}
DTYPE = torch.bfloat16
LIMIT_BYTES = 500_000_000


def cut(memory: Tensor, particles: int, size: int) -> Tensors:
    """A swarm of this shape at the beginning of the memory, rows as far apart as `empty_rows` puts them."""
    stride = row_stride(size, DTYPE)
    rows = memory[: (3 * particles + 2) * stride].view(-1, stride)[:, :size]
    position, velocity, personal_best = rows[: 3 * particles].view(3, particles, size).unbind()
    return Tensors(position, velocity, personal_best, rows[-2], rows[-1], shares(particles))


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
    largest = max((3 * p + 2) * row_stride(d, DTYPE) for p, d in shapes)
    memory = random_rows(1, largest, DTYPE)[0]
    swarms = [cut(memory, *shape) for shape in shapes]
    # Small points are timed several times at once, so that each point takes about as long.
    calls = [max(1, round(2e9 / bytes_of(*shape, DTYPE))) for shape in shapes]
    _, limit = update_limit(LIMIT_BYTES)["in place"]
    times: list[list[float]] = [[] for _ in shapes]
    limits: list[list[float]] = [[] for _ in shapes]

    def every_point() -> None:
        for swarm, count, found, neighbours in zip(swarms, calls, times, limits, strict=True):
            time.sleep(PAUSE_SECONDS)
            before = clock(limit, 1)
            found.append(clock(lambda swarm=swarm: swarm_update_(*swarm.all), count))
            neighbours.append((before + clock(limit, 1)) / 2)

    every_point()
    for lists in (*times, *limits):
        lists.clear()
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
    every_limit = sorted(itertools.chain(*limits))
    usual = statistics.median(every_limit)
    medians = [
        usual * statistics.median(seconds / limit for seconds, limit in zip(found, neighbours, strict=True))
        for found, neighbours in zip(times, limits, strict=True)
    ]
    info = {"points": points, "point_seconds": medians, **line_through(points, medians)}
    # How far the same loop's time went up and down meanwhile: nothing finer than that can be seen.
    lowest, highest = (every_limit[round(share * (len(every_limit) - 1))] for share in (0.1, 0.9))
    info["limit_spread"] = (highest - lowest) / usual
    info["uncorrected_seconds"] = [statistics.median(found) for found in times]
    info |= {"seconds": medians[-1], "bytes": moved, "GB/s": moved / medians[-1] / 1e9}
    info |= {"particles": particles, "size": sizes}
    measure.benchmark.extra_info.update(info)
