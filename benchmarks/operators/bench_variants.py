"""Stochastic rounding and random numbers for every coordinate: what they cost beside the plain update.

pyswarms belongs here and not to the plain update: it draws for every coordinate, and has no repel term.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.measure import CORES, Measure, calls_for, device_of, gpu_backends, short, update_limit
from benchmarks.operators.bench_update import bytes_of, make_swarm
from benchmarks.operators.torch_baselines import compiled, dense, eager, formula_coordinate, pyswarms
from modelswarms_fast.ops import swarm_update_

PARTICLES, LARGE, LARGE_QUICK = 10, 4_000_000, 1_000_000
VARIANTS: dict[str, dict[str, Any]] = {
    "stochastic rounding": {"rounding": "stochastic"},
    "per coordinate": {"randomness": "coordinate"},
    "both": {"rounding": "stochastic", "randomness": "coordinate"},
}
CASES = [(torch.bfloat16, name) for name in VARIANTS] + [(torch.float32, "per coordinate")]


@pytest.mark.parametrize(("dtype", "variant"), CASES, ids=lambda value: str(value).removeprefix("torch."))
@pytest.mark.parametrize("backend", ["cpp", *gpu_backends()])
def test_variant(measure: Measure, backend: str, dtype: torch.dtype, variant: str) -> None:
    device = device_of(backend)
    size = LARGE_QUICK if measure.quick else LARGE
    swarm = make_swarm(PARTICLES, size, dtype, device)
    moved = bytes_of(PARTICLES, size, dtype)
    baselines = {"plain update": lambda: swarm_update_(*swarm.all, backend=backend)}
    theirs = dense(swarm)
    if "coordinate" in variant:
        baselines["torch eager"] = eager(theirs, formula_coordinate)
        if not measure.quick:
            baselines["torch.compile"] = compiled(theirs, formula_coordinate)
    if dtype == torch.float32 and device.type == "cpu":
        baselines["pyswarms"] = pyswarms(theirs)
    measure.row(
        f"{backend} {short(dtype)} {variant}, P={PARTICLES} D={size:,}",
        lambda: swarm_update_(*swarm.all, **VARIANTS[variant], seed=1, iteration=1, backend=backend),
        bytes_moved=moved,
        calls=calls_for(moved, device) if device.type == "cuda" else 1,
        limit=update_limit(moved, device),
        baselines=baselines,
        rows_bytes=(3 * PARTICLES + 2) * size * dtype.itemsize,
        device=device,
        backend=backend,
        dtype=short(dtype),
        particles=PARTICLES,
        size=size,
        variant=variant,
        threads=CORES,
    )
