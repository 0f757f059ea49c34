"""The swarm update: every backend against the reference, and the reference against float64 in numpy."""

import functools
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers_rows import (
    DTYPES,
    FAST_BACKENDS,
    HALF_TYPES,
    KEYS,
    SIZES,
    STREAM_BYTES,
    Guarded,
    Lines,
    aligned_rows,
    assert_close,
    assert_same,
    available,
    guarded,
    noises,
    random_rows,
    restored_extension,
    select,
    skip_float64,
    some_lines,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modelswarms_fast import ops
from modelswarms_fast.ops import _C, extension, swarm_update_, swarm_update_rows_
from modelswarms_fast.ops.reference import FOR_COEFFICIENTS, _draw, swarm_update_ref, swarm_update_rows_ref, uniform

__all__ = ["restored_extension"]
pytestmark = pytest.mark.usefixtures("restored_extension")

STEP_LENGTH = 0.7


def coefficients_for(particles: int, device: str = "cpu") -> Tensor:
    """Normalised as the swarm does it: positive shares of one."""
    shares = torch.rand(particles, 4, generator=torch.Generator().manual_seed(99)) + 0.05
    return (shares / shares.sum(1, keepdim=True)).to(device)


def swarm(particles: int, size: int, dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor]:
    names = ("position", "velocity", "personal_best")
    rows = {name: random_rows(particles, size, dtype, seed, device) for seed, name in enumerate(names)}
    rows["global_best"] = random_rows(1, size, dtype, 10, device)[0]
    rows["global_worst"] = random_rows(1, size, dtype, 11, device)[0]
    return rows | {"coefficients": coefficients_for(particles, device)}


def guard(rows: dict[str, Tensor], start: int, gap: int) -> dict[str, Guarded]:
    return {
        name: guarded(row if row.dim() == 2 else row[None], start, gap)
        for name, row in rows.items()
        if name != "coefficients"
    }


def unwrap(rows: dict[str, Guarded], coefficients: Tensor) -> dict[str, Tensor]:
    views = {name: row.rows[0] if name.startswith("global") else row.rows for name, row in rows.items()}
    return views | {"coefficients": coefficients}


def updated(
    rows: dict[str, Tensor], backend: str, step_length: float = STEP_LENGTH, **noise: Any
) -> tuple[Tensor, Tensor]:
    """Position and velocity after an update of a copy."""
    rows = {name: row.clone() for name, row in rows.items()}
    swarm_update_(**rows, step_length=step_length, backend=backend, **noise)
    return rows["position"], rows["velocity"]


def check_against_reference(
    rows: dict[str, Tensor], backend: str, step_length: float = STEP_LENGTH, **noise: Any
) -> None:
    position, velocity = updated(rows, backend, step_length, **noise)
    expected_position, expected_velocity = updated(rows, "reference", step_length, **noise)
    assert_same(velocity, expected_velocity)
    assert_same(position, expected_position)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("particles", "size"), [(1, 1), (10, 1000)])
def test_reference_is_the_equation(dtype: torch.dtype, particles: int, size: int) -> None:
    rows = swarm(particles, size, dtype)
    x, v, p, g, w, c = (row.double().numpy() for row in rows.values())
    new_v = c[:, :1] * v + c[:, 1:2] * (p - x) + c[:, 2:3] * (g - x) + c[:, 3:] * (x - w)
    new_x = x + (STEP_LENGTH if dtype == torch.float64 else np.float64(np.float32(STEP_LENGTH))) * new_v
    position, velocity = updated(rows, "reference")
    scale = max(float(np.abs(array).max()) for array in (x, v, p, g, w))
    assert_close(velocity, new_v, scale)
    assert_close(position, new_x, scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("key", KEYS)
def test_reference_with_coordinates_is_the_equation(dtype: torch.dtype, key: dict[str, int]) -> None:
    """c = r * coefficients / sum(r * coefficients), r of the coordinate; coefficients of any scale, one of them 0."""
    particles, size = 5, 1000
    rows = swarm(particles, size, dtype)
    rows["coefficients"] = torch.tensor([[0.4, 0.3, 0.3, 0.3], [40, 3, 0, 3], [1, 2, 3, 4], [9, 0, 0, 0], [0, 1, 1, 0]])
    columns = torch.arange(size) + key["first_column"]
    r = uniform(_draw(columns, particles, key["seed"], key["iteration"], FOR_COEFFICIENTS)).double().numpy()
    x, v, p, g, w, weights = (row.double().numpy() for row in rows.values())
    c = r * weights.T[:, :, None]
    c /= c.sum(0)
    new_v = c[0] * v + c[1] * (p - x) + c[2] * (g - x) + c[3] * (x - w)
    new_x = x + (STEP_LENGTH if dtype == torch.float64 else np.float64(np.float32(STEP_LENGTH))) * new_v
    position, velocity = updated(rows, "reference", randomness="coordinate", **key)
    scale = max(float(np.abs(array).max()) for array in (x, v, p, g, w))
    assert_close(velocity, new_v, scale)
    assert_close(position, new_x, scale)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("particles", [1, 10])
@pytest.mark.parametrize("size", SIZES)
def test_equals_reference(backend: str, dtype: torch.dtype, particles: int, size: int) -> None:
    if not skip_float64(backend, dtype):
        backend, device = select(backend)
        check_against_reference(swarm(particles, size, dtype, device), backend)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("start", "gap"), [(1, 0), (0, 5), (3, 1), (16, 64)])
