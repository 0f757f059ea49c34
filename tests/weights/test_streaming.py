"""Streamed rows: the bits of the resident update, from memory and from a file, whatever the blocks; and failures."""

import random
import threading
from contextlib import closing
from itertools import permutations

import pytest
import torch
from helpers_rows import DTYPES, GPU, HALF_TYPES, NEEDS_GPU, assert_same, random_rows, select, skip_float64
from helpers_streams import Streams, at_random, by_priority
from hypothesis import given, settings
from hypothesis import strategies as st

from modelswarms_fast.ops import swarm_update_rows_
from modelswarms_fast.weights import streaming
from modelswarms_fast.weights.arena import empty_rows
from modelswarms_fast.weights.row_cache import RowCache
from modelswarms_fast.weights.row_table import RowTable
from modelswarms_fast.weights.streaming import stream_update_rows_

BACKENDS = ["reference", "cpp", *(pytest.param(name, marks=[GPU, NEEDS_GPU]) for name in ("triton", "cuda"))]
NOISE = {
    "none": {},
    "rounding": {"rounding": "stochastic"},
    "coordinate": {"randomness": "coordinate"},
    "both": {"rounding": "stochastic", "randomness": "coordinate"},
}
KEY = {"seed": 2**40 + 7, "iteration": 9, "first_column": 2**33 + 64}


def some_table(particles, seed):
    """A table of every kind of line, g and w, and how many rows there are; some rows are not named."""
    draw = random.Random(seed)
    count = 6 * particles + 5
    free = draw.sample(range(count), count)
    best = free.pop()
    worst = draw.choice([best, free.pop()])
    shared = [best, worst, free.pop()]
    lines = []
    for _ in range(particles):
        x_in, p = free.pop(), draw.choice([*shared, free.pop()])
        kind = draw.choice(["in place", "moves", "p is x", "restarts", "leaves the best"])
        if kind == "p is x":
            p = x_in
        elif kind == "restarts":
            x_in = p
        elif kind == "leaves the best":
            x_in = best
        x_out = x_in if kind == "in place" else free.pop()
        v_out = free.pop()
        v_in = -1 if kind == "restarts" else draw.choice([v_out, free.pop(), -1])
        lines.append((x_in, x_out, v_in, v_out, p))
    return torch.tensor(lines, dtype=torch.int64).view(-1, 5), best, worst, count


def weights(particles):
    return torch.rand(particles, 4, generator=torch.Generator().manual_seed(5)) + 0.05


def resident(rows, table, best, worst, backend, **noise):
    """The rows after the update where they are."""
    backend, device = select(backend)
    moved = rows.clone().to(device)
    coefficients = weights(len(table)).to(device)
    swarm_update_rows_(moved, table, best, worst, coefficients, 0.3, backend=backend, **noise)
    return moved.cpu()


def streamed(rows, table, best, worst, backend, block_columns, **noise):
    """The rows after the update in blocks, in place: they are given back for short."""
    backend, device = select(backend)
    where = {"device": device, "backend": backend, "block_columns": block_columns}
    stream_update_rows_(rows, table, best, worst, weights(len(table)), 0.3, **where, **noise)
    return rows


def on_host(rows, backend):
    """A copy as it should be: pinned for a GPU."""
    return rows.clone().pin_memory() if select(backend)[1] == "cuda" else rows.clone()


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_same_bits_as_resident(backend, dtype, noise):
    if skip_float64(backend, dtype) or ("rounding" in NOISE[noise] and dtype not in HALF_TYPES):
        return
    for seed, (size, block) in enumerate(
        [(1, 4), (97, 32), (64, 64), (130, 4), (130, 132), (1003, 64), (1003, None), (8, 4), (12, 4)]
    ):
        for particles in (1, 7):
            table, best, worst, count = some_table(particles, seed)
            rows = random_rows(count, size, dtype, seed)
            expected = resident(rows, table, best, worst, backend, **KEY, **NOISE[noise])
            moved = streamed(on_host(rows, backend), table, best, worst, backend, block, **KEY, **NOISE[noise])
            assert_same(moved, expected)
            assert not torch.equal(moved, rows)


