"""k shards of the columns, in threads of one process and in processes of their own: no communication in the update."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection

import pytest
import torch
from bench_update import bytes_of, make_swarm
from measure import CORES, Measure, short, threads, update_limit

from modelswarms_fast.ops import _C, swarm_update_

PARTICLES, LARGE, LARGE_QUICK = 10, 8_000_000, 2_000_000
DTYPE = torch.bfloat16


def serve_shard(pipe: Connection, size: int) -> None:
    """One shard in a process of its own: an update for each message, until the pipe closes."""
    torch.set_num_threads(1)
    _C.set_num_threads(1)
    swarm = make_swarm(PARTICLES, size, DTYPE)
    pipe.send("ready")
    while pipe.recv():
        swarm_update_(*swarm.all)
        pipe.send("done")


@contextmanager
def shard_processes(count: int, size: int) -> Iterator[list[Connection]]:
    """Pipes to k processes that hold size / k columns each."""
    context = multiprocessing.get_context("spawn")
    ends = [context.Pipe() for _ in range(count)]
    workers = [context.Process(target=serve_shard, args=(theirs, size // count)) for _, theirs in ends]
    for worker in workers:
        worker.start()
    pipes = [ours for ours, _ in ends]
    try:
        for pipe in pipes:
            pipe.recv()
        yield pipes
    finally:
        for pipe in pipes:
            pipe.send(None)
        for worker in workers:
            worker.join()


@pytest.mark.parametrize("count", sorted({1, 2, CORES}))
@pytest.mark.parametrize("where", ["threads", "processes"])
def test_shards(measure: Measure, where: str, count: int) -> None:
    """Every shard computes on one thread; beside it one process with as many OpenMP threads, and one thread."""
    size = (LARGE_QUICK if measure.quick else LARGE) // (32 * count) * 32 * count
    swarm = make_swarm(PARTICLES, size, DTYPE)
    moved = bytes_of(PARTICLES, size, DTYPE)

    def whole(thread_count: int) -> None:
        with threads(thread_count):
            swarm_update_(*swarm.all)

    facts = {
        "bytes_moved": moved,
        "baselines": {"one shard, as many threads": lambda: whole(count), "one shard, one thread": lambda: whole(1)},
        "dtype": short(DTYPE),
        "particles": PARTICLES,
        "size": size,
        "shards": count,
        "where": where,
        "threads": count,
        "memory": False,
    }
    row = f"{count} in {where}, {short(DTYPE)} P={PARTICLES} D={size:,}"
    with threads(count):
        limit = update_limit(moved)
        if where == "processes":
            with shard_processes(count, size) as pipes:

                def call_processes() -> None:
                    for pipe in pipes:
                        pipe.send(True)
                    for pipe in pipes:
                        pipe.recv()

                measure.row(row, call_processes, limit=limit, **facts)
            return
        columns = [slice(start, start + size // count) for start in range(0, size, size // count)]
        parts = [[rows[..., part] for rows in swarm.rows] for part in columns]

        def update(part: int) -> None:
            swarm_update_(*parts[part], swarm.coefficients, swarm.step_length, first_column=columns[part].start)

        # The number of OpenMP threads belongs to the thread that sets it.
        with ThreadPoolExecutor(count, initializer=lambda: _C.set_num_threads(1)) as pool:
            measure.row(row, lambda: list(pool.map(update, range(count))), limit=limit, **facts)
