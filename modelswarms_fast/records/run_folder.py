"""The files of a run folder, and how they are read and written.

    config.json         what was asked for
    data.json           the examples, where nothing else says which they are: divided here, or from the Hub
    known.json          what a policy was told of earlier runs; see `runs.known`
    history.jsonl       a line for each iteration, appended when it has ended
    scores.jsonl        a line for each evaluation, appended when it has ended; see `score_file`
    summary.json        what was found, once the run has ended
    global_best/        the winner, as a model
    answers.json        test questions on which the winner and the best expert differ
    test_scores.json    scores of all experts and particles on test, if they were asked for
    analysis.json       the numbers of the report's plots
    report.html         the report
    files.jsonl         the names of all these, each before its file is written; see `own_files`

The JSON is strict: NaN and infinities, which JSON lacks, are written as null. A file is written whole or not at all; of
history.jsonl this holds for a line.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from modelswarms_fast.errors import InputError, short
from modelswarms_fast.errors.files import read_bytes, sync
from modelswarms_fast.records import checks, own_files

CONFIG = "config.json"
HISTORY = "history.jsonl"
SCORES = "scores.jsonl"
SUMMARY = "summary.json"
REPORT = "report.html"
GLOBAL_BEST = "global_best"
TENSORBOARD = "tensorboard"
ANALYSIS = "analysis.json"
TEST_SCORES = "test_scores.json"
ANSWERS = "answers.json"
DATA = "data.json"
KNOWN = "known.json"
# The engine that a token swarm's records name: its mixtures are of what experts say, not of their weights.
ENSEMBLE = "ensemble"
_NUMBERED = re.compile(r"data_([1-9][0-9]*)\.json")
_LOCKS: set[int] = set()
_REMEDY = "give the folder of a run, with its files whole"


class Journal:
    """Appends lines to a `history.jsonl` or `scores.jsonl`; a line is on the disk when `append` returns, unchanged."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open `path` for appending, creating it where it is missing. Raises InputError."""
        self.path = Path(path)
        try:
            own_files.add(self.path)
            self._file: BinaryIO = self.path.open("ab", buffering=0)
            sync(self.path.parent)  # else a crash could lose the file's name along with its lines
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    @property
    def folder(self) -> Path:
        """The run folder, which holds the journal."""
        return self.path.parent

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one line and wait until the disk has it. Raises InputError when it cannot be written."""
        self.write(_encoded(to_line(line)))

    def write(self, line: bytes) -> None:
        """Write one line as it is, with the same promise. Raises InputError when it cannot be written."""
        data = memoryview(line)
        try:
            while data:  # an unbuffered write may take only a part
                data = data[self._file.write(data) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def close(self) -> None:
        """Close the file; nothing can be appended after."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_name(folder: str | os.PathLike[str]) -> None:
    """Refuse a folder under whose name safetensors could write no model. Raises InputError."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        name = ascii(str(folder))
        raise InputError(f"no model can be written under {name}, which is not UTF-8; choose another folder") from None


def check_run_folder(folder: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Refuse a folder that holds anything, or with `overwrite` anything that no run wrote; touch nothing.

    Raises InputError.
    """
    folder = Path(folder)
    try:
        if not folder.exists() or own_files.is_empty(folder):
            return
        if not overwrite:
            raise InputError(f"the run folder {folder} is not empty; choose another one or overwrite it")
        check_listed(folder)
        if (other := next(own_files.of_others(folder), None)) is not None:
            raise InputError(f"{folder / other} was written by no run; move it away, or choose another run folder")
    except OSError as error:
        raise _cannot_write(folder, error) from error


def check_listed(folder: str | os.PathLike[str]) -> None:
    """Refuse a folder without the list by which a run knows its own files from others. Raises InputError."""
    if own_files.listed(folder) is None:
        raise InputError(
            f"{folder} is not empty and has no {own_files.FILES}, so no run wrote it; choose another run folder"
        )


def check_links(folder: str | os.PathLike[str]) -> None:
    """Refuse a run folder with a link that leads out of it: it may be somebody else's. Raises InputError."""
    try:
        link = next(own_files.links_out(folder), None) if Path(folder).is_dir() else None
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}; {_REMEDY}") from error
    if link is not None:
        raise InputError(f"{Path(folder, link)} is a link out of the run folder, which is not followed; remove it")


def begin_run(folder: str | os.PathLike[str]) -> None:
    """Make a folder where it is missing, and begin the list of what its run writes.

    Raises InputError, also for a link that leads out of the folder.
    """
    make_folder(folder)
    check_links(folder)
    try:
        own_files.begin(folder)
    except OSError as error:
        raise _cannot_write(Path(folder), error) from error


def will_write(folder: str | os.PathLike[str], *names: str) -> None:
    """Put files that others will write, such as a model's, into the list of the run folder. Raises InputError.

    names: relative to the folder; "tensorboard/" or "wandb/" for all that is in it.
    """
    try:
        for name in names:
            own_files.add(f"{folder}/{name}")
    except OSError as error:
        raise _cannot_write(Path(folder), error) from error


