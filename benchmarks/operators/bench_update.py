"""The fused update: backend x dtype x P x D, on one thread and on all, against the limit and everything else."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.engine.engines import LAYERS, LINEAR
from benchmarks.measure import (
    CORES,
    CPU,
    THREADS,
    Measure,
    added_bytes,
    calls_for,
    device_of,
    gpu_backends,
    random_rows,
    shares,
    short,
    threads,
    update_limit,
)
from benchmarks.operators.torch_baselines import Tensors, dense, eager, on_cpu
from benchmarks.published.published import TMPFS, Published, lora_merge_of
from modelswarms_fast.ops import swarm_update_
from modelswarms_fast.weights.experts import read_experts
from modelswarms_fast.weights.layout import Layout

EXPERTS = Path(__file__).parents[2] / "examples" / "experts"

PARTICLES, LARGE, LARGE_QUICK = 10, 5_000_000, 2_000_000
# Rows far larger than the caches, but for the last: a swarm of small adapters.
OTHER_SHAPES = [(4, 10_000_000), (20, 5_000_000), (64, 2_000_000), (10, 1_000_000), (4, 100_000)]
GPU_SHAPES = list(itertools.product((4, 16, 64), (1_000_000, 10_000_000, 100_000_000)))
DTYPES = (torch.bfloat16, torch.float32)


def make_swarm(particles: int, size: int, dtype: torch.dtype, device: torch.device = CPU) -> Tensors:
    """Random rows that lie as those of a swarm."""
    rows = random_rows(3 * particles + 2, size, dtype, device)
    position, velocity, personal_best = rows[: 3 * particles].view(3, particles, size).unbind()
    return Tensors(position, velocity, personal_best, rows[-2], rows[-1], shares(particles).to(device))


def bytes_of(particles: int, size: int, dtype: torch.dtype) -> int:
    """x, v and p read, x and v written for each particle; g and w read once."""
    return (5 * particles + 2) * size * dtype.itemsize


def measure_update(
    measure: Measure,
    backend: str,
    dtype: torch.dtype,
    particles: int,
    size: int,
    baselines: str = "eager",
    **facts: Any,
) -> None:
    """One row; `baselines`: all, eager or none."""
    device = device_of(backend)
    swarm = make_swarm(particles, size, dtype, device)
    moved = bytes_of(particles, size, dtype)
    others: dict[str, Callable[[], None]] = {}
    if baselines != "none":
        theirs = dense(swarm)
        others = on_cpu(theirs) if baselines == "all" else {"torch eager": eager(theirs)}
    measure.row(
        f"{backend} {short(dtype)} P={particles} D={size:,}",
        lambda: swarm_update_(*swarm.all, backend=backend),
        bytes_moved=moved,
        limit=update_limit(moved, device),
        baselines=others,
        calls=calls_for(moved, device),
        rows_bytes=(3 * particles + 2) * size * dtype.itemsize,
        device=device,
        backend=backend,
        dtype=short(dtype),
        particles=particles,
        size=size,
        **facts,
    )


@pytest.mark.parametrize("count", THREADS, ids=lambda count: f"{count}-threads")
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_large_rows(measure: Measure, dtype: torch.dtype, count: int) -> None:
    """The rows that the targets are about."""
    with threads(count):
        size = LARGE_QUICK if measure.quick else LARGE
        measure_update(measure, "cpp", dtype, PARTICLES, size, "all", threads=count, headline=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_in_cache(measure: Measure, dtype: torch.dtype) -> None:
    """What one core computes when it need not wait for memory: rows of 0.6 MB together, in the second cache."""
    particles, size = 4, 40_960 // dtype.itemsize
    swarm = make_swarm(particles, size, dtype)
    with threads(1):
        measure.row(
            f"cpp {short(dtype)} from the second cache, P={particles} D={size:,}",
            lambda: swarm_update_(*swarm.all),
            bytes_moved=bytes_of(particles, size, dtype),
            calls=200,
            memory=False,
            backend="cpp",
            dtype=short(dtype),
            particles=particles,
            size=size,
            threads=1,
            in_cache=True,
        )


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize(("particles", "size"), OTHER_SHAPES, ids=lambda number: f"{number:,}")
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_other_shapes(measure: Measure, dtype: torch.dtype, particles: int, size: int) -> None:
    baselines = "eager" if size <= 1_000_000 else "none"
    measure_update(measure, "cpp", dtype, particles, size, baselines, threads=CORES)


@pytest.mark.usefixtures("full")
def test_float16(measure: Measure) -> None:
    measure_update(measure, "cpp", torch.float16, PARTICLES, LARGE, "none", threads=CORES)


@pytest.mark.usefixtures("full")
def test_reference(measure: Measure) -> None:
    """What runs where no extension is built."""
    measure_update(measure, "reference", torch.bfloat16, PARTICLES, 1_000_000, "none", threads=CORES)


@pytest.mark.gpu
@pytest.mark.parametrize(("particles", "size"), GPU_SHAPES, ids=lambda number: f"{number:,}")
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("backend", gpu_backends())
def test_gpu(measure: Measure, backend: str, dtype: torch.dtype, particles: int, size: int) -> None:
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    rows_bytes = (3 * particles + 2) * size * dtype.itemsize
    if rows_bytes + 6e9 > free:  # the rows, and the copy that is the limit
        pytest.skip(f"rows of {rows_bytes / 1e9:.0f} GB do not fit on this GPU")
    everything = particles == 16 and size == 10_000_000
    # torch eager keeps several temporaries of the size of all positions.
    baselines = "all" if everything else "none"
    measure_update(measure, backend, dtype, particles, size, baselines, headline=True)


def all_linear_layout() -> Layout:
    """LoRA of rank 4 on all linear layers of SmolLM2-135M: 1,221,120 weights in 420 tensors."""
    rank, tensors = 4, {}
    for layer, (name, (inputs, outputs)) in itertools.product(range(LAYERS), LINEAR.items()):
        prefix = f"base_model.model.model.layers.{layer}.{name}"
        tensors[f"{prefix}.lora_A.weight"] = torch.empty(rank, inputs, dtype=torch.bfloat16, device="meta")
        tensors[f"{prefix}.lora_B.weight"] = torch.empty(outputs, rank, dtype=torch.bfloat16, device="meta")
    return Layout.of(tensors)


@pytest.mark.parametrize("count", THREADS, ids=lambda count: f"{count}-threads")
@pytest.mark.parametrize("adapters", ["examples", "all-linear"])
def test_published(measure: Measure, model_swarm: Path, adapters: str, count: int) -> None:
    """Against the published code's own merges of the same adapters, files on tmpfs; bfloat16."""
    if adapters == "examples":
        experts = read_experts(EXPERTS)
        layout, start = experts.layout, experts.rows
    else:
        layout = all_linear_layout()
        start = random_rows(8, layout.size, layout.dtype)
    particles = len(start)
    swarm = make_swarm(particles, layout.size, layout.dtype)
    swarm.position.copy_(start)
    swarm.personal_best.copy_(start.roll(1, 0))
    swarm.velocity.copy_(start.roll(2, 0) - start)
    swarm.global_best.copy_(start[0])
    swarm.global_worst.copy_(start[-1])
    with threads(count), tempfile.TemporaryDirectory(dir=TMPFS if TMPFS.is_dir() else None) as folder:
        published = Published(lora_merge_of(model_swarm), Path(folder), layout, swarm)
        check_same_move(published, swarm)
        moved = bytes_of(particles, layout.size, layout.dtype)
        measure.row(
            f"{adapters} adapters, P={particles} D={layout.size:,}",
            lambda: swarm_update_(*swarm.all),
            bytes_moved=moved,
            baselines={"published code": published.update},
            rounds=5,
            warmup=False,
            memory=False,
            rows_bytes=(3 * particles + 2) * layout.nbytes,
            adapters=adapters,
            backend="cpp",
            dtype=short(layout.dtype),
            particles=particles,
            size=layout.size,
            tensors=len(layout.specs),
            threads=count,
        )
        measure.benchmark.extra_info["added_bytes"] = {"ours": added_bytes(lambda: swarm_update_(*swarm.all))}


def check_same_move(published: Published, swarm: Tensors) -> None:
    """Both move every particle once; the published code rounds to bfloat16 five times on the way, ours once."""
    published.update()
    swarm_update_(*swarm.all)
    for particle in range(len(swarm.position)):
        for theirs, ours in zip(published.rows(particle), (swarm.position, swarm.velocity), strict=True):
            scale = ours[particle].float().abs().max()
            torch.testing.assert_close(theirs.float(), ours[particle].float(), rtol=0.05, atol=0.02 * float(scale))
