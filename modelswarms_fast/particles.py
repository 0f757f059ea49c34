"""The swarm's rows in either state, and always its mixtures."""

from __future__ import annotations

import torch

from modelswarms_fast.experts import Experts
from modelswarms_fast.ops import mix_
from modelswarms_fast.shard import Shard
from modelswarms_fast.swarm import Plan, Swarm, Told


class Particles:
    """Every position is an affine mixture of the experts, and mixtures [P, n] move by the scalars that move weights.

    state="weights" holds rows [P, D] and, at no cost, the mixtures beside them, so that a run can say what its winner
    is made of. state="mixture" holds only mixtures and the experts, and makes a particle's weights when asked.
    """

    def __init__(self, experts: Experts, swarm: Swarm, state: str, device: torch.device) -> None:
        """Rows are kept on `device`; mixtures, a few numbers each, on the CPU."""
        self._rows = experts.rows.to(device)
        self._positions = swarm.initial_positions()
        self._identity = torch.eye(len(experts.names), dtype=torch.float64)
        self._mixtures = Shard(self._identity, self._positions)
        self._weights = Shard(self._rows, self._positions) if state == "weights" else None
        self._scratch = torch.empty_like(self._rows[:1]) if state == "mixture" else self._rows[:0]

    def start(self, swarm: Swarm) -> None:
        """Set the initial velocities; call it after the first promotion, which decides where `best` points."""
        velocities = swarm.initial_velocities(self._positions)
        self._mixtures.start(self._identity, velocities)
        if self._weights is not None:
            self._weights.start(self._rows, velocities)

    def update(self, plan: Plan) -> None:
        """Move every particle by the plan."""
        self._mixtures.update(plan)
        if self._weights is not None:
            self._weights.update(plan)

    def promote(self, told: Told) -> None:
        """Record new bests."""
        self._mixtures.promote(told)
        if self._weights is not None:
            self._weights.promote(told)

    def row(self, particle: int) -> torch.Tensor:
        """Weights [D] of a particle's position, valid until the next call."""
        if self._weights is not None:
            return self._weights.position[particle]
        return self._mix(self._mixtures.position[particle])

    def global_best(self) -> torch.Tensor:
        """Weights [D] of the global best, valid until the next call."""
        return self._mix(self._mixtures.global_best) if self._weights is None else self._weights.global_best

    def global_best_mixture(self) -> list[float]:
        """[n] the global best as a mixture of the experts: exact up to the rounding of weights."""
        return self._mixtures.global_best.tolist()

    def _mix(self, mixture: torch.Tensor) -> torch.Tensor:
        mix_(self._scratch, self._rows, mixture[None].to(self._rows.device, torch.float32))
        return self._scratch[0]
