"""The rows of one rank: where particles are, how they move, and what is best."""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from modelswarms_fast.ops import Rounding, mix_, swarm_update_rows_
from modelswarms_fast.weights.row_table import Numbers, RowTable, count_rows
from modelswarms_fast.weights.streaming import stream_update_rows_

Floats = npt.NDArray[np.float64]


class SwarmRows:
    """Rows [3P + 2, D] of positions, velocities and bests, or the columns of them that one rank holds.

    Which row is whose says a RowTable: a promotion or restart changes row numbers and moves no weights. The same class
    holds weights (the experts [n, D]) and mixtures (the identity [n, n]): a row is a row. Nothing is allocated after
    construction.
    """

    def __init__(
        self,
        experts: torch.Tensor,
        positions: Floats,
        rows: torch.Tensor,
        first_column: int = 0,
        device: torch.device | None = None,
    ) -> None:
        """positions [P, n], the initial positions as mixtures of the experts; rows [3P + 2, D], to be written.

        `experts` [n, D] may be the first n rows of `rows` where the first n particles are the experts.
        `first_column` says where these D columns begin in the whole rows, for a rank that holds a part of them.
        `device` is where updates are computed if not where the rows are: they are streamed there and back.
        """
        particles, count = positions.shape
        if len(rows) != count_rows(particles) or rows.shape[1:] != experts.shape[1:]:
            raise ValueError(f"{particles} particles need rows [{count_rows(particles)}, {experts.shape[1]}]")
        self.rows = rows
        self.table = RowTable(particles)
        self._first_column = first_column
        here = device is None or device.type == rows.device.type
        self._move = swarm_update_rows_ if here else partial(stream_update_rows_, device=device)
        if rows.data_ptr() == experts.data_ptr():
            if (positions[:count] != torch.eye(count).numpy()).any():
                raise ValueError("experts in the first rows are the positions of the first particles")
            if particles > count:
                mix_(rows[count:particles], experts, _mixture(positions[count:], rows))
        else:
            mix_(rows[:particles], experts, _mixture(positions, rows))
        rows[self.table.v[0] :].zero_()

    def start(self, experts: torch.Tensor, velocities: Floats) -> None:
        """Set the initial velocities, [P, n] mixtures of the same experts."""
        mix_(self.rows[self.table.v[0] :], experts, _mixture(velocities, self.rows))

    def update(
        self,
        restarts: npt.NDArray[np.bool_],
        coefficients: npt.NDArray[np.float32],
        step_length: float,
        iteration: int,
        *,
        rounding: Rounding = "nearest",
        coordinate: bool = False,
        seed: int = 0,
    ) -> None:
        """Move every particle: one fused pass. A restart is a particle's x ← p, v ← 0 within it.

        restarts [P]; coefficients [P, 4]: inertia, cognitive, social, repel. `rounding`, `seed` and randomness, per
        coordinate or not, are those of `swarm_update_rows_`.
        """
        best, worst = self.table.g, self.table.w
        lines: Numbers = self.table.update(restarts)
        self._move(
            self.rows,
            torch.from_numpy(lines),
            best,
            worst,
            torch.from_numpy(coefficients).to(self.rows.device),
            step_length,
            rounding=rounding,
            randomness="coordinate" if coordinate else "particle",
            seed=seed,
            iteration=iteration,
            first_column=self._first_column,
        )

    def place(self, positions: Floats) -> None:
        """Put every particle at a position of its own, [P, D], with velocity 0: no way leads there from its last one.

        Rows on the CPU only.
        """
        lines = self.table.update(np.zeros(len(self.table.x), dtype=np.bool_))
        self.rows[lines[:, 1]] = torch.from_numpy(positions).to(self.rows.dtype)
        self.rows[lines[:, 3]] = 0

    def promote(self, improved: npt.NDArray[np.bool_], global_best: int | None, global_worst: int | None) -> None:
        """Record new bests: improved [P], and the particles that are global best and worst now. Moves no weights."""
        self.table.promote(improved, global_best, global_worst)

    def position(self, particle: int) -> torch.Tensor:
        """[D] the row of a particle's position, valid until the next update."""
        return self.rows[self.table.x[particle]]

    def personal_best(self, particle: int) -> torch.Tensor:
        """[D] the row of a particle's personal best, valid until the next update."""
        return self.rows[self.table.p[particle]]

    @property
    def global_best(self) -> torch.Tensor:
        """[D] the row of the global best, valid until the next update."""
        return self.rows[self.table.g]

    @property
    def global_worst(self) -> torch.Tensor:
        """[D] the row of the global worst, valid until the next update."""
        return self.rows[self.table.w]


def _mixture(mixture: Floats, rows: torch.Tensor) -> torch.Tensor:
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    return torch.from_numpy(mixture).to(rows.device, dtype)
