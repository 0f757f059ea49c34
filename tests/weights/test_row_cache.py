"""The cache of rows against a plain dictionary, with threads, failing copies, pins, and no room."""

import random
import threading
from collections import Counter
from contextlib import closing
from functools import partial

import pytest
import torch
from helpers_rows import assert_same, random_rows
from helpers_streams import Streams, at_random, by_priority
from hypothesis import given, settings
from hypothesis import strategies as st

from modelswarms_fast.weights.arena import empty_rows
from modelswarms_fast.weights.row_cache import RowCache
from modelswarms_fast.weights.streaming import CopyStream


@pytest.fixture
def make_cache():
    """A cache that is closed at the end; no thread of its own is left then."""
    before, made = threading.active_count(), []

    def make(rows, capacity):
        made.append(RowCache(rows, capacity))
        return made[-1]

    yield make
    for cache in made:
        cache.close()
    assert threading.active_count() == before


def count_copies(cache, delay=None):
    """Rows that were copied and how often; `delay` holds up those that run ahead, and those alone."""
    copies, copy = Counter(), cache._copy

    def counted(place, row):
        if delay is not None and threading.current_thread() is not threading.main_thread():
            assert delay.wait(30)
        copy(place, row)
        copies[row] += 1

    cache._copy = counted
    return copies


def test_a_row_is_loaded_once_and_the_least_recently_used_makes_room(make_cache):
    rows = random_rows(6, 100, torch.bfloat16, 0)
    cache = make_cache(rows, 3)
    copies = count_copies(cache)
    for row in (0, 1, 2, 0, 3, 0, 2, 1):
        view = cache.get(row)
        assert_same(view, rows[row])
        assert view.data_ptr() != rows[row].data_ptr()
        cache.release(view)
    assert copies == {0: 1, 1: 2, 2: 1, 3: 1}  # 3 took the place of 1, and 1 that of 3


@pytest.mark.parametrize("seed", range(5))
def test_random_use_against_a_dictionary(seed, make_cache, tmp_path):
    """Whatever is fetched ahead, pinned, written and dropped: a row is what it is on the slow tier."""
    draw = random.Random(seed)
    rows = empty_rows(12, 300, torch.float32, tier="file", folder=tmp_path)
    rows.copy_(random_rows(12, 300, torch.float32, seed))
    truth = {row: rows[row].clone() for row in range(12)}
    cache = make_cache(rows, 5)
    held = []
    for step in range(400):
        action = draw.choice(["get", "get", "get", "prefetch", "pin", "write", "release"])
        if action == "get" and len(held) < 2:
            row = draw.randrange(12)
            held.append((row, cache.get(row), truth[row]))
        elif action == "prefetch":
            cache.prefetch([draw.randrange(12) for _ in range(draw.randrange(8))])
        elif action == "pin":
            cache.pin(draw.sample(range(12), draw.randrange(3)))
        elif action == "write":
            row = draw.randrange(12)
            rows[row] = step
            truth[row] = rows[row].clone()
            cache.invalidate([row, draw.randrange(12)])
        elif held:
            cache.release(held.pop(draw.randrange(len(held)))[1])
        for _, view, expected in held:
            assert_same(view, expected)  # what is held keeps its value, though its row was written
    for _, view, _ in held:
        cache.release(view)


class Model:
    """What the cache has to do, in the plainest words: rows in the order of use, and the rows that are held."""

    def __init__(self, capacity):
        self.capacity, self.order, self.pinned, self.held, self.orphans = capacity, [], set(), Counter(), 0

    def make_room(self, spared=()):
        if len(self.order) + self.orphans < self.capacity:
            return True
        for row in self.order:
            if row not in self.pinned and row not in spared and not self.held[row]:
                self.order.remove(row)
                return True
        return False

    def use(self, row, spared=()):
        """Whether the row is there now, the last in the order."""
        if row in self.order:
            self.order.remove(row)
        elif not self.make_room(spared):
            return False
        self.order.append(row)
        return True

    def invalidate(self, row):
        if row in self.order:
            self.order.remove(row)
            self.orphans += self.held.pop(row, 0) > 0


ROWS = st.integers(0, 8)
ACTIONS = st.one_of(
    st.tuples(st.just("get"), ROWS),
    st.tuples(st.just("hold"), ROWS),
    st.tuples(st.just("release"), st.integers(0, 3)),
    st.tuples(st.just("prefetch"), st.lists(ROWS, max_size=5)),
    st.tuples(st.just("pin"), st.sets(ROWS, max_size=3)),
    st.tuples(st.just("invalidate"), ROWS),
)


