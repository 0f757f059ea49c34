"""Mixing experts into particles, into rows and into an engine's strided slots."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.limits import limit_arithmetic
from benchmarks.measure import (
    CORES,
    THREADS,
    Measure,
    calls_for,
    device_of,
    gpu_backends,
    mix_limit,
    random_rows,
    short,
    threads,
)
from modelswarms_fast.ops import mix_
from modelswarms_fast.weights.arena import empty_rows

PARTICLES, EXPERTS, LARGE, LARGE_QUICK = 20, 10, 6_000_000, 2_000_000
OTHER_SHAPES = [(1, 10, 10_000_000), (10, 10, 6_000_000), (64, 10, 2_000_000), (20, 4, 6_000_000), (8, 8, 460_800)]
GPU_SHAPES = [(1, 10, 50_000_000), (20, 10, 50_000_000), (64, 10, 10_000_000)]
DTYPES = (torch.bfloat16, torch.float32)


def make_mixture(particles: int, count: int) -> Tensor:
    """[P, n] float32 affine mixtures."""
    mixture = torch.randn(particles, count, generator=torch.Generator().manual_seed(1))
    return mixture + (1 - mixture.sum(1, keepdim=True)) / count


def matmul(out: Tensor, mixture: Tensor, experts: Tensor) -> Callable[[], None]:
    """torch.matmul in the dtype of the rows."""
    mixture = mixture.to(experts.dtype)
    return lambda: torch.matmul(mixture, experts, out=out)


def measure_mix(
    measure: Measure, backend: str, dtype: torch.dtype, particles: int, count: int, size: int, **facts: object
) -> None:
    device = device_of(backend)
    experts, out = random_rows(count, size, dtype, device), random_rows(particles, size, dtype, device)
    mixture = make_mixture(particles, count).to(device)
    # Others get rows without gaps, in huge pages as ours.
    dense_experts, dense_out = (
        empty_rows(1, rows.numel(), dtype, device).view(rows.shape).copy_(rows) for rows in (experts, out)
    )
    baselines = {"torch.matmul": matmul(dense_out, mixture, dense_experts)}
    if dtype == torch.float32 and device.type == "cpu" and facts.get("threads") == CORES:
        out_array, experts_array, mixture_array = dense_out.numpy(), dense_experts.numpy(), mixture.numpy()
        baselines["NumPy"] = lambda: mixture_array.dot(experts_array, out=out_array)
    moved = (particles + count) * size * dtype.itemsize
    measure.row(
        f"{backend} {short(dtype)} P={particles} n={count} D={size:,}",
        lambda: mix_(out, experts, mixture, backend=backend),
        bytes_moved=moved,
        limit=mix_limit(particles, count, size * dtype.itemsize, device),
        baselines=baselines,
        calls=calls_for(moved, device),
        rows_bytes=moved,
        device=device,
        backend=backend,
        dtype=short(dtype),
        particles=particles,
        experts=count,
        size=size,
        **facts,
    )


@pytest.mark.parametrize("count", THREADS, ids=lambda count: f"{count}-threads")
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_large_rows(measure: Measure, dtype: torch.dtype, count: int) -> None:
    """The rows that the targets are about."""
    with threads(count):
        size = LARGE_QUICK if measure.quick else LARGE
        measure_mix(measure, "cpp", dtype, PARTICLES, EXPERTS, size, threads=count, headline=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_in_cache(measure: Measure, dtype: torch.dtype) -> None:
    """What one core computes when it need not wait for memory: rows of 0.6 MB together, in the second cache."""
    size = 20_480 // dtype.itemsize
    experts, out = random_rows(EXPERTS, size, dtype), random_rows(PARTICLES, size, dtype)
    mixture = make_mixture(PARTICLES, EXPERTS)
    with threads(1):
        info = measure.row(
            f"cpp {short(dtype)} from the second cache, P={PARTICLES} n={EXPERTS} D={size:,}",
            lambda: mix_(out, experts, mixture),
            bytes_moved=(PARTICLES + EXPERTS) * size * dtype.itemsize,
            calls=50,
            memory=False,
            backend="cpp",
            dtype=short(dtype),
            particles=PARTICLES,
            experts=EXPERTS,
            size=size,
            threads=1,
            in_cache=True,
        )
    measure.benchmark.extra_info["GFLOP/s"] = 2 * PARTICLES * EXPERTS * size / info["seconds"] / 1e9


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize(("particles", "experts", "size"), OTHER_SHAPES, ids=lambda number: f"{number:,}")
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_other_shapes(measure: Measure, dtype: torch.dtype, particles: int, experts: int, size: int) -> None:
    measure_mix(measure, "cpp", dtype, particles, experts, size, threads=CORES)


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize(("matrix", "parts", "length", "pitch"), [("A", 2000, 1536, 1536), ("B", 384_000, 8, 16)])
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_slots(measure: Measure, dtype: torch.dtype, matrix: str, parts: int, length: int, pitch: int) -> None:
    """Into [P, a, b] as LoRA slots of rank 16 that hold rank 8: A [rank, in] whole, B [out, rank] in pieces."""
    particles, count = 8, 8
    size = parts * length
    experts = random_rows(count, size, dtype)
    slots = random_rows(particles, 2 * size, dtype).view(particles, -1, pitch)
    out = slots[:, :parts, :length]
    mixture = make_mixture(particles, count)
    product = torch.empty(particles, size, dtype=dtype)
    into_product = matmul(product, mixture, experts)

    def matmul_and_copy() -> None:
        into_product()
        out.copy_(product.view(out.shape))

    moved = (particles + count) * size * dtype.itemsize
    measure.row(
        f"cpp {short(dtype)} into {matrix} of slots, P={particles} n={count} D={size:,}",
        lambda: mix_(out, experts, mixture, backend="cpp"),
        bytes_moved=moved,
        baselines={"torch.matmul and copy": matmul_and_copy},
        rows_bytes=moved,
        backend="cpp",
        dtype=short(dtype),
        particles=particles,
        experts=count,
        size=size,
        threads=CORES,
    )


@pytest.mark.parametrize("count", THREADS, ids=lambda count: f"{count}-threads")
def test_arithmetic(measure: Measure, count: int) -> None:
    """What the processor does with numbers that are already in registers: the roof above the roof of memory."""
    rounds = 1_000_000
    with threads(count):
        operations = limit_arithmetic(rounds)
        info = measure.row(
            "products and sums of float32 in registers",
            lambda: limit_arithmetic(rounds),
            memory=False,
            dtype="float32",
            threads=count,
            registers=True,
        )
    measure.benchmark.extra_info["GFLOP/s"] = operations / info["seconds"] / 1e9


@pytest.mark.gpu
@pytest.mark.parametrize(("particles", "experts", "size"), GPU_SHAPES, ids=lambda number: f"{number:,}")
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("backend", gpu_backends())
def test_gpu(measure: Measure, backend: str, dtype: torch.dtype, particles: int, experts: int, size: int) -> None:
    measure_mix(measure, backend, dtype, particles, experts, size)
