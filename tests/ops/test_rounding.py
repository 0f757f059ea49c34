"""Small steps in half types: how they vanish, and that stochastic rounding keeps them; and the numbers it draws."""

import math

import numpy as np
import pytest
import torch
from helpers_rows import FAST_BACKENDS, HALF_TYPES, assert_same, restored_extension, select

from modelswarms_fast.ops import swarm_update_
from modelswarms_fast.ops.reference import FOR_COEFFICIENTS, FOR_ROUNDING, _draw, philox, round_stochastically, uniform

__all__ = ["restored_extension"]
pytestmark = pytest.mark.usefixtures("restored_extension")

BACKENDS = ["reference", *FAST_BACKENDS]
NOISES = torch.arange(1 << 16)
EVERY_HALF = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)


def neighbours(value, dtype):
    """The numbers of the dtype around float32 values, [N] float64 each: toward 0 and away from it, and their gap."""
    digits, smallest = (7, -133) if dtype == torch.bfloat16 else (10, -24)
    value = value.double().numpy()
    exponent = np.frexp(value)[1] - 1
    gap = np.ldexp(1.0, np.maximum(exponent - digits, smallest))
    toward = np.trunc(value / gap) * gap
    return toward, toward + np.copysign(gap, value), gap


def some_values(dtype):
    """float32 of all magnitudes that matter to the dtype, denormals included, each of both signs."""
    exponents = range(-140, 127, 7) if dtype == torch.bfloat16 else range(-32, 15)
    generator = torch.Generator().manual_seed(3)
    values = [(1 + torch.rand(1, generator=generator).item()) * 2.0**exponent for exponent in exponents]
    values = torch.tensor(values, dtype=torch.float64).float()
    return torch.cat((values, -values))


# Random123's known answers for philox4x32-10: counter, key and words.
@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_known_answers(counter, key, words):
    counter, (low, high), words = ([int(word, 16) for word in text.split()] for text in (counter, key, words))
    drawn = philox(tuple(torch.tensor([word]) for word in counter), high << 32 | low)
    assert drawn[:, 0].tolist() == words


def test_uniform_is_never_0_or_1():
    words = torch.tensor([0, 255, 256, 2**31, 2**32 - 256, 2**32 - 1])
    assert (uniform(words).double() * 2**24).tolist() == [1, 1, 1, 2**23 + 1, 2**24 - 1, 2**24 - 1]
    assert uniform(words).dtype == torch.float32


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
def test_every_half_number_stays_what_it_is(dtype):
    """All 65536: zeros keep their sign, denormals, the largest and the infinite stay; NaN stays NaN."""
    halves = EVERY_HALF.view(dtype)
    for noise in (torch.zeros(1 << 16, dtype=torch.int64), torch.full((1 << 16,), 0xFFFF), NOISES.flip(0)):
        rounded = round_stochastically(halves.float(), noise, dtype)
        assert_same(rounded, halves)


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
def test_only_neighbours_and_the_mean_is_kept(dtype):
    """Over all 65536 noises, so the mean is no estimate. It is exact as far as 16 bits go."""
    values = some_values(dtype)
    toward, away, gap = neighbours(values, dtype)
    for value, near, far, unit in zip(values, toward, away, gap, strict=True):
        rounded = round_stochastically(value.expand(len(NOISES)), NOISES, dtype).double()
        assert set(rounded.tolist()) == {near, far}, value
        assert abs(rounded.mean().item() - value.item()) <= unit * 2.0**-16, value
        toward_zero = rounded == near
        assert bool(toward_zero[0])  # no noise cuts off
        assert not (toward_zero[1:] & ~toward_zero[:-1]).any()  # more noise never rounds down again


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
def test_past_the_largest_number_comes_infinity(dtype):
    largest = torch.finfo(dtype).max
    gap = neighbours(torch.tensor([largest]), dtype)[2].item()
    for sign in (1.0, -1.0):
        value = torch.tensor(sign * (largest + 0.25 * gap), dtype=torch.float32)
        rounded = round_stochastically(value.expand(len(NOISES)), NOISES, dtype).double()
        assert set(rounded.tolist()) == {sign * largest, sign * math.inf}
        assert rounded.isinf().double().mean() == 0.25
    for beyond in (math.inf, torch.finfo(torch.float32).max if dtype == torch.float16 else math.inf):
        value = torch.tensor([beyond, -beyond])
        for noise in (0, 0xFFFF):
            assert round_stochastically(value, torch.tensor(noise), dtype).tolist() == [math.inf, -math.inf]


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
def test_any_nan_stays_nan(dtype):
    bits = torch.tensor([0x7F800001, 0x7F801000, 0x7FC00000, 0x7FFFFFFF])
    values = torch.cat((bits, bits - (1 << 31))).to(torch.int32).view(torch.float32)
    assert values.isnan().all()
    for noise in (0, 0xFFFF):
        assert round_stochastically(values, torch.tensor(noise), dtype).isnan().all()


