"""Rows that other processes see: memory without a name, which is gone when the last process that maps it is."""

from __future__ import annotations

import mmap
import os
import weakref
from contextlib import suppress
from typing import NamedTuple

import torch

from modelswarms_fast.weights.arena import row_stride

# Descriptor, address → bytes. Not by address alone: once a mapping is gone another may be given its address, before
# its entry is taken out.
_FILES: dict[tuple[int, int], int] = {}
_SEEN: dict[tuple[int, int, int], torch.Tensor] = {}  # process, descriptor, inode → all bytes


class SharedTensor(NamedTuple):
    """Where a tensor of shared memory lies, to say to another process: numbers alone. See `locate`."""

    process: int
    descriptor: int
    inode: int
    """Of the memory: descriptors come again."""
    offset: int
    """Bytes."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    def view(self) -> torch.Tensor:
        """The tensor itself, in a process of the same user; the memory stays mapped.

        Raises OSError if the process that named it has ended, or has given the memory back.
        """
        key = (self.process, self.descriptor, self.inode)
        if key not in _SEEN:
            descriptor = os.open(f"/proc/{self.process}/fd/{self.descriptor}", os.O_RDWR)
            try:
                found = os.fstat(descriptor)
                if found.st_ino != self.inode:
                    raise OSError(f"descriptor {self.descriptor} of process {self.process} is no longer that memory")
                _SEEN[key] = _map(descriptor, found.st_size)[0]
            finally:
                os.close(descriptor)
        return _SEEN[key][self.offset :].view(self.dtype).as_strided(self.shape, self.strides)


def shared_rows(count: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows [count, size] of zeros as `empty_rows` lays them out, in shared memory; a page costs nothing until written.

    Raises RuntimeError where there is not enough memory.
    """
    stride = row_stride(size, dtype)
    nbytes = max(count * stride * dtype.itemsize, 1)
    descriptor = -1
    try:
        descriptor = os.memfd_create("modelswarms_rows")
        os.ftruncate(descriptor, nbytes)
        memory, mapping = _map(descriptor, nbytes)
    except (OSError, OverflowError) as error:
        if descriptor >= 0:
            os.close(descriptor)
        reason = error.strerror if isinstance(error, OSError) else error
        raise RuntimeError(f"no shared memory of {nbytes} bytes: {reason}") from error
    with suppress(OSError):  # a system without huge pages
        mapping.madvise(mmap.MADV_HUGEPAGE)
    _FILES[descriptor, memory.data_ptr()] = nbytes
    weakref.finalize(mapping, _forget, descriptor, memory.data_ptr())
    return memory[: count * stride * dtype.itemsize].view(dtype).view(count, stride)[:, :size]


def place_of(tensor: torch.Tensor) -> tuple[int, int] | None:
    """Descriptor of the shared memory that a tensor begins in, and where, in bytes; None for any other memory."""
    address = tensor.data_ptr()
    for (descriptor, start), nbytes in _FILES.items():
        if start <= address < start + nbytes:
            return descriptor, address - start
    return None


def locate(tensor: torch.Tensor) -> SharedTensor:
    """Where a tensor of shared memory lies. Raises ValueError for any other memory."""
    place = place_of(tensor)
    if place is None:
        raise ValueError("the rows of an engine whose workers are other processes lie in shared memory (shared_rows)")
    descriptor, offset = place
    inode = os.fstat(descriptor).st_ino
    return SharedTensor(
        os.getpid(), descriptor, inode, offset, tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype
    )


def attach(descriptor: int) -> torch.Tensor:
    """All bytes [n] of shared memory whose descriptor this process was given, and keeps."""
    nbytes = os.fstat(descriptor).st_size
    memory, mapping = _map(descriptor, nbytes)
    _FILES[descriptor, memory.data_ptr()] = nbytes
    weakref.finalize(mapping, _FILES.pop, (descriptor, memory.data_ptr()))
    return memory


def _map(descriptor: int, nbytes: int) -> tuple[torch.Tensor, mmap.mmap]:
    mapping = mmap.mmap(descriptor, nbytes)
    return torch.frombuffer(mapping, dtype=torch.uint8), mapping  # the tensor keeps the mapping


def _forget(descriptor: int, address: int) -> None:
    del _FILES[descriptor, address]
    os.close(descriptor)