@GPU
@NEEDS_GPU
def test_rows_of_page_locked_memory_and_a_file(tmp_path):
    """Every one is copied, also the last in memory and the first of the file."""
    table, best, worst, count = some_table(3, 0)
    values = random_rows(count, 1003, torch.bfloat16, 0)
    rows = empty_rows(count, 1003, torch.bfloat16, tier="pinned", folder=tmp_path, spilled=count // 2)
    rows.copy_(values)
    expected = resident(values, table, best, worst, "cuda", **KEY)
    assert_same(streamed(rows, table, best, worst, "cuda", 64, **KEY), expected)
    with closing(RowCache(rows, 3, "cuda")) as cache:
        for row in range(count):
            view = cache.get(row)
            assert_same(view.cpu(), expected[row])
            cache.release(view)


@settings(max_examples=60, deadline=None)
@given(
    particles=st.integers(0, 6),
    size=st.integers(0, 150),
    block=st.integers(1, 40),
    gap=st.integers(0, 3),
    dtype=st.sampled_from(HALF_TYPES),
    seed=st.integers(0, 10**6),
)
def test_property_same_bits(particles, size, block, gap, dtype, seed):
    table, best, worst, count = some_table(particles, seed)
    rows = random_rows(count, size + gap, dtype, seed)
    expected = rows.clone()
    expected[:, :size] = resident(rows[:, :size], table, best, worst, "cpp", **KEY, **NOISE["both"])
    streamed(rows[:, :size], table, best, worst, "cpp", 4 * block, **KEY, **NOISE["both"])
    assert_same(rows, expected)  # what lies beside the rows as well


def test_many_updates_of_a_swarm_with_restarts_and_bests():
    particles, size = 5, 203
    rows = random_rows(RowTable(particles).count, size, torch.bfloat16, 0)
    expected = rows.clone()
    table, draw = RowTable(particles), random.Random(3)
    lines = set()
    for iteration in range(30):
        numbers = torch.from_numpy(table.update(torch.tensor([draw.random() < 0.2] * particles).numpy()))
        noise = {"iteration": iteration, **NOISE["both"]}
        swarm_update_rows_(expected, numbers, table.g, table.w, weights(particles), 0.3, backend="cpp", **noise)
        streamed(rows, numbers, table.g, table.w, "cpp", 48, **noise)
        assert_same(rows, expected)
        lines |= {(x_in == x_out, v_in == -1, p == x_in) for x_in, x_out, v_in, _, p in numbers.tolist()}
        improved = torch.tensor([draw.random() < 0.3 for _ in range(particles)]).numpy()
        table.promote(improved, draw.choice([None, 2]), draw.choice([None, 4]))
    assert len(lines) >= 4  # in place and not, restarted and not, at the best and away from it


def test_nothing_to_do():
    rows = random_rows(5, 6, torch.float32, 0)
    for size, table in ((6, torch.empty(0, 5, dtype=torch.int64)), (0, torch.tensor([[0, 0, 1, 1, 2]]))):
        assert_same(streamed(rows[:, :size].clone(), table, 3, 4, "cpp", None), rows[:, :size])


def test_only_what_is_read_comes_and_only_what_is_written_goes(monkeypatch):
    """Every number that must move moves once: rows are named by their first number."""
    table = torch.tensor([[0, 1, -1, 2, 0], [3, 3, 4, 5, 6], [7, 8, 9, 9, 6]])
    rows = torch.arange(12.0)[:, None].repeat(1, 64)
    come, go, copy = [], [], streaming._copy

    def noted(pairs):
        for to, source in pairs:
            inside = rows.data_ptr() <= source.data_ptr() < rows.data_ptr() + rows.nbytes
            outer = source if inside else to
            line, column = divmod((outer.data_ptr() - rows.data_ptr()) // 4, 64)
            (come if inside else go).append((line, column, outer.numel()))
        copy(pairs)

    monkeypatch.setattr(streaming, "_copy", noted)
    streamed(rows, table, 6, 10, "cpp", 32)
    assert sorted(come) == [(row, column, 32) for row in (0, 3, 4, 6, 7, 9, 10) for column in (0, 32)]
    assert sorted(go) == [(row, column, 32) for row in (1, 2, 3, 5, 8, 9) for column in (0, 32)]


def test_copies_in_both_directions_while_a_block_is_computed(monkeypatch):
    """Block k is computed here after block k - 1 has gone, and that goes after block k + 1 has come: none in turns."""
    table = torch.tensor([[0, 0, 1, 1, 2]])
    rows = random_rows(4, 64, torch.float32, 0)
    came, went = [[threading.Event() for _ in range(4)] for _ in range(2)]
    copy, update = streaming._copy, streaming.swarm_update_rows_

    def wait_for(events, block):
        assert not 0 <= block < 4 or events[block].wait(timeout=20), "would wait forever"

    def copied(pairs):
        to, source = pairs[0]
        comes = rows.data_ptr() <= source.data_ptr() < rows.data_ptr() + rows.nbytes
        block = ((source if comes else to).data_ptr() - rows.data_ptr()) // 4 % 64 // 16
        if not comes:
            wait_for(came, block + 2)
        copy(pairs)
        (came if comes else went)[block].set()

    def updated(buffer, *arguments, first_column, **options):
        wait_for(went, first_column // 16 - 1)
        update(buffer, *arguments, first_column=first_column, **options)

    expected = resident(rows, table, 2, 3, "cpp")
    monkeypatch.setattr(streaming, "_copy", copied)
    monkeypatch.setattr(streaming, "swarm_update_rows_", updated)
    assert_same(streamed(rows, table, 2, 3, "cpp", 16), expected)


# Of the stream that computes, the one that comes and the one that goes.
ORDERS = [by_priority(priority) for priority in permutations(range(3))] + [at_random(seed) for seed in range(10)]


@pytest.mark.parametrize("order", ORDERS, ids=range(len(ORDERS)))
def test_any_order_that_the_events_of_streams_allow_gives_the_same_bits(order, monkeypatch):
    """The waiting between streams, without a GPU; whether CUDA keeps to it only a GPU can say."""
    streams = Streams(order)
    copy, update, lane = streaming._copy, streaming.swarm_update_rows_, streaming.CopyStream
    streams.stand_in(monkeypatch)
    monkeypatch.setattr(streaming, "CopyStream", lambda device: lane(torch.device("cuda")))
    monkeypatch.setattr(streaming, "_copy", lambda pairs: streams.active.queue.append(("run", lambda: copy(pairs))))

    def queued(*arguments, **options):
        streams.main.queue.append(("run", lambda: update(*arguments, **options)))

    table, best, worst, count = some_table(4, 1)
    rows = random_rows(count, 170, torch.bfloat16, 0)
    expected = resident(rows, table, best, worst, "cpp", **NOISE["both"])
    monkeypatch.setattr(streaming, "swarm_update_rows_", queued)
    assert_same(streamed(rows, table, best, worst, "cpp", 16, **NOISE["both"]), expected)
    assert not any(one.queue for one in streams.all[1:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_a_file(backend, dtype, tmp_path):
    if skip_float64(backend, dtype):
        return
    table, best, worst, count = some_table(4, 8)
    size = 1003
    values = random_rows(count, size, dtype, 0)
    rows = empty_rows(count, size, dtype, tier="file", folder=tmp_path)
    rows.copy_(values)
    streamed(rows, table, best, worst, backend, 256)
    assert_same(rows, resident(values, table, best, worst, backend))


@pytest.mark.parametrize("failing", range(8))
def test_a_failing_copy_ends_everything(failing, monkeypatch):
    """The fourth copy or another one raises: so does the call; the threads are gone, and no block moves any more."""
    table = torch.tensor([[0, 0, 1, 1, 2]])
    rows = random_rows(4, 4 * 16, torch.float32, 0)
    before = set(threading.enumerate())
    calls, lock, copy = [0], threading.Lock(), streaming._copy
    wrong = RuntimeError("the disk is gone")

    def counted(pairs):
        with lock:
            number, calls[0] = calls[0], calls[0] + 1
        if number == failing:
            raise wrong
        copy(pairs)

    monkeypatch.setattr(streaming, "_copy", counted)
    with pytest.raises(RuntimeError, match="the disk is gone") as raised:
        streamed(rows, table, 2, 3, "cpp", 16)
    assert raised.value is wrong
    assert set(threading.enumerate()) == before
    assert calls[0] <= failing + 4  # one that comes and two that go may have been under way
    if failing == 0:
        assert_same(rows, random_rows(4, 64, torch.float32, 0))


def test_a_failing_update_ends_everything():
    rows = random_rows(4, 64, torch.float32, 0)
    before, threads = rows.clone(), set(threading.enumerate())
    with pytest.raises(ValueError, match="no such backend"):
        streamed(rows, torch.tensor([[0, 0, 1, 1, 2]]), 2, 3, "no such backend", 16)
    assert_same(rows, before)
    assert set(threading.enumerate()) == threads


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"block_columns": 6}, ValueError, "block_columns must be a positive multiple of 4, got 6"),
        ({"block_columns": 0}, ValueError, "block_columns must be a positive multiple of 4, got 0"),
        ({"device": "meta"}, ValueError, "streamed to cpu or cuda, got meta"),
        ({"rows": torch.empty(4, 64, device="meta")}, ValueError, "rows must be a dense tensor with memory"),
        ({"rows": torch.zeros(4)}, ValueError, "rows must have two dimensions"),
        ({"rows": [1.0]}, TypeError, "rows must be a torch.Tensor"),
        ({"rows": torch.zeros(1, 64).expand(4, 64)}, ValueError, "rows has rows that overlap each other"),
        ({"table": torch.zeros(1, 5)}, TypeError, "table must be int64"),
        ({"table": torch.tensor([[0, 0, 1, 1, 4]])}, ValueError, "the table names row 4, but there are 4 rows"),
        ({"table": torch.tensor([[0, 0, 1, 0, 2]])}, ValueError, "one particle's x and v"),
        ({"global_best": 4}, ValueError, "the table names row 4"),
        ({"global_worst": 0}, ValueError, "the table writes row 0, which is read as well"),
        ({"coefficients": torch.zeros(2, 4)}, ValueError, "coefficients must have shape"),
        ({"step_length": float("nan")}, ValueError, "step_length must be finite"),
        ({"rounding": "stochastic"}, ValueError, "rounding 'stochastic' is for bfloat16 and float16"),
        ({"first_column": 2}, ValueError, "first_column must be a multiple of 4"),
        ({"backend": "gpu"}, ValueError, "backend must be auto or one of"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_arguments_raise_before_a_row_is_written(wrong, error, message):
    rows = random_rows(4, 64, torch.float32, 0)
    right = {"rows": rows, "table": torch.tensor([[0, 0, 1, 1, 2]]), "global_best": 2, "global_worst": 3}
    right |= {"coefficients": weights(1), "step_length": 0.3, "block_columns": 16}
    with pytest.raises(error, match=message):
        stream_update_rows_(**right | wrong)
    assert_same(rows, random_rows(4, 64, torch.float32, 0))
