"""Swarm update and mix: bytes per second of each backend, beside a copy of as many bytes in the same run.

    python -m pytest benchmarks/bench_update.py [-k bfloat16] [--benchmark-json=FILE]

An update of P rows moves (5P + 2) D itemsize bytes, a mix of n experts into P rows (P + n) D itemsize. In
`extra_info` are the GB/s of the fastest round. The limit is a copy: half of the bytes read, half written.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
import torch

from modelswarms_fast.ops import available_backends, mix_, swarm_update_

PARTICLES = 10
SIZE = 1_200_000
DTYPES = (torch.bfloat16, torch.float32)
BACKENDS = [name for name in available_backends() if torch.cuda.is_available() or name != "triton"]


def measure(benchmark: Any, bytes_moved: int, device: str, call: Callable[[], Any]) -> None:
    """Time a call, the GPU's work included, and note its bandwidth."""

    def run() -> None:
        call()
        if device == "cuda":
            torch.cuda.synchronize()

    run()
    benchmark(run)
    benchmark.extra_info["bytes"] = bytes_moved
    benchmark.extra_info["GB/s"] = round(bytes_moved / benchmark.stats.stats.min / 1e9, 2)
    benchmark.extra_info["threads"] = torch.get_num_threads()


def device_of(backend: str) -> str:
    return "cuda" if backend in ("triton", "cuda") else "cpu"


def rows(count: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    return torch.randn(count, SIZE, dtype=torch.float32).to(dtype).to(device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_swarm_update(benchmark: Any, backend: str, dtype: torch.dtype) -> None:
    device = device_of(backend)
    slab = rows(3 * PARTICLES + 2, dtype, device)
    position, velocity, personal_best = slab[: 3 * PARTICLES].view(3, PARTICLES, SIZE).unbind()
    coefficients = torch.tensor([[0.2, 0.3, 0.3, 0.2]] * PARTICLES, device=device)
    arguments = (position, velocity, personal_best, slab[-1], slab[-2], coefficients, 0.5)
    bytes_moved = (5 * PARTICLES + 2) * SIZE * dtype.itemsize
    measure(benchmark, bytes_moved, device, lambda: swarm_update_(*arguments, backend=backend))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_mix(benchmark: Any, backend: str, dtype: torch.dtype) -> None:
    device = device_of(backend)
    experts, out = rows(2 * PARTICLES, dtype, device).view(2, PARTICLES, SIZE).unbind()
    mixture = torch.full((PARTICLES, PARTICLES), 1 / PARTICLES, device=device)
    bytes_moved = 2 * PARTICLES * SIZE * dtype.itemsize
    measure(benchmark, bytes_moved, device, lambda: mix_(out, experts, mixture, backend=backend))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", ["cpu"] + ["cuda"] * torch.cuda.is_available())
def test_limit_copy(benchmark: Any, device: str, dtype: torch.dtype) -> None:
    """What memory allows for the bytes of an update: memmove on one CPU thread, a device copy on a GPU."""
    bytes_moved = (5 * PARTICLES + 2) * SIZE * dtype.itemsize
    source, target = torch.ones(2, bytes_moved // 2, dtype=torch.uint8, device=device).unbind()
    if device == "cuda":
        measure(benchmark, bytes_moved, device, lambda: target.copy_(source))
    else:
        addresses = (target.data_ptr(), source.data_ptr(), source.numel())
        measure(benchmark, bytes_moved, device, lambda: ctypes.memmove(*addresses))
