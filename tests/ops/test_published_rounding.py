"""Rounding as published: each difference, product and sum is a tensor of the rows' dtype, as torch computes it."""

import numpy as np
import pytest
import torch
from helpers_rows import (
    DTYPES,
    HALF_TYPES,
    aligned_rows,
    assert_same,
    guarded,
    random_rows,
    restored_extension,
    select,
    some_lines,
)

from modelswarms_fast.ops import _C, swarm_update_, swarm_update_rows_

__all__ = ["restored_extension"]
pytestmark = pytest.mark.usefixtures("restored_extension")

BACKENDS = ["reference", *(f"cpp:{level}" for level in _C.simd_levels())]
PUBLISHED = {"rounding": "published"}
STEP = 0.7


def op_by_op(x, v, p, g, w, coefficients, step_length):
    """x' and v' [P, D] by torch, one operation a tensor and particle, the factors as numbers of Python."""
    positions, velocities = x.clone(), v.clone()
    for i, row in enumerate(coefficients.tolist()):
        differences = [1 * p[i], 1 * g, -1 * w]
        differences[0] += -1 * x[i]
        differences[1] += -1 * x[i]
        differences[2] += 1 * x[i]
        velocities[i] = row[0] * v[i]
        for factor, difference in zip(row[1:], differences, strict=True):
            velocities[i] += factor * difference
        positions[i] = 1 * x[i]
        positions[i] += step_length * velocities[i]
    return positions, velocities


def rows_of(particles, size, dtype, scale=1.0):
    """x, v, p [P, D], g, w [D] and coefficients."""
    x, v, p, others = (scale * random_rows(particles, size, torch.float64, seed) for seed in range(4))
    shares = torch.rand(particles, 4, generator=torch.Generator().manual_seed(9)) + 0.05
    return [*(row.to(dtype) for row in (x, v, p, others[0], others[-1] / 3)), shares / shares.sum(1, keepdim=True)]


def check(given, backend, **places):
    """One move against torch; `places` are of rows in memory."""
    name, _ = select(backend)
    expected = op_by_op(*given, STEP)
    written = [guarded(row, **places) for row in given[:2]]
    swarm_update_(*(one.rows for one in written), *given[2:], STEP, backend=name, **PUBLISHED)
    for one, right in zip(written, expected, strict=True):
        assert_same(one.rows, right)
        assert one.intact()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [1, 15, 64, 1003])
def test_bits_are_those_of_torch(backend, dtype, size):
    check(rows_of(5, size, dtype), backend, start=size % 3, gap=size % 5)


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [2.0**-9, 2.0**-20, 2.0**-130, 2.0**14])
def test_bits_of_small_and_of_large_numbers(backend, dtype, scale):
    """Denormals of both types, and sums beyond the largest float16."""
    check(rows_of(3, 500, dtype, scale), backend)


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_bits_of_what_is_special(backend, dtype):
    """All pairs of zeros, infinities, NaN and the largest numbers, as x and p, under different v, g and w."""
    largest = torch.finfo(dtype).max
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, largest, -largest, 1.0], dtype=dtype)
    x, p = (one.flatten().expand(2, -1).contiguous() for one in torch.meshgrid(special, special, indexing="ij"))
    *_, coefficients = rows_of(2, 1, dtype)
    check([x, p.flip(1), p, x[0].roll(3), p[0].roll(5), coefficients], backend)


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_numbered_rows_move_as_rows_do(backend, dtype):
    name, _ = select(backend)
    lines = some_lines(12, 4)
    rows = random_rows(lines.count, 333, dtype, 5)
    coefficients = rows_of(12, 1, dtype)[-1]
    x_in, x_out, v_in, v_out, p = lines.table.unbind(1)
    v = rows[v_in.clamp(min=0)] * (v_in >= 0)[:, None]
    expected = op_by_op(rows[x_in], v, rows[p], rows[lines.best], rows[lines.worst], coefficients, STEP)
    swarm_update_rows_(rows, lines.table, lines.best, lines.worst, coefficients, STEP, backend=name, **PUBLISHED)
    assert_same(rows[x_out], expected[0])
    assert_same(rows[v_out], expected[1])


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
def test_bits_of_rows_that_are_stored_past_the_caches(dtype):
    """So many that two threads share them, too."""
    x, v, p, g, w, coefficients = rows_of(8, 400_000, dtype)
    slab = aligned_rows(torch.cat((x, v, p, g[None], w[None])))
    table = torch.tensor([[i, i, -1, 8 + i, 16 + i] for i in range(8)])
    expected = op_by_op(x, torch.zeros_like(v), p, g, w, coefficients, STEP)
    swarm_update_rows_(slab, table, 24, 25, coefficients, STEP, backend="cpp", **PUBLISHED)
    assert_same(slab[:8], expected[0])
    assert_same(slab[8:16], expected[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_only_half_types_tell_it_from_one_rounding(dtype):
    moved = {}
    for rounding in ("published", "nearest"):
        given = rows_of(3, 1000, dtype)
        swarm_update_(*given, STEP, rounding=rounding)
        moved[rounding] = given[:2]
    same = all(torch.equal(one, other) for one, other in zip(*moved.values(), strict=True))
    assert same == (dtype not in HALF_TYPES)


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
def test_it_is_within_twelve_roundings_of_the_equation(dtype):
    x, v, p, g, w, coefficients = rows_of(5, 2000, dtype)
    a, b, c, d = coefficients.double().t()[:, :, None].numpy()
    wide = [row.double().numpy() for row in (x, v, p, g, w)]
    terms = [a * wide[1], b * wide[2], b * wide[0], c * wide[3], c * wide[0], d * wide[0], d * wide[4]]
    velocity = a * wide[1] + b * (wide[2] - wide[0]) + c * (wide[3] - wide[0]) + d * (wide[0] - wide[4])
    sizes = np.abs(wide[0]) + sum(map(np.abs, terms))
    swarm_update_(x, v, p, g, w, coefficients, STEP, **PUBLISHED)
    unit = 2.0**-9 if dtype == torch.bfloat16 else 2.0**-12
    error = np.abs(x.double().numpy() - (wide[0] + float(np.float32(STEP)) * velocity))
    assert (error <= 12 * 2 * unit * sizes).all()


def test_what_nobody_has_published_is_refused():
    given = rows_of(2, 8, torch.float16)
    with pytest.raises(ValueError, match="rounding 'published' is for randomness 'particle'"):
        swarm_update_(*given, STEP, randomness="coordinate", **PUBLISHED)
    for backend in ("triton", "cuda"):
        with pytest.raises(ValueError, match=f"backend '{backend}' has no rounding 'published'; use backend 'ref"):
            swarm_update_(*given, STEP, backend=backend, **PUBLISHED)
