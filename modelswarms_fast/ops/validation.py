"""Checks of the operators' arguments: who reads and writes which memory.

On a CPU the extension looks at an update's tensors itself (csrc/tensor_update.cpp) and does what is plainly right in a
microsecond or two. What is not, or runs elsewhere, comes here, where there are words for what is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from modelswarms_fast.ops.reference import NEAREST, PUBLISHED, STOCHASTIC

ROUNDINGS = {"nearest": NEAREST, "stochastic": STOCHASTIC, "published": PUBLISHED}

# The codes of csrc/dtype.h and kernels/launchers.h.
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}

Extent = tuple[int, int]


def check_rows(rows: Mapping[str, Tensor]) -> None:
    """Dense tensors of one dtype on one device, contiguous in the last dimension. Raises TypeError, ValueError."""
    dtype: Any = None
    device: Any = None
    first = ""
    for name, tensor in rows.items():
        _check_plain(name, tensor)
        if dtype is None:
            first, dtype, device = name, tensor.dtype, tensor.device
            if dtype not in DTYPE_CODES:
                choices = ", ".join(short(known) for known in DTYPE_CODES)
                raise TypeError(f"{name} must be one of {choices}, got {short(dtype)}")
        elif tensor.dtype != dtype:
            raise TypeError(f"{name} is {short(tensor.dtype)}, but {first} is {short(dtype)}")
        elif tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, but {first} is on {device}")
        if tensor.dim() and tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            raise ValueError(f"{name} must be contiguous in its last dimension, got stride {tensor.stride(-1)}")


def check_scalars(name: str, tensor: Tensor, shape: tuple[int, ...], dtypes: Sequence[torch.dtype]) -> None:
    """A small tensor of numbers for the operator. Raises TypeError, ValueError."""
    _check_plain(name, tensor)
    check_shape(name, tensor, shape)
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name} must be {' or '.join(map(short, dtypes))}, got {short(tensor.dtype)}")


def check_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Both on one device. Raises ValueError."""
    if tensor.device != other.device:
        raise ValueError(f"{name} is on {tensor.device}, but {other_name} is on {other.device}")


def check_matrix(name: str, tensor: Tensor) -> None:
    """Two dimensions. Raises ValueError."""
    if tensor.dim() != 2:
        raise ValueError(f"{name} must have two dimensions, got shape {tuple(tensor.shape)}")


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raises ValueError."""
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")


def check_step_length(step_length: float) -> float:
    """A finite number as a float. Raises TypeError, ValueError."""
    if not isinstance(step_length, Real):
        raise TypeError(f"step_length must be a number, got {type(step_length).__name__}")
    step_length = float(step_length)
    if not math.isfinite(step_length):
        raise ValueError(f"step_length must be finite, got {step_length}")
    return step_length


def check_draws(
    rounding: str, randomness: str, seed: int, iteration: int, first_column: int
) -> tuple[int, bool, int, int, int]:
    """What random numbers are for, and what they are keyed by, as the kernels take it. Raises ValueError."""
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding must be nearest, stochastic or published, got {rounding!r}")
    if randomness not in ("particle", "coordinate"):
        raise ValueError(f"randomness must be particle or coordinate, got {randomness!r}")
    if rounding == "published" and randomness == "coordinate":
        raise ValueError("rounding 'published' is for randomness 'particle'; nobody has published the other")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be from 0 to 2**63 - 1, got {seed}")
    if not 0 <= iteration < 2**31:
        raise ValueError(f"iteration must be from 0 to 2**31 - 1, got {iteration}")
    if not 0 <= first_column < 2**62 or first_column % 4:
        raise ValueError(f"first_column must be a multiple of 4 that is not negative, got {first_column}")
    return ROUNDINGS[rounding], randomness == "coordinate", seed, iteration, first_column


def check_rounding(rounding: str, dtype: torch.dtype) -> None:
    """Whether a dtype is rounded that way. Raises ValueError."""
    if rounding == "stochastic" and dtype.itemsize != 2:
        raise ValueError(f"rounding 'stochastic' is for bfloat16 and float16 rows; {short(dtype)} rows are kept whole")


def check_memory(name: str, tensor: Tensor) -> None:
    """Numbers that lie at the tensor's address as they are. Raises ValueError."""
    # A subclass that wraps other tensors has elements and no address of its own.
    if tensor.layout is not torch.strided or tensor.is_meta or (not tensor.data_ptr() and tensor.numel()):
        raise ValueError(f"{name} must be a dense tensor with memory, got one without")
    if tensor.is_neg():
        raise ValueError(f"{name} is a negative view, whose memory has the other sign; pass its resolve_neg()")


