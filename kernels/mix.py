"""Combination of experts into particles in Triton. Equation, order of rounding, bytes: kernels/README.md."""

import torch
import triton
import triton.language as tl
from torch import Tensor

# 4 warps of 32 lanes: one lane moves 16 bytes of a half row at a time, and twice 16 bytes of a float32 row.
BLOCK = 1024
# Without fused multiply-adds every operation rounds on its own, as in the reference.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}
# Population that share every expert that is loaded: the number of sums written out in the kernel.
TILE = 4


@triton.jit
def mix_kernel(
    out,
    out_stride,
    experts,
    experts_stride,
    mixture,
    particles,
    count,
    size,
    BLOCK: tl.constexpr,
):
    """One program owns BLOCK columns of four particles and walks over the experts once.

    Neighbouring programs have the same columns: all but the first find the experts in the second cache.
    """
    tiles = tl.cdiv(particles, 4)
    columns = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < size
    first = tl.program_id(0) % tiles * 4
    sum0 = tl.zeros([BLOCK], tl.float32)
    sum1 = tl.zeros([BLOCK], tl.float32)
    sum2 = tl.zeros([BLOCK], tl.float32)
    sum3 = tl.zeros([BLOCK], tl.float32)
    share = mixture + first.to(tl.int64) * count
    row = experts + columns
    for _ in range(count):
        expert = tl.load(row, mask=inside).to(tl.float32)
        sum0 += tl.load(share) * expert
        sum1 += tl.load(share + count, mask=first + 1 < particles, other=0.0) * expert
        sum2 += tl.load(share + 2 * count, mask=first + 2 < particles, other=0.0) * expert
        sum3 += tl.load(share + 3 * count, mask=first + 3 < particles, other=0.0) * expert
        row += experts_stride
        share += 1
    kind = out.dtype.element_ty
    target = out + columns
    target += first.to(tl.int64) * out_stride
    tl.store(target, sum0.to(kind), mask=inside)
    if first + 1 < particles:
        target += out_stride
        tl.store(target, sum1.to(kind), mask=inside)
    if first + 2 < particles:
        target += out_stride
        tl.store(target, sum2.to(kind), mask=inside)
    if first + 3 < particles:
        target += out_stride
        tl.store(target, sum3.to(kind), mask=inside)


def mix_triton(out: Tensor, experts: Tensor, mixture: Tensor) -> None:
    """Launch on the current stream. Arguments as in modelswarms_fast.ops.mix_, checked, mixture float32."""
    particles, size = out.shape
    with torch.cuda.device(out.device if out.is_cuda else -1):
        mix_kernel[(triton.cdiv(size, BLOCK) * triton.cdiv(particles, TILE),)](
            out,
            out.stride(0),
            experts,
            experts.stride(0),
            mixture,
            particles,
            experts.shape[0],
            size,
            BLOCK=BLOCK,
            **OPTIONS,
        )