def test_float16_far_below_its_smallest_number_is_0():
    values = torch.tensor([2.0**-33, -(2.0**-33), 2.0**-100, 2.0**-149, 0.0, -0.0])
    rounded = round_stochastically(values, torch.tensor(0xFFFF), torch.float16)
    assert rounded.tolist() == [0.0] * 6
    assert rounded.signbit().tolist() == values.signbit().tolist()


def move(backend, position, velocity, others, coefficients, step_length, **noise):
    """x' and v' of rows [P, D]; `others` are p [P, D], g [D] and w [D]."""
    backend, device = select(backend)
    x, v = position.clone().to(device), velocity.clone().to(device)
    others = [row.to(device) for row in others]
    swarm_update_(x, v, *others, coefficients.to(device), step_length, backend=backend, **noise)
    return x.cpu(), v.cpu()


def follow(backend, dtype, step_length, iterations, size=4096, **noise):
    """The mean position of columns that start at 1 and are drawn to 2, after each iteration; v is of no influence."""
    x = torch.ones(2, size, dtype=dtype)
    v, target, worst = torch.zeros_like(x), torch.full_like(x, 2.0), torch.zeros(size, dtype=dtype)
    coefficients = torch.tensor([[0.0, 0.5, 0.5, 0.0]]).repeat(2, 1)
    means = []
    for iteration in range(iterations):
        arguments = (backend, x, v, (target, target[0], worst), coefficients, step_length)
        x, v = move(*arguments, iteration=iteration, **noise)
        means.append(x.double().mean().item())
    return x, np.array(means)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "unit"), [(torch.bfloat16, 2.0**-7), (torch.float16, 2.0**-10)], ids=str)
def test_small_steps_vanish_with_nearest_and_not_with_stochastic_rounding(backend, dtype, unit):
    """Steps of a quarter of a unit in the last place: never, or once in four iterations."""
    iterations, step_length = 100, unit / 4
    stuck, _ = follow(backend, dtype, step_length, iterations)
    assert (stuck == 1.0).all()
    _, exact = follow(backend, torch.float32, step_length, iterations)
    assert exact[-1] > 1 + 10 * unit
    moved, means = follow(backend, dtype, step_length, iterations, seed=5, rounding="stochastic")
    # A rounding spreads by half a unit at most, and all of them by the root of their number.
    spread = unit / 2 * np.sqrt(np.arange(1, iterations + 1) / moved.numel())
    assert (np.abs(means - exact) < 5 * spread).all()
    assert 10 * spread[-1] < exact[-1] - 1
    assert len(moved.unique()) > 5  # each column went its own way


def ups(backend, dtype, share, particles=1, size=1 << 16, **noise):
    """[2, P, D] whether x' and v' were rounded up, of numbers that should be with probability `share`."""
    unit = torch.finfo(dtype).eps
    x, v = torch.zeros(particles, size, dtype=dtype), torch.ones(particles, size, dtype=dtype)
    coefficients = torch.tensor([[1 + share * unit, 0.0, 0.0, 0.0]]).repeat(particles, 1)
    moved = move(backend, x, v, (x, x[0], x[0]), coefficients, 1.0, rounding="stochastic", **noise)
    for rounded in moved:
        assert set(rounded.double().unique().tolist()) <= {1.0, 1 + unit}
    return torch.stack(moved) > 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
def test_as_often_up_as_the_mean_asks(backend, dtype):
    for share in (0.0, 2.0**-6, 0.25, 0.5, 0.75, 1 - 2.0**-6):
        often = ups(backend, dtype, share, seed=7).double().mean(dim=(1, 2))
        assert ((often - share).abs() <= 4 * math.sqrt(share * (1 - share) / (1 << 16))).all()


def assert_uncorrelated(one, other):
    """Of equal numbers of draws: no further from 0 than 5 standard deviations of independent ones."""
    one, other = (draws.double().flatten() - draws.double().mean() for draws in (one, other))
    correlation = (one * other).mean() / (one.square().mean() * other.square().mean()).sqrt()
    assert abs(correlation) < 5 / math.sqrt(len(one))


KEYS = [{"seed": 6}, {"seed": 5 + 2**32}, {"seed": 5, "iteration": 1}, {"seed": 5, "first_column": 1 << 16}]
KEYS += [{"seed": 5, "first_column": 1 << 32}, {"seed": 5, "iteration": 2**31 - 1}]