def check_overlap(written: Mapping[str, Tensor], read: Mapping[str, Tensor]) -> None:
    """No written row shares a byte with another written row or with anything that is read. Raises ValueError."""
    everything = [(name, tensor, _extent(tensor)) for rows in (written, read) for name, tensor in rows.items()]
    for number in range(len(written)):
        name, tensor, (start, end) = everything[number]
        if start == end:
            continue
        if not _nested(tensor):
            _check_own_rows(name, tensor)
        for other_name, other, (other_start, other_end) in everything[number + 1 :]:
            # Rows of two tensors may lie between each other in one slab: only then look at them one by one.
            if start < other_end and other_start < end and other_start < other_end and _rows_meet(tensor, other):
                raise ValueError(f"{name} must not share memory with {other_name}")


def check_table(table: Tensor, rows: int, global_best: int, global_worst: int) -> None:
    """Every number is a row's, and what is written is read by nobody but its own particle. Raises ValueError."""
    written: list[int] = []
    read = [global_best, global_worst]
    in_place: list[int] = []
    for x_in, x_out, v_in, v_out, p in table.tolist():
        written += (x_out, v_out)
        (in_place if x_in == x_out else read).append(x_in)
        if v_in != -1:
            (in_place if v_in == v_out else read).append(v_in)
        read.append(p)
    numbers = written + read + in_place
    if min(numbers) < 0 or max(numbers) >= rows:
        wrong = next(number for number in numbers if not 0 <= number < rows)
        raise ValueError(f"the table names row {wrong}, but there are {rows} rows")
    once = set(written)
    if len(once) != len(written):
        raise ValueError("the table has two particles write one row, or one particle's x and v")
    if not once.isdisjoint(read):
        raise ValueError(f"the table writes row {min(once.intersection(read))}, which is read as well")


def short(dtype: torch.dtype) -> str:
    """A dtype without the word torch."""
    return str(dtype).removeprefix("torch.")


def _check_plain(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    check_memory(name, tensor)
    if tensor.requires_grad:
        raise ValueError(f"{name} requires grad, and this operator has no gradient; pass {name}.detach()")


def _extent(tensor: Tensor) -> Extent:
    """Addresses of the first byte and of the one after the last; equal for a tensor without elements."""
    start, last = tensor.data_ptr(), 0
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        if length == 0:
            return start, start
        last += (length - 1) * stride
    return start, start + (last + 1) * tensor.element_size()


def _row_extents(tensor: Tensor) -> list[Extent]:
    """One extent for each contiguous run."""
    if tensor.dim() < 2:
        return [_extent(tensor)]
    return [extent for part in tensor.unbind(0) for extent in _row_extents(part)]


def _nested(tensor: Tensor) -> bool:
    """Whether each dimension steps over all that smaller steps reach: then no two elements share memory."""
    reach = 1
    for stride, length in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if length > 1:
            if stride < reach:
                return False
            reach += (length - 1) * stride
    return True


def _check_own_rows(name: str, tensor: Tensor) -> None:
    reach = 0
    for start, end in sorted(_row_extents(tensor)):
        if start < reach:
            raise ValueError(f"{name} has rows that overlap each other")
        reach = end


def _rows_meet(one: Tensor, two: Tensor) -> bool:
    tagged = [(*extent, tag) for tag, rows in enumerate((one, two)) for extent in _row_extents(rows)]
    reach = [0, 0]
    for start, end, tag in sorted(tagged):
        if start < reach[1 - tag]:
            return True
        reach[tag] = max(reach[tag], end)
    return False
