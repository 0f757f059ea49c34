"""`scores.jsonl` of a run folder: what each evaluation has found, on the disk before the next one is waited for.

A line is a JSON object (`schemas.ScoreLine`) whose last member, `crc`, is a checksum of all before it. A position is
found again by its name, a particle of a search by its iteration. Lines that a kill cut off are dropped.
"""

from __future__ import annotations

import math
import os
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from modelswarms_fast.errors import InputError
from modelswarms_fast.records.progress import say
from modelswarms_fast.records.run_folder import SCORES, Journal, to_line
from modelswarms_fast.records.schemas import ScoreLine

Visit = tuple[str, int, int]
"""A search, an iteration and a particle."""

_VISIT = ("for", "iteration", "particle")
_CHECK = b', "crc": "%08x"}\n'
_CHECK_LENGTH = len(_CHECK % 0)
_Position = tuple[str, str, str]


class Cost(NamedTuple):
    """What one evaluation took."""

    evaluations: int = 0
    prompts: int = 0
    tokens: int = 0
    reused: int = 0
    passes: int = 0
    """Of an ensemble: prompts that have gone through an expert, for this evaluation and those under way with it."""


class Line(NamedTuple):
    """What a line says."""

    content: list[Any]
    """Scores, None where none was needed; or answers."""
    cost: Cost
    asked_by: str


class _Place(NamedTuple):
    file: int
    offset: int
    length: int


class ScoreFile:
    """The scores of a run folder, and of other runs that it may use; lines are found without being kept in memory."""

    def __init__(self, folder: str | os.PathLike[str], of: str, reuse: Sequence[str | os.PathLike[str]] = ()) -> None:
        """Open or create the file of a run folder; what a kill has cut off is removed from its end.

        Args:
            folder: the run folder.
            of: the digest of what is evaluated with. Positions of other lines are not found.
            reuse: other run folders. They are only read.

        Raises:
            InputError: a file cannot be read or written.
        """
        self.of = of
        self._positions: dict[_Position, _Place] = {}  # of the run's own file
        self._others: dict[_Position, _Place] = {}  # of other runs, where they have a score of every example
        self._whole: set[_Position] = set()  # those of its own that have a score of every example
        self._visits: dict[Visit, _Place] = {}
        self._paid: set[_Place] = set()
        self._lock = threading.Lock()
        self._handles: list[int] = []
        paths = [Path(one) / SCORES for one in (folder, *reuse)]
        self._journal = Journal(paths[0])
        try:
            for number, path in enumerate(paths):
                self._handles.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                end = self._read(number, path)
                if number == 0:
                    os.truncate(path, end)
                    self._end = self._before = end
        except OSError as error:
            self.close()
            raise InputError(f"cannot read {path}: {error.strerror}; give a run folder with its files whole") from error

    def close(self) -> None:
        """Close the files; nothing can be found or appended after."""
        self._journal.close()
        while self._handles:
            os.close(self._handles.pop())

    def position(self, kind: str, split: str, name: bytes | None) -> list[Any] | None:
        """What is known of a position on a split: its "scores" or its "answers", one an example."""
        place = self._place(kind, split, name)
        line = None if place is None else self._line(place)
        return None if line is None else line.content

    def holds(self, kind: str, split: str, name: bytes | None) -> bool:
        """Whether the run's own file knows a position on all examples of a split."""
        return name is not None and (kind, split, name.hex()) in self._whole

    def visit(self, visit: Visit) -> Line | None:
        """What is known of a particle in an iteration of a search of this run."""
        place = self._visits.get(visit)
        return None if place is None else self._line(place)

    def unpaid(self, kind: str, split: str, name: bytes | None, asked_by: str) -> Cost | None:
        """What a position has cost an earlier call of this run that asked for the same; told once, and then None.

        So a run that goes on counts what it would have counted without the cut.
        """
        place = self._place(kind, split, name)
        if place is None or place.file or place.offset >= self._before or place in self._paid:
            return None
        self._paid.add(place)
        line = self._line(place)
        return line.cost if line is not None and line.asked_by == asked_by else None

    def append(
        self,
        kind: str,
        split: str,
        name: bytes | None,
        content: Sequence[Any],
        cost: Cost,
        asked_by: str = "",
        visit: Visit | None = None,
    ) -> None:
        """Write a line and wait until the disk has it. Raises InputError."""
        position = None if name is None else name.hex()
        if kind == "scores":  # JSON has no NaN, and null is a score that is missing
            content = ["nan" if one is not None and math.isnan(one) else one for one in content]
        fields: dict[str, Any] = {"of": self.of, "split": split, "position": position, kind: content, "cost": cost}
        fields |= {"for": asked_by} if visit is None else dict(zip(_VISIT, visit, strict=True))
        body = to_line(fields).rstrip()[:-1].encode(errors="backslashreplace")
        data = body + _CHECK % zlib.crc32(body)
        with self._lock:
            self._journal.write(data)
            key = None if position is None else (kind, split, position)
            self._note(_Place(0, self._end, len(data)), key, whole=None not in content, visit=visit)
            self._end += len(data)

    def _read(self, number: int, path: Path) -> int:
        """Index a file; returns where its last whole line ends. Raises OSError."""
        damaged, end, offset = list[int](), 0, 0
        with path.open("rb") as file:
            for count, raw in enumerate(file, start=1):
                line = _read_line(raw)
                if line is None:
                    damaged.append(count)
                else:
                    self._note(_Place(number, offset, len(raw)), *self._named(line))
                    end = offset + len(raw)
                    for one in damaged:  # not the end that a kill cut off
                        say(f"Warning: line {one} of {path} is damaged; what it said is evaluated again", "yellow")
                    damaged.clear()
                offset += len(raw)
        return end

    def _named(self, line: ScoreLine) -> tuple[_Position | None, bool, Visit | None]:
        """What a line can be found by: a position, if it has one of these experts and data, and its visit."""
        kind, content = ("scores", line.scores) if line.answers is None else ("answers", line.answers)
        key = (kind, line.split, line.position) if line.of == self.of and line.position is not None else None
        visit = None
        if line.iteration is not None and line.particle is not None:
            visit = line.asked_by, line.iteration, line.particle
        return key, content is not None and None not in content, visit

    def _note(self, place: _Place, key: _Position | None, whole: bool, visit: Visit | None) -> None:
        """Put a line into the index; `whole`: it has something for every example."""
        own = place.file == 0
        if own and visit is not None:
            self._visits[visit] = place
        if key is None:
            return
        if not own:
            if whole:
                self._others[key] = place
        elif whole or key not in self._whole:
            self._positions[key] = place
            if whole:
                self._whole.add(key)

    def _place(self, kind: str, split: str, name: bytes | None) -> _Place | None:
        if name is None:
            return None
        key = kind, split, name.hex()
        own = self._positions.get(key)
        return own if key in self._whole else self._others.get(key, own)

    def _line(self, place: _Place) -> Line | None:
        line = _read_line(os.pread(self._handles[place.file], place.length, place.offset))
        if line is None:  # the disk has lost it since
            return None
        scores = [None if score is None else float(score) for score in line.scores or ()]
        return Line(scores if line.answers is None else line.answers, Cost(*line.cost), line.asked_by)


def _read_line(raw: bytes) -> ScoreLine | None:
    """What a line says; None if it is not whole, or says what no run writes."""
    body, check = raw[:-_CHECK_LENGTH], raw[-_CHECK_LENGTH:]
    if check != _CHECK % zlib.crc32(body):
        return None
    try:
        return ScoreLine.model_validate_json(body + b"}")
    except ValidationError:
        return None
