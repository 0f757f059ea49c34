"""Memory for rows."""

from __future__ import annotations

import torch

from modelswarms_fast.extension import _C
from modelswarms_fast.layout import ALIGNMENT

_HUGE_PAGE = 2 * 1024 * 1024


def row_stride(size: int, dtype: torch.dtype) -> int:
    """Elements from one row to the next: an odd multiple of 64 bytes.

    With a multiple of 4096 the same columns of all rows would share a few lines of the caches, and an update would take
    up to twice as long.
    """
    step = ALIGNMENT // dtype.itemsize
    return (-(-size // step) | 1) * step


def empty_rows(count: int, size: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> torch.Tensor:
    """Rows [count, size] without values, `row_stride` apart; on a CPU in huge pages, if the system has any.

    Raises RuntimeError where there is not enough memory.
    """
    stride = row_stride(size, dtype)
    if torch.device(device).type != "cpu":
        return torch.empty((count, stride), dtype=dtype, device=device)[:, :size]
    nbytes = count * stride * dtype.itemsize
    spare = _HUGE_PAGE if nbytes >= _HUGE_PAGE else ALIGNMENT
    memory = torch.empty(nbytes + spare, dtype=torch.uint8)
    if _C is not None:
        _C.use_huge_pages(memory.data_ptr(), memory.numel())
    start = -memory.data_ptr() % spare
    return memory[start : start + nbytes].view(dtype).view(count, stride)[:, :size]
