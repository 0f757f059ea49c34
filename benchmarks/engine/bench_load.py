"""Loading a particle into a running engine, against vLLM's own add_lora from a file and a copy of as many bytes.

Before every call, ours or not, memory larger than the caches is read, as an engine's steps between two loads do.

Besides what every row has (measure.py): serve, kind ("lora" or "full"), row_bytes (what a load brings in; 0 for a
mixture, and for a slot on a CPU that serves a row of the experts' room where it lies; rows "slots, copied" are of
rows that lie elsewhere). Row "from a file, fetched ahead": `seconds` are of a load of a row that the disk has and
the page cache has not, and which is fetched while the engine completes prompts; `turn_seconds` are of prompts and
load together, ours and of each baseline. Of the copies, `torch copy_` is torch's own, `memcpy` the C library's and
`past the caches` a loop of stores that do not read what they overwrite, each on all threads and on one; the fastest
of them is the bound. `base weights` copies are of the weights that a merge reads and writes. A row "... mixed"
loads a mixture of all experts; `mix` loops read as many rows and write one.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.engine.cold import evict
from benchmarks.engine.engines import (
    ALL_LINEAR,
    EXAMPLES,
    LARGE_RANK,
    SERVES,
    SLOTS,
    engine,
    experts,
    full_weights,
    plain_vllm,
    slots_for,
    write_large_adapters,
)
from benchmarks.engine.iterations import utility_of_benchmark
from benchmarks.measure import CORES, Call, Measure, copies, mix_limit
from modelswarms_fast.engines.protocol import Request, complete
from modelswarms_fast.weights.arena import empty_rows
from modelswarms_fast.weights.row_cache import RowCache

pytest.importorskip("vllm")

COPIED = "slots, copied"
OTHER_MEMORY = np.zeros(1 << 24, np.int64)
"""128 MiB, more than the caches hold."""


def empty_caches() -> None:
    """On one thread, so that no other spins when it is over."""
    OTHER_MEMORY.max()


def named(what: str, calls: dict[str, Call]) -> dict[str, Call]:
    """Copies of what."""
    return {f"{what}, {name}": call for name, call in calls.items()}


def adapted_bytes() -> int:
    """Of the base weights that the experts adapt: what a merge reads, and writes."""
    shapes = {spec.name: spec.shape for spec in experts().layout.specs}
    weights = sum(shapes[module.b][0] * shapes[module.a][1] for module in experts().modules)
    return int(weights * engine("merged").dtype.itemsize)


@pytest.mark.parametrize("serve", [*SERVES, COPIED])
def test_load(measure: Measure, serve: str) -> None:
    """The row is in memory when ours starts, the adapter's file in the page cache when add_lora does."""
    rows, server = experts().rows, engine(serve.removesuffix(", copied"))
    if serve == COPIED:
        rows = rows.clone()
    mixed = serve == "mixture"
    give = server.load_mixture if mixed else server.load
    slots = itertools.cycle(range(server.slots))
    particles = itertools.cycle(list(torch.eye(len(rows), dtype=torch.float64) if mixed else rows))

    def load() -> None:
        give(next(slots), next(particles))

    folders = [str(EXAMPLES / "experts" / name) for name in experts().names]
    baselines = {"add_lora from a file": adder(plain_vllm(), folders)}
    row_bytes = rows.shape[1] * rows.element_size()
    if serve != "mixture":
        baselines |= named("row", copies(row_bytes, server.device))
    if serve == "merged":
        baselines |= named("base weights", copies(adapted_bytes(), server.device))
    measure_load(measure, f"{serve}, D={rows.shape[1]:,}", server, load, baselines, serve=serve, kind="lora",
                 slots=SLOTS if serve.startswith("slots") else 1, size=rows.shape[1],
                 row_bytes=0 if serve == "mixture" or lies(serve, server) else row_bytes)  # fmt: skip


def lies(serve: str, server: Any) -> bool:
    """Whether a row of the experts is served where it lies."""
    return serve == "slots" and server.device.type == "cpu"


def adder(plain: Any, folders: Sequence[str]) -> Call:
    """Calls vLLM's add_lora with a new name each time: what has been seen before is not read again."""
    from vllm.lora.request import LoRARequest

    numbers = itertools.count(1)

    def add_lora() -> None:
        number = next(numbers)
        plain.llm_engine.add_lora(LoRARequest(f"adapter-{number}", number, folders[number % len(folders)]))

    return add_lora


