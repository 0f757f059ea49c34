"""The fused swarm update in Triton. Equation, order of rounding, row tables, bytes: kernels/README.md."""

import torch
import triton
import triton.language as tl
from torch import Tensor

# 4 warps of 32 lanes: one lane moves 16 bytes of a half row at a time, and twice 16 bytes of a float32 row.
BLOCK = 1024
# Without fused multiply-adds every operation rounds on its own, as in the reference.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}
# These change from call to call; a kernel of its own for 1 or for a multiple of 16 would gain nothing.
KEYS = ("seed", "iteration", "first_column")


@triton.jit
def uniform(words):
    """(word >> 8 | 1) / 2**24: 1.m, m the upper 23 bits of the word, less 1 - 2**-24, is exact."""
    return ((words >> 9) | 0x3F800000).to(tl.float32, bitcast=True) - 0.999999940395355224609375


@triton.jit
def stochastic_bits(value, noise, BFLOAT16: tl.constexpr):
    """The 16 bits of float32 values rounded up or down, as 16 random bits each say: the reference, step by step."""
    bits = value.to(tl.uint32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    if BFLOAT16:
        kept = tl.where(magnitude > 0x7F800000, (magnitude >> 16) | 0x40, (magnitude + noise) >> 16)
    else:
        exponent = magnitude >> 23
        normal = tl.maximum(exponent, 113)
        dropped = 13 + normal - exponent
        shift = tl.minimum(dropped, 31)
        mantissa = (magnitude & 0x7FFFFF) | 0x800000
        kept = ((normal - 113) << 10) + ((mantissa + ((noise << 16) >> (32 - shift))) >> shift)
        kept = tl.where(dropped > 31, 0, tl.minimum(kept, 0x7C00))
        kept = tl.where(magnitude > 0x7F800000, 0x7E00 | ((magnitude >> 13) & 0x3FF), kept)
    return (((bits >> 31) << 15) | kept).to(tl.uint16)


@triton.jit
def draw(index, particle, iteration, PURPOSE: tl.constexpr, seed):
    """Four random words for each index: Philox4x32-10 with the counter of the reference."""
    low, high = index.to(tl.uint32), (index >> 32).to(tl.uint32)
    zero = tl.zeros_like(low)
    return tl.philox(seed, low, high, zero + particle, (zero + iteration) * 2 + PURPOSE)


@triton.jit
def interleave(a, b, c, d):
    """a0 b0 c0 d0 a1 b1 ...: what four columns each got, in the order of the columns."""
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))