def test_any_start_and_stride_and_nothing_else_written(backend: str, dtype: torch.dtype, start: int, gap: int) -> None:
    if skip_float64(backend, dtype):
        return
    backend, device = select(backend)
    for size in (1, 65, 4099):
        rows = swarm(3, size, dtype, device)
        expected_position, expected_velocity = updated(rows, "reference")
        blocks = guard(rows, start, gap)
        views = unwrap(blocks, rows["coefficients"])
        swarm_update_(**views, step_length=STEP_LENGTH, backend=backend)
        assert_same(views["position"], expected_position)
        assert_same(views["velocity"], expected_velocity)
        for name, block in blocks.items():
            assert block.intact(), name
            if name not in ("position", "velocity"):
                assert_same(views[name], rows[name])


@pytest.mark.parametrize("backend", ["reference", *FAST_BACKENDS])
@pytest.mark.parametrize(("particles", "size"), [(0, 0), (0, 5), (3, 0)])
def test_nothing_to_do(backend: str, particles: int, size: int) -> None:
    backend, device = select(backend)
    swarm_update_(**swarm(particles, size, torch.float32, device), step_length=1.0, backend=backend)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_infinity_and_overflow(backend: str, dtype: torch.dtype) -> None:
    if skip_float64(backend, dtype):
        return
    backend, device = select(backend)
    rows = swarm(2, 100, dtype, device)
    largest = torch.finfo(dtype).max
    for column, name in enumerate(list(rows)[:5]):
        for block, value in enumerate((float("nan"), float("inf"), -float("inf"), largest, -largest)):
            rows[name][..., 10 * block + column] = value
    rows["position"][:, 60:70], rows["velocity"][:, 60:70] = largest, largest
    for noise in noises(dtype):
        check_against_reference(rows, backend, **noise)
        check_against_reference(rows, backend, step_length=2.0, **noise, seed=3)
    position, velocity = updated(rows, backend)
    assert velocity[:, :5].isnan().all()
    assert position[:, :5].isnan().all()
    assert velocity[:, 10].isnan().all()  # an infinite x is attracted and repelled at once
    assert velocity[:, 11:15].isinf().all()
    assert not velocity[:, 70:].isnan().any()


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_denormals_are_kept(backend: str, dtype: torch.dtype) -> None:
    if skip_float64(backend, dtype):
        return
    backend, device = select(backend)
    smallest = torch.finfo(dtype).smallest_normal
    rows = swarm(2, 1000, dtype, device)
    for name in list(rows)[:5]:
        rows[name] = (rows[name].double() * smallest / 8).to(dtype)
    for noise in noises(dtype):
        check_against_reference(rows, backend, **noise, seed=3)
    position, _ = updated(rows, backend)
    small = (position != 0) & (position.abs().double() < smallest)
    assert small.float().mean() > 0.5


@pytest.mark.parametrize("backend", ["reference", *FAST_BACKENDS])
@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
@pytest.mark.parametrize("randomness", ["particle", "coordinate"])
def test_a_nan_of_all_ones_stays_nan(backend: str, dtype: torch.dtype, randomness: str) -> None:
    """Adding noise to its bits would make a zero of it."""
    backend, device = select(backend)
    rows = swarm(2, 1000, dtype, device)
    rows["coefficients"][0] = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    for result in updated(rows, backend, rounding="stochastic", randomness=randomness):
        assert result[0].isnan().all()
        assert not result[1].isnan().any()


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
def test_results_that_noise_may_lift_to_the_smallest_number_or_not(backend: str, dtype: torch.dtype) -> None:
    """From denormals down to what is 0 in float16 whatever the noise; x is 0, so x' is as small as v'."""
    backend, device = select(backend)
    rows = swarm(3, 4001, dtype, device)
    smallest = 2.0**-24 if dtype == torch.float16 else 2.0**-133
    for name in ("velocity", "personal_best", "global_best", "global_worst"):
        rows[name] = (rows[name].double() * 8 * smallest).to(dtype)
    rows["position"] = torch.zeros_like(rows["position"])
    for power in (0, 4, 8, 10, 11, 12, 13, 20, 100):
        smaller = rows | {"coefficients": rows["coefficients"] * 2.0**-power}
        check_against_reference(smaller, backend, rounding="stochastic", seed=power)
    velocity = updated(rows | {"coefficients": rows["coefficients"] / 16}, backend, rounding="stochastic")[1]
    assert 0.05 < (velocity != 0).float().mean() < 0.95