@pytest.fixture(scope="module")
def large_adapters(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Folders; written once, so that one engine serves them."""
    return tuple(write_large_adapters(tmp_path_factory.mktemp("large")))


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize("serve", ["slots", COPIED])
def test_load_large_adapters(measure: Measure, large_adapters: tuple[str, ...], serve: str) -> None:
    """Rank 32 on all linear layers, into slots: twenty times the weights of the examples."""
    folders = large_adapters
    server, only = slots_for(folders)
    rows = only.rows.clone() if serve == COPIED else only.rows
    views, slots = itertools.cycle(list(rows)), itertools.cycle(range(server.slots))
    row_bytes = rows.shape[1] * rows.element_size()
    baselines = {"add_lora from a file": adder(plain_vllm(LARGE_RANK, ALL_LINEAR), folders)}
    measure_load(measure, f"{serve}, D={rows.shape[1]:,}", server,
                 lambda: server.load(next(slots), next(views)),
                 baselines | named("row", copies(row_bytes, server.device)), serve=serve, kind="large lora",
                 slots=SLOTS, size=rows.shape[1], row_bytes=0 if lies(serve, server) else row_bytes)  # fmt: skip


@pytest.mark.parametrize("serve", ["merged", "slots"])
def test_load_mixed(measure: Measure, serve: str) -> None:
    """A mixture of the resident experts where a row would be loaded."""
    rows, server = experts().rows, engine(serve)
    mixture, slots = torch.linspace(-0.2, 0.5, len(rows)), itertools.cycle(range(server.slots))
    row_bytes = rows.shape[1] * rows.element_size()
    loops = {f"mix, {name}": call for name, (_, call) in mix_limit(1, len(rows), row_bytes, server.device).items()}
    baselines = loops if serve == "slots" else named("base weights", copies(adapted_bytes(), server.device)) | loops
    measure_load(measure, f"{serve}, mixed, D={rows.shape[1]:,}", server,
                 lambda: server.load_mixture(next(slots), mixture), baselines, serve=f"{serve}, mixed", kind="lora",
                 slots=server.slots, size=rows.shape[1], row_bytes=len(rows) * row_bytes)  # fmt: skip


@pytest.mark.usefixtures("full")
def test_load_full_weights(measure: Measure) -> None:
    """A whole checkpoint into the live weights."""
    server, only = full_weights()
    row = only.rows[0]
    row_bytes = row.numel() * row.element_size()
    name = f"merged, full weights, D={row.numel():,}"
    measure_load(measure, name, server, lambda: server.load(0, row), named("row", copies(row_bytes, server.device)),
                 serve="merged", kind="full", slots=1, size=row.numel(), row_bytes=row_bytes)  # fmt: skip


@pytest.mark.usefixtures("full")
def test_load_ahead(measure: Measure, tmp_path: Path) -> None:
    """A row that lies in a file, as a search loads it: the cache fetches it while the engine generates."""
    server, only = full_weights()
    row = only.rows[0]
    rows = empty_rows(4, row.numel(), row.dtype, tier="file", folder=tmp_path)
    for one in rows:
        one.copy_(row)
    numbers = itertools.cycle(range(len(rows)))
    prompts = utility_of_benchmark(16).prompts["dev"]
    requests = [Request(0, list(ids)) for ids in server.tokenizer(prompts)["input_ids"]]
    server.load(0, row)
    loads: dict[str, list[float]] = {}
    turns: dict[str, list[float]] = {}

    def turn(how: str) -> None:
        number = next(numbers)
        cache.invalidate(range(len(rows)))
        evict()
        start = time.perf_counter()
        if how == "ours":
            cache.prefetch([number])
        complete(server, requests, 10)
        generated = time.perf_counter()
        if how == "straight from the file":
            server.load(0, rows[number])
        else:
            view = cache.get(number)
            server.load(0, view)
            cache.release(view)
        end = time.perf_counter()
        loads.setdefault(how, []).append(end - generated)
        turns.setdefault(how, []).append(end - start)

    others = ("straight from the file", "not fetched ahead")
    with closing(RowCache(rows, 3)) as cache:
        measure.row(
            f"from a file, fetched ahead, D={row.numel():,}", lambda: turn("ours"),
            baselines={how: lambda how=how: turn(how) for how in others}, rounds=7, warmup=False, memory=False,
            serve="merged", kind="file", slots=1, size=row.numel(), row_bytes=row.nbytes, dtype="bfloat16",
            prompts=len(requests), threads=CORES,
        )  # fmt: skip
    seconds = {how: statistics.median(times) for how, times in loads.items()}
    measure.benchmark.extra_info.update(
        {
            "seconds": seconds["ours"],
            "spread": (max(loads["ours"]) - min(loads["ours"])) / seconds["ours"],
            "baselines": {how: {"seconds": seconds[how], "ratio": seconds[how] / seconds["ours"]} for how in others},
            "turn_seconds": {how: statistics.median(times) for how, times in turns.items()},
        }
    )
    server.restore()


def measure_load(measure: Measure, row: str, server: Any, load: Call, baselines: dict[str, Call], **facts: Any) -> None:
    """A row of this group."""
    rounds = 2 * measure.rounds
    measure.row(row, load, baselines=baselines, rounds=rounds, memory=False, device=server.device, before=empty_caches,
                dtype="bfloat16", threads=CORES, **facts)  # fmt: skip
    server.restore()