@settings(max_examples=150, deadline=None)
@given(capacity=st.integers(1, 5), actions=st.lists(ACTIONS, min_size=10, max_size=80))
def test_eviction_against_a_plain_model(capacity, actions):
    """After each step the same rows are there, in the same order of use, and no pinned row has left that was there."""
    rows = random_rows(9, 20, torch.float32, 0)
    cache, model, held = RowCache(rows, capacity), Model(capacity), []  # held: row, view, whether it was invalidated
    with closing(cache):
        for action, what in actions:
            kept = model.pinned.intersection(model.order) - ({what} if action == "invalidate" else set())
            if action in ("get", "hold"):
                if model.use(what):
                    view = cache.get(what)
                    assert_same(view, rows[what])
                    if action == "get":
                        cache.release(view)
                    else:
                        held.append([what, view, False])
                        model.held[what] += 1
                else:
                    with pytest.raises(MemoryError, match=f"^Row {what} of"):
                        cache.get(what)
            elif action == "release" and held:
                row, view, orphaned = held.pop(what % len(held))
                cache.release(view)
                if not orphaned:
                    model.held[row] -= 1
                elif not any(other.data_ptr() == view.data_ptr() for _, other, _ in held):
                    model.orphans -= 1
            elif action == "prefetch":
                cache.prefetch(what)
                for row in what:
                    if not model.use(row, what):
                        break
            elif action == "pin":
                cache.pin(what)
                model.pinned = what
            elif action == "invalidate":
                cache.invalidate([what])
                model.invalidate(what)
                held = [[row, view, orphaned or row == what] for row, view, orphaned in held]
            assert list(cache._entries) == model.order
            assert kept <= set(cache._entries)
            assert cache._arena.free == capacity - len(model.order) - model.orphans


@pytest.mark.parametrize("order", [by_priority((0, 1)), by_priority((1, 0)), *map(at_random, range(10))])
def test_a_row_is_there_when_the_stream_that_asked_gets_to_it(order, monkeypatch, tmp_path):
    """Rows of memory and file, copies on a stream beside the one that computes; whether CUDA does so, a GPU says."""
    streams = Streams(order)
    rows = empty_rows(8, 3000, torch.float32, folder=tmp_path, spilled=3)
    rows.copy_(random_rows(8, 3000, torch.float32, 0))
    truth, wrong = rows.clone(), []
    with monkeypatch.context() as patch:
        streams.stand_in(patch)
        cache = RowCache(rows, 3)
        cache._copies = CopyStream(torch.device("cuda"))
        copy, draw = cache._copy, random.Random(0)
        cache._copy = lambda place, row: streams.active.queue.append(("run", lambda: copy(place, row)))

        def compare(row, view):
            if not torch.equal(view, truth[row]):
                wrong.append(row)

        for _ in range(40):
            cache.prefetch(draw.sample(range(8), 2))
            row = draw.randrange(8)
            view = cache.get(row)
            streams.main.queue.append(("run", partial(compare, row, view)))
            cache.release(view)
        cache.close()
        streams.main.synchronize()
    assert not wrong


def test_threads_share_a_cache(make_cache):
    rows = random_rows(16, 5000, torch.float32, 1)
    cache, wrong = make_cache(rows, 7), []

    def work(seed):
        draw = random.Random(seed)
        for _ in range(200):
            if draw.random() < 0.3:
                cache.prefetch(draw.sample(range(16), 3))
            row = draw.randrange(16)
            view = cache.get(row)
            if not torch.equal(view, rows[row]):
                wrong.append(row)
            cache.release(view)
            if draw.random() < 0.2:
                cache.invalidate([draw.randrange(16)])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert all(count == 1 for count in (cache._arena.count(entry.place) for entry in cache._entries.values()))


def test_rows_that_ran_ahead_are_not_loaded_again(make_cache):
    rows = random_rows(6, 100, torch.float32, 0)
    cache = make_cache(rows, 4)
    go = threading.Event()
    copies = count_copies(cache, go)
    cache.prefetch([3, 1, 5])
    assert not copies  # it returned before they were there
    go.set()
    for row in (3, 1, 5):
        view = cache.get(row)
        assert_same(view, rows[row])
        cache.release(view)
    assert copies == {3: 1, 1: 1, 5: 1}


