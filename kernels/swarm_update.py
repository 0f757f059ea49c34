"""The fused swarm update in Triton. Equation, order of rounding and bytes: kernels/README.md."""

import torch
import triton
import triton.language as tl
from torch import Tensor

# 4 warps of 32 lanes: one lane moves 16 bytes of a half row at a time, and twice 16 bytes of a float32 row.
BLOCK = 1024
# Without fused multiply-adds every operation rounds on its own, as in the reference.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def swarm_update_kernel(
    position,
    position_stride,
    velocity,
    velocity_stride,
    personal_best,
    personal_best_stride,
    global_best,
    global_worst,
    coefficients,
    step_length,
    particles,
    size,
    BLOCK: tl.constexpr,
):
    """One program owns BLOCK columns, reads g and w there once, and walks over the particles."""
    columns = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < size
    g = tl.load(global_best + columns, mask=inside).to(tl.float32)
    w = tl.load(global_worst + columns, mask=inside).to(tl.float32)
    # Pointers that advance by a row cannot overflow, whatever integer type the stride comes in.
    x_row = position + columns
    v_row = velocity + columns
    p_row = personal_best + columns
    for _ in range(particles):
        inertia = tl.load(coefficients)
        cognitive = tl.load(coefficients + 1)
        social = tl.load(coefficients + 2)
        repel = tl.load(coefficients + 3)
        x = tl.load(x_row, mask=inside).to(tl.float32)
        v = tl.load(v_row, mask=inside).to(tl.float32)
        p = tl.load(p_row, mask=inside).to(tl.float32)
        v = inertia * v + cognitive * (p - x) + social * (g - x) + repel * (x - w)
        x = x + step_length * v
        tl.store(v_row, v.to(velocity.dtype.element_ty), mask=inside)
        tl.store(x_row, x.to(position.dtype.element_ty), mask=inside)
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
    coefficients: Tensor,
    step_length: float,
) -> None:
    """Launch on the current stream. Arguments as in modelswarms_fast.ops.swarm_update_, already checked."""
    particles, size = position.shape
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
            coefficients.contiguous(),
            step_length,
            particles,
            size,
            BLOCK=BLOCK,
            **OPTIONS,
        )
