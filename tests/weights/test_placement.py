"""Where rows lie: by budget, state and device, in bytes that can be counted by hand."""

import mmap
import resource
from pathlib import Path

import pytest
import torch
from helpers_rows import assert_same, held_bytes, random_rows

from modelswarms_fast.config import EngineConfig, SwarmConfig, parse_bytes
from modelswarms_fast.errors import InputError
from modelswarms_fast.ops import _C
from modelswarms_fast.swarm import Swarm
from modelswarms_fast.weights import placement
from modelswarms_fast.weights.placement import plan_memory
from modelswarms_fast.weights.population import Population
from modelswarms_fast.weights.row_table import count_rows

P, N, D = 4, 3, 1000
ROW = 33 * 64  # 1000 numbers of 2 bytes in an odd number of lines
SWARM = 3 * P + 2


def plan(device="cpu", out=Path("/nowhere/at/all"), size=D, **settings):
    shape = {"particles": P, "experts": N, "size": size, "dtype": torch.bfloat16}
    return plan_memory(EngineConfig(**settings), **shape, device=torch.device(device), out=Path(out))


@pytest.mark.parametrize(
    ("text", "count"),
    [("8GB", 8 * 10**9), ("1.5 MiB", 3 * 2**19), ("512kb", 512_000), ("7 bytes", 7), ("2TB", 2 * 10**12), ("0B", 0)],
)
def test_amounts(text, count):
    assert parse_bytes("x", text) == count


@pytest.mark.parametrize("text", ["8", "GB", "8 XB", "-1GB", "", "1e3MB", "8GB of it", 8, "9" * 400 + "GB"])
@pytest.mark.parametrize("name", ["host_memory", "device_memory"])
def test_amounts_that_are_none_name_the_setting(name, text):
    with pytest.raises(InputError, match=f"^{name} is .*; give a number and a unit, such as '8GB'"):
        EngineConfig(**{name: text})


def test_everything_fits_without_a_budget_and_up_to_the_last_byte():
    for budget in (None, f"{SWARM * ROW} bytes"):
        made = plan(host_memory=budget)
        assert (made.rows, made.row_bytes, made.tiers, made.cache_rows) == (SWARM, ROW, {"host": SWARM}, 0)
        assert made.bytes == {"host": SWARM * ROW}
        assert made.moved == {"update": {"host": (5 * P + 2) * D * 2}, "load": {"host": P * D * 2}}
        assert (made.first, made.served_in_place) == (("host", SWARM, 0), SWARM)


def test_velocities_are_the_first_to_lie_in_a_file():
    """One byte too little for all, and one row less each time; no position is copied before it is served."""
    for spilled in range(1, P + 1):
        made = plan(host_memory=f"{(SWARM - spilled + 1) * ROW - 1} bytes")
        assert made.tiers == {"host": SWARM - spilled, "file": spilled}
        assert (made.cache_rows, made.served_in_place) == (0, SWARM - spilled)
        assert made.bytes == {"host": (SWARM - spilled) * ROW, "file": spilled * ROW}
        assert made.moved == {
            "update": {"host": (5 * P + 2 - 2 * spilled) * D * 2, "file": 2 * spilled * D * 2},
            "load": {"host": P * D * 2},
        }


def test_then_the_positions_that_are_used_last():
    made = plan(host_memory=f"{(2 * P + 2) * ROW - 1} bytes")
    assert made.tiers == {"host": 2 * P + 2 - 4, "file": P + 4}  # three rows for copies
    assert (made.cache_rows, made.served_in_place) == (3, 2 * P - 2)
    assert made.bytes == {"host": (2 * P + 1) * ROW, "file": (P + 4) * ROW}
    assert made.moved == {
        "update": {"host": (5 * P + 2 - 2 * P - 8) * D * 2, "file": (2 * P + 8) * D * 2},
        "load": {"host": P * D * 2},
        "prefetch": {"host": 4 * D * 2, "file": 4 * D * 2},
    }
    made = plan(host_memory=f"{3 * ROW} bytes")
    assert (made.tiers, made.cache_rows, made.served_in_place) == ({"file": SWARM}, 3, 0)
    assert made.bytes == {"host": 3 * ROW, "file": SWARM * ROW}
    assert made.moved["update"] == {"file": (5 * P + 2) * D * 2}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_too_small_for_anything_says_what_would_do(device):
    setting = "host_memory" if device == "cpu" else "device_memory"
    size = D if device == "cpu" else 4_000_000
    row = ROW if device == "cpu" else 125_001 * 64
    least = 3 * row + (0 if device == "cpu" else SWARM * 3 * (2**20 + 64))
    with pytest.raises(InputError, match=rf"^{setting} is {least - 1} bytes, but .* {least}: 3 rows .*give {least} or"):
        plan(device, size=size, **{setting: f"{least - 1} bytes"})
    assert plan(device, size=size, **{setting: f"{least} bytes"}).cache_rows == 3


def test_mixtures_keep_the_experts_and_one_row():
    made = plan(state="mixture", host_memory=f"{(N + 1) * ROW} bytes")
    assert (made.rows, made.tiers, made.cache_rows) == (N, {"host": N}, 0)
    assert made.moved == {"update": {"host": (5 * P + 2) * N * 8}, "load": {"host": P * (N + 1) * D * 2}}
    made = plan(state="mixture", host_memory=f"{(N + 1) * ROW - 1} bytes")
    assert (made.tiers, made.bytes) == ({"host": N - 1, "file": 1}, {"host": N * ROW, "file": ROW})
    assert made.moved["load"] == {"host": P * N * D * 2, "file": P * D * 2}
    made = plan(state="mixture", host_memory=f"{ROW} bytes")
    assert (made.tiers, made.bytes) == ({"file": N}, {"host": ROW, "file": N * ROW})
    with pytest.raises(InputError, match=f"the least that works are {ROW}: 1 rows"):
        plan(state="mixture", host_memory=f"{ROW - 1} bytes")
    with pytest.raises(InputError, match=f"the least that works are {(N + 1) * ROW}"):  # of a GPU they must be near
        plan("cuda", state="mixture", device_memory=f"{(N + 1) * ROW - 1} bytes")


