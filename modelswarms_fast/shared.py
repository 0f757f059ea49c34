"""Rows that other processes see: memory without a name, which is gone when the last process that maps it is."""

from __future__ import annotations

import mmap
import os
import weakref
from contextlib import suppress

import torch

from modelswarms_fast.memory import row_stride

_FILES: dict[int, tuple[int, int]] = {}  # address → descriptor, bytes


def shared_rows(count: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows [count, size] of zeros as `empty_rows` lays them out, in shared memory; a page costs nothing until written.

    Raises RuntimeError where there is not enough memory.
    """
    stride = row_stride(size, dtype)
    nbytes = max(count * stride * dtype.itemsize, 1)
    try:
        descriptor = os.memfd_create("modelswarms_rows")
        os.ftruncate(descriptor, nbytes)
        memory, mapping = _map(descriptor, nbytes)
    except OSError as error:
        raise RuntimeError(f"no shared memory of {nbytes} bytes: {error.strerror}") from error
    with suppress(OSError):  # a system without huge pages
        mapping.madvise(mmap.MADV_HUGEPAGE)
    _FILES[memory.data_ptr()] = (descriptor, nbytes)
    weakref.finalize(mapping, _forget, memory.data_ptr(), descriptor)
    return memory[: count * stride * dtype.itemsize].view(dtype).view(count, stride)[:, :size]


def place_of(tensor: torch.Tensor) -> tuple[int, int] | None:
    """Descriptor of the shared memory that a tensor begins in, and where, in bytes; None for any other memory."""
    address = tensor.data_ptr()
    for start, (descriptor, nbytes) in _FILES.items():
        if start <= address < start + nbytes:
            return descriptor, address - start
    return None


def attach(descriptor: int) -> torch.Tensor:
    """All bytes [n] of shared memory whose descriptor this process was given."""
    return _map(descriptor, os.fstat(descriptor).st_size)[0]


def _map(descriptor: int, nbytes: int) -> tuple[torch.Tensor, mmap.mmap]:
    mapping = mmap.mmap(descriptor, nbytes)
    return torch.frombuffer(mapping, dtype=torch.uint8), mapping  # the tensor keeps the mapping


def _forget(address: int, descriptor: int) -> None:
    del _FILES[address]
    os.close(descriptor)