def test_running_ahead_takes_no_room_from_itself_nor_from_what_is_in_use(make_cache):
    rows = random_rows(8, 10, torch.float32, 0)
    cache = make_cache(rows, 3)
    view = cache.get(0)
    cache.prefetch([1, 2, 3, 4])
    copies = count_copies(cache)
    for row in (1, 2):
        cache.release(cache.get(row))
    assert not copies
    assert_same(view, rows[0])
    cache.release(view)


def test_pinned_rows_stay(make_cache):
    rows = random_rows(20, 10, torch.float32, 0)
    cache = make_cache(rows, 4)
    copies = count_copies(cache)
    cache.pin([7, 8])
    draw = random.Random(0)
    for row in (7, 8):
        cache.release(cache.get(row))
    for _ in range(200):
        cache.prefetch([draw.randrange(20)])
        cache.release(cache.get(draw.randrange(20)))
    assert (copies[7], copies[8]) == (1, 1)
    cache.pin([9])  # instead of the two
    for row in (10, 11, 12, 13, 14):
        cache.release(cache.get(row))
    cache.release(cache.get(7))
    assert copies[7] == 2


def test_no_room_is_one_sentence(make_cache):
    rows = random_rows(6, 10, torch.float32, 0)
    cache = make_cache(rows, 2)
    cache.pin([0])
    cache.release(cache.get(0))
    view = cache.get(1)
    with pytest.raises(MemoryError, match=r"^Row 2 of 40 bytes finds no room: all 2 rows of the fast tier are pinned"):
        cache.get(2)
    cache.prefetch([2])  # nothing happens
    cache.release(view)
    assert_same(cache.get(2), rows[2])


def test_what_is_released_too_often_is_an_error(make_cache):
    cache = make_cache(random_rows(3, 10, torch.float32, 0), 2)
    view = cache.get(1)
    cache.release(view)
    with pytest.raises(ValueError, match="more often than it was given"):
        cache.release(view)
    assert_same(cache.get(1), cache._slow[1])


@pytest.mark.parametrize("ahead", [True, False])
def test_a_failing_copy_is_raised_where_the_row_is_asked_for(ahead, make_cache):
    rows = random_rows(6, 10, torch.float32, 0)
    cache = make_cache(rows, 3)
    copy, broken = cache._copy, {2}

    def fails(place, row):
        if row in broken:
            raise OSError("the disk is gone")
        copy(place, row)

    cache._copy = fails
    if ahead:
        cache.prefetch([1, 2, 3])
    for row in (1, 3):
        cache.release(cache.get(row))
    with pytest.raises(OSError, match="the disk is gone"):
        cache.get(2)
    for row in (0, 4, 5):  # its place is free again, whatever happened in it
        cache.release(cache.get(row))
    broken.clear()
    assert_same(cache.get(2), rows[2])


def test_a_failing_copy_that_nobody_asks_for_does_no_harm(make_cache):
    rows = random_rows(6, 10, torch.float32, 0)
    cache = make_cache(rows, 2)
    copy = cache._copy
    cache._copy = lambda place, row: 1 / 0
    cache.prefetch([0, 1])
    cache._copy = copy
    for row in (2, 3, 4):
        view = cache.get(row)
        assert_same(view, rows[row])
        cache.release(view)


def test_a_copy_that_was_interrupted_gives_its_place_back(make_cache):
    cache = make_cache(random_rows(6, 10, torch.float32, 0), 2)

    def interrupted(place, row):
        raise KeyboardInterrupt

    cache._copy = interrupted
    cache.prefetch([0])
    with pytest.raises(KeyboardInterrupt):
        cache.invalidate([0])
    assert cache._arena.free == 2


def test_closing_ends_the_thread_and_what_had_not_begun(make_cache):
    rows = random_rows(6, 10, torch.float32, 0)
    cache = make_cache(rows, 5)
    go = threading.Event()
    copies = count_copies(cache, go)
    cache.prefetch([0, 1, 2, 3])
    timer = threading.Timer(0.2, go.set)
    timer.start()
    cache.close()
    timer.join()
    assert sum(copies.values()) <= 1
    free = cache._arena.free
    with pytest.raises(RuntimeError, match="shutdown"):
        cache.prefetch([4])
    assert cache._arena.free == free
