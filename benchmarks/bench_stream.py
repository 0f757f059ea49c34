"""Rows that do not fit where they are computed: from a file through memory, from pinned memory through a GPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from bench_rows import PARTICLES, rows_moved, tables
from measure import CORES, CPU, GPU, Call, Measure, random_rows, shares, short
from torch import Tensor

from modelswarms_fast.ops import swarm_update_rows_
from modelswarms_fast.stream import file_rows, stream_update_rows_

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
    rows = resident if source == "memory" else file_rows(tmp_path / "rows", len(resident), size, dtype)
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
