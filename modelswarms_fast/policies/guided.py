"""Guided search: the moves of a swarm to begin with, then what a Gaussian process over all positions proposes.

A move is a Thompson batch: of candidates around the best positions, the argmax of one function a particle, drawn from
the posterior. It depends on the seed and on what was told, and on nothing else.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from modelswarms_fast.policies import Problem
from modelswarms_fast.policies.surrogate import fit

Floats = npt.NDArray[np.float64]

# Chosen on synthetic tasks: benchmarks/quality/synthetic_tasks.py.
SWARM_MOVES = 1
"""Moves of the swarm before the first proposal; none where earlier runs have told as much."""
BEST = 6
"""Best positions that candidates are drawn around."""
WIDTHS = (0.05, 0.15, 0.3)
"""Standard deviations of the candidates around a position, in each coordinate of the space."""
AROUND = 40
"""Candidates of each width around each of the best positions."""
LINES = 280
"""Candidates t·a + (1 - t)·b of one of the best positions a and any other b, t ~ U(-0.5, 1.5)."""
MOST = 2000
"""Most positions that a surrogate is fitted to: those of the highest utility."""
UNIT = 1e-9
"""To which coefficients are rounded to tell whether two positions are the same."""


class Guided:
    """The policy of a guided search; see `modelswarms_fast.policies`."""

    def __init__(self, problem: Problem) -> None:
        """`problem.known`: positions of earlier runs, from which the first proposal is made at once if they suffice."""
        self._problem = problem
        self._moves = 0
        mixtures, utilities = problem.known
        self._mixtures, self._utilities = _finite(mixtures, utilities)
        self._enough = len(self._mixtures) >= (SWARM_MOVES + 1) * problem.particles

    def ask(self) -> Floats | None:
        """[P, n] the next positions; None: those that the swarm's own move gives."""
        self._moves += 1
        few = len(np.unique(self._utilities)) < 2
        if few or (self._moves <= SWARM_MOVES and not self._enough):
            return None
        some = np.sort(np.argsort(-self._utilities, kind="stable")[:MOST])
        surrogate = fit(self._mixtures[some], self._utilities[some], self._problem.products)
        candidates = self._candidates()
        # Drawn by number of the move, so that no two moves share a stream.
        samples = surrogate.sample(candidates, self._problem.particles, _seed(self._problem.seed, self._moves, 1))
        chosen: list[int] = []
        for sample in samples:
            sample[chosen] = -np.inf
            chosen.append(int(sample.argmax()))
        return candidates[chosen]

    def tell(self, mixtures: Floats, utilities: Floats) -> None:
        """Take in the utilities [P] of positions [P, n]; NaN is none. A position that is known stays as it was."""
        mixtures, utilities = _finite(mixtures, utilities)
        new = _new(mixtures, self._mixtures)
        self._mixtures = np.concatenate([self._mixtures, mixtures[new]])
        self._utilities = np.concatenate([self._utilities, utilities[new]])

    def _candidates(self) -> Floats:
        """[k, n] positions of the space, none of which is known, and no two of them the same."""
        space = self._problem.space
        random = np.random.default_rng(_seed(self._problem.seed, self._moves, 0))
        order = np.argsort(-self._utilities, kind="stable")
        best = self._mixtures[order[:BEST]]
        centres = space.encode(best)
        each = max(AROUND, self._problem.particles)  # so that there is one for every particle
        shape = (len(WIDTHS), each, *centres.shape)
        around = centres + np.array(WIDTHS)[:, None, None, None] * random.standard_normal(shape)
        a = best[random.integers(len(best), size=LINES)]
        b = self._mixtures[random.integers(len(self._mixtures), size=LINES)]
        t = random.uniform(-0.5, 1.5, size=(LINES, 1))
        drawn = np.concatenate([around.reshape(-1, space.size), space.encode(t * a + (1 - t) * b)])
        found = space.decode(space.clip(drawn))
        return found[_new(found, self._mixtures)]


def _seed(seed: int, move: int, purpose: int) -> int:
    return int(np.random.SeedSequence([seed, move, purpose]).generate_state(1, np.uint64)[0])


def _finite(mixtures: Floats, utilities: Floats) -> tuple[Floats, Floats]:
    kept = np.isfinite(utilities)
    return mixtures[kept], utilities[kept]


def _new(mixtures: Floats, known: Floats) -> npt.NDArray[np.int64]:
    """The numbers of the mixtures that are neither known nor the same as one before."""
    names = {_name(one) for one in known}
    found = []
    for number, one in enumerate(mixtures):
        if (name := _name(one)) not in names:
            names.add(name)
            found.append(number)
    return np.array(found, dtype=np.int64)


def _name(mixture: Floats) -> bytes:
    return np.round(mixture / UNIT).astype(np.int64).tobytes()
