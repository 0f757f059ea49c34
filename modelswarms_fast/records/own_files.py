"""What a run has written into its folder, by the list that it keeps there: `files.jsonl`.

A name is in the list before its file is written, so that the list holds after a kill at any moment. `--overwrite`
removes what is listed and nothing else.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from modelswarms_fast.errors import InputError
from modelswarms_fast.errors.files import read_bytes

FILES = "files.jsonl"
_FORM = {"files of": "a run of modelswarms_fast"}  # the first line
_TEMPORARY = re.compile(r"(?:.*/)?\.modelswarms-[0-9a-f]{16}\.tmp")
# A winner that was being written or replaced, beside the place of the winner.
_UNFINISHED = re.compile(r"\.(?P<folder>[^/]+)\.(?:new|old)-[0-9a-f]+/(?P<file>[^/]+)")
# Folders that other libraries fill for a run.
_FILLED = ("tensorboard/", "wandb/", "engines/")


def temporary_beside(path: Path) -> Path:
    """A name for a temporary file in the same folder, hence on the same disk, that nobody can foresee."""
    return path.with_name(f".modelswarms-{secrets.token_hex(8)}.tmp")


def begin(folder: str | os.PathLike[str]) -> None:
    """Begin the list of a run folder, unless it has one or holds files already. Raises OSError."""
    if is_empty(folder) and listed(folder) is None:
        _append(Path(folder) / FILES, json.dumps(_FORM))


def add(path: str | os.PathLike[str]) -> None:
    """Put a file that is about to be written, or a folder of a library ("tensorboard/"), into its run folder's list.

    The run folder is that of the file or the one above. Without a list in either nothing is done.

    Raises:
        InputError: the file is there and not in the list, so it is somebody else's; or its folder is a link.
        OSError: the list cannot be written.
    """
    path, folder = Path(path), os.fspath(path).endswith("/")
    for above in list(path.parents)[:2]:
        if (known := listed(above)) is None:
            continue
        name = path.relative_to(above).as_posix() + "/" * folder
        if path.parent != above and path.parent.is_symlink():
            raise InputError(f"{path.parent} is a link, and a run writes into its own folder only; remove the link")
        if name in known or name == FILES:
            return
        if os.path.lexists(path):
            raise InputError(f"{path} is there and no run wrote it; move it away, or choose another run folder")
        _append(above / FILES, json.dumps(name))
        return


def listed(folder: str | os.PathLike[str]) -> frozenset[str] | None:
    """The names in the list of a run folder, relative to it; None where it has no list of a run."""
    try:
        if (path := Path(folder) / FILES).is_symlink():
            return None
        lines = read_bytes(path).split(b"\n")
    except OSError:
        return None
    found = []
    for line in lines:
        with suppress(ValueError, RecursionError):  # a line that a kill cut off: its file was not written
            found.append(json.loads(line))
    if not found or found[0] != _FORM:
        return None
    return frozenset(name for name in found[1:] if isinstance(name, str))


def is_empty(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds nothing but a list and what a kill has left of a first write. Raises OSError."""
    return next(_others(Path(folder)), None) is None


def of_others(folder: str | os.PathLike[str]) -> Iterator[str]:
    """Files and links in a folder that its run did not write, by their names relative to it. Raises OSError."""
    known = listed(folder) or frozenset()
    return (name for name in _others(Path(folder)) if not _is_listed(name, known, Path(folder, name).is_symlink()))


def links_out(folder: str | os.PathLike[str]) -> Iterator[str]:
    """Links in a folder that lead out of it, by their names relative to it. Raises OSError."""
    root = os.path.realpath(folder)
    for name in _files(Path(folder)):
        path = Path(folder, name)
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
            yield name


def remove(folder: str | os.PathLike[str]) -> None:
    """Remove what the run wrote, and folders that are empty then; the list goes last. Raises OSError."""
    folder = Path(folder)
    known = listed(folder)
    if known is None:
        return
    above: set[Path] = set()
    for name in list(_files(folder)):
        if name != FILES and _is_own(name, known, (folder / name).is_symlink()):
            (folder / name).unlink(missing_ok=True)
            above.update(folder / one for one in Path(name).parents if one != Path("."))
    for one in sorted(above, key=lambda path: -len(path.parts)):
        with suppress(OSError):  # not empty: something else is in it
            one.rmdir()
    (folder / FILES).unlink(missing_ok=True)


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Remove what a kill has left: files and a winner that were not in their place yet, and one that was replaced.

    Links are left alone. Raises OSError.
    """
    for path in Path(folder).iterdir():
        if path.is_symlink():
            continue
        if _TEMPORARY.fullmatch(path.name):
            path.unlink()
        elif _UNFINISHED.fullmatch(f"{path.name}/-") and path.is_dir():
            shutil.rmtree(path)


def _is_own(name: str, known: frozenset[str], link: bool) -> bool:
    """Whether the run wrote this file, or began to. A link is a library's, or somebody else's."""
    return (not link and _TEMPORARY.fullmatch(name) is not None) or _is_listed(name, known, link)


def _is_listed(name: str, known: frozenset[str], link: bool) -> bool:
    if any(name.startswith(one) and one in known for one in _FILLED):
        return True
    unfinished = _UNFINISHED.fullmatch(name)
    return not link and (name in known or (unfinished is not None and "/".join(unfinished.groups()) in known))


def _others(folder: Path) -> Iterator[str]:
    """Files and links beside the list and temporary files."""
    names = (name for name in _files(folder) if name != FILES or (folder / name).is_symlink())
    return (name for name in names if not _TEMPORARY.fullmatch(name) or (folder / name).is_symlink())


def _files(folder: Path, above: str = "") -> Iterator[str]:
    """All files and links below a folder, in order of their names; no link is followed. Raises OSError."""
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _files(folder / entry.name, f"{above}{entry.name}/")
        else:
            yield above + entry.name


def _append(path: Path, line: str) -> None:
    """Append a line and wait until the disk has it; a line before it that a kill cut off is ended first."""
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        size = os.fstat(handle).st_size
        torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        data = ("\n" * torn + line + "\n").encode()
        if os.write(handle, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(handle)
    finally:
        os.close(handle)
