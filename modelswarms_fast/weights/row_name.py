"""A name for the exact content of a row, so that a position that was evaluated is known again."""

from __future__ import annotations

from torch import Tensor

from modelswarms_fast.ops.extension import _C


def row_name(row: Tensor) -> bytes:
    """16 bytes that name the content of a row [D] of any dtype; it is read once, on all threads.

    Rows of different content have different names up to a chance of about 2^-123 a pair. This is a fingerprint and no
    cryptography: who wants to can make two rows of one name (csrc/row_name.h). A row on a GPU is copied to the host.
    """
    row = row.detach().contiguous().cpu()
    name: bytes = _C.row_name(row.data_ptr(), row.nbytes)
    return name
