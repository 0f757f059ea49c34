"""Which row holds what: positions, velocities and bests as row numbers, so that no promotion or restart moves a byte.

A swarm of P particles has 3P + 2 rows. Rows 0 to 2P + 1 hold positions: those of the particles, and those that a
personal best, the global best or the global worst still needs. Rows 2P + 2 to 3P + 1 hold the velocities.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def count_rows(particles: int) -> int:
    """Rows of a swarm: P positions and P + 2 bests at most, P velocities."""
    return 3 * particles + 2


class RowTable:
    """Row numbers x, v, p [P], g and w. At first every particle is its own personal best."""

    def __init__(self, particles: int) -> None:
        self.count = count_rows(particles)
        self.x: Numbers = np.arange(particles)
        self.v: Numbers = np.arange(2 * particles + 2, self.count)
        self.p: Numbers = self.x.copy()
        self.g = 0
        self.w = 0

    def update(self, restarts: Bools) -> Numbers:
        """Choose the rows of the next positions; [P, 5] = x_in, x_out, v_in, v_out, p for `swarm_update_rows_`.

        x' replaces x unless a best lies there: then it goes to a free row. A particle that restarts (True) starts
        from its personal best with velocity 0.
        """
        taken = np.zeros(len(self.x) * 2 + 2, dtype=np.bool_)
        taken[self.p] = taken[self.g] = taken[self.w] = True
        kept = taken[self.x]
        taken[self.x] = True
        x_in, v_in = np.where(restarts, self.p, self.x), np.where(restarts, -1, self.v)
        # At most 2P + 2 position rows are taken after an update, so there are as many free ones as are needed.
        self.x = self.x.copy()
        self.x[kept] = np.flatnonzero(~taken)[: np.count_nonzero(kept)]
        return np.stack((x_in, self.x, v_in, self.v, self.p), axis=1)

    def promote(self, improved: Bools, global_best: int | None, global_worst: int | None) -> None:
        """Let bests point at the rows where these particles are now: [P] new personal bests, and two particles."""
        self.p = np.where(improved, self.x, self.p)
        if global_best is not None:
            self.g = int(self.x[global_best])
        if global_worst is not None:
            self.w = int(self.x[global_worst])
