"""The swarm's rows in either state, and its mixtures."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from modelswarms_fast.config import EngineConfig
from modelswarms_fast.ops import mix_
from modelswarms_fast.weights.arena import empty_rows
from modelswarms_fast.weights.experts import Experts
from modelswarms_fast.weights.placement import Placement
from modelswarms_fast.weights.row_cache import RowCache
from modelswarms_fast.weights.row_table import count_rows
from modelswarms_fast.weights.rows import Floats, SwarmRows

# Bytes of the largest row that is named; a larger position that comes back is evaluated again. BLAKE2b reads 1.4 GB a
# second on the core measured, so a name takes at most 24 ms: less than a percent of an evaluation of 2.4 s.
LARGEST_NAMED = 32 << 20


def digest(row: torch.Tensor) -> bytes:
    """16 bytes that name the exact content of a row [D]: BLAKE2b."""
    data = row.detach().contiguous().cpu().view(torch.uint8).numpy().data
    return hashlib.blake2b(data, digest_size=16).digest()


class Population:
    """Every position is an affine mixture of the experts, and mixtures [P, n] move by the scalars that move weights.

    state="weights" holds rows [3P + 2, D] and, at no cost, the mixtures beside them, so that a run can say what its
    winner is made of. state="mixture" holds only mixtures and the experts; an engine is given a
    mixture, and weights are made only for an export or a check.
    With randomness="coordinate" a position is no mixture any more, and there are only weights.
    """

    def __init__(
        self,
        experts: Experts,
        swarm: Any,
        config: EngineConfig,
        device: torch.device,
        plan: Placement | None = None,
    ) -> None:
        """Rows are kept on `device`; mixtures, a few numbers each, on the CPU.

        Where the plan has a cache, rows stay in the experts' room, on slower tiers, and those that the plan does not
        have served from there come to `device` to be served.

        In state="weights" the experts' own rows become the first particles', if they lie on `device` and have the
        room of the swarm: `experts.rows` [n, D] then are valid until the first update.
        """
        self._positions = swarm.initial_positions()
        self._draws = (config.rounding, swarm.config.randomness, swarm.config.seed)
        count = len(self._positions)
        self._identity = torch.eye(len(experts.names), dtype=torch.float64)
        self._mixtures: SwarmRows | None = None
        if swarm.config.randomness != "coordinate":
            mixtures = torch.empty((count_rows(count), len(experts.names)), dtype=torch.float64)
            self._mixtures = SwarmRows(self._identity, self._positions, mixtures)
        cached = 0 if plan is None else plan.cache_rows
        self._in_place = 0 if plan is None else plan.served_in_place
        self._weights: SwarmRows | None = None
        if config.state == "weights":
            rows, self._experts = experts.room, experts.rows
            where = rows.device if cached else device
            here = rows.device.type == where.type and rows.data_ptr() == experts.rows.data_ptr()
            if not here or len(rows) != count_rows(count):
                rows = empty_rows(count_rows(count), experts.layout.size, experts.rows.dtype, where)
                if swarm.first == list(range(len(experts.rows))):
                    # Where they begin as particles: on a GPU there may be no room for a copy beside that.
                    self._experts = rows[: len(experts.rows)].copy_(experts.rows)
            self._experts = self._experts.to(where)
            self._weights = SwarmRows(self._experts, self._positions, rows, device=device)
        else:
            self._experts = experts.rows if cached else experts.rows.to(device)
        self._cache: RowCache | None = None
        self._served: torch.Tensor | None = None  # what the cache has given us last
        if cached and self._weights is not None:
            self._cache = RowCache(self._weights.rows, cached, device)

    def start(self, swarm: Any) -> None:
        """Set the initial velocities; call it after the first promotion, which decides where `best` points."""
        velocities = swarm.initial_velocities(self._positions)
        if self._mixtures is not None:
            self._mixtures.start(self._identity, velocities)
        if self._weights is not None:
            self._weights.start(self._experts, velocities)
            self._experts = self._experts.new_empty(0)  # their rows belong to the particles from now on

    def update(self, moves: Any) -> None:
        """Move every particle by `swarm.Moves`."""
        rounding, randomness, seed = self._draws
        arrays = (moves.restarts, moves.coefficients, moves.step_length, moves.iteration)
        if self._mixtures is not None:
            self._mixtures.update(*arrays)
        if self._weights is not None:
            self._weights.update(*arrays, rounding=rounding, coordinate=randomness == "coordinate", seed=seed)
            if self._cache is not None:  # all of these rows, and no others that are served, were written
                self._cache.invalidate(self._weights.table.x.tolist())

    def promote(self, update: Any) -> None:
        """Record new bests. Moves no weights."""
        for shard in (self._mixtures, self._weights):
            if shard is not None:
                shard.promote(update.improved, update.global_best, update.global_worst)
        if self._cache is not None and self._weights is not None:
            self._cache.pin(self._copied([self._weights.table.g]))

    def prefetch(self, particles: Sequence[int], best: bool = False) -> None:
        """Begin to bring these particles' rows to where they are served, if they are not; returns at once."""
        if self._cache is not None and self._weights is not None:
            table = self._weights.table
            self._cache.prefetch(self._copied((table.p if best else table.x)[list(particles)].tolist()))

    def close(self) -> None:
        """End the thread that fetches rows ahead."""
        if self._cache is not None:
            self._cache.close()

    def key(self, particle: int, best: bool = False) -> bytes | None:
        """Names the exact position of a particle: its row or, in state="mixture", its mixture; None of a large row.

        `best`, here and below: its personal best instead.
        """
        if self._weights is None:
            return self._mixture(particle, best).numpy().tobytes()
        row = self._weights.personal_best(particle) if best else self._weights.position(particle)
        return digest(row) if row.nbytes <= LARGEST_NAMED else None

    def load(self, engine: Any, slot: int, particle: int, best: bool = False) -> None:
        """Have the engine serve a particle from a slot."""
        if self._weights is not None:
            engine.load(slot, self.row(particle, best))
        elif self._experts.device.type == "cuda" and engine.serve != "mixture":
            engine.load(slot, self._mix(self._mixture(particle, best)))  # the engine has the experts on the host
        else:
            engine.load_mixture(slot, self._mixture(particle, best))

    def row(self, particle: int, best: bool = False) -> torch.Tensor:
        """Weights [D] of a particle's position, valid until the next call; a new row in state="mixture"."""
        if self._weights is None:
            return self._mix(self._mixture(particle, best))
        table = self._weights.table
        return self._serve(int((table.p if best else table.x)[particle]))

    def mixtures(self) -> Floats | None:
        """[P, n] the positions as mixtures of the experts, as `global_best_mixture` has it."""
        if self._mixtures is None:
            return None
        rows: Floats = self._mixtures.rows.numpy()
        return rows[self._mixtures.table.x]

    def global_best(self) -> torch.Tensor:
        """Weights [D] of the global best, valid until the next call; a new row in state="mixture"."""
        if self._weights is None:
            return self._mix(self._best_mixture())
        return self._serve(self._weights.table.g)

    def global_best_mixture(self) -> list[float] | None:
        """[n] the global best as a mixture of the experts: exact up to the rounding of weights; None if it is none."""
        return None if self._mixtures is None else self._best_mixture().tolist()

    def best_mixture(self, particle: int) -> list[float] | None:
        """[n] a particle's personal best, as `global_best_mixture` has it."""
        return None if self._mixtures is None else self._mixture(particle, best=True).tolist()

    def _serve(self, row: int) -> torch.Tensor:
        assert self._weights is not None
        if self._cache is None or not self._copied([row]):
            return self._weights.rows[row]
        if self._served is not None:
            self._cache.release(self._served)
            self._served = None
        self._served = self._cache.get(row)
        return self._served

    def _copied(self, rows: Sequence[int]) -> list[int]:
        """Those of the rows that are served from a copy."""
        return [row for row in rows if row >= self._in_place]

    def _mixture(self, particle: int, best: bool) -> torch.Tensor:
        assert self._mixtures is not None
        return self._mixtures.personal_best(particle) if best else self._mixtures.position(particle)

    def _best_mixture(self) -> torch.Tensor:
        assert self._mixtures is not None
        return self._mixtures.global_best

    def _mix(self, mixture: torch.Tensor) -> torch.Tensor:
        row = torch.empty_like(self._experts[:1])
        mix_(row, self._experts, mixture[None].to(row.device, torch.float32))
        return row[0]


class Bests:
    """The personal bests of particles, as positions that can be evaluated, until the next update."""

    def __init__(self, particles: Population) -> None:
        self._particles = particles

    def key(self, particle: int) -> bytes | None:
        """Names the exact position; None of a large row."""
        return self._particles.key(particle, best=True)

    def load(self, engine: Any, slot: int, particle: int) -> None:
        """Have the engine serve a particle's best from a slot."""
        self._particles.load(engine, slot, particle, best=True)

    def row(self, particle: int) -> torch.Tensor:
        """Weights [D] of a particle's best, valid until the next call."""
        return self._particles.row(particle, best=True)

    def prefetch(self, particles: Sequence[int]) -> None:
        """These are loaded next."""
        self._particles.prefetch(particles, best=True)
