"""Where rows lie: by budget, state and device, in bytes that can be counted by hand."""

import mmap
import resource
from pathlib import Path

import pytest
import torch
from helpers_population import move, population_of, promote
from helpers_population import start as begin
from helpers_rows import assert_same, held_bytes, random_rows

from modelswarms_fast.config import EngineConfig, SwarmConfig, parse_bytes
from modelswarms_fast.errors import InputError
from modelswarms_fast.ops import _C
from modelswarms_fast.swarm import Swarm
from modelswarms_fast.weights import placement, streaming
from modelswarms_fast.weights.free_memory import FreeMemory
from modelswarms_fast.weights.placement import (
    DEVICE_RESERVE,
    HOST_RESERVE,
    Demand,
    Tiers,
    fits,
    on_cpu,
    on_gpu,
    plan_memory,
    streamed_to_gpu,
)
from modelswarms_fast.weights.row_table import count_rows

P, N, D = 4, 3, 1000
ROW = 33 * 64  # 1000 numbers of 2 bytes in an odd number of lines
SWARM = 3 * P + 2
NEAR = "pinned" if _C.has_cuda else "host"
ROOMY = FreeMemory(10**15, 10**15, 10**15)


def plan(
    device="cpu", out=Path("/nowhere/at/all"), size=D, free=ROOMY, particles=P, experts=N, taken=(0.0, 0), **settings
):
    shape = {"particles": particles, "experts": experts, "size": size, "dtype": torch.bfloat16}
    engine = dict(zip(("gpu_memory_utilization", "engine_bytes"), taken, strict=True))
    return plan_memory(
        EngineConfig(**settings), **shape, **engine, device=torch.device(device), out=Path(out), free=free
    )


@pytest.mark.parametrize(
    ("text", "count"),
    [("8GB", 8 * 10**9), ("1.5 MiB", 3 * 2**19), ("512kb", 512_000), ("7 bytes", 7), ("2TB", 2 * 10**12), ("0B", 0)],
)
def test_amounts(text, count):
    assert parse_bytes("x", text) == count


@pytest.mark.parametrize("text", ["8", "GB", "8 XB", "-1GB", "", "1e3MB", "8GB of it", "9" * 400 + "GB"])
@pytest.mark.parametrize("name", ["host_memory", "device_memory"])
def test_amounts_that_are_none_name_the_setting(name, text):
    with pytest.raises(InputError, match=f"^{name} is .*; give a number and a unit, such as '8GB'"):
        EngineConfig(**{name: text})


SMALL = Demand(weights=True, particles=P, experts=N, row=10)
MIXED = Demand(weights=False, particles=P, experts=N, row=10)
DELTA = Demand(weights=False, particles=P, experts=N, row=10, combine="delta")
LARGE = Demand(weights=True, particles=P, experts=N, row=100 << 20)
BUFFERS = SWARM * 3 * 2**20


@pytest.mark.parametrize(
    ("demand", "budget", "rows", "cache", "held"),
    [
        (SMALL, 140, {"host": 14}, 0, {"host": 140}),  # to the last byte
        (SMALL, 139, {"host": 13, "file": 1}, 0, {"host": 130, "file": 10}),  # velocities are the first in the file
        (SMALL, 100, {"host": 10, "file": 4}, 0, {"host": 100, "file": 40}),  # all velocities
        (SMALL, 99, {"host": 6, "file": 8}, 3, {"host": 90, "file": 80}),  # and positions: three rows for copies
        (SMALL, 30, {"file": 14}, 3, {"host": 30, "file": 140}),
        (SMALL, 29, None, 30, None),
        (MIXED, 40, {"host": 3}, 0, {"host": 40}),  # the experts and the row of a mixture
        (DELTA, 60, {"host": 3}, 0, {"host": 60}),  # whose rank is that of all experts with combine="delta"
        (DELTA, 45, {"host": 1, "file": 2}, 0, {"host": 40, "file": 20}),
        (MIXED, 39, {"host": 2, "file": 1}, 0, {"host": 30, "file": 10}),
        (MIXED, 10, {"file": 3}, 0, {"host": 10, "file": 30}),
        (MIXED, 9, None, 10, None),
    ],
)
def test_on_a_cpu(demand, budget, rows, cache, held):
    assert on_cpu(demand, budget) == (cache if rows is None else Tiers(rows, cache, held))


