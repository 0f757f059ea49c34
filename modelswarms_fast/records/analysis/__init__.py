"""What run folders show, beyond who won: each file one analysis.

An analysis is a function from a `RunFolder`, or several, to numbers that JSON holds, or to None where the folder lacks
what it needs; a function that draws these numbers; and one that says them in words. Nothing here runs a model.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from modelswarms_fast.errors import InputError
from modelswarms_fast.errors.arguments import check_path
from modelswarms_fast.records import checks, run_folder, schemas

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RunFolder:
    """The files of a run."""

    path: Path
    config: dict[str, Any]
    history: list[dict[str, Any]]
    """Lines that are whole; a line that a crash cut off is not among them."""
    summary: dict[str, Any] | None
    """None if the run has not ended."""
    test: dict[str, Any] | None
    """Content of test_scores.json, if there is one."""
    answers: dict[str, Any] | None = None
    """Content of answers.json, if there is one: questions on which the winner and the best expert differ."""

    @property
    def facts(self) -> dict[str, Any]:
        """What config.json and summary.json say."""
        return {**self.config, **(self.summary or {})}

    @property
    def experts(self) -> list[str]:
        """Names of the experts, in the order of a mixture's coefficients."""
        return list(self.config["experts"])

    @property
    def initial_experts(self) -> list[int]:
        """The particles that are experts at the start."""
        return list(range(len(self.config.get("first") or self.experts)))

    def positions(self) -> Floats | None:
        """[iterations + 1, P, n] every position as a mixture of the experts; None if they are none, or not recorded."""
        lines = [line.get("mixtures") for line in self.history]
        if not lines or any(one is None for one in lines):
            return None
        return np.array(lines, dtype=np.float64)

    def dev_scores(self) -> dict[str, Floats] | None:
        """Scores [P, E] on dev, NaN where there is none, of the particles where they were at the `start`, at the
        `end`, and at their personal `best`; None if they were not recorded, or an evaluation stopped early.

        A particle that was not evaluated at the end has the scores of its last evaluation, as its utility is.
        """
        lines = [line.get("scores") or [] for line in self.history]
        if not all(lines) or not lines:
            return None
        if any(line.get("bounded") for line in self.history):
            return None  # what was not asked is neither right nor wrong, and it is the losers that were not asked
        start = _array(lines[0])
        end, best = start.copy(), start.copy()
        for line, scores in zip(self.history[1:], lines[1:], strict=True):
            improved = set(line.get("improved", []))
            for particle, values in enumerate(scores):
                if values is not None:
                    end[particle] = _array(values)
                    if particle in improved:
                        best[particle] = end[particle]
        return {"start": start, "end": end, "best": best}

    def test_scores(self) -> dict[str, Floats] | None:
        """Scores on test of the `experts` [n, E], of the particles [P, E] at the `start`, at their `best` and at the
        `end`, which a search lacks that was cut in an iteration."""
        if self.test is None:
            return None
        return {name: _array(group["scores"]) for name, group in self.test["groups"].items()}

    def dev_utilities(self) -> dict[str, Floats]:
        """Utilities [P] on dev at the start, the end, and of the personal bests."""
        rows = [np.array([np.nan if one is None else one for one in line["utilities"]]) for line in self.history]
        best = np.fmax.reduce(rows)
        return {"start": rows[0], "end": rows[-1], "best": best}


def read_run(folder: str | os.PathLike[str]) -> RunFolder:
    """Read a run folder, also of a run that has not ended.

    Raises:
        InputError: a file is missing or damaged, or a link leads out of the folder.
    """
    check_path("run", folder)
    path = Path(folder)
    run_folder.check_links(path)
    config, history = run_folder.read_json(path / run_folder.CONFIG), run_folder.read_history(path / run_folder.HISTORY)
    if not isinstance(config.get("experts"), list):
        raise InputError(f"{path / run_folder.CONFIG} names no experts; give the folder of a search")
    checks.check(schemas.Config, config, path / run_folder.CONFIG)
    checks.check_history(history, path / run_folder.HISTORY, len(config["experts"]))

    def if_there(name: str) -> dict[str, Any] | None:
        return run_folder.read_json(path / name) if os.path.lexists(path / name) else None

    summary, test, answers = map(if_there, (run_folder.SUMMARY, run_folder.TEST_SCORES, run_folder.ANSWERS))
    if summary is not None:
        checks.check(schemas.Summary, summary, path / run_folder.SUMMARY)
    if test is not None:
        checks.check_test_scores(test, path / run_folder.TEST_SCORES)
    if answers is not None:
        checks.check(schemas.Answers, answers, path / run_folder.ANSWERS)
    return RunFolder(path, config, history, summary, test, answers)


def right(scores: Floats) -> npt.NDArray[np.bool_] | None:
    """Which answers are right, where scores say right or wrong: 1 is right, 0 and -1 are not, nor is a NaN.

    None where they are graded.
    """
    known = scores[~np.isnan(scores)]
    return scores == 1 if np.isin(known, (-1.0, 0.0, 1.0)).all() else None


def _array(values: Any) -> Floats:
    return np.array(values, dtype=np.float64)  # None becomes NaN
