"""One row of a benchmark: ours, the limit of the machine and every baseline, timed in turns in one run.

pytest-benchmark records ours. What a row says is in its `extra_info`:

    group, row, and what the row was measured with (backend, dtype, particles, size, threads ...)
    calls               how many calls were timed at once, where one is too short for a clock
    seconds             median seconds of a call
    bytes               what a call has to move
    GB/s                bytes / seconds
    limit               GB/s of each loop of the limit, median
    share_of_limit      ours over the best loop, just before it in the same round; median of the rounds
    baselines           of each its median seconds for the same work, and ratio = seconds / ours
    rows_bytes          memory of the rows that a call works on
    added_bytes         memory that a call takes beside them at its peak, ours and of each baseline
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import mmap
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.limits import limit_copy, limit_mix, limit_update
from modelswarms_fast.ops import _C, available_backends
from modelswarms_fast.weights.arena import empty_rows

Call = Callable[[], Any]

CPU = torch.device("cpu")
GPU = torch.device("cuda")
CORES = torch.get_num_threads()
THREADS = sorted({1, CORES})
WORD = 8
# Threads of an earlier call go on spinning for a while and would take a core from the next one.
PAUSE_SECONDS = 0.005
# Baselines that take longer run in every fifth round only.
SLOW_SECONDS = 0.3


def short(dtype: torch.dtype) -> str:
    """The dtype without the word torch."""
    return str(dtype).removeprefix("torch.")


def device_of(backend: str) -> torch.device:
    """Where the tensors of a backend lie."""
    return GPU if backend in ("triton", "cuda") else CPU


def gpu_backends() -> list[str]:
    """The backends that need a GPU, where there is one."""
    return [name for name in available_backends() if device_of(name) == GPU and torch.cuda.is_available()]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch and the extension on this many threads."""
    before = torch.get_num_threads(), _C.num_threads()
    torch.set_num_threads(count)
    _C.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        _C.set_num_threads(before[1])


def random_rows(count: int, size: int, dtype: torch.dtype, device: torch.device = CPU, seed: int = 0) -> Tensor:
    """[count, size] normal numbers in the memory that a swarm's rows have."""
    rows = empty_rows(count, size, dtype, device)
    generator = torch.Generator(device).manual_seed(seed)
    for row in rows:
        row.copy_(torch.randn(size, generator=generator, device=device))
    return rows


def shares(particles: int, seed: int = 0) -> Tensor:
    """[P, 4] float32 coefficients as a swarm draws them: positive, a sum of one."""
    weights = torch.rand(particles, 4, generator=torch.Generator().manual_seed(seed)) + 0.05
    return weights / weights.sum(1, keepdim=True)


def added_bytes(call: Call, device: torch.device = CPU) -> int:
    """Memory that a call takes at its peak beside what is there before it; on a CPU at most that much.

    Linux counts the peak in batches of pages on each CPU, so it may be read low; what can be missing is added.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not hide what is taken now
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _kilobytes("smaps_rollup", "Rss")
    call()
    cpus = os.cpu_count() or 1
    missing = 2 * max(32, 2 * cpus) * cpus * mmap.PAGESIZE  # two counters, of anonymous and of mapped pages
    return max(0, _kilobytes("status", "VmHWM") - before + missing)


def _kilobytes(file: str, field: str) -> int:
    lines = Path("/proc/self", file).read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def calls_for(bytes_moved: int, device: torch.device = CPU) -> int:
    """How many calls to time at once, for some milliseconds of work."""
    return max(1, round((2e8 if device.type == "cpu" else 1e10) / bytes_moved))


def clock(call: Call, calls: int = 1, device: torch.device = CPU) -> float:
    """Seconds of one call, the GPU's work included."""
    if device.type == "cpu":
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - start) / calls
    start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start_event.record()
    for _ in range(calls):
        call()
    end_event.record()
    torch.cuda.synchronize()
    return start_event.elapsed_time(end_event) / 1000 / calls