@pytest.mark.parametrize("particles", range(1, 10))
@pytest.mark.parametrize("gap", [0, 32], ids=["pages-apart", "lines-apart"])
def test_particles_side_by_side_or_one_by_one(particles: int, gap: int) -> None:
    """More columns than a block of csrc/columns.h has, groups of every size, and rows that must not be grouped."""
    size = 2048 * 130
    generator = torch.Generator().manual_seed(particles)
    slab = torch.randn(3 * particles + 2, size + gap, generator=generator).bfloat16()[:, :size]
    expected = slab.clone()
    coefficients = torch.rand(particles, 4, generator=generator)
    for rows, update in ((slab, swarm_update_), (expected, swarm_update_ref)):
        swarms = rows[: 3 * particles].unflatten(0, (3, particles)).unbind()
        update(*swarms, rows[-2], rows[-1], coefficients, 0.5)
    assert torch.equal(slab, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_change_no_bit(dtype: torch.dtype) -> None:
    rows = swarm(10, 30_003, dtype)
    for noise in noises(dtype):
        results = []
        for threads in (1, 2, 3):
            _C.set_num_threads(threads)
            results.append(updated(rows, "cpp", **noise, seed=3))
        for position, velocity in results[1:]:
            assert_same(position, results[0][0])
            assert_same(velocity, results[0][1])


def test_position_moves_by_the_unrounded_velocity() -> None:
    """x' = x + step_length v' with v' as it was before rounding: here rounding first gives another x'."""
    rows = {name: torch.zeros(1, 1, dtype=torch.bfloat16) for name in ("position", "velocity", "personal_best")}
    rows |= {name: torch.zeros(1, dtype=torch.bfloat16) for name in ("global_best", "global_worst")}
    rows["velocity"][:] = 1.0
    rows["coefficients"] = torch.tensor([[1 + 2.0**-9, 0.0, 0.0, 0.0]])
    for backend in ("reference", "cpp"):
        position, velocity = updated(rows, backend, step_length=1 + 2.0**-8 - 2.0**-9)
        assert velocity.item() == 1.0
        assert position.item() == 1 + 2.0**-7


def test_float64_uses_the_float32_coefficients_exactly() -> None:
    rows = swarm(1, 1, torch.float64)
    rows["velocity"][:] = 1.0
    rows["coefficients"] = torch.tensor([[0.1, 0.0, 0.0, 0.0]])
    for backend in ("reference", "cpp"):
        assert updated(rows, backend)[1].item() == float(np.float32(0.1))


@settings(max_examples=40, deadline=None)
@given(
    particles=st.integers(0, 5),
    size=st.integers(0, 150),
    dtype=st.sampled_from(DTYPES),
    level=st.sampled_from(_C.simd_levels()),
    start=st.integers(0, 3),
    gap=st.integers(0, 3),
    step_length=st.floats(-2, 2),
)
def test_property_equals_reference(
    particles: int, size: int, dtype: torch.dtype, level: str, start: int, gap: int, step_length: float
) -> None:
    _C.set_simd_level(level)
    rows = swarm(particles, size, dtype)
    blocks = guard(rows, start, gap)
    check_against_reference(unwrap(blocks, rows["coefficients"]), "cpp", step_length)


def moved(rows: Tensor, lines: Lines, backend: str, step_length: float = STEP_LENGTH, **noise: Any) -> Tensor:
    """All rows after an update of a copy that begins where they do."""
    own = rows.clone(memory_format=torch.preserve_format) if rows.is_contiguous() else aligned_rows(rows)
    coefficients = coefficients_for(len(lines.table), str(rows.device))
    arguments = (lines.table, lines.best, lines.worst, coefficients, step_length)
    swarm_update_rows_(own, *arguments, backend=backend, **noise)
    return own


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reference_on_rows_is_the_equation(dtype: torch.dtype) -> None:
    lines = some_lines(24, 0)
    rows = random_rows(lines.count, 50, dtype, 0)
    exact = rows.double().numpy()
    coefficients = coefficients_for(24).double().numpy()
    g, w, scale = exact[lines.best], exact[lines.worst], float(np.abs(exact).max())
    after = moved(rows, lines, "reference")
    for c, (x_in, x_out, v_in, v_out, p_row) in zip(coefficients, lines.table.tolist(), strict=True):
        x, p, v = exact[x_in], exact[p_row], exact[v_in] if v_in >= 0 else 0.0
        new_v = c[0] * v + c[1] * (p - x) + c[2] * (g - x) + c[3] * (x - w)
        assert_close(after[v_out], new_v, scale)
        assert_close(
            after[x_out], x + (STEP_LENGTH if dtype == torch.float64 else np.float32(STEP_LENGTH)) * new_v, scale
        )
    others = [row for row in range(lines.count) if row not in lines.written()]
    assert_same(after[others], rows[others])


@pytest.mark.parametrize("backend", ["reference", *FAST_BACKENDS])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_in_place_are_the_plain_update(backend: str, dtype: torch.dtype) -> None:
    if skip_float64(backend, dtype):
        return
    backend, device = select(backend)
    rows = swarm(4, 130, dtype, device)
    slab = torch.cat([row if row.dim() == 2 else row[None] for row in list(rows.values())[:5]])
    number = torch.arange(4)
    table = torch.stack((number, number, number + 4, number + 4, number + 8), dim=1)
    for noise in noises(dtype):
        after = moved(slab, Lines(table, 12, 13, 14), backend, **noise, **KEYS[1])
        position, velocity = updated(rows, backend, **noise, **KEYS[1])
        assert_same(after[:4], position)
        assert_same(after[4:8], velocity)
        assert_same(after[8:], slab[8:])


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("particles", [1, 2, 13])
@pytest.mark.parametrize("size", [*SIZES[:-2], 4101])
def test_rows_equal_reference(backend: str, dtype: torch.dtype, particles: int, size: int) -> None:
    if skip_float64(backend, dtype):
        return
    backend, device = select(backend)
    for seed, noise in enumerate(noises(dtype)):
        lines = some_lines(particles, seed)
        rows = random_rows(lines.count, size, dtype, seed, device)
        key = KEYS[(seed + size) % len(KEYS)]
        expected = moved(rows, lines, "reference", **noise, **key)
        assert_same(moved(rows, lines, backend, **noise, **key), expected)
        assert not torch.equal(expected, rows)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("key", KEYS)
def test_rows_equal_reference_whatever_the_key(backend: str, dtype: torch.dtype, key: dict[str, int]) -> None:
    """Over all columns of a block and its end, so that every lane draws; other keys give other bits."""
    if skip_float64(backend, dtype):
        return
    backend, device = select(backend)
    lines = some_lines(3, 5)
    rows = random_rows(lines.count, 203, dtype, 5, device)
    for noise in noises(dtype):
        if noise == {"rounding": "nearest", "randomness": "particle"}:
            continue
        after = moved(rows, lines, backend, **noise, **key)
        assert_same(after, moved(rows, lines, "reference", **noise, **key))
        for name, change in (
            ("seed", 1),
            ("iteration", 1),
            ("first_column", 4),
            ("seed", 2**32),
            ("first_column", 2**34),
        ):
            other = {**key, name: abs(key[name] - change)}
            assert not torch.equal(after, moved(rows, lines, backend, **noise, **other)), name


@pytest.mark.parametrize("backend", ["reference", *FAST_BACKENDS])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_that_no_line_reads_may_hold_anything(backend: str, dtype: torch.dtype) -> None:
    """NaN in the velocity of a restart and in every row that is only written, or not named."""
    if skip_float64(backend, dtype):
        return
    backend, device = select(backend)
    lines = some_lines(13, 3)
    assert (lines.table[:, 2] == -1).any()
    rows = random_rows(lines.count, 97, dtype, 0, device)
    expected = moved(rows, lines, "reference")
    assert not expected.isnan().any()
    unread = [row for row in range(lines.count) if row not in lines.read()]
    rows[unread] = float("nan")
    after = moved(rows, lines, backend)
    written = sorted(lines.written())
    assert_same(after[written], expected[written])


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_with_nan_infinity_and_denormals(backend: str, dtype: torch.dtype) -> None:
    if skip_float64(backend, dtype):
        return
    backend, device = select(backend)
    lines = some_lines(13, 4)
    rows = random_rows(lines.count, 203, dtype, 0, device)
    info = torch.finfo(dtype)
    odd = [0.0, -0.0, float("nan"), float("inf"), -float("inf"), info.max, -info.max, info.smallest_normal]
    odd = torch.tensor([*odd, info.smallest_normal / 4, -info.smallest_normal / 2], dtype=dtype, device=device)
    pick = torch.randint(4 * len(odd), rows.shape, generator=torch.Generator().manual_seed(1)).to(device)
    rows = torch.where(pick < len(odd), odd[pick % len(odd)], rows)
    # A few rows with denormals alone: theirs are the sums that stay small.
    rows[: lines.count // 3] = (rows[: lines.count // 3].double() * info.smallest_normal / 8).to(dtype)
    for noise in noises(dtype):
        for step_length in (STEP_LENGTH, -2.0):
            expected = moved(rows, lines, "reference", step_length, **noise, **KEYS[1])
            assert_same(moved(rows, lines, backend, step_length, **noise, **KEYS[1]), expected)


# Population that store past the caches x, v, both or neither, and one more that reads another's personal best.
PAST = Lines(torch.tensor([[0, 9, 10, 10, 1], [2, 11, -1, 12, 2], [3, 3, -1, 13, 4], [5, 5, 14, 14, 6]]), 7, 8, 15)


@pytest.mark.parametrize("backend", [name for name in FAST_BACKENDS if isinstance(name, str)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_rows_that_are_stored_past_the_caches(backend: str, dtype: torch.dtype, threads: int) -> None:
    """Rows at multiples of 64 bytes, against the same rows elsewhere, and all over against parts by the reference."""
    backend, _ = select(backend)
    _C.set_num_threads(threads)
    size = STREAM_BYTES // (3 * len(PAST.table) * dtype.itemsize) + 77
    assert 3 * len(PAST.table) * size * dtype.itemsize > STREAM_BYTES
    rows = big_rows(PAST.count, size, dtype)
    assert rows.data_ptr() % 64 == rows.stride(0) * dtype.itemsize % 64 == 0
    for noise in (noises(dtype)[0], noises(dtype)[-1]):
        after = moved(rows, PAST, backend, **noise, **KEYS[1])
        assert after.data_ptr() % 64 == after.stride(0) * dtype.itemsize % 64 == 0
        for start in (0, 4092, size // 8 * 4 - 2048, size // 4 * 4 - 1000):
            window = rows[:, start : start + 4600].contiguous()
            key = {**KEYS[1], "first_column": KEYS[1]["first_column"] + start}
            assert_same(after[:, start : start + 4600], moved(window, PAST, "reference", **noise, **key))
        arguments = (PAST.table, PAST.best, PAST.worst, coefficients_for(len(PAST.table)), STEP_LENGTH)
        for elsewhere in (aligned_rows(rows, start=1), aligned_rows(rows, gap=1)):
            swarm_update_rows_(elsewhere, *arguments, backend=backend, **noise, **KEYS[1])
            assert torch.equal(after, elsewhere)


@functools.cache
def big_rows(count: int, size: int, dtype: torch.dtype) -> Tensor:
    """One of them is kept for all tests that use it."""
    few = random_rows(count, 10_007, torch.float32, 0)
    return aligned_rows(few.repeat(1, -(-size // few.shape[1]))[:, :size].to(dtype))


@settings(max_examples=80, deadline=None)
@given(
    particles=st.integers(0, 6),
    size=st.integers(0, 150),
    dtype=st.sampled_from(DTYPES),
    level=st.sampled_from(_C.simd_levels()),
    start=st.integers(0, 3),
    gap=st.integers(0, 3),
    step_length=st.floats(-2, 2),
    lines_seed=st.integers(0, 1000),
    noise=st.integers(0, 3),
    seed=st.integers(0, 2**63 - 1),
    iteration=st.integers(0, 2**31 - 1),
    column=st.integers(0, 2**60 - 1000),
    cut=st.integers(0, 40),
)
def test_property_rows_equal_reference_whole_and_in_parts(
    particles: int,
    size: int,
    dtype: torch.dtype,
    level: str,
    start: int,
    gap: int,
    step_length: float,
    lines_seed: int,
    noise: int,
    seed: int,
    iteration: int,
    column: int,
    cut: int,
) -> None:
    _C.set_simd_level(level)
    lines = some_lines(particles, lines_seed)
    rows = random_rows(lines.count, size, dtype, lines_seed)
    options = noises(dtype)[noise % len(noises(dtype))] | {"seed": seed, "iteration": iteration}
    expected = moved(rows, lines, "reference", step_length, **options, first_column=4 * column)
    whole, parts = guarded(rows, start, gap), guarded(rows, start, gap)
    arguments = (lines.table, lines.best, lines.worst, coefficients_for(particles), step_length)
    swarm_update_rows_(whole.rows, *arguments, **options, first_column=4 * column, backend="cpp")
    for columns in (slice(0, 4 * cut), slice(4 * cut, size)):
        first = 4 * column + columns.start
        swarm_update_rows_(parts.rows[:, columns], *arguments, **options, first_column=first, backend="cpp")
    for block in (whole, parts):
        assert_same(block.rows, expected)
        assert block.intact()


@pytest.mark.parametrize("backend", ["reference", *FAST_BACKENDS])
@pytest.mark.parametrize(("particles", "size"), [(0, 0), (0, 5), (3, 0)])
def test_no_rows_to_move(backend: str, particles: int, size: int) -> None:
    backend, device = select(backend)
    lines = some_lines(particles, 0)
    rows = random_rows(lines.count, size, torch.float32, 0, device)
    assert torch.equal(moved(rows, lines, backend), rows)


def test_the_table_may_have_any_strides() -> None:
    lines = some_lines(5, 0)
    rows = random_rows(lines.count, 30, torch.float32, 0)
    strided = Lines(lines.table.t().contiguous().t(), lines.best, lines.worst, lines.count)
    assert not strided.table.is_contiguous()
    for backend in ("reference", "cpp"):
        assert_same(moved(rows, strided, backend), moved(rows, lines, "reference"))


def test_gil_is_released() -> None:
    """Another thread runs while the update does: it never would if the call held the interpreter's lock."""
    rows = swarm(10, 300_000, torch.float32)
    turns, stop = [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            turns[0] += 1
            time.sleep(0.001)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)
    other = threading.Thread(target=count)
    other.start()
    try:
        before = turns[0]
        for _ in range(300):  # a busy machine may let the other thread wait
            swarm_update_(**rows, step_length=0.1, backend="cpp")
            if turns[0] > before:
                break
        assert turns[0] > before
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        other.join()


def test_rows_of_one_slab_may_lie_between_each_other() -> None:
    slab = random_rows(4, 300, torch.float32, 0)
    rows = swarm(4, 100, torch.float32)
    rows |= {"position": slab[:, :100], "velocity": slab[:, 100:200], "personal_best": slab[:, 200:]}
    expected = updated(rows, "reference")
    swarm_update_(**rows, step_length=STEP_LENGTH)
    assert_same(slab[:, :100].contiguous(), expected[0])
    assert_same(slab[:, 100:200].contiguous(), expected[1])


def test_read_rows_may_share_memory() -> None:
    rows = swarm(3, 50, torch.float32)
    rows["global_best"] = rows["personal_best"][1]
    rows["global_worst"] = rows["personal_best"][1]
    check_against_reference(rows, "cpp")


class WrongRows:
    """One wrong argument each: the name of the test says which."""

    def position_is_a_list(rows: dict[str, Any]) -> None:
        rows["position"] = [[0.0]]

    def position_has_one_dimension(rows: dict[str, Any]) -> None:
        rows["position"] = rows["position"][0]

    def velocity_has_another_shape(rows: dict[str, Any]) -> None:
        rows["velocity"] = rows["velocity"][:2]

    def personal_best_is_too_short(rows: dict[str, Any]) -> None:
        rows["personal_best"] = rows["personal_best"][:, :-1]

    def global_best_is_a_matrix(rows: dict[str, Any]) -> None:
        rows["global_best"] = rows["global_best"][None]

    def global_worst_is_too_short(rows: dict[str, Any]) -> None:
        rows["global_worst"] = rows["global_worst"][:-1]

    def coefficients_has_three_columns(rows: dict[str, Any]) -> None:
        rows["coefficients"] = rows["coefficients"][:, :3]

    def coefficients_is_float64(rows: dict[str, Any]) -> None:
        rows["coefficients"] = rows["coefficients"].double()

    def velocity_is_bfloat16(rows: dict[str, Any]) -> None:
        rows["velocity"] = rows["velocity"].bfloat16()

    def position_is_int32(rows: dict[str, Any]) -> None:
        rows["position"] = rows["position"].int()

    def global_best_is_on_meta(rows: dict[str, Any]) -> None:
        rows["global_best"] = rows["global_best"].to("meta")

    def velocity_is_transposed(rows: dict[str, Any]) -> None:
        rows["velocity"] = rows["velocity"].t().contiguous().t()

    def global_worst_is_strided(rows: dict[str, Any]) -> None:
        rows["global_worst"] = torch.zeros(200)[::2]

    def personal_best_requires_grad(rows: dict[str, Any]) -> None:
        rows["personal_best"].requires_grad_()

    def step_length_is_nan(rows: dict[str, Any]) -> None:
        rows["step_length"] = float("nan")

    def step_length_is_infinite(rows: dict[str, Any]) -> None:
        rows["step_length"] = float("inf")

    def step_length_is_a_word(rows: dict[str, Any]) -> None:
        rows["step_length"] = "long"

    def position_rows_overlap(rows: dict[str, Any]) -> None:
        rows["position"] = torch.zeros(103).as_strided((3, 100), (1, 1))

    def velocity_is_expanded(rows: dict[str, Any]) -> None:
        rows["velocity"] = torch.zeros(100).expand(3, 100)

    def position_is_the_velocity(rows: dict[str, Any]) -> None:
        rows["position"] = rows["velocity"]

    def position_is_the_personal_best(rows: dict[str, Any]) -> None:
        rows["personal_best"] = rows["position"]

    def velocity_meets_the_personal_best(rows: dict[str, Any]) -> None:
        slab = torch.zeros(3, 199)
        rows["velocity"], rows["personal_best"] = slab[:, :100], slab[:, 99:]

    def position_holds_the_global_best(rows: dict[str, Any]) -> None:
        rows["global_best"] = rows["position"][1]

    def velocity_holds_the_coefficients(rows: dict[str, Any]) -> None:
        rows["coefficients"] = rows["velocity"].view(-1)[:12].view(3, 4)

    def backend_is_unknown(rows: dict[str, Any]) -> None:
        rows["backend"] = "fastest"


class WrongDraws:
    """One wrong keyword each, and what is said about it."""

    def rounding_is_unknown() -> tuple[dict[str, Any], str]:
        return {"rounding": "up"}, "rounding must be nearest, stochastic or published, got 'up'"

    def randomness_is_unknown() -> tuple[dict[str, Any], str]:
        return {"randomness": "unit"}, "randomness must be particle or coordinate, got 'unit'"

    def rounding_is_for_half_types() -> tuple[dict[str, Any], str]:
        return {
            "rounding": "stochastic"
        }, "rounding 'stochastic' is for bfloat16 and float16 rows; float32 rows are kept"

    def seed_is_negative() -> tuple[dict[str, Any], str]:
        return {"seed": -1}, "seed must be from 0 to 2**63 - 1, got -1"

    def seed_is_too_large() -> tuple[dict[str, Any], str]:
        return {"seed": 2**63}, "seed must be from 0 to 2**63 - 1, got 9223372036854775808"

    def iteration_is_negative() -> tuple[dict[str, Any], str]:
        return {"iteration": -1}, "iteration must be from 0 to 2**31 - 1, got -1"

    def iteration_is_too_large() -> tuple[dict[str, Any], str]:
        return {"iteration": 2**31}, "iteration must be from 0 to 2**31 - 1, got 2147483648"

    def first_column_is_negative() -> tuple[dict[str, Any], str]:
        return {"first_column": -4}, "first_column must be a multiple of 4 that is not negative, got -4"

    def first_column_is_too_large() -> tuple[dict[str, Any], str]:
        return {"first_column": 2**62}, "first_column must be a multiple of 4 that is not negative, got 4611"

    def first_column_is_odd() -> tuple[dict[str, Any], str]:
        return {"first_column": 6}, "first_column must be a multiple of 4 that is not negative, got 6"


DRAWS = {name: make for name, make in vars(WrongDraws).items() if not name.startswith("_")}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_wrong_draws_are_refused_by_name(name: str, backend: str) -> None:
    options, message = DRAWS[name]()
    rows, lines = swarm(3, 100, torch.float32), some_lines(3, 0)
    slab = random_rows(lines.count, 100, torch.float32, 0)
    before = slab.clone()
    with pytest.raises(ValueError, match=re.escape(message)):
        swarm_update_(**rows, step_length=0.5, backend=backend, **options)
    arguments = (lines.table, lines.best, lines.worst, coefficients_for(3), 0.5)
    with pytest.raises(ValueError, match=re.escape(message)):
        swarm_update_rows_(slab, *arguments, backend=backend, **options)
    assert torch.equal(slab, before)


ROWS_IN_PLACE = [[0, 0, 6, 6, 3], [1, 1, 7, 7, 4], [2, 2, -1, 8, 5]]


def rows_arguments() -> dict[str, Any]:
    return {
        "rows": torch.zeros(11, 100),
        "table": torch.tensor(ROWS_IN_PLACE),
        "global_best": 9,
        "global_worst": 10,
        "coefficients": coefficients_for(3),
        "step_length": 0.5,
    }


def test_the_rows_that_the_next_test_spoils_are_fine() -> None:
    swarm_update_rows_(**rows_arguments())


@pytest.mark.parametrize(
    ("argument", "value", "error", "message"),
    [
        ("rows", [[0.0]], TypeError, "rows must be a torch.Tensor, got list"),
        ("rows", torch.zeros(100), ValueError, "rows must have two dimensions"),
        ("rows", torch.zeros(11, 100).int(), TypeError, "rows must be one of float32"),
        ("rows", torch.zeros(100, 11).t(), ValueError, "rows must be contiguous in its last dimension"),
        ("rows", torch.zeros(100).expand(11, 100), ValueError, "rows has rows that overlap"),
        ("rows", torch.zeros(11, 100, device="meta"), ValueError, "rows must be a dense tensor"),
        ("rows", torch.zeros(11, 100, requires_grad=True), ValueError, "rows requires grad"),
        ("rows", torch.zeros(10, 100), ValueError, "the table names row 10, but there are 10 rows"),
        ("table", ROWS_IN_PLACE, TypeError, "table must be a torch.Tensor, got list"),
        ("table", torch.tensor(5), ValueError, "table must have shape (0, 5), got ()"),
        ("table", torch.tensor(ROWS_IN_PLACE)[:, :4], ValueError, "table must have shape (3, 5), got (3, 4)"),
        ("table", torch.tensor(ROWS_IN_PLACE)[0], ValueError, "table must have shape (5, 5), got (5,)"),
        ("table", torch.tensor(ROWS_IN_PLACE).int(), TypeError, "table must be int64, got int32"),
        ("table", torch.zeros(3, 5, dtype=torch.int64), ValueError, "the table has two particles write one row"),
        ("table", torch.tensor(ROWS_IN_PLACE).flip(1), ValueError, "the table"),
        ("global_best", 11, ValueError, "the table names row 11, but there are 11 rows"),
        ("global_best", 2, ValueError, "the table writes row 2, which is read as well"),
        ("global_worst", 8, ValueError, "the table writes row 8, which is read as well"),
        ("coefficients", coefficients_for(2), ValueError, "coefficients must have shape (3, 4), got (2, 4)"),
        ("coefficients", coefficients_for(3).double(), TypeError, "coefficients must be float32, got float64"),
        ("step_length", float("nan"), ValueError, "step_length must be finite"),
        ("step_length", "long", TypeError, "step_length must be a number"),
        ("backend", "fastest", ValueError, "backend must be auto or one of"),
        ("backend", "cuda", ValueError, "backend 'cuda' cannot"),
        ("backend", "triton", ValueError, "backend 'triton' cannot"),
    ],
)
def test_wrong_rows_are_refused_by_name(argument: str, value: Any, error: type[Exception], message: str) -> None:
    arguments = rows_arguments() | {argument: value}
    with pytest.raises(error, match=re.escape(message)):
        swarm_update_rows_(**arguments)


@pytest.mark.parametrize("name", ["coefficients", "table"])
def test_rows_that_hold_another_argument_are_refused(name: str) -> None:
    arguments = rows_arguments()
    held = arguments[name]
    part = arguments["rows"][10].view(held.dtype)[: held.numel()].view(held.shape)
    arguments[name] = part.copy_(held)
    with pytest.raises(ValueError, match=f"rows must not share memory with {name}"):
        swarm_update_rows_(**arguments)


TYPE_ERRORS = {
    "position_is_a_list",
    "coefficients_is_float64",
    "velocity_is_bfloat16",
    "position_is_int32",
    "step_length_is_a_word",
}
WRONG = {name: change for name, change in vars(WrongRows).items() if not name.startswith("_")}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused_by_name(name: str) -> None:
    rows: dict[str, Any] = swarm(3, 100, torch.float32) | {"step_length": 0.5}
    WRONG[name](rows)
    before = {key: row.detach().clone() for key, row in rows.items() if isinstance(row, Tensor)}
    argument = next(word for word in [*list(rows), "backend"] if name.startswith(word))
    with pytest.raises(TypeError if name in TYPE_ERRORS else ValueError, match=rf"\b{argument}\b"):
        swarm_update_(**rows)
    for key, row in before.items():
        if row.device.type != "meta":
            assert torch.equal(row, rows[key].detach())


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_gpu_backend_refuses_cpu_tensors(backend: str) -> None:
    with pytest.raises(ValueError, match=f"backend '{backend}' cannot"):
        swarm_update_(**swarm(2, 8, torch.float32), step_length=0.5, backend=backend)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_gpu_backend_refuses_float64(backend: str) -> None:
    with pytest.raises(TypeError, match="float64"):
        swarm_update_(**swarm(2, 8, torch.float64, "cuda"), step_length=0.5, backend=backend)


def test_auto_takes_cpp_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    called = spy(monkeypatch)
    swarm_update_(**swarm(2, 8, torch.float32), step_length=0.5)
    swarm_update_rows_(**rows_arguments())
    assert called == []
    assert available("cpp")


def spy(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note every call of the reference."""
    called: list[str] = []

    def noted(name: str, original: Callable[..., None]) -> Callable[..., None]:
        def reference(*arguments: Any) -> None:
            called.append(name)
            original(*arguments)

        return reference

    monkeypatch.setattr(ops, "swarm_update_ref", noted("reference", swarm_update_ref))
    monkeypatch.setattr(ops, "swarm_update_rows_ref", noted("reference on rows", swarm_update_rows_ref))
    return called


def test_an_extension_that_does_not_load_is_no_reason_for_the_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(name: str) -> Any:
        raise ImportError(f"{name}: undefined symbol")

    monkeypatch.setattr(extension.importlib, "import_module", broken)
    with pytest.raises(ImportError, match="undefined symbol"):
        extension._load()


def test_an_extension_that_was_never_built_says_how_to_build_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"^the compiled part of modelswarms_fast is missing; build it with `pip"):
        extension._load()


def test_unknown_simd_level_is_refused() -> None:
    with pytest.raises(ValueError, match="sse9"):
        _C.set_simd_level("sse9")