@pytest.mark.parametrize(
    ("demand", "budget", "found"),
    [
        (SMALL, 140, Tiers({"device": 14}, 0, {"device": 140})),
        (SMALL, 139, 140),
        (MIXED, 40, Tiers({"device": 3}, 0, {"device": 40})),
        (MIXED, 39, 40),
    ],
)
def test_on_a_gpu(demand, budget, found):
    assert on_gpu(demand, budget) == found


@pytest.mark.parametrize(
    ("budget", "host", "rows", "cache"),
    [
        (3, 99, {"pinned": 14}, 3),
        (6, 99, {"pinned": 14}, 6),
        (13, 99, {"pinned": 14}, 10),  # velocities are never served
        (3, 14, {"pinned": 14}, 3),
        (3, 13, {"pinned": 13, "file": 1}, 3),
        (3, 0, {"file": 14}, 3),
    ],
)
def test_streamed_to_a_gpu(budget, host, rows, cache):
    """Budgets in rows, beside the buffers of the GPU."""
    row = LARGE.row
    found = streamed_to_gpu(LARGE, BUFFERS + budget * row, (host + 1) * row - 1, "pinned")
    held = {"device": cache * row + BUFFERS} | {tier: count * row for tier, count in rows.items()}
    assert found == Tiers(rows, cache, held)


def test_what_is_not_streamed_to_a_gpu():
    assert streamed_to_gpu(LARGE, BUFFERS + 3 * LARGE.row - 1, 0, "pinned") == BUFFERS + 3 * LARGE.row
    assert streamed_to_gpu(SMALL, 139, 10**9, "pinned") == 140  # the buffers would be larger than all rows
    assert streamed_to_gpu(MIXED, 39, 10**9, "pinned") == 40  # experts are mixed where they are served


def test_the_rows_that_experts_are_read_into():
    def allocated(made):
        return made.host_tier, made.host_rows, made.file_rows

    assert allocated(plan()) == ("host", SWARM, 0)
    assert allocated(plan(host_memory=f"{6 * ROW} bytes")) == ("host", SWARM, SWARM - 3)
    assert allocated(plan(engines=2)) == ("shared", SWARM, 0)
    assert allocated(plan(engines=2, host_memory=f"{6 * ROW} bytes")) == ("host", SWARM, SWARM - 3)
    assert allocated(plan("cuda")) == ("host", N, 0)  # they pass through the host
    assert allocated(plan("cuda", host_memory="1KB")) == ("host", N, N)
    streamed = plan("cuda", size=4_000_000, device_memory="100MB", host_memory=f"{8 * 125_001 * 64} bytes")
    assert allocated(streamed) == (NEAR, SWARM, SWARM - 8)
    assert streamed.served_in_place == 0


EIGHT = 8_000_000_000  # numbers of a checkpoint: 16 GB in bfloat16
H200 = FreeMemory(host=2 * 10**12, device=141 * 10**9, device_total=141 * 10**9)


def test_ten_checkpoints_of_8_billion_are_not_put_on_one_gpu():
    """32 rows take half a terabyte. Beside an engine that has half of the GPU they stream through three rows there."""
    made = plan("cuda", size=EIGHT, free=H200, particles=10, experts=10, taken=(0.5, 0))
    assert made.tiers == {NEAR: 32}
    assert made.cache_rows == 4
    assert made.bytes["device"] < 141 * 10**9 / 2 - DEVICE_RESERVE
    with pytest.raises(
        InputError, match=r"^3\d{10} bytes are free for rows in the GPU, but the rows of 10 particles need"
    ):
        plan("cuda", size=EIGHT, free=H200, particles=10, experts=10, taken=(0.75, 0))
    with pytest.raises(InputError, match="a lower gpu_memory_utilization"):
        plan("cuda", state="mixture", size=EIGHT, free=H200, particles=10, experts=10, taken=(0.0, 0))


