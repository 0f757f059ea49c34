"""Arenas: counted rows on every tier, views that outlive them, other processes, and what each mistake says."""

import contextlib
import errno
import gc
import mmap
import os
import random
import resource
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_rows import held_bytes

from modelswarms_fast.ops import _C
from modelswarms_fast.weights.arena import arena_rows, empty_rows, row_stride

TIERS = ["host", "file"]
WITH_SPLIT = [*TIERS, "split"]  # the first rows in memory, the others in a file
SHAPE = (4, 1000, 1088)  # 1088 = 17 * 64


def arena_of(tier, tmp_path, shape=SHAPE):
    if tier == "split":
        return _C.Arena(*shape, "host", str(tmp_path), shape[0] // 2)
    return _C.Arena(*shape, tier, str(tmp_path))


def as_array(view):
    return np.asarray(memoryview(view))


@pytest.mark.parametrize("tier", WITH_SPLIT)
def test_rows_are_apart_at_addresses_that_never_move(tier, tmp_path):
    arena = arena_of(tier, tmp_path)
    assert (arena.rows, arena.row_bytes, arena.stride_bytes, arena.free) == (*SHAPE, 4)
    assert [arena.acquire() for _ in range(4)] == [0, 1, 2, 3]
    whole = as_array(arena.all())
    places = [row.ctypes.data for row in whole]
    assert [place - places[0] for place in places] == [0, 1088, 2176, 3264]
    assert places[0] % 64 == 0
    whole[:] = np.arange(1, 5)[:, None]
    assert whole.shape == (4, 1000)
    arena.release(2)
    assert arena.acquire() == 2
    assert [row.ctypes.data for row in as_array(arena.all())] == places
    assert (as_array(arena.all()) == np.arange(1, 5)[:, None]).all()


@pytest.mark.parametrize("tier", WITH_SPLIT)
def test_views_keep_the_memory(tier, tmp_path):
    arena = arena_of(tier, tmp_path, (3, 1 << 20, (1 << 20) + 64))
    views = [as_array(arena.all()), torch.from_dlpack(arena.all()), np.from_dlpack(arena.all())]
    views[0][:] = 7
    del arena
    gc.collect()
    others = [arena_of(tier, tmp_path, (3, 1 << 20, (1 << 20) + 64)) for _ in range(3)]  # would take its place
    for other in others:
        as_array(other.all())[:] = 1
    views[1][0, 5] = 9
    for view in views:
        assert view.shape == (3, 1 << 20)
        assert [int(view[0, place]) for place in (0, 5, -1)] == [7, 9, 7]


def mapped():
    with open("/proc/self/maps") as maps:
        return sum("modelswarms_fast" in line for line in maps)


@pytest.mark.parametrize("tier", ["file", "split"])
def test_the_last_view_takes_the_memory_along_and_no_file_is_left(tier, tmp_path):
    gc.collect()
    before, descriptors = mapped(), len(os.listdir("/proc/self/fd"))
    arena = arena_of(tier, tmp_path)
    assert not list(tmp_path.iterdir())
    view = torch.from_dlpack(arena.all())
    del arena
    assert mapped() == before + 1
    del view
    assert mapped() == before
    assert len(os.listdir("/proc/self/fd")) == descriptors
    arena_of(tier, tmp_path).all().__dlpack__()  # a capsule that nobody takes
    assert mapped() == before


def test_a_row_is_free_when_everyone_has_let_go():
    arena = _C.Arena(*SHAPE)
    row = arena.acquire()
    arena.retain(row)
    arena.release(row)
    assert (arena.count(row), arena.free) == (1, 3)
    arena.release(row)
    assert (arena.count(row), arena.free) == (0, 4)


def test_mistakes_name_the_row_and_its_bytes():
    arena = _C.Arena(*SHAPE)
    for _ in range(4):
        arena.acquire()
    with pytest.raises(MemoryError, match=r"^No row is free: 4 rows of 1000 bytes are all held; release one"):
        arena.acquire()
    arena.release(2)
    for misuse in (arena.release, arena.retain):
        with pytest.raises(ValueError, match=r"^Row 2 of 1000 bytes is free: it was released as often as"):
            misuse(2)
    for misuse in (arena.release, arena.retain, arena.count):
        for row in (-1, 4):
            with pytest.raises(ValueError, match=rf"^Row {row} of 1000 bytes does not exist: there are 4"):
                misuse(row)
    assert [arena.count(row) for row in range(4)] == [1, 1, 0, 1]


@pytest.mark.parametrize("tier", TIERS)
def test_more_memory_than_there_is(tier, tmp_path):
    size = 1 << 50
    with pytest.raises(
        (MemoryError, OSError), match=r"3 rows of 1125899906842624 bytes, 3377699720528064 bytes in all"
    ):
        arena_of(tier, tmp_path, (3, size, size + 64))
    with pytest.raises(MemoryError, match="more than there can be"):
        arena_of(tier, tmp_path, (1 << 40, size, size + 64))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_exception_when_the_arena_is_made(tmp_path):
    """A file of this process may have a megabyte at most."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(OSError, match="4 rows of 1048576 bytes, 4194560 bytes in all, have no room in") as error:
            arena_of("file", tmp_path, (4, 1 << 20, (1 << 20) + 64))
        part = "4 rows of 1048576 bytes, 2097280 bytes of them in a file, have no room in"
        with pytest.raises(OSError, match=part):
            arena_of("split", tmp_path, (4, 1 << 20, (1 << 20) + 64))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("rows", "size", "spilled"), [(9, 5000, 4), (9, 5000, 1), (5, 1 << 20, 3), (4, 100, 2), (3, 100, 3)]
)
def test_the_last_rows_lie_in_a_file(rows, size, spilled, tmp_path):
    """To the page; and nothing tells where one ends and the other begins."""
    made = empty_rows(rows, size, torch.float32, folder=tmp_path, spilled=spilled)
    apart = row_stride(size, torch.float32) * 4
    found = held_bytes(made)
    assert 0 <= found["file"] - spilled * apart < mmap.PAGESIZE
    assert found["memory"] + found["file"] == rows * apart
    assert not list(tmp_path.iterdir())
    values = torch.randn(rows, size)
    made.copy_(values)
    assert torch.equal(made, values)
    view = made[-1]
    del made
    gc.collect()
    assert torch.equal(view, values[-1])


def test_huge_pages_of_the_file_lie_at_huge_pages_of_the_mapping(tmp_path):
    """Else an update of rows that the disk has takes longer. And CUDA copies no row of which a part is page-locked."""
    size, huge = (1 << 20) + 123456, 1 << 21
    made = empty_rows(7, size, torch.bfloat16, folder=tmp_path, spilled=3)
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, _, offset, _, _, *name = line.split()
        if name and "modelswarms_fast_rows" in name[0]:
            assert (int(addresses.split("-")[0], 16) - int(offset, 16)) % huge == 0
            assert int(addresses.split("-")[0], 16) == made[4].data_ptr(), "no row lies in both"
            break
    else:
        pytest.fail("no file is mapped")
    files = [os.fstat(int(name)) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")]
    taken = sum(file.st_blocks * 512 for file in files if file.st_nlink == 0 and file.st_size > huge)
    assert 0 <= taken - 3 * row_stride(size, torch.bfloat16) * 2 < 8 * mmap.PAGESIZE


def test_rows_that_cannot_be_partly_in_a_file(tmp_path):
    for spilled in (-1, 5):
        with pytest.raises(ValueError, match=f"^{spilled} of 4 rows of 1000 bytes cannot be in a file"):
            _C.Arena(*SHAPE, "host", str(tmp_path), spilled)
    for tier in ("file", "disk"):
        with pytest.raises(ValueError, match=f"rows of tier '{tier}' cannot be partly in a file"):
            _C.Arena(*SHAPE, tier, str(tmp_path), 1)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="4 rows of 1000 bytes, 4352 bytes in all, get no file in"):
        arena_of("file", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((0, 1, 64), "at least one row"),
        ((1, 0, 64), "at least one row"),
        ((2, 64, 128), "odd multiple of 64"),
        ((2, 64, 96), "odd multiple of 64"),
        ((2, 65, 64), "odd multiple of 64"),
    ],
)
def test_shapes_that_make_no_sense(shape, words):
    with pytest.raises(ValueError, match=words):
        _C.Arena(*shape)


def test_tiers_that_are_not_there():
    with pytest.raises(ValueError, match="tier must be host, pinned or file, got 'disk'"):
        _C.Arena(*SHAPE, "disk")
    if not _C.has_cuda:
        with pytest.raises(RuntimeError, match="4 rows of 1000 bytes, 4352 bytes in all, cannot be page-locked"):
            _C.Arena(*SHAPE, "pinned")


class Owner:
    """Something whose end is seen."""


def test_memory_that_was_given_keeps_its_owner():
    memory, ended = torch.zeros(4352, dtype=torch.uint8), []
    owner = Owner()
    weakref.finalize(owner, ended.append, True)
    arena = _C.Arena.given(memory.data_ptr(), 4352, *SHAPE, (1, 0), owner)
    view = torch.from_dlpack(arena.all())[0]
    del owner, arena
    gc.collect()
    assert not ended
    view.fill_(1)
    assert memory[:1000].all()
    assert not memory[1000:].any()
    del view
    gc.collect()
    assert ended
    with pytest.raises(ValueError, match="4 rows of 1000 bytes take 4352 bytes, but there are 4351"):
        _C.Arena.given(memory.data_ptr(), 4351, *SHAPE, (1, 0), None)


def test_memory_of_a_device_is_not_touched_by_the_host():
    arena = _C.Arena.given(1 << 40, 4352, *SHAPE, (2, 3), None)
    assert arena.all().__dlpack_device__() == (2, 3)
    with pytest.raises(BufferError) as error:
        memoryview(arena.all())
    assert "use DLPack" in str(error.value.__cause__ or error.value)


def test_a_copy_is_not_what_views_are_for():
    with pytest.raises(BufferError, match="shared, not copied"):
        _C.Arena(*SHAPE).all().__dlpack__(copy=True)


@pytest.mark.parametrize("tier", WITH_SPLIT)
def test_threads_share_rows_without_losing_any(tier, tmp_path):
    """Each thread fills what it holds and finds it so: nobody else was given the row."""
    arena = arena_of(tier, tmp_path, (7, 1000, 1088))
    rows, wrong = as_array(arena.all()), []

    def work(mark):
        draw, held = random.Random(mark), []
        for _ in range(400):
            with contextlib.suppress(MemoryError):
                held.append(arena.acquire())
                rows[held[-1]] = mark
            if held and draw.random() < 0.4:
                arena.retain(held[-1])
                arena.release(held[-1])
            wrong.extend(row for row in held if not (rows[row] == mark).all())
            while held and draw.random() < 0.6:
                arena.release(held.pop(draw.randrange(len(held))))
        for row in held:
            arena.release(row)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert arena.free == 7
    assert [arena.count(row) for row in range(7)] == [0] * 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("tier", TIERS)
def test_rows_of_a_tier_as_tensors(tier, dtype, tmp_path):
    rows = empty_rows(3, 1001, dtype, tier=tier, folder=tmp_path)
    assert rows.shape == (3, 1001)
    assert rows.stride() == (row_stride(1001, dtype), 1)
    assert rows.dtype == dtype
    values = torch.randn(3, 1001).to(dtype)
    rows.copy_(values)
    assert torch.equal(rows, values)


def test_rows_of_an_arena_as_tensors():
    arena = _C.Arena(2, 40, 64)
    rows = arena_rows(arena, torch.float32)
    rows[:] = torch.tensor([[1.5], [2.5]])
    assert (torch.from_dlpack(arena.all()).view(torch.float32) == torch.tensor([[1.5], [2.5]])).all()