def test_a_gpu_takes_what_it_may_the_host_the_next_rows_and_a_file_the_rest():
    made = plan("cuda")
    assert (made.tiers, made.first) == ({"device": SWARM}, ("host", N, 0))  # the experts only pass through the host
    assert made.moved == {"update": {"device": (5 * P + 2) * D * 2}, "load": {"device": P * D * 2}}
    assert plan("cuda", host_memory="1KB").first == ("host", N, N)
    with pytest.raises(InputError, match=f"are {SWARM * ROW}: {SWARM} rows"):  # buffers would be larger than the swarm
        plan("cuda", device_memory=f"{SWARM * ROW - 1} bytes")
    size, near = 4_000_000, "pinned" if _C.has_cuda else "host"
    row, buffers = 125_001 * 64, SWARM * 3 * (2**20 + 64)
    for host, spilled in ((None, 0), (f"{SWARM * row - 1} bytes", 1), (f"{row * 8} bytes", P + 2), ("1KB", SWARM)):
        made = plan("cuda", size=size, device_memory="100MB", host_memory=host)
        held = {near: SWARM - spilled, "file": spilled}
        assert made.tiers == {tier: count for tier, count in held.items() if count}
        assert made.cache_rows == (100_000_000 - buffers) // row == 6
        assert made.served_in_place == 0
        assert made.bytes == {"device": 6 * row + buffers} | {tier: count * row for tier, count in made.tiers.items()}
        assert made.first == (near, SWARM, spilled)
        velocities, positions = min(spilled, P), max(spilled - P, 0)
        in_file = 2 * velocities + positions + min(positions, P)
        moved = {tier: count / (size * 2) for tier, count in made.moved["update"].items()}
        assert moved.pop("device") == 2 * (5 * P + 2)
        assert moved.get("file", 0) == in_file
        assert sum(moved.values()) == 5 * P + 2
        moved = {tier: count / (size * 2) for tier, count in made.moved["prefetch"].items()}
        assert (moved.get("file", 0), moved.pop("device")) == (min(positions, P), P)
        assert sum(moved.values()) == P
        assert made.moved["load"] == {"device": P * size * 2}


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
            made.place(100_000, torch.bfloat16)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
    assert not made.place(100_000, torch.bfloat16).any()


def test_the_plan_is_printed_tier_by_tier():
    text = str(plan(host_memory="19KB"))
    assert text == (
        "memory: 14 rows of 2.11 kB, 5 in host memory, 9 in a file; the others are served from copies of 3 at a "
        "time in host memory\n"
        "held: 16.9 kB in host memory, 19 kB in a file\n"
        "an iteration moves at most by tier: update 10 kB in host memory, 34 kB in a file; load 8 kB in host memory; "
        "prefetch 8 kB in host memory, 8 kB in a file"
    )
    assert "an iteration moves by tier: update 44 kB in host memory; load 8 kB in host memory" in str(plan())


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
    monkeypatch.setattr(placement, "_STREAM_BYTES", 64)  # else the buffers are larger than so few rows
    monkeypatch.setattr(placement, "_slow_tier", lambda: "host")
    values = random_rows(N, D, torch.bfloat16, 0)
    config = SwarmConfig(particles=P, seed=3, restart_patience=0.1, start_velocity=start, patience=40)
    on_device = None if device_rows is None else f"{device_rows * ROW + SWARM * 64} bytes"
    made = plan(device, host_memory=host, device_memory=on_device, spill=str(tmp_path))
    swarms, both = [Swarm(config, N), Swarm(config, N)], []
    for swarm, placed in zip(swarms, (None, made), strict=True):
        room = torch.zeros(count_rows(P), D, dtype=torch.bfloat16) if placed is None else placed.place(D, values.dtype)
        room[:N] = values
        both.append(Population(Pool(room[:N], room), swarm, EngineConfig(), torch.device("cpu"), placed))
    assert_allocated(made, room, both[1]._cache)
    utility = torch.Generator().manual_seed(1)
    for iteration in range(25):
        if iteration:
            for swarm, particles in zip(swarms, both, strict=True):
                particles.update(swarm.ask())
        for particle in torch.randperm(P, generator=utility).tolist():
            rows = [particles.row(particle) for particles in both]
            both[1].prefetch([(particle + 1) % P, (particle + 2) % P])
            assert_same(rows[1], rows[0])
            in_place = rows[1].data_ptr() == both[1]._weights.position(particle).data_ptr()
            assert in_place == (both[1]._weights.table.x[particle] < made.served_in_place)
        scores = torch.rand(P, generator=utility).double().numpy()
        for swarm, particles in zip(swarms, both, strict=True):
            particles.promote(swarm.tell(scores))
            if iteration == 0:
                particles.start(swarm)
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
        assert made.bytes["device"] == copies + SWARM * 64  # and the buffers
        copies = 0
    in_memory = made.bytes.get("host", 0) - copies
    assert 0 <= in_memory - found["memory"] < mmap.PAGESIZE
    assert found["memory"] + found["file"] == SWARM * ROW
