"""Where rows lie: by budget, state and device, in bytes that can be counted by hand."""

from pathlib import Path

import pytest
import torch
from helpers_rows import assert_same, random_rows

from modelswarms_fast.config import EngineConfig, SwarmConfig, parse_bytes
from modelswarms_fast.errors import InputError
from modelswarms_fast.memory_plan import plan_memory
from modelswarms_fast.particles import Particles
from modelswarms_fast.rows import count_rows
from modelswarms_fast.swarm import Swarm

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


@pytest.mark.parametrize("text", ["8", "GB", "8 XB", "-1GB", "", "1e3MB", "8GB of it", 8])
@pytest.mark.parametrize("name", ["host_memory", "device_memory"])
def test_amounts_that_are_none_name_the_setting(name, text):
    with pytest.raises(InputError, match=f"^{name} is .*; give a number and a unit, such as '8GB'"):
        EngineConfig(**{name: text})


def test_everything_fits_without_a_budget_and_up_to_the_last_byte():
    for budget in (None, f"{SWARM * ROW} bytes"):
        made = plan(host_memory=budget)
        assert (made.rows, made.row_bytes, made.tier, made.cache_rows) == (SWARM, ROW, "host", 0)
        assert made.bytes == {"host": SWARM * ROW}
        assert made.moved == {"update": (5 * P + 2) * D * 2, "load": P * D * 2}


def test_one_byte_less_and_they_lie_in_a_file():
    made = plan(host_memory=f"{SWARM * ROW - 1} bytes")
    assert (made.tier, made.cache_rows) == ("file", 2 * P + 2)  # as many as are ever served
    assert made.bytes == {"file": SWARM * ROW, "host": (2 * P + 2) * ROW}
    assert made.moved["prefetch"] == 2 * P * D * 2
    made = plan(host_memory=f"{5 * ROW - 1} bytes")
    assert (made.tier, made.cache_rows) == ("file", 4)


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
    assert (made.rows, made.tier, made.cache_rows) == (N, "host", 0)
    assert made.moved == {"update": (5 * P + 2) * N * 8, "load": P * (N + 1) * D * 2}
    made = plan(state="mixture", host_memory=f"{(N + 1) * ROW - 1} bytes")
    assert (made.tier, made.bytes) == ("file", {"file": N * ROW, "host": ROW})
    with pytest.raises(InputError, match=f"the least that works are {ROW}: 1 rows"):
        plan(state="mixture", host_memory=f"{ROW - 1} bytes")
    with pytest.raises(InputError, match=f"the least that works are {(N + 1) * ROW}"):  # of a GPU they must be near
        plan("cuda", state="mixture", device_memory=f"{(N + 1) * ROW - 1} bytes")


def test_a_gpu_takes_what_it_may_and_the_host_the_rest():
    made = plan("cuda")
    assert (made.tier, made.first) == ("device", ("host", N))  # the experts only pass through the host
    assert plan("cuda", host_memory="1KB").first == ("file", N)
    with pytest.raises(InputError, match=f"are {SWARM * ROW}: {SWARM} rows"):  # buffers would be larger than the swarm
        plan("cuda", device_memory=f"{SWARM * ROW - 1} bytes")
    row = 125_001 * 64
    for host, tiers in ((None, ("host", "pinned")), (f"{SWARM * row - 1} bytes", ("file",))):
        made = plan("cuda", size=4_000_000, device_memory="100MB", host_memory=host)
        assert made.tier in tiers
        buffers = SWARM * 3 * (2**20 + 64)
        assert made.cache_rows == (100_000_000 - buffers) // row == 6
        assert made.bytes == {made.tier: SWARM * row, "device": 6 * row + buffers}
        assert made.first == (made.tier, SWARM)


def test_a_budget_of_a_gpu_that_is_not_used():
    with pytest.raises(InputError, match="device_memory is given but the engine runs on the CPU; give host_memory"):
        plan(device_memory="8GB")


def test_the_file_lies_where_it_was_asked_for_or_with_the_run(tmp_path):
    assert plan(out=tmp_path / "a" / "b").folder == tmp_path
    assert plan(out=tmp_path).folder == tmp_path
    assert plan(spill=str(tmp_path)).folder == tmp_path
    with pytest.raises(InputError, match=r"^spill is '.*nothing', which is no folder; make it or name another one\.$"):
        plan(spill=str(tmp_path / "nothing"))


def test_a_full_disk_names_the_remedy(tmp_path, monkeypatch):
    made = plan(host_memory="8KB", spill=str(tmp_path))

    def full(*arguments, **options):
        raise OSError(28, "14 rows have no room in /there: No space left on device")

    monkeypatch.setattr("modelswarms_fast.memory_plan.empty_rows", full)
    with pytest.raises(InputError, match=r"^14 rows have no room in /there: .*device; name another folder"):
        made.place(D, torch.bfloat16)


def test_a_sentence_says_what_lies_where_and_what_moves():
    text = str(plan(host_memory="8KB"))
    assert text == (
        "memory: 14 rows of 2.11 kB in a file, 3 of them at a time where they are served; 29.6 kB in a file, 6.34 kB "
        "in host memory; an iteration moves: update 44 kB, load 8 kB, prefetch 16 kB"
    )


class Pool:
    """As `read_experts` gives experts, as far as Particles looks."""

    def __init__(self, rows, room):
        self.rows, self.room, self.names = rows, room, tuple("abc")
        self.layout = type("Layout", (), {"size": rows.shape[1], "dtype": rows.dtype})


@pytest.mark.parametrize("start", ["random", "zero"])
def test_particles_are_the_same_from_a_file_through_a_cache(start, tmp_path):
    """Any wave fetched ahead, any order of use; restarts, bests and blends as ever."""
    values = random_rows(N, D, torch.bfloat16, 0)
    config = SwarmConfig(particles=P, seed=3, restart_patience=0.1, start_velocity=start, patience=40)
    made = plan(host_memory=f"{3 * ROW} bytes", spill=str(tmp_path))
    swarms, both = [Swarm(config, N), Swarm(config, N)], []
    for swarm, placed in zip(swarms, (None, made), strict=True):
        room = torch.zeros(count_rows(P), D, dtype=torch.bfloat16) if placed is None else placed.place(D, values.dtype)
        room[:N] = values
        both.append(Particles(Pool(room[:N], room), swarm, EngineConfig(), torch.device("cpu"), placed))
    utility = torch.Generator().manual_seed(1)
    for iteration in range(25):
        if iteration:
            for swarm, particles in zip(swarms, both, strict=True):
                particles.update(swarm.plan())
        for particle in torch.randperm(P, generator=utility).tolist():
            rows = [particles.row(particle) for particles in both]
            both[1].prefetch([(particle + 1) % P, (particle + 2) % P])
            assert_same(rows[1], rows[0])
            assert rows[1].untyped_storage().nbytes() < 4 * ROW  # served from the cache
        scores = torch.rand(P, generator=utility).double().numpy()
        for swarm, particles in zip(swarms, both, strict=True):
            particles.promote(swarm.tell(scores))
            if iteration == 0:
                particles.start(swarm)
        assert both[1]._cache._pinned == {both[1]._weights.table.g}
        assert_same(both[1].global_best(), both[0].global_best())
    both[0].close()
    both[1].close()