@pytest.mark.parametrize(
    ("free", "taken", "budget"),
    [(30 << 30, 0, 26 << 30), (30 << 30, 10 << 30, 16 << 30), (30 << 30, 25 << 30, 30 << 28), (2 << 30, 0, 1 << 29)],
)
def test_the_default_budget_of_the_host_is_what_is_free_less_a_reserve(free, taken, budget):
    """A quarter of what is free at least: a small machine has to try."""
    assert HOST_RESERVE == 4 << 30
    row = 1 << 20
    size = (row - 64) // 2  # an odd number of lines
    rows = budget // (row - 64)
    made = plan(size=size, particles=20_000, free=FreeMemory(free), taken=(0.0, taken))
    assert made.tiers["host"] + made.cache_rows == rows
    particles = (rows - 2) // 3
    shape = {"size": size, "dtype": torch.bfloat16, "experts": 2, "engine_bytes": taken, "free": FreeMemory(free)}
    for count in (particles, particles + 1):
        assert fits(EngineConfig(), particles=count, **shape, device=torch.device("cpu")) == (count == particles)


def test_weights_fit_where_no_row_goes_to_a_file_or_through_a_cache():
    shape = {"particles": P, "experts": N, "size": D, "dtype": torch.bfloat16, "free": ROOMY}
    for device, name in (("cpu", "host_memory"), ("cuda", "device_memory")):
        for less in (0, 1):
            config = EngineConfig(**{name: f"{SWARM * ROW - less} bytes"}, state="mixture")
            assert fits(config, **shape, device=torch.device(device)) == (not less)
    total = 80 * 10**9
    for free, yes in ((60 * 10**9 + DEVICE_RESERVE + SWARM * ROW, True), (60 * 10**9 + DEVICE_RESERVE, False)):
        shape["free"] = FreeMemory(10**15, free, total)
        engine = {"gpu_memory_utilization": 0.5, "engine_bytes": 20 * 10**9}
        assert fits(EngineConfig(), **shape, **engine, device=torch.device("cuda")) == yes


def test_what_is_free_is_asked_of_the_system(monkeypatch):
    monkeypatch.setattr(placement, "free_memory", lambda device: FreeMemory(4 * 6 * ROW))
    assert plan(free=None).tiers == {"host": 3, "file": SWARM - 3}


def test_a_budget_that_is_too_small_says_what_would_do():
    for device, name in (("cpu", "host_memory"), ("cuda", "device_memory")):
        least = 3 * ROW if device == "cpu" else SWARM * ROW
        with pytest.raises(InputError, match=rf"^{name} is {least - 1} bytes, but .*; give {least} or more\.$"):
            plan(device, **{name: f"{least - 1} bytes"})
        plan(device, **{name: f"{least} bytes"})


def test_a_budget_of_a_gpu_that_is_not_used():
    with pytest.raises(InputError, match="device_memory is given but the engine runs on the CPU; give host_memory"):
        plan(device_memory="8GB")


def test_the_file_lies_where_it_was_asked_for_or_with_the_run(tmp_path):
    assert plan(out=tmp_path / "a" / "b").folder == tmp_path
    assert plan(out=tmp_path).folder == tmp_path
    assert plan(spill=str(tmp_path)).folder == tmp_path
    with pytest.raises(InputError, match=r"^spill is '.*nothing', which is no folder; make it or name another one\.$"):
        plan(spill=str(tmp_path / "nothing"))


def test_a_full_disk_names_the_remedy(tmp_path):
    """A file of this process may have a megabyte at most."""
    made = plan(host_memory="700KB", spill=str(tmp_path), size=100_000)  # rows of 200 kB
    assert made.tiers == {"file": SWARM}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(InputError, match=r"^14 rows of 200000 bytes, .* have no room in .*; name another folder"):
            made.allocate(100_000, torch.bfloat16)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
    assert not made.allocate(100_000, torch.bfloat16).any()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({}, "29.6 kB of weights for 4 particles, in memory"),
        ({"state": "mixture"}, "6.34 kB of weights for 3 experts, in memory"),
        ({"device": "cuda"}, "29.6 kB of weights for 4 particles, on the GPU"),
        ({"host_memory": "19KB"}, "29.6 kB of weights for 4 particles, 10.6 kB in memory, 19 kB in a file"),
    ],
)
def test_a_placement_is_one_line(settings, line):
    assert str(plan(**settings)) == line


def test_details_say_what_each_tier_holds():
    assert plan().details() == "14 rows of 2.11 kB: 14 in memory\nheld in all: 29.6 kB in memory"
    assert plan(host_memory="19KB").details() == (
        "14 rows of 2.11 kB: 5 in memory, 9 in a file\n"
        "rows from 5 on are served through a cache of 3 rows in memory\n"
        "held in all: 16.9 kB in memory, 19 kB in a file"
    )


