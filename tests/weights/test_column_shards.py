"""k shards give the bits of one: as slices, in threads of one process, and in processes under torchrun."""

import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch
from helpers_rows import (
    DTYPES,
    FAST_BACKENDS,
    HALF_TYPES,
    assert_same,
    random_rows,
    restored_extension,
    select,
    skip_float64,
)
from safetensors.torch import load_file
from torchrun_shards import CASES, EXPERTS, PARTICLES, make_experts, search

from modelswarms_fast.ops import swarm_update_rows_
from modelswarms_fast.weights.layout import Layout
from modelswarms_fast.weights.row_table import RowTable

__all__ = ["restored_extension"]
pytestmark = pytest.mark.usefixtures("restored_extension")

P = 5


def some_layout(dtype):
    return Layout.of(
        {name: torch.empty(shape) for name, shape in {"a": (7, 31), "b": (130,), "c": (1,)}.items()}, dtype
    )


def updates(dtype):
    """Tables, bests and options of some updates of a swarm."""
    table, draw, generator = RowTable(P), random.Random(1), torch.Generator().manual_seed(1)
    for iteration in range(4):
        numbers = torch.from_numpy(table.update(np.array([draw.random() < 0.3 for _ in range(P)])))
        coefficients = torch.rand(P, 4, generator=generator) + 0.05
        options = {"seed": 2**35 + 3, "iteration": iteration}
        options["randomness"] = ("particle", "coordinate")[iteration % 2]
        options["rounding"] = "stochastic" if dtype in HALF_TYPES and iteration else "nearest"
        yield numbers, table.g, table.w, coefficients, 0.4, options
        improved = np.array([draw.random() < 0.5 for _ in range(P)])
        table.promote(improved, draw.choice([None, 1]), draw.choice([None, 3]))


def update(rows, dtype, backend, first_column, before=lambda: None):
    for numbers, best, worst, coefficients, step_length, options in updates(dtype):
        before()
        swarm_update_rows_(
            *(rows, numbers, best, worst, coefficients.to(rows.device), step_length),
            **{**options, "first_column": first_column, "backend": backend},
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", ["reference", *FAST_BACKENDS])
@pytest.mark.parametrize("shards", [2, 5])
def test_slices_one_after_another_and_in_threads(backend, dtype, shards):
    if skip_float64(backend, dtype):
        return
    backend, device = select(backend)
    layout = some_layout(dtype)
    slices = layout.shards(shards)
    rows = random_rows(RowTable(P).count, layout.size, dtype, 0, device)
    expected = rows.clone()
    update(expected, dtype, backend, 0)
    assert not torch.equal(expected, rows)

    turns = rows.clone()
    for columns in slices:
        update(turns[:, columns], dtype, backend, columns.start)
    assert_same(turns, expected)

    at_once = rows.clone()
    barrier = Barrier(shards)
    with ThreadPoolExecutor(shards) as threads:
        running = [
            threads.submit(update, at_once[:, columns], dtype, backend, columns.start, barrier.wait)
            for columns in slices
        ]
        for thread in running:
            thread.result()
    assert_same(at_once, expected)


def test_more_shards_than_blocks_of_64_bytes():
    layout = some_layout(torch.bfloat16)
    rows = random_rows(RowTable(P).count, layout.size, torch.bfloat16, 0)
    expected = rows.clone()
    update(expected, torch.bfloat16, "cpp", 0)
    slices = layout.shards(40)
    assert {columns.stop - columns.start for columns in slices} == {0, 32}
    for columns in slices:
        update(rows[:, columns], torch.bfloat16, "cpp", columns.start)
    assert_same(rows, expected)


def test_without_the_first_column_the_shards_draw_other_numbers():
    """The test above can see a shard that draws the numbers of another."""
    layout = some_layout(torch.bfloat16)
    rows = random_rows(RowTable(P).count, layout.size, torch.bfloat16, 0)
    expected = rows.clone()
    update(expected, torch.bfloat16, "cpp", 0)
    second = layout.shards(2)[1]
    update(rows[:, second], torch.bfloat16, "cpp", 0)
    assert not torch.equal(rows[:, second], expected[:, second])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes under torchrun have written."""
    folder = tmp_path_factory.mktemp("torchrun")
    script = Path(__file__).parents[1] / "support" / "torchrun_shards.py"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, str(script), str(folder)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_under_torchrun(case, folder):
    """Several iterations with restarts and new bests; utilities are summed over the processes, nothing else."""
    dtype, noise = CASES[case]
    _, _, layout = make_experts(dtype)
    expected, events = search(slice(0, layout.size), dtype, noise, lambda counts: counts)
    parts = [load_file(folder / f"{case}-{rank}.safetensors")["rows"] for rank in range(2)]
    assert [part.shape[1] for part in parts] == [columns.stop - columns.start for columns in layout.shards(2)]
    assert_same(torch.cat(parts, dim=1), expected)
    restarts, improved, bests, worsts = (list(column) for column in zip(*events, strict=True))
    assert PARTICLES > EXPERTS
    assert sum(restarts) > 0
    assert sum(improved[1:]) > 0
    assert any(bests[1:])
    assert any(worsts[1:])
