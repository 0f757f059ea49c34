"""The positions of a swarm, as rows or as mixtures of the experts, and what an engine is given to serve one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from modelswarms_fast.config import LARGEST_COEFFICIENT, EngineConfig, Randomness, Space
from modelswarms_fast.weights.arena import empty_rows
from modelswarms_fast.weights.experts import Experts
from modelswarms_fast.weights.mixing import mix_row
from modelswarms_fast.weights.placement import Placement
from modelswarms_fast.weights.row_cache import RowCache
from modelswarms_fast.weights.row_name import row_name
from modelswarms_fast.weights.row_table import count_rows
from modelswarms_fast.weights.rows import SwarmRows

Floats = npt.NDArray[np.float64]


class Position(NamedTuple):
    """What an engine is given to serve: a row or a mixture."""

    row: torch.Tensor | None = None
    """[D] weights."""
    mixture: torch.Tensor | None = None
    """[n] coefficients of the experts that the engine was started with."""


class MadeRow:
    """A row [D] that is made when it is needed and kept as long as this is."""

    def __init__(self, make: Callable[[], torch.Tensor]) -> None:
        self._make, self._row = make, None

    _row: torch.Tensor | None

    def name(self) -> bytes | None:
        """Names the row."""
        return row_name(self.row())

    def position(self) -> Position:
        """The row."""
        return Position(row=self.row())

    def row(self) -> torch.Tensor:
        """[D]"""
        if self._row is None:
            self._row = self._make()
        return self._row

    def prefetch(self) -> None:
        """Nothing: it is made when it is needed."""


@dataclass(frozen=True, eq=False)
class MixtureOf:
    """A mixture [n] of the experts that an engine serves as it is."""

    experts: Experts
    mixture: torch.Tensor

    def name(self) -> bytes | None:
        """Names the mixture."""
        return self.mixture.numpy().tobytes()

    def position(self) -> Position:
        """The mixture."""
        return Position(mixture=self.mixture)

    def row(self) -> torch.Tensor:
        """[D] its weights."""
        return mix_row(self.experts, self.mixture)

    def prefetch(self) -> None:
        """Nothing: the experts are there."""


@dataclass(frozen=True, eq=False)
class Particle:
    """Where a particle of a population is or, with `best`, its personal best; valid until the next update."""

    population: Population
    number: int
    best: bool = False

    def name(self) -> bytes | None:
        """Names the position."""
        return self.population.name(self.number, self.best)

    def position(self) -> Position:
        """Its row or mixture."""
        return self.population.position(self.number, self.best)

    def row(self) -> torch.Tensor:
        """[D] its weights."""
        return self.population.row(self.number, self.best)

    def prefetch(self) -> None:
        """Begin to bring its row to where it is served."""
        self.population.prefetch(self.number, self.best)


class Population:
    """Every position is an affine mixture of the experts, and mixtures [P, n] move by the scalars that move weights.

    state="weights" holds rows [3P + 2, D] and, at no cost, the mixtures beside them, so that a run can say what its
    winner is made of. state="mixture" holds only mixtures and the experts; an engine is given a mixture,
    and weights are made only for an export or a check.
    With randomness="coordinate" a position is no mixture any more, and there are only weights.
    """

    def __init__(
        self,
        experts: Experts,
        positions: Floats,
        config: EngineConfig,
        device: torch.device,
        *,
        randomness: Randomness = "particle",
        space: Space = "affine",
        seed: int = 0,
        placement: Placement | None = None,
        mixtures_served: bool = True,
    ) -> None:
        """positions [P, n]: where the particles begin, as mixtures of the experts.

        Rows are kept on `device`; mixtures, a few numbers each, on the CPU.

        `experts.room` is where the rows of the population go, if it has their number and lies on `device`. It may
        begin with the experts, which then become the first particles: `experts.rows` [n, D] are valid until the first
        update. Where the placement has a cache, rows stay in that room, on slower tiers, and those that are not served
        from there come to `device` to be served.

        `randomness`, `space` and `seed` are the swarm's. `mixtures_served`: in state="mixture", whether the engine
        takes mixtures; else it is given rows.
        """
        self._positions = positions
        self._draws = (config.rounding, randomness, seed)
        self._space = space
        count, n = positions.shape
        self._identity = torch.eye(n, dtype=torch.float64)
        self._mixtures: SwarmRows | None = None
        if randomness != "coordinate":
            mixtures = torch.empty((count_rows(count), n), dtype=torch.float64)
            self._mixtures = SwarmRows(self._identity, positions, mixtures)
        cached = 0 if placement is None else placement.cache_rows
        self._in_place = 0 if placement is None else placement.served_in_place
        self._weights: SwarmRows | None = None
        if config.state != "mixture":
            rows, self._experts = experts.room, experts.rows
            where = rows.device if cached else device
            firsts = bool((positions[:n] == self._identity.numpy()).all()) if count >= n else False
            usable = firsts or rows.data_ptr() != experts.rows.data_ptr()
            if not usable or rows.device.type != where.type or len(rows) != count_rows(count):
                rows = empty_rows(count_rows(count), experts.layout.size, experts.rows.dtype, where)
                if firsts:
                    # Where they begin as particles: on a GPU there may be no room for a copy beside that.
                    self._experts = rows[:n].copy_(experts.rows)
            self._experts = self._experts.to(where)
            self._weights = SwarmRows(self._experts, positions, rows, device=device)
        else:
            self._experts = experts.rows if cached else experts.rows.to(device)
            self._mixed = replace(experts, rows=self._experts, room=self._experts)
        self._mixtures_served = mixtures_served
        self._cache: RowCache | None = None
        self._served: torch.Tensor | None = None  # what the cache has given us last
        if cached and self._weights is not None:
            self._cache = RowCache(self._weights.rows, cached, device)

    def start(self, velocities: Floats) -> None:
        """Set the initial velocities, [P, n] mixtures of the experts."""
        if self._mixtures is not None:
            self._mixtures.start(self._identity, velocities)
        if self._weights is not None:
            self._weights.start(self._experts, velocities)
            self._experts = self._experts.new_empty(0)  # their rows belong to the particles from now on

    def update(
        self,
        restarts: npt.NDArray[np.bool_],
        coefficients: npt.NDArray[np.float32],
        step_length: float,
        iteration: int,
    ) -> None:
        """Move every particle: restarts [P], coefficients [P, 4]."""
        rounding, randomness, seed = self._draws
        moves = (restarts, coefficients, step_length, iteration)
        if self._mixtures is not None:
            self._mixtures.update(*moves, coordinate=randomness == "expert", seed=seed)
            if randomness == "expert":
                self._return_to_space()
        if self._weights is not None:
            self._weights.update(*moves, rounding=rounding, coordinate=randomness == "coordinate", seed=seed)
            if self._cache is not None:  # all of these rows, and no others that are served, were written
                self._cache.invalidate(self._weights.table.x.tolist())

    def place(self, mixtures: Floats) -> None:
        """Put every particle at a mixture of its own, [P, n], with velocity 0; for state="mixture".

        Velocity 0, since which particle is put where means nothing: the way from its last position is none to go on.
        """
        assert self._mixtures is not None
        assert self._weights is None
        self._mixtures.place(mixtures)

    def promote(self, improved: npt.NDArray[np.bool_], global_best: int | None, global_worst: int | None) -> None:
        """Record new bests: improved [P], and the particles that are the new global best and worst; no weights move."""
        for rows in (self._mixtures, self._weights):
            if rows is not None:
                rows.promote(improved, global_best, global_worst)
        if self._cache is not None and self._weights is not None:
            self._cache.pin(self._copied([self._weights.table.g]))

    def candidates(self, particles: Iterable[int], best: bool = False) -> dict[int, Particle]:
        """These particles as positions that can be scored, by number; `best`: their personal bests."""
        return {particle: Particle(self, particle, best) for particle in particles}

    def prefetch(self, particle: int, best: bool = False) -> None:
        """Begin to bring a particle's row to where it is served, if it is not there; returns at once."""
        if self._cache is not None and self._weights is not None:
            table = self._weights.table
            self._cache.prefetch(self._copied([int((table.p if best else table.x)[particle])]))

    def close(self) -> None:
        """End the thread that fetches rows ahead."""
        if self._cache is not None:
            self._cache.close()

    def name(self, particle: int, best: bool = False) -> bytes | None:
        """Names the exact position of a particle: by its row, or by its mixture where there is no row in host memory.

        None where there is neither. `best`, here and below: its personal best instead.
        """
        if self._weights is not None:
            row = self._weights.personal_best(particle) if best else self._weights.position(particle)
            if row.device.type == "cpu":
                return row_name(row)
        return None if self._mixtures is None else self._mixture(particle, best).numpy().tobytes()

    def position(self, particle: int, best: bool = False) -> Position:
        """What an engine is given to serve a particle, valid until the next call."""
        if self._weights is not None or not self._mixtures_served:
            return Position(row=self.row(particle, best))
        return Position(mixture=self._mixture(particle, best))

    def row(self, particle: int, best: bool = False) -> torch.Tensor:
        """Weights [D] of a particle's position, valid until the next call."""
        if self._weights is None:
            return self._mix(self._mixture(particle, best))
        table = self._weights.table
        return self._serve(int((table.p if best else table.x)[particle]))

    def velocity(self, particle: int) -> torch.Tensor:
        """[D] a particle's velocity, where its rows lie, valid until the next update; of state="weights"."""
        assert self._weights is not None
        return self._weights.rows[int(self._weights.table.v[particle])]

    def global_worst(self) -> torch.Tensor:
        """[D] the global worst, in the same way."""
        assert self._weights is not None
        return self._weights.global_worst

    def mixtures(self) -> Floats | None:
        """[P, n] the positions as mixtures of the experts, as `global_best_mixture` has it."""
        if self._mixtures is None:
            return None
        rows: Floats = self._mixtures.rows.numpy()
        return rows[self._mixtures.table.x]

    def global_best(self) -> torch.Tensor:
        """Weights [D] of the global best, valid until the next call."""
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

    def _return_to_space(self) -> None:
        """Move what drew a factor for each expert back to the nearest mixtures of the space.

        `affine`: positions to sum 1 and velocities to sum 0. `free`: positions into the box.
        """
        assert self._mixtures is not None
        rows, table = self._mixtures.rows, self._mixtures.table
        positions, velocities = rows[table.x], rows[table.v]
        if self._space == "free":
            rows[table.x] = positions.clamp(-LARGEST_COEFFICIENT, LARGEST_COEFFICIENT)
            return
        n = rows.shape[1]
        rows[table.x] = positions - (positions.sum(dim=1, keepdim=True) - 1) / n
        rows[table.v] = velocities - velocities.sum(dim=1, keepdim=True) / n

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
        return mix_row(self._mixed, mixture)
