"""Memory for rows, on the tiers that a machine has."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

import torch

from modelswarms_fast.ops.extension import _C
from modelswarms_fast.weights.layout import ALIGNMENT

if TYPE_CHECKING:
    from modelswarms_fast.ops._C import Arena

Tier = Literal["host", "pinned", "file"]


def row_stride(size: int, dtype: torch.dtype) -> int:
    """Elements from one row to the next: an odd multiple of 64 bytes.

    With a multiple of 4096 the same columns of all rows would share a few lines of the caches, and an update would take
    up to twice as long.
    """
    step = ALIGNMENT // dtype.itemsize
    return (-(-size // step) | 1) * step


def empty_rows(
    count: int,
    size: int,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    *,
    tier: Tier = "host",
    folder: str | os.PathLike[str] = ".",
    spilled: int = 0,
) -> torch.Tensor:
    """Rows [count, size] to be written, `row_stride` apart; the memory goes with the last tensor that shows it.

    Args:
        count, size, dtype: how many rows of how many numbers.
        device: anything but a CPU has one tier, its own memory.
        tier: of a CPU: `host`, in huge pages if the system has any; `pinned`, which a GPU copies by itself; `file`,
            mapped from a file without a name in `folder`.
        spilled: of the tiers `host` and `pinned`, so many of the last rows lie in such a file all the same.

    Raises:
        MemoryError, RuntimeError: there is not enough memory, or none of this kind.
        OSError: no room on the disk, or no such folder.
    """
    stride = row_stride(size, dtype)
    if torch.device(device).type != "cpu":
        return torch.empty((count, stride), dtype=dtype, device=device)[:, :size]
    if count == 0 or size == 0:
        return torch.empty((count, stride), dtype=dtype)[:, :size]
    used, apart = size * dtype.itemsize, stride * dtype.itemsize
    return arena_rows(_C.Arena(count, used, apart, tier, os.fspath(folder), spilled), dtype)


def arena_rows(arena: Arena, dtype: torch.dtype) -> torch.Tensor:
    """All rows of an arena, [rows, row_bytes / itemsize]; they keep its memory."""
    return torch.utils.dlpack.from_dlpack(arena.all()).view(dtype)