class Measure:
    """Times one row. A test gets one as its fixture `measure`."""

    def __init__(self, benchmark: Any, quick: bool) -> None:
        self.benchmark = benchmark
        self.quick = quick
        self.rounds = 5 if quick else 15

    def row(
        self,
        row: str,
        ours: Call,
        *,
        bytes_moved: int = 0,
        limit: Mapping[str, tuple[int, Call]] | None = None,
        baselines: Mapping[str, Call] | None = None,
        calls: int = 1,
        rows_bytes: int = 0,
        device: torch.device = CPU,
        rounds: int | None = None,
        warmup: bool = True,
        memory: bool = True,
        before: Call | None = None,
        **facts: Any,
    ) -> dict[str, Any]:
        """Measure and note everything; returns the row's extra_info.

        limit: by name, the bytes that a loop moves and the loop. baselines: by name, calls that do the same work.
        before: called before each timed call, ours or not, outside of the clock.
        warmup=False and memory=False: no call beside the timed ones, for what takes seconds.
        """
        limit, baselines = dict(limit or {}), dict(baselines or {})
        everything = {name: call for name, (_, call) in limit.items()} | baselines
        own: list[float] = []
        others: dict[str, list[float]] = {name: [] for name in everything}
        first = {name: clock(call) for name, call in (everything | {"": ours}).items()} if warmup else {}
        slow = {name for name in baselines if first.get(name, 0.0) * calls > SLOW_SECONDS}
        turn = itertools.count()

        def settle() -> None:
            time.sleep(PAUSE_SECONDS)
            if before is not None:
                before()

        def others_first() -> None:
            """Baselines, then the limit, and then ours at once: the machine's mood changes within a second."""
            now = next(turn)
            for name in (*baselines, *limit):
                if name not in slow or now % 5 == 0:
                    settle()
                    others[name].append(clock(everything[name], calls, device))
            settle()

        # Ours is timed by the same clock as the rest; pytest-benchmark's own statistics are of all calls at once.
        self.benchmark.pedantic(
            lambda: own.append(clock(ours, calls, device)), setup=others_first, rounds=rounds or self.rounds
        )
        seconds = statistics.median(own)
        info: dict[str, Any] = {"group": self.benchmark.group, "row": row, **facts, "calls": calls, "seconds": seconds}
        info["rounds"] = len(own)
        info["spread"] = (max(own) - min(own)) / seconds
        if bytes_moved:
            info["bytes"] = bytes_moved
            info["GB/s"] = bytes_moved / seconds / 1e9
        if limit:
            info["limit"] = {name: moved / statistics.median(others[name]) / 1e9 for name, (moved, _) in limit.items()}
            best = max(limit, key=lambda name: info["limit"][name])
            rates = [limit[best][0] / seconds for seconds in others[best]]
            info["share_of_limit"] = statistics.median(
                bytes_moved / seconds / rate for seconds, rate in zip(own, rates, strict=True)
            )
        if baselines:
            medians = {name: statistics.median(others[name]) for name in baselines}
            info["baselines"] = {name: {"seconds": value, "ratio": value / seconds} for name, value in medians.items()}
        if memory:
            info["rows_bytes"] = rows_bytes
            info["added_bytes"] = {"ours": added_bytes(ours, device)}
            info["added_bytes"] |= {name: added_bytes(call, device) for name, call in baselines.items()}
        self.benchmark.extra_info.update(info)
        return info


def update_limit(bytes_moved: int, device: torch.device = CPU) -> dict[str, tuple[int, Call]]:
    """Loops with three read and two write streams, as many bytes as asked for; on a GPU a copy on the device."""
    if device.type == "cuda":
        return {"copy on the device": _device_copy(bytes_moved, device)}
    words = max(bytes_moved // (5 * WORD) // 8 * 8, 8)
    memory = empty_rows(4, words, torch.int64, device).zero_()
    x, v, p, other = (row.data_ptr() for row in memory)

    def loop(x_out: int, stream_x: bool, stream_v: bool) -> tuple[int, Call]:
        # The default argument keeps the memory alive.
        def call(_memory: Tensor = memory) -> None:
            limit_update(x, v, p, x_out, v, words, stream_x, stream_v)

        return 5 * words * WORD, call

    return {
        "in place": loop(x, False, False),
        "x' to other rows, past the caches": loop(other, True, False),
        "in place, past the caches": loop(x, True, True),
    }


def mix_limit(particles: int, count: int, row_bytes: int, device: torch.device = CPU) -> dict[str, tuple[int, Call]]:
    """Loops that read n rows and write P rows of these bytes; on a GPU a copy on the device."""
    if device.type == "cuda":
        return {"copy on the device": _device_copy((particles + count) * row_bytes, device)}
    words = max(row_bytes // WORD // 8 * 8, 8)
    memory = empty_rows(particles + count, words, torch.int64, device).zero_()
    out, experts, stride = memory[0].data_ptr(), memory[particles].data_ptr(), memory.stride(0)

    def loop(stream: bool) -> tuple[int, Call]:
        def call(_memory: Tensor = memory) -> None:
            limit_mix(out, stride, experts, stride, particles, count, words, stream)

        return (particles + count) * words * WORD, call

    return {"plain stores": loop(False), "past the caches": loop(True)}


def copies(row_bytes: int, device: torch.device = CPU) -> dict[str, Call]:
    """Copies of so many bytes from one place to another: what may be called a memcpy, and the fastest of it."""
    words = max(row_bytes // WORD // 8 * 8, 8)
    source, target = empty_rows(2, words, torch.int64, device).zero_()
    calls: dict[str, Call] = {"torch copy_": lambda: target.copy_(source)}
    if device.type == "cuda":
        return calls
    addresses = target.data_ptr(), source.data_ptr(), words * WORD
    for count in THREADS:
        for stream, name in enumerate(("memcpy", "past the caches")):

            def call(count: int = count, stream: bool = bool(stream)) -> None:
                limit_copy(*addresses, count, stream)

            calls[name if count == CORES else f"{name}, one thread"] = call
    return calls


def _device_copy(bytes_moved: int, device: torch.device) -> tuple[int, Call]:
    # Larger copies are not faster, and large swarms need the memory.
    source, target = torch.zeros(2, min(bytes_moved, 1 << 32) // 2, dtype=torch.uint8, device=device).unbind()
    return 2 * source.numel(), lambda: target.copy_(source)
