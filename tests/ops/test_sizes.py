"""Sizes that wrap around in 64 bits are refused before anything is read or written by them."""

import pytest
import torch

from modelswarms_fast.ops import _C, swarm_update_

BIG = 2**32
MEMORY = torch.zeros(64)
PLACE = MEMORY.data_ptr()


@pytest.mark.parametrize(
    "part",
    [
        (0, BIG, 1, BIG, PLACE, 1, 1.0),
        (0, BIG, BIG, BIG, PLACE, BIG, 1.0),
        (2**63 - 1, 1, 1, 1, PLACE, 1, 1.0),
        (0, 2, 1, 2**63 - 1, PLACE, 1, 1.0),
        (0, BIG, 1, 1, PLACE, BIG, 1.0),
        (0, 2**61, 1, 1, PLACE, 1, 1.0),
    ],
)
def test_a_copy_plan_of_sizes_that_wrap_around_is_refused(part):
    with pytest.raises(ValueError, match=r"more than 2\*\*63 - 1"):
        _C.WeightCopier([part], 0)


def test_the_elements_of_many_parts_are_added_with_the_same_care():
    half = (0, 1, 2**59, 2**59, PLACE, 2**59, 1.0)
    with pytest.raises(ValueError, match=r"more than 2\*\*63 - 1"):
        _C.WeightCopier([half, half], 0)


@pytest.mark.parametrize(
    "part",
    [
        (0, 0, 512, BIG, BIG, BIG, PLACE, PLACE, BIG, 1.0),
        (0, 0, 8, 1, 1, 2**62, PLACE, PLACE, 1, 1.0),
        (0, 2**63 - 1, 8, 1, 1, 1, PLACE, PLACE, 1, 1.0),
        (2**63 - 8, 0, 8, 1, 1, 1, PLACE, PLACE, 1, 1.0),
    ],
)
def test_a_merge_plan_of_sizes_that_wrap_around_is_refused(part):
    with pytest.raises(ValueError, match=r"more than 2\*\*63 - 1"):
        _C.LoraMerger([part], 0)


@pytest.mark.parametrize("plan", [_C.WeightCopier, _C.LoraMerger])
def test_a_plan_of_an_unknown_dtype_is_refused(plan):
    parts = {
        _C.WeightCopier: (0, 1, 1, 1, PLACE, 1, 1.0),
        _C.LoraMerger: (0, 1, 1, 1, 1, 1, PLACE, PLACE, 1, 1.0),
    }
    for dtype in (-1, 4, 99):
        with pytest.raises(ValueError, match="unknown dtype code"):
            plan([parts[plan]], dtype)


@pytest.mark.parametrize(
    "part",
    [
        (PLACE, 1, 8, PLACE, 1, 2**40, 8, 0, 1.0),
        (PLACE, 1, 8, PLACE, 1, 2**20, 2**44, 0, 1.0),
    ],
)
def test_low_rank_parts_of_sizes_that_wrap_around_are_refused(part):
    with pytest.raises(ValueError, match=r"more than 2\*\*63 - 1|above 2\*\*20"):
        _C.LowRank([part], 8, 1, 0)
    with pytest.raises(ValueError, match=r"more than 2\*\*63 - 1"):
        _C.LowRank([], 2**63 - 1, 1, 0)


def test_the_bytes_of_an_update_that_wrap_around_are_refused():
    with pytest.raises(ValueError, match=r"more than 2\*\*63 - 1"):
        _C.mix(PLACE, 1, PLACE, 1, PLACE, BIG, 1, BIG, 0)
    with pytest.raises(ValueError, match=r"more than 2\*\*63 - 1"):
        _C.swiglu(PLACE, PLACE, BIG, BIG, 0)


@pytest.mark.parametrize("which", range(5))
def test_a_negative_view_is_refused_where_it_would_be_read_with_the_wrong_sign(which):
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=generator) for shape in ((2, 8), (2, 8), (2, 8), (8,), (8,))]
    given[which] = torch._neg_view(given[which])
    before = [one.clone() for one in given]
    with pytest.raises(ValueError, match="is a negative view, whose memory has the other sign"):
        swarm_update_(*given, torch.full((2, 4), 0.25), 0.5)
    assert all(map(torch.equal, given, before))