class Pool:
    """As `read_experts` gives experts, as far as Population looks."""

    def __init__(self, rows, room):
        self.rows, self.room, self.names = rows, room, tuple("abc")
        self.layout = type("Layout", (), {"size": rows.shape[1], "dtype": rows.dtype})


def budgets():
    """Everything that differs: the least, some positions near, all of them, all but one velocity; and a second tier."""
    yield from (pytest.param("cpu", f"{rows * ROW} bytes", None, id=f"{rows} rows") for rows in (3, 6, 9, 10, 11, 13))
    for device_rows, host_rows in ((3, 0), (4, 1), (5, 7), (9, 12), (7, 14)):
        host = f"{host_rows * ROW} bytes"
        yield pytest.param("cuda", host, device_rows, id=f"{device_rows} and {host_rows} rows")


@pytest.mark.parametrize("start", ["random", "zero"])
@pytest.mark.parametrize(("device", "host", "device_rows"), list(budgets()))
def test_particles_are_the_same_whatever_the_budgets(device, host, device_rows, start, tmp_path, monkeypatch):
    """Any wave fetched ahead, any order of use; restarts, bests and blends as ever. The CPU stands for the GPU."""
    monkeypatch.setattr(streaming, "BLOCK_BYTES", 64)  # else the buffers are larger than so few rows
    monkeypatch.setattr(placement, "host_tier_of_gpu", lambda: "host")  # nothing is page-locked without a driver
    values = random_rows(N, D, torch.bfloat16, 0)
    config = SwarmConfig(particles=P, seed=3, restart_patience=0.1, start_velocity=start, patience=40)
    on_device = None if device_rows is None else f"{device_rows * ROW + SWARM * 3 * 64} bytes"
    made = plan(device, host_memory=host, device_memory=on_device, spill=str(tmp_path))
    swarms, both = [Swarm(config, N), Swarm(config, N)], []
    for swarm, placed in zip(swarms, (None, made), strict=True):
        room = (
            torch.zeros(count_rows(P), D, dtype=torch.bfloat16) if placed is None else placed.allocate(D, values.dtype)
        )
        room[:N] = values
        both.append(population_of(Pool(room[:N], room), swarm, EngineConfig(state="weights"), placed))
    assert_allocated(made, room, both[1]._cache)
    utility = torch.Generator().manual_seed(1)
    for iteration in range(25):
        if iteration:
            for swarm, particles in zip(swarms, both, strict=True):
                move(particles, swarm.ask())
        for particle in torch.randperm(P, generator=utility).tolist():
            rows = [particles.row(particle) for particles in both]
            for ahead in (1, 2):
                both[1].prefetch((particle + ahead) % P)
            assert_same(rows[1], rows[0])
            in_place = rows[1].data_ptr() == both[1]._weights.position(particle).data_ptr()
            assert in_place == (both[1]._weights.table.x[particle] < made.served_in_place)
        scores = torch.rand(P, generator=utility).double().numpy()
        for swarm, particles in zip(swarms, both, strict=True):
            promote(particles, swarm.tell(scores))
            if iteration == 0:
                begin(particles, swarm)
        if made.cache_rows:
            best = both[1]._weights.table.g
            assert both[1]._cache._pinned == ({best} if best >= made.served_in_place else set())
        assert_same(both[1].global_best(), both[0].global_best())
    both[0].close()
    both[1].close()


def assert_allocated(made, room, cache):
    """What the plan says of bytes is what there is, to the page where memory ends and the file begins."""
    found = held_bytes(room)
    assert 0 <= found["file"] - made.bytes.get("file", 0) < mmap.PAGESIZE
    copies = 0 if cache is None else len(cache._fast) * cache._fast.stride(0) * 2
    assert copies == made.cache_rows * ROW
    if "device" in made.bytes:
        assert made.bytes["device"] == copies + SWARM * 3 * 64  # and the buffers
        copies = 0
    in_memory = made.bytes.get("host", 0) + made.bytes.get("pinned", 0) - copies
    assert 0 <= in_memory - found["memory"] < mmap.PAGESIZE
    assert found["memory"] + found["file"] == SWARM * ROW
