"""What overlaps and which tables are wrong, against lists of every address and every access."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelswarms_fast.ops.validation import check_overlap, check_table

ROWS = 7


def conflicts(table, best, worst):
    """Whether two accesses meet, one of them a write, but for a particle that reads what it writes itself."""
    accesses = [("read", "g", best), ("read", "w", worst)]
    for particle, (x_in, x_out, v_in, v_out, p) in enumerate(table):
        accesses += [("read", ("x", particle), x_in), ("write", ("x", particle), x_out), ("read", "p", p)]
        accesses += [("read", ("v", particle), v_in)] * (v_in != -1) + [("write", ("v", particle), v_out)]
    for number, (how, who, row) in enumerate(accesses):
        for other_how, other, other_row in accesses[number + 1 :]:
            if row == other_row and "write" in (how, other_how) and (who != other or how == other_how):
                return True
    return False


NUMBER = st.integers(0, ROWS - 1)


@settings(max_examples=400, deadline=None)
@given(
    table=st.lists(st.tuples(NUMBER, NUMBER, NUMBER | st.just(-1), NUMBER, NUMBER), min_size=1, max_size=2),
    best=NUMBER,
    worst=NUMBER,
)
def test_property_a_table_is_refused_if_accesses_meet(table, best, worst):
    if conflicts(table, best, worst):
        with pytest.raises(ValueError, match="the table"):
            check_table(torch.tensor(table), ROWS, best, worst)
    else:
        check_table(torch.tensor(table), ROWS, best, worst)


FINE = [[0, 0, 4, 4, 2], [1, 5, -1, 6, 1]]  # g and w are row 3


def test_the_table_that_the_next_test_spoils_is_fine():
    check_table(torch.tensor(FINE), ROWS, 3, 3)


@pytest.mark.parametrize(
    ("particle", "column", "row", "words"),
    [
        (0, 0, 7, "names row 7, but there are 7 rows"),
        (0, 0, -1, "names row -1, but"),
        (0, 1, 7, "names row 7, but"),
        (1, 2, 7, "names row 7, but"),
        (1, 2, -2, "names row -2, but"),
        (1, 3, -1, "names row -1, but"),
        (1, 4, 7, "names row 7, but"),
        (1, 1, 0, "has two particles write one row, or one particle's x and v"),
        (1, 1, 6, "has two particles write one row, or one particle's x and v"),
        (1, 3, 4, "has two particles write one row, or one particle's x and v"),
        (0, 1, 3, "writes row 3, which is read as well"),  # the global best and worst
        (0, 1, 2, "writes row 2, which is read as well"),  # its own personal best
        (0, 1, 1, "writes row 1, which is read as well"),  # another's position and personal best
        (1, 0, 0, "writes row 0, which is read as well"),  # another's position in place
        (1, 2, 4, "writes row 4, which is read as well"),  # another's velocity in place
        (0, 4, 0, "writes row 0, which is read as well"),  # its own position in place
        (0, 2, 0, "writes row 0, which is read as well"),  # its own position, as its velocity
        (1, 4, 6, "writes row 6, which is read as well"),
    ],
)
def test_wrong_tables_say_what_is_wrong(particle, column, row, words):
    table = torch.tensor(FINE)
    table[particle, column] = row
    with pytest.raises(ValueError, match=re.escape(f"the table {words}")):
        check_table(table, ROWS, 3, 3)


@pytest.mark.parametrize(
    ("best", "worst", "words"),
    [
        (7, 3, "names row 7"),
        (3, -1, "names row -1"),
        (4, 3, "writes row 4, which is read"),
        (3, 6, "writes row 6, which is read"),
    ],
)
def test_wrong_bests_say_what_is_wrong(best, worst, words):
    with pytest.raises(ValueError, match=f"the table {words}"):
        check_table(torch.tensor(FINE), ROWS, best, worst)


@st.composite
def views(draw):
    """A view of up to three dimensions into 80 numbers, contiguous in the last, that may overlap itself."""
    shape = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    strides = [*(draw(st.integers(0, 12)) for _ in shape[1:]), 1]
    return shape, strides, draw(st.integers(0, 20))


def numbers_of(view):
    """The place of every number in memory."""
    shape, strides, start = view
    return torch.arange(80).as_strided(shape, strides, start).flatten().tolist()


@settings(max_examples=400, deadline=None)
@given(written=views(), other=views(), read=views())
def test_property_an_overlap_is_refused_if_a_written_number_is_named_twice(written, other, read):
    memory = torch.zeros(80)
    named = [numbers_of(view) for view in (written, other, read)]
    twice = len({*named[0], *named[1]}) < len(named[0]) + len(named[1]) or {*named[0], *named[1]} & {*named[2]}
    tensors = [memory.as_strided(*view) for view in (written, other, read)]
    arguments = {"a": tensors[0], "b": tensors[1]}, {"c": tensors[2]}
    if twice:
        with pytest.raises(ValueError, match=r"must not share memory with|has rows that overlap each other"):
            check_overlap(*arguments)
    else:
        check_overlap(*arguments)
