"""Scores that are known already: a position is evaluated once on a split, by all calls of a run together."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from modelswarms_fast.evaluation.early_stopping import PartialScores
from modelswarms_fast.records.score_file import ScoreFile

# Bytes of scores that a search keeps of positions it has been at: 9 for each example, so 9,000 positions of 200
# examples. Only a position that comes back after so many others is evaluated again.
KEPT_BYTES = 16 << 20


class ScoreCache:
    """Scores by split and exact position, of whole and of partial evaluations; the oldest go when it is full.

    What is not here may be in the file of a run folder.
    """

    def __init__(self, room: int = KEPT_BYTES, file: ScoreFile | None = None) -> None:
        """`room` in bytes of scores."""
        self._room, self._file = room, file
        self._bytes = 0
        self._kept: dict[tuple[str, bytes], tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]] = {}

    def fill(self, split: str, key: bytes | None, known: PartialScores) -> int:
        """Fill in the scores that are known of a position; how many these are."""
        if key is None:
            return 0
        if (split, key) not in self._kept:
            found = None if self._file is None else self._file.position("scores", split, key)
            if found is None or len(found) != len(known.scores):
                return 0
            known.scores = found
            self.keep(split, key, known)
        values, given = self._kept[split, key]
        for example in np.flatnonzero(given).tolist():
            known.scores[example] = float(values[example])
        return int(given.sum())

    def keep(self, split: str, key: bytes | None, known: PartialScores) -> None:
        """Remember the scores of a position, in place of what was known of it."""
        if key is None:
            return
        if old := self._kept.pop((split, key), None):
            self._bytes -= old[0].nbytes + old[1].nbytes
        values = np.array(known.scores, dtype=np.float64)  # None becomes NaN, which a score can be as well
        given = np.ones(len(values), dtype=bool)
        if not known.complete:
            given[:] = [score is not None for score in known.scores]
        self._kept[split, key] = (values, given)
        self._bytes += values.nbytes + given.nbytes
        while self._bytes > self._room:
            values, given = self._kept.pop(next(iter(self._kept)))
            self._bytes -= values.nbytes + given.nbytes