@pytest.mark.parametrize("backend", BACKENDS)
def test_rounding_is_independent_of_particle_column_iteration_seed_and_purpose(backend):
    drawn = ups(backend, torch.bfloat16, 0.5, particles=3, seed=5)
    assert torch.equal(drawn, ups(backend, torch.bfloat16, 0.5, particles=3, seed=5))
    for key in KEYS:
        assert_uncorrelated(drawn, ups(backend, torch.bfloat16, 0.5, particles=3, **key))
    assert_uncorrelated(drawn[0], drawn[1])
    assert_uncorrelated(drawn[:, 0], drawn[:, 1])
    assert_uncorrelated(drawn[:, 0], drawn[:, 2])
    for shift in (1, 2, 3, 4, 8, 1024):
        assert_uncorrelated(drawn[..., shift:], drawn[..., :-shift])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_column_draws_the_same_wherever_its_block_begins(backend):
    whole = ups(backend, torch.bfloat16, 0.5, particles=2, size=4096, first_column=2**32 - 2048)
    part = ups(backend, torch.bfloat16, 0.5, particles=2, size=100, first_column=2**32 - 48)
    assert torch.equal(part, whole[..., 2000:2100])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
def test_zero_columns_stay_zero(backend, dtype):
    """The padding of a layout."""
    zeros = torch.zeros(3, 1000, dtype=dtype)
    coefficients = torch.tensor([[0.4, 0.3, 0.3, 0.3]]).repeat(3, 1)
    noise = {"rounding": "stochastic", "randomness": "coordinate", "seed": 1}
    for moved in move(backend, zeros, zeros, (zeros, zeros[0], zeros[0]), coefficients, 0.5, **noise):
        assert_same(moved, zeros)


def shares(backend, particles=1, size=1 << 14, weights=(1.0, 1.0, 1.0, 1.0), **noise):
    """[4, P, D] float32: the coefficients that each coordinate has drawn."""
    coefficients = torch.tensor([weights]).repeat(particles, 1)
    zeros = torch.zeros(particles, size)
    found = []
    for term in range(4):
        v, p, g, w = (torch.full_like(zeros, float(term == index)) for index in range(4))
        rows = (zeros, v, (p, g[0], -w[0]))
        found.append(move(backend, *rows, coefficients, 1.0, randomness="coordinate", **noise)[1])
    return torch.stack(found)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_coordinate_draws_its_own_coefficients(backend):
    drawn = shares(backend, particles=3, seed=5)
    torch.testing.assert_close(drawn.sum(dim=0), torch.ones(3, 1 << 14), rtol=0, atol=1e-6)
    assert (drawn > 0).all()
    deviation = drawn.double().std().item()
    assert 0.1 < deviation < 0.15
    assert ((drawn.double().mean(dim=2) - 0.25).abs() < 4 * deviation / math.sqrt(1 << 14)).all()
    assert torch.equal(drawn, shares(backend, particles=3, seed=5))
    for key in KEYS:
        assert_uncorrelated(drawn[0], shares(backend, particles=3, **key)[0])
    assert_uncorrelated(drawn[:, 0], drawn[:, 1])
    for shift in (1, 2, 3, 4, 8, 1024):
        assert_uncorrelated(drawn[0, :, shift:], drawn[0, :, :-shift])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_term_of_weight_0_has_no_share(backend):
    drawn = shares(backend, weights=(0.4, 0.3, 0.3, 0.0))
    assert (drawn[3] == 0).all()
    torch.testing.assert_close(drawn.sum(dim=0), torch.ones(1, 1 << 14), rtol=0, atol=1e-6)


def test_the_four_r_of_a_coordinate_are_uniform_and_independent():
    """U(0, 1): mean 1/2, variance 1/12, and as many in every twentieth."""
    r = uniform(_draw(torch.arange(1 << 14), 3, 5, 1, FOR_COEFFICIENTS)).double()
    count = r[0].numel()
    for term in range(4):
        assert abs(r[term].mean() - 0.5) < 4 / math.sqrt(12 * count)
        assert abs(r[term].var() - 1 / 12) < 4 / math.sqrt(180 * count)
        bins = np.histogram(r[term], bins=20, range=(0, 1))[0]
        assert (np.abs(bins - count / 20) < 5 * math.sqrt(count / 20)).all()
        for other in range(term):
            assert_uncorrelated(r[term], r[other])


def test_no_two_uses_share_a_draw():
    """Rounding and coefficients of neighbouring iterations all have counters of their own."""
    draws = [
        _draw(torch.arange(64), 3, 5, iteration, purpose)
        for iteration in range(3)
        for purpose in (FOR_ROUNDING, FOR_COEFFICIENTS)
    ]
    words = torch.stack(draws).permute(0, 2, 3, 1).reshape(-1, 4)
    assert len(words.unique(dim=0)) == 6 * 3 * 64
