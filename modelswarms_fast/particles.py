"""The swarm's rows in either state, and its mixtures."""

from __future__ import annotations

import torch

from modelswarms_fast.config import EngineConfig
from modelswarms_fast.experts import Experts
from modelswarms_fast.memory import empty_rows
from modelswarms_fast.ops import mix_
from modelswarms_fast.rows import count_rows
from modelswarms_fast.shard import Shard
from modelswarms_fast.swarm import Plan, Swarm, Told


class Particles:
    """Every position is an affine mixture of the experts, and mixtures [P, n] move by the scalars that move weights.

    state="weights" holds rows [3P + 2, D] and, at no cost, the mixtures beside them, so that a run can say what its
    winner is made of. state="mixture" holds only mixtures and the experts, and makes a particle's weights when asked.
    With randomness="coordinate" a position is no mixture any more, and there are only weights.
    """

    def __init__(self, experts: Experts, swarm: Swarm, config: EngineConfig, device: torch.device) -> None:
        """Rows are kept on `device`; mixtures, a few numbers each, on the CPU.

        In state="weights" the experts' own rows become the first particles', if they lie on `device` and have the
        room of the swarm: `experts.rows` [n, D] then are valid until the first update.
        """
        self._positions = swarm.initial_positions()
        self._draws = (config.rounding, swarm.config.randomness, swarm.config.seed)
        count = len(self._positions)
        self._identity = torch.eye(len(experts.names), dtype=torch.float64)
        self._mixtures: Shard | None = None
        if swarm.config.randomness != "coordinate":
            mixtures = torch.empty((count_rows(count), len(experts.names)), dtype=torch.float64)
            self._mixtures = Shard(self._identity, self._positions, mixtures)
        self._experts = experts.rows.to(device)
        self._weights: Shard | None = None
        self._scratch = self._experts.new_empty(0)
        if config.state == "weights":
            here = self._experts.data_ptr() == experts.room.data_ptr() and len(experts.room) == count_rows(count)
            size, dtype = experts.layout.size, self._experts.dtype
            rows = experts.room if here else empty_rows(count_rows(count), size, dtype, device)
            self._weights = Shard(self._experts, self._positions, rows)
        else:
            self._scratch = torch.empty_like(self._experts[:1])

    def start(self, swarm: Swarm) -> None:
        """Set the initial velocities; call it after the first promotion, which decides where `best` points."""
        velocities = swarm.initial_velocities(self._positions)
        if self._mixtures is not None:
            self._mixtures.start(self._identity, velocities)
        if self._weights is not None:
            self._weights.start(self._experts, velocities)
            self._experts = self._experts.new_empty(0)  # their rows belong to the particles from now on

    def update(self, plan: Plan) -> None:
        """Move every particle by the plan."""
        rounding, randomness, seed = self._draws
        if self._mixtures is not None:
            self._mixtures.update(plan)
        if self._weights is not None:
            self._weights.update(plan, rounding=rounding, coordinate=randomness == "coordinate", seed=seed)

    def promote(self, told: Told) -> None:
        """Record new bests. Moves no weights."""
        for shard in (self._mixtures, self._weights):
            if shard is not None:
                shard.promote(told)

    def row(self, particle: int) -> torch.Tensor:
        """Weights [D] of a particle's position, valid until the next call."""
        return self._weights.position(particle) if self._weights is not None else self._mix(self._mixture(particle))

    def global_best(self) -> torch.Tensor:
        """Weights [D] of the global best, valid until the next call."""
        return self._weights.global_best if self._weights is not None else self._mix(self._best_mixture())

    def global_best_mixture(self) -> list[float] | None:
        """[n] the global best as a mixture of the experts: exact up to the rounding of weights; None if it is none."""
        return None if self._mixtures is None else self._best_mixture().tolist()

    def _mixture(self, particle: int) -> torch.Tensor:
        assert self._mixtures is not None
        return self._mixtures.position(particle)

    def _best_mixture(self) -> torch.Tensor:
        assert self._mixtures is not None
        return self._mixtures.global_best

    def _mix(self, mixture: torch.Tensor) -> torch.Tensor:
        mix_(self._scratch, self._experts, mixture[None].to(self._experts.device, torch.float32))
        return self._scratch[0]
