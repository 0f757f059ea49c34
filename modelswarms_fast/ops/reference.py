"""What the operators of modelswarms_fast.ops mean, in plain torch: slow, and the judge of every backend."""

import torch
from torch import Tensor

# Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF

# How x' and v' get to storage: the codes of csrc/swarm_update.h.
NEAREST, STOCHASTIC, PUBLISHED = range(3)

# What a draw is for: the lowest bit of the last word of its counter.
FOR_ROUNDING, FOR_COEFFICIENTS = 0, 1


def swarm_update_ref(
    position: Tensor,
    velocity: Tensor,
    personal_best: Tensor,
    global_best: Tensor,
    global_worst: Tensor,
    coefficients: Tensor,
    step_length: float,
    rounding: int = NEAREST,
    coordinate: bool = False,
    seed: int = 0,
    iteration: int = 0,
    first_column: int = 0,
) -> None:
    """Update position and velocity [P, D] in place, coefficients [P, 4] (arXiv 2410.11163).

    Arithmetic in float32 (float64 for float64 rows), sums from left to right, one rounding to storage; PUBLISHED: each
    difference, product and sum is rounded to storage.
    """
    arithmetic = torch.float64 if position.dtype == torch.float64 else torch.float32
    rows = (position, velocity, personal_best, global_best, global_worst)
    x, v, p, g, w = (row.to(arithmetic) for row in rows)
    c = coefficients.to(arithmetic).t()[:, :, None]  # [4, P, 1]
    columns = torch.arange(first_column, first_column + position.shape[1], device=position.device)
    if coordinate:
        words = _draw(columns, position.shape[0], seed, iteration, FOR_COEFFICIENTS)
        c = c * uniform(words).to(arithmetic)  # [4, P, D]

    def stored(value: Tensor) -> Tensor:
        return value.to(position.dtype).to(arithmetic) if rounding == PUBLISHED else value

    new_velocity = stored(c[0] * v)
    for weight, difference in zip(c[1:], (p - x, g - x, x - w), strict=True):
        new_velocity = stored(new_velocity + stored(weight * stored(difference)))
    if coordinate:
        new_velocity = new_velocity / (c[0] + c[1] + c[2] + c[3])
    new_position = x + stored(step_length * new_velocity)
    if rounding == STOCHASTIC:
        # One draw of four words serves four columns; v' takes the lower half of a word, x' the upper one.
        words = _draw(columns // 4, position.shape[0], seed, iteration, FOR_ROUNDING)
        word = words.gather(0, (columns % 4).expand(1, *position.shape))[0]
        new_velocity = round_stochastically(new_velocity, word & 0xFFFF, velocity.dtype)
        new_position = round_stochastically(new_position, word >> 16, position.dtype)
    velocity.copy_(new_velocity)
    position.copy_(new_position)


def swarm_update_rows_ref(
    rows: Tensor,
    table: Tensor,
    global_best: int,
    global_worst: int,
    coefficients: Tensor,
    step_length: float,
    rounding: int = NEAREST,
    coordinate: bool = False,
    seed: int = 0,
    iteration: int = 0,
    first_column: int = 0,
) -> None:
    """The same on numbered rows of [R, D]; table [P, 5] = x_in, x_out, v_in (-1: zero), v_out, p."""
    x_in, x_out, v_in, v_out, p = table.to(rows.device).unbind(1)
    position = rows[x_in]
    velocity = rows[v_in.clamp(min=0)].masked_fill((v_in < 0)[:, None], 0)
    swarm_update_ref(
        position,
        velocity,
        rows[p],
        rows[global_best],
        rows[global_worst],
        coefficients,
        step_length,
        rounding,
        coordinate,
        seed,
        iteration,
        first_column,
    )
    rows[x_out], rows[v_out] = position, velocity


def mix_ref(out: Tensor, experts: Tensor, mixture: Tensor) -> None:
    """Write ``out [P, D] = mixture [P, n] . experts [n, D]``, the sum from the first expert to the last.

    Arithmetic in float32 (float64 for float64 rows), one rounding to the storage dtype.
    """
    arithmetic = torch.float64 if out.dtype == torch.float64 else torch.float32
    total = torch.zeros((len(mixture), experts.shape[1]), dtype=arithmetic, device=out.device)
    for expert, share in zip(experts, mixture.to(arithmetic).unbind(1), strict=True):
        total += share[:, None] * expert.to(arithmetic)
    out.copy_(total)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> Tensor:
    """Philox4x32-10: four words below 2**32, [4, ...] int64, of a counter of four such words, keyed by a seed."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed & _WORD, seed >> 32 & _WORD
    for _ in range(10):
        # A product of two words fills 64 bits; int64 wraps around, which leaves the bits right.
        one, two = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (two >> 32 & _WORD) ^ c1 ^ k0,
            two & _WORD,
            (one >> 32 & _WORD) ^ c3 ^ k1,
            one & _WORD,
        )
        k0, k1 = k0 + _WEYL[0] & _WORD, k1 + _WEYL[1] & _WORD
    return torch.stack(torch.broadcast_tensors(c0, c1, c2, c3))  # type: ignore[no-untyped-call]


def _draw(index: Tensor, particles: int, seed: int, iteration: int, purpose: int) -> Tensor:
    """[4, P, len(index)] words: the counter is the index in two words, the particle, iteration and purpose."""
    particle = torch.arange(particles, device=index.device)[:, None]
    last = torch.tensor(2 * iteration + purpose, device=index.device)
    return philox((index[None] & _WORD, index[None] >> 32, particle, last), seed)


def uniform(words: Tensor) -> Tensor:
    """Odd multiples of 2**-24 in (0, 1), float32, of words below 2**32: exact, and never 0."""
    return (words >> 8 | 1).float() * 2.0**-24


def round_stochastically(value: Tensor, noise: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 to bfloat16 or float16, up or down with the probability that keeps the mean.

    ``noise`` holds 16 random bits a number. The magnitude is cut off after noise is added to the bits that
    storage has no room for: 16 for bfloat16; for float16 13, more below 2**-14. NaN stays NaN; past the largest
    number comes infinity. What lies below 2**-32 becomes 0 in float16.
    """
    bits = value.view(torch.int32).to(torch.int64) & _WORD
    sign, magnitude = bits >> 31, bits & 0x7FFFFFFF
    if dtype == torch.bfloat16:
        kept = (magnitude + noise) >> 16
        kept = torch.where(magnitude > 0x7F800000, magnitude >> 16 | 0x40, kept)
    else:
        exponent = magnitude >> 23
        mantissa = magnitude & 0x7FFFFF | 1 << 23  # that of a denormal is dropped whole below
        dropped = 13 + (113 - exponent.clamp(max=113))
        shift = dropped.clamp(max=31)
        scaled = torch.where(shift < 16, noise >> (16 - shift).clamp(min=0), noise << (shift - 16).clamp(min=0))
        kept = ((exponent.clamp(min=113) - 113) << 10) + (mantissa + scaled >> shift)
        kept = torch.where(dropped > 31, 0, kept.clamp(max=0x7C00))
        kept = torch.where(magnitude > 0x7F800000, 0x7E00 | (magnitude >> 13 & 0x3FF), kept)
    return (sign << 15 | kept).to(torch.int16).view(dtype)