def make_folder(folder: str | os.PathLike[str]) -> None:
    """Make a folder and those above it, where they are missing. Raises InputError."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(Path(folder), error) from error


def clear_run(folder: str | os.PathLike[str]) -> None:
    """Remove what the run in this folder wrote, by its own list. Raises InputError where it holds anything else."""
    check_run_folder(folder, overwrite=True)
    try:
        own_files.remove(folder)
    except OSError as error:
        raise InputError(f"cannot remove {error.filename}: {error.strerror}; choose another run folder") from error


def data_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The files of examples that a run has written, in the order of its tasks."""
    paths = Path(folder).glob("data_*.json")
    numbered = {int(match[1]): path for path in paths if (match := _NUMBERED.fullmatch(path.name))}
    only = Path(folder) / DATA
    return [only] if only.is_file() else [numbered[number] for number in sorted(numbered)]


@contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes from filling the folder until the block ends; what killed ones left half-written is removed.

    The folder is made if it is missing, and removed again if nothing was put into it. Raises InputError if another
    process has it.
    """
    folder = Path(folder)
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    handle = _lock(folder)
    _LOCKS.add(handle)
    try:
        remove_leftovers(folder)
        yield
    finally:
        for one in missing:
            with suppress(OSError):  # it holds something
                one.rmdir()
        _LOCKS.discard(handle)
        os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes have left half-written. Raises InputError."""
    try:
        own_files.remove_leftovers(folder)
    except OSError as error:
        raise InputError(f"cannot remove {error.filename}: {error.strerror}; choose another run folder") from error


def _lock(folder: Path) -> int:
    """The handle that holds the lock of a folder. Raises InputError."""
    while True:
        make_folder(folder)
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # removed meanwhile, by who had made it for nothing
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise InputError(f"another process is at work in {folder}; wait for it, or choose another folder") from None
        except OSError:  # a file system without locks
            return handle
        with suppress(OSError):
            if os.path.samestat(os.stat(folder), os.fstat(handle)):
                return handle
        os.close(handle)


def _let_go() -> None:
    """Close the locks of the parent: a process that outlives it must not hold them."""
    while _LOCKS:
        os.close(_LOCKS.pop())


os.register_at_fork(after_in_child=_let_go)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write `content` as JSON to `path`: afterwards the file is whole and on the disk, or as it was. Raises
    InputError.

    Besides JSON's own types, `content` may hold tuples, paths, and arrays and scalars of numpy.
    """
    write_text(path, _to_json(content, indent=2) + "\n")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 to `path`, with the same promise as `write_json`. Raises InputError."""
    path = Path(path)
    temporary = own_files.temporary_beside(path)  # same folder, hence same disk: the rename is atomic
    try:
        own_files.add(path)
        # New for certain, so that no link that was put there is followed.
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "wb") as file:
            file.write(_encoded(text))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise _cannot_write(path, error) from error


def read_json(path: str | os.PathLike[str], remedy: str = _REMEDY) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: the file is missing or holds anything else. `remedy` says what to do about it.
    """
    raw = _read(Path(path), remedy)
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:  # neither UTF-8 nor JSON, or nested too deeply
        raise InputError(f"{path} is not JSON ({short(error)}); {remedy}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object; {remedy}")
    return content


def read_history(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Lines of a `history.jsonl` in order.

    A last line that a crash cut off is left out: its iteration never ended. A line before it that is no JSON
    object raises InputError with its number, counted from 1.
    """
    path = Path(path)
    raw = _read(path).split(b"\n")
    if raw[-1] == b"":  # the file ends in a line end, as it should
        raw.pop()
    lines = []
    for number, text in enumerate(raw, start=1):
        line = _object(text)
        if line is not None:
            lines.append(line)
        elif number < len(raw):
            raise InputError(f"{path}: line {number} is not a JSON object, the history is damaged; restore a good copy")
    return lines


def read_whole_history(path: Path) -> list[dict[str, Any]]:
    """The lines of a `history.jsonl` up to the first that is damaged or out of order; none where there is no file.

    Raises InputError where the file cannot be read.
    """
    lines: list[dict[str, Any]] = []
    for text in _read(path).split(b"\n") if path.exists() else ():
        line = _object(text)
        if line is None or not checks.can_go_on(line, lines):
            break
        lines.append(line)
    return lines


def _read(path: Path, remedy: str = _REMEDY) -> bytes:
    try:
        return read_bytes(path, largest=None)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; {remedy}") from error


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def to_line(line: Mapping[str, Any]) -> str:
    """A line as `Journal.append` writes it."""
    return _to_json(line) + "\n"


def _encoded(text: str) -> bytes:
    """`text` as UTF-8. The name of a file may hold half characters; they are written as JSON has them, \\udcff."""
    return text.encode(errors="backslashreplace")


def _to_json(content: Any, indent: int | None = None) -> str:
    try:
        return json.dumps(content, default=_other_type, allow_nan=False, ensure_ascii=False, indent=indent)
    except (TypeError, ValueError):
        # Some number is not finite, or a key is no string. Looking for them first would take longer than writing.
        return json.dumps(to_json_types(content), allow_nan=False, ensure_ascii=False, indent=indent)


def _other_type(value: Any) -> Any:
    """What json.dumps writes in place of a value that it does not know."""
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else to_json_types(value)


def to_json_types(value: Any) -> Any:
    """`value` in JSON's own types, as it will be read again; None for what is not finite."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): to_json_types(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json_types(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _cannot_write(path: Path, error: OSError) -> InputError:
    return InputError(f"cannot write {path}: {error.strerror or error}; choose a place that is writable and has room")
