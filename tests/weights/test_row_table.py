"""Row numbers: at any time they say what a swarm that copies its rows would hold."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelswarms_fast.ops.validation import check_table
from modelswarms_fast.weights.row_table import RowTable, count_rows

D = 3
C = np.array([0.4, 0.1, 0.2, 0.3])
STEP_LENGTH = 0.7


def moved(x, v, p, g, w):
    """Velocities and positions after a move; the same operations in the same order for rows and for copies."""
    velocity = C[0] * v + C[1] * (p - x) + C[2] * (g - x) + C[3] * (x - w)
    return velocity, x + STEP_LENGTH * velocity


class Copies:
    """A swarm that copies its bests, and its personal best on a restart."""

    def __init__(self, x, v):
        self.x, self.v, self.p = x.copy(), v.copy(), x.copy()
        self.g = self.w = x[0].copy()

    def update(self, restarts):
        self.x[restarts], self.v[restarts] = self.p[restarts], 0
        self.v, self.x = moved(self.x, self.v, self.p, self.g, self.w)

    def promote(self, improved, best, worst):
        self.p[improved] = self.x[improved]
        self.g = self.g if best is None else self.x[best].copy()
        self.w = self.w if worst is None else self.x[worst].copy()


class Rows:
    """Rows [3P + 2, D] that move as a RowTable says. What no line names as read is NaN when an update begins."""

    def __init__(self, x, v):
        self.table = RowTable(len(x))
        self.rows = np.full((self.table.count, D), np.nan)
        self.rows[self.table.x], self.rows[self.table.v] = x, v

    def update(self, restarts):
        table, rows, particles = self.table, self.rows, len(self.table.x)
        g, w, old_x = table.g, table.w, table.x.tolist()
        bests = {*table.p.tolist(), g, w}
        lines = table.update(restarts)
        assert lines.dtype == np.int64
        assert lines.shape == (particles, 5)
        check_table(torch.from_numpy(lines), table.count, g, w)
        assert {*lines[:, 1].tolist(), *bests} <= set(range(2 * particles + 2))
        assert lines[:, 3].tolist() == list(range(2 * particles + 2, 3 * particles + 2))
        assert not bests & set(lines[:, 1].tolist()), "a best is overwritten"
        stays = [out == before for out, before in zip(lines[:, 1].tolist(), old_x, strict=True)]
        assert stays == [before not in bests for before in old_x], "no other row than need be"
        assert (lines[restarts, 2] == -1).all()
        unread = set(range(table.count)) - {*lines[:, [0, 2, 4]].ravel().tolist(), g, w}
        rows[list(unread)] = np.nan
        before = rows.copy()
        for x_in, x_out, v_in, v_out, p in lines:
            v = np.zeros(D) if v_in == -1 else before[v_in]
            rows[v_out], rows[x_out] = moved(before[x_in], v, before[p], before[g], before[w])

    def promote(self, improved, best, worst):
        self.table.promote(improved, best, worst)


def assert_equal(rows, copies):
    for numbers, expected in ((rows.table.x, copies.x), (rows.table.v, copies.v), (rows.table.p, copies.p)):
        np.testing.assert_array_equal(rows.rows[numbers], expected)
    np.testing.assert_array_equal(rows.rows[rows.table.g], copies.g)
    np.testing.assert_array_equal(rows.rows[rows.table.w], copies.w)
    assert not np.isnan(copies.x).any()


def follow(particles, events):
    """Run both through the events, which are arguments of update and promote; the lines that the table gave."""
    x, v = np.random.default_rng(0).normal(size=(2, particles, D))
    rows, copies, twin = Rows(x, v), Copies(x, v), RowTable(particles)
    assert_equal(rows, copies)
    lines = []
    for restarts, improved, best, worst in events:
        lines.append(twin.update(restarts).tolist())
        for swarm in (rows, copies):
            swarm.update(restarts)
            assert rows.table.x.tolist() == [line[1] for line in lines[-1]], "the same history, the same rows"
        assert_equal(rows, copies)
        for swarm in (rows, copies, twin):
            swarm.promote(improved, best, worst)
        assert_equal(rows, copies)
    return lines


def random_events(particles, count, seed):
    draw = random.Random(seed)
    for _ in range(count):
        often = draw.choice((0.0, 0.1, 0.5, 1.0))
        restarts, improved = (np.array([draw.random() < often for _ in range(particles)]) for _ in range(2))
        best, worst = (draw.choice([None, None, draw.randrange(particles)]) for _ in range(2))
        yield restarts, improved, best, worst


@pytest.mark.parametrize("particles", [1, 2, 3, 10, 40])
def test_rows_hold_what_copies_would(particles):
    lines = follow(particles, random_events(particles, 300, particles))
    ways = {(x_in == x_out, v_in == -1, p == x_in) for step in lines for x_in, x_out, v_in, _, p in step}
    # In place from elsewhere than the personal best, or to another row; a restart begins at the personal best.
    assert ways >= {(True, False, False), (False, False, True), (False, True, True)}
    assert not {(True, True, True), (True, False, True)} & ways


MASK = st.lists(st.booleans(), min_size=6, max_size=6)
EVENTS = st.lists(st.tuples(MASK, MASK, st.none() | st.integers(0, 5), st.none() | st.integers(0, 5)), max_size=8)


@settings(max_examples=150, deadline=None)
@given(particles=st.integers(1, 6), events=EVENTS)
def test_property_rows_hold_what_copies_would(particles, events):
    def particle(number):
        return None if number is None else number % particles

    follow(
        particles,
        [
            (np.array(restarts[:particles]), np.array(improved[:particles]), particle(best), particle(worst))
            for restarts, improved, best, worst in events
        ],
    )


def test_all_rows_may_be_needed_at_once():
    """P positions, and as many personal bests, a global best and a global worst that lie elsewhere."""
    table = RowTable(3)
    nobody = np.zeros(3, dtype=bool)
    table.promote(nobody, 0, None)
    table.update(nobody)
    table.promote(~nobody, 1, None)
    table.update(nobody)
    table.promote(~nobody, None, 2)
    table.update(nobody)
    table.promote(~nobody, None, None)
    table.update(nobody)
    assert len({*table.x.tolist(), *table.p.tolist(), table.g, table.w}) == 8
    assert count_rows(3) == table.count == 11


def test_lines_given_out_do_not_change_with_the_table():
    table = RowTable(3)
    lines = table.update(np.zeros(3, dtype=bool))
    before = lines.copy()
    table.promote(np.ones(3, dtype=bool), 0, 1)
    table.update(np.ones(3, dtype=bool))
    np.testing.assert_array_equal(lines, before)
