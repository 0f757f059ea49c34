"""What the operators of modelswarms_fast.ops mean, in plain torch: slow, and the judge of every backend."""

import torch
from torch import Tensor


def swarm_update_ref(
    position: Tensor,
    velocity: Tensor,
    personal_best: Tensor,
    global_best: Tensor,
    global_worst: Tensor,
    coefficients: Tensor,
    step_length: float,
) -> None:
    """Update position and velocity [P, D] in place, coefficients [P, 4] normalised (arXiv 2410.11163).

    Arithmetic in float32 (float64 for float64 rows), sums from left to right, one rounding to storage.
    """
    arithmetic = torch.float64 if position.dtype == torch.float64 else torch.float32
    rows = (position, velocity, personal_best, global_best, global_worst)
    x, v, p, g, w = (row.to(arithmetic) for row in rows)
    c0, c1, c2, c3 = coefficients.to(arithmetic)[:, :, None].unbind(1)
    new_velocity = c0 * v + c1 * (p - x) + c2 * (g - x) + c3 * (x - w)
    velocity.copy_(new_velocity)
    position.copy_(x + step_length * new_velocity)


def mix_ref(out: Tensor, experts: Tensor, mixture: Tensor) -> None:
    """Write ``out [P, D] = mixture [P, n] . experts [n, D]``, the sum from the first expert to the last.

    Arithmetic in float32 (float64 for float64 rows), one rounding to the storage dtype.
    """
    arithmetic = torch.float64 if out.dtype == torch.float64 else torch.float32
    total = torch.zeros(out.shape, dtype=arithmetic, device=out.device)
    for expert, share in zip(experts, mixture.to(arithmetic).unbind(1), strict=True):
        total += share[:, None] * expert.to(arithmetic)
    out.copy_(total)
