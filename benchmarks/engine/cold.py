"""Files of rows whose pages the system has let go, so that what is read next comes from the disk."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_MADV_DONTNEED = 4  # of the mapping; the file's bytes stay


def evict(name: str = "modelswarms_fast_rows") -> int:
    """Write back and drop what memory holds of this process's open files with the name; bytes of their mappings.

    Raises OSError where the system refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    mapped = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        if name in line:
            first, last = (int(address, 16) for address in line.split()[0].split("-"))
            mapped += last - first
            if libc.madvise(first, last - first, _MADV_DONTNEED):
                raise OSError(ctypes.get_errno(), "pages cannot be dropped")
    for entry in Path("/proc/self/fd").iterdir():
        if entry.is_symlink() and name in os.readlink(entry):
            descriptor = int(entry.name)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    return mapped
