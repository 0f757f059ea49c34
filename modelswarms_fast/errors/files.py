"""Files that anybody may have written: regular ones only, and no larger than what they hold can be.

And how what is written becomes durable.
"""

from __future__ import annotations

import errno
import os
import stat

LARGEST = 1 << 28
"""Bytes of a file of settings, a tokenizer or a run's summary: 256 MiB."""


def read_bytes(path: str | os.PathLike[str], largest: int | None = LARGEST) -> bytes:
    """What a regular file holds. A pipe, a device or a larger file is not read, so that nothing waits or fills memory.

    Raises:
        OSError: with the path and what is wrong, also for a name that no file can have.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for a writer
    except ValueError as error:  # a null, or half a character
        raise OSError(errno.EINVAL, "no file can have this name", os.fspath(path)) from error
    with os.fdopen(handle, "rb", closefd=True) as file:
        found = os.fstat(handle)
        if stat.S_ISDIR(found.st_mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", os.fspath(path))
        if largest is not None and found.st_size > largest:
            raise OSError(errno.EFBIG, f"it is larger than {largest >> 20} MiB", os.fspath(path))
        return file.read(-1 if largest is None else largest)


def read_text(path: str | os.PathLike[str], largest: int | None = LARGEST) -> str:
    """The same as UTF-8. Raises OSError, and UnicodeDecodeError, which is a ValueError."""
    return read_bytes(path, largest).decode("utf-8")


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raise OSError for what is there and is no regular file: libraries that open it would wait or never end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path))


def sync(path: str | os.PathLike[str]) -> None:
    """Make a file, or the names in a folder, durable. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