@triton.jit(do_not_specialize=KEYS)
def swarm_update_kernel(
    position,
    position_stride,
    velocity,
    velocity_stride,
    personal_best,
    personal_best_stride,
    global_best,
    global_worst,
    table,
    coefficients,
    step_length,
    particles,
    size,
    seed,
    iteration,
    first_column,
    BLOCK: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    COORDINATE: tl.constexpr,
):
    """One program owns BLOCK columns, reads g and w there once, and walks over the particles.

    Without a table (None) a particle's rows are row i of each base, and the pointers step from row to row. With
    one the three bases are the same, and `position` stands for all of them.
    """
    kind: tl.constexpr = position.dtype.element_ty
    start = tl.program_id(0).to(tl.int64) * BLOCK
    columns = start + tl.arange(0, BLOCK)
    inside = columns < size
    g = tl.load(global_best + columns, mask=inside).to(tl.float32)
    w = tl.load(global_worst + columns, mask=inside).to(tl.float32)
    # Four columns at a time, so that a thread draws what its own 16 bytes need.
    quads = (first_column + start) // 4 + tl.arange(0, BLOCK // 4)
    # Pointers that advance by a row cannot overflow, whatever integer type the stride comes in.
    x_row = position + columns
    v_row = velocity + columns
    p_row = personal_best + columns
    for particle in range(particles):
        inertia = tl.load(coefficients)
        cognitive = tl.load(coefficients + 1)
        social = tl.load(coefficients + 2)
        repel = tl.load(coefficients + 3)
        if table is None:
            x_out = x_row
            v_out = v_row
            x = tl.load(x_row, mask=inside).to(tl.float32)
            v = tl.load(v_row, mask=inside).to(tl.float32)
            p = tl.load(p_row, mask=inside).to(tl.float32)
        else:
            x_in = tl.load(table)
            v_in = tl.load(table + 2)
            p_in = tl.load(table + 4)
            x_out = x_row + tl.load(table + 1) * position_stride
            v_out = x_row + tl.load(table + 3) * position_stride
            x = tl.load(x_row + x_in * position_stride, mask=inside).to(tl.float32)
            # Nothing is read for a velocity of zero, nor for a personal best that is the position.
            v_size = tl.where(v_in < 0, 0, size)
            p_size = tl.where(p_in == x_in, 0, size)
            v = tl.load(x_row + v_in * position_stride, mask=columns < v_size, other=0.0).to(tl.float32)
            p = tl.load(x_row + p_in * position_stride, mask=columns < p_size, other=0.0).to(tl.float32)
            p = tl.where(p_in == x_in, x, p)
            table += 5
        if COORDINATE:
            a0, a1, a2, a3 = draw(quads * 4, particle, iteration, 1, seed)
            b0, b1, b2, b3 = draw(quads * 4 + 1, particle, iteration, 1, seed)
            c0, c1, c2, c3 = draw(quads * 4 + 2, particle, iteration, 1, seed)
            d0, d1, d2, d3 = draw(quads * 4 + 3, particle, iteration, 1, seed)
            inertia = inertia * uniform(interleave(a0, b0, c0, d0))
            cognitive = cognitive * uniform(interleave(a1, b1, c1, d1))
            social = social * uniform(interleave(a2, b2, c2, d2))
            repel = repel * uniform(interleave(a3, b3, c3, d3))
        v = inertia * v + cognitive * (p - x) + social * (g - x) + repel * (x - w)
        if COORDINATE:
            v = tl.div_rn(v, inertia + cognitive + social + repel)
        x = x + step_length * v
        if STOCHASTIC:
            # One draw of four words serves four columns; v' takes the lower half of a word, x' the upper one.
            n0, n1, n2, n3 = draw(quads, particle, iteration, 0, seed)
            noise = interleave(n0, n1, n2, n3)
            v_bits = stochastic_bits(v, noise & 0xFFFF, kind == tl.bfloat16)
            x_bits = stochastic_bits(x, noise >> 16, kind == tl.bfloat16)
            tl.store(v_out, v_bits.to(kind, bitcast=True), mask=inside)
            tl.store(x_out, x_bits.to(kind, bitcast=True), mask=inside)
        else:
            tl.store(v_out, v.to(kind), mask=inside)
            tl.store(x_out, x.to(kind), mask=inside)
        if table is None:
            x_row += position_stride
            v_row += velocity_stride
            p_row += personal_best_stride
        coefficients += 4


def swarm_update_triton(
    position: Tensor,
    velocity: Tensor,
    personal_best: Tensor,
    global_best: Tensor,
    global_worst: Tensor,
    table: Tensor | None,
    coefficients: Tensor,
    step_length: float,
    stochastic: bool,
    coordinate: bool,
    seed: int,
    iteration: int,
    first_column: int,
) -> None:
    """Launch on the current stream. Arguments as in modelswarms_fast.ops, already checked.

    With a table, which is on the rows' device, the three matrices are the same rows [R, D], else [P, D] each.
    """
    size = position.shape[1]
    with torch.cuda.device(position.device if position.is_cuda else -1):
        swarm_update_kernel[(triton.cdiv(size, BLOCK),)](
            position,
            position.stride(0),
            velocity,
            velocity.stride(0),
            personal_best,
            personal_best.stride(0),
            global_best,
            global_worst,
            table,
            coefficients.contiguous(),
            step_length,
            len(coefficients),
            size,
            seed,
            iteration,
            first_column,
            BLOCK=BLOCK,
            STOCHASTIC=stochastic,
            COORDINATE=coordinate,
            **OPTIONS,
        )
