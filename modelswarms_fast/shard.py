"""The rows of one rank: where particles are, how they move, and what is best."""

from __future__ import annotations

import torch

from modelswarms_fast.ops import mix_, swarm_update_
from modelswarms_fast.swarm import Floats, Plan, Told


class Shard:
    """position, velocity and personal_best [P, D], global_best and global_worst [D], as mixtures of rows.

    The same class holds weights (rows = the experts [n, D]) and mixtures (rows = the identity [n, n]): a row is a
    row, and every operation is linear with the same scalars for all of its elements. Holds (3P + 2) · D elements
    beside the given rows; nothing is allocated after construction.
    """

    def __init__(self, rows: torch.Tensor, positions: Floats) -> None:
        """rows [n, D]; positions [P, n], the initial positions as mixtures of the rows."""
        particles, size = len(positions), rows.shape[1]
        self.position = rows.new_empty(particles, size)
        self.velocity = rows.new_zeros(particles, size)
        mix_(self.position, rows, _mixture(positions, rows))
        # A particle whose first utility is NaN has no personal best: its start stands in for one.
        self.personal_best = self.position.clone()
        self.global_best = rows.new_empty(size)
        self.global_worst = rows.new_empty(size)

    def start(self, rows: torch.Tensor, velocities: Floats) -> None:
        """Set the initial velocities, [P, n] mixtures of the same rows."""
        mix_(self.velocity, rows, _mixture(velocities, rows))

    def update(self, plan: Plan) -> None:
        """Move every particle by the plan: restarts first, then one fused pass in place."""
        for particle in plan.restarts.nonzero()[0].tolist():
            self.position[particle].copy_(self.personal_best[particle])
            self.velocity[particle].zero_()
        coefficients = torch.from_numpy(plan.coefficients).to(self.position.device)
        swarm_update_(
            self.position,
            self.velocity,
            self.personal_best,
            self.global_best,
            self.global_worst,
            coefficients,
            plan.step_length,
        )

    def promote(self, told: Told) -> None:
        """Record the personal bests, global best and global worst that `told` names."""
        for particle in told.improved.nonzero()[0].tolist():
            self.personal_best[particle].copy_(self.position[particle])
        if told.global_best is not None:
            self.global_best.copy_(self.position[told.global_best])
        if told.global_worst is not None:
            self.global_worst.copy_(self.position[told.global_worst])


def _mixture(mixture: Floats, rows: torch.Tensor) -> torch.Tensor:
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    return torch.from_numpy(mixture).to(rows.device, dtype)
