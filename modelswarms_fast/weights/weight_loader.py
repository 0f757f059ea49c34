"""Writes a row into the tensors of an engine: where these lie is worked out once, so a load is one call and one pass.

On a CPU the extension does it, on all threads and without Python for each tensor, and on a GPU in one launch of a
kernel (kernels/plan.cu). Elsewhere torch does the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelswarms_fast.ops import launch, mix_
from modelswarms_fast.ops.extension import _C
from modelswarms_fast.ops.validation import DTYPE_CODES, check_memory
from modelswarms_fast.weights.layout import TensorSpec

MAX_RANK = 512  # of csrc/plan.h; adapters of more go through torch
# Of kernels/plan.cu: what a block does, and the elements of a tensor that it can count.
COPY_ELEMENTS, MERGE_ROWS, MOST_ELEMENTS = 8192, 16, 1 << 31


@dataclass(frozen=True)
class CopyTarget:
    """A tensor of the row and its place in the engine, of the same shape: place = scaling · tensor.

    With `start`, the place is that of a part of the tensor: the one that begins at this row and column.
    """

    spec: TensorSpec
    place: Tensor
    scaling: float = 1.0
    start: tuple[int, int] | None = None


@dataclass(frozen=True)
class MergeTarget:
    """A LoRA pair of the row and the weight that it adapts: live = base + scaling · B A.

    a [rank, in] and b [out, rank] lie in the row; base [out, in] is contiguous and stays as it is. With `start`, base
    and live are a part of the weight: the one that begins at this row and column.
    """

    a: TensorSpec
    b: TensorSpec
    base: Tensor
    live: Tensor
    scaling: float
    start: tuple[int, int] | None = None

    def halves(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """What of A and B makes this part."""
        (top, left), (rows, columns) = self.start or (0, 0), self.base.shape
        return a[:, left : left + columns], b[top : top + rows]


class WeightCopier:
    """Copies a row [size] into the places of its tensors.

    Rows and places have one dtype and device; the memory of the places is kept, whatever becomes of a parameter that
    lay there. A place may be the transpose of a matrix. Raises ValueError for a place of another shape or dtype, or
    with gaps between its columns.
    """

    def __init__(self, targets: Sequence[CopyTarget]) -> None:
        for target in targets:
            _check_place(target.spec.name, target.place, target.spec.shape, target.start, targets[0].place, turned=True)
        # Not the parameters themselves: `module.half()` gives those other memory.
        targets = [replace(target, place=target.place.detach()) for target in targets]
        self._turned = tuple(target for target in targets if _is_turned(target.place))
        """Written by torch, after the others."""
        self._targets = tuple(target for target in targets if not _is_turned(target.place))
        self._end = max(target.spec.end for target in targets)
        self._compiled, self._table = None, None
        first = self._first = targets[0].place
        if _compiles(first):
            self._compiled = _C.WeightCopier(copy_parts(self._targets), DTYPE_CODES[first.dtype])
        elif _launches(first, [target.place for target in self._targets]):
            self._table = copy_table(self._targets)

    def load(self, row: Tensor) -> None:
        """Write a row [size] into the places. Raises ValueError for a row that is none."""
        if not self._turned and self._compiled is not None and self._compiled.load_tensor(row):
            return
        row = self._checked(row)
        _copy(self._turned, row)
        if self._compiled is not None:
            self._compiled.load(row.data_ptr())
        elif self._table is not None:
            self._table.launch(_C.copy_weights_cuda, row)
        else:
            _copy(self._targets, row)

    def load_mixture(self, experts: Tensor, mixture: Tensor) -> None:
        """Write the mixture [n] of rows [n, size] into the places, as `mix_` and `load` would; on a CPU without a row
        between.

        Raises ValueError for rows that are none.
        """
        _check_experts(experts, mixture, self._end)
        compiled = None if self._turned else self._compiled
        if compiled is not None and experts.is_cpu and experts.dtype == self._first.dtype:
            compiled.load_mixture(*_addresses(experts, mixture := _numbers(experts, mixture)))
            return
        self.load(_mixed(experts, mixture, self._end))

    def _checked(self, row: Tensor) -> Tensor:
        return _checked_row(row, self._end, self._first)


class LoraMerger:
    """Writes base + scaling · B A into the live weights, reading the base and writing the weights once.

    Sums are float32 and rounded once. Raises ValueError for shapes that do not fit.
    """

    def __init__(self, targets: Sequence[MergeTarget]) -> None:
        first = targets[0].base
        for target in targets:
            (rank, columns), (rows, same) = target.a.shape, target.b.shape
            if rank != same:
                raise ValueError(f"{target.a.name} has rank {rank}, but {target.b.name} has rank {same}")
            for weight in (target.base, target.live):
                _check_place(target.b.name, weight, (rows, columns), target.start, first)
            if not target.base.is_contiguous():
                raise ValueError(f"the base weight of {target.b.name} is not contiguous")
        self._targets = tuple(
            replace(target, base=target.base.detach(), live=target.live.detach()) for target in targets
        )
        self._end = max(max(target.a.end, target.b.end) for target in self._targets)
        self._compiled, self._table = None, None
        if _compiles(first) and all(target.a.shape[0] <= MAX_RANK for target in self._targets):
            self._compiled = _C.LoraMerger(merge_parts(self._targets), DTYPE_CODES[first.dtype])
        elif _launches(first, [target.live for target in self._targets]):
            self._table = merge_table(self._targets)

    def load(self, row: Tensor) -> None:
        """Merge the particle of this row [size]. Raises ValueError for a row that is none."""
        if self._compiled is not None and self._compiled.load_tensor(row):
            return
        row = _checked_row(row, self._end, self._targets[0].base)
        if self._compiled is not None:
            self._compiled.load(row.data_ptr())
            return
        if self._table is not None:
            self._table.launch(_C.merge_lora_cuda, row)
            return
        for target in self._targets:
            a, b = target.halves(_view(row, target.a), _view(row, target.b))
            torch.addmm(target.base, b, a, alpha=target.scaling, out=target.live)

    def load_mixture(self, experts: Tensor, mixture: Tensor) -> None:
        """Merge the mixture [n] of rows [n, size], as `mix_` and `load` would; on a CPU without a row between.

        Raises ValueError for rows that are none.
        """
        _check_experts(experts, mixture, self._end)
        if self._compiled is not None and experts.is_cpu and experts.dtype == self._targets[0].base.dtype:
            self._compiled.load_mixture(*_addresses(experts, mixture := _numbers(experts, mixture)))
            return
        self.load(_mixed(experts, mixture, self._end))


class Table:
    """The parts as the kernel on a GPU reads them, and for each block which part it does and where it begins."""

    def __init__(self, parts: Sequence[Sequence[int]], tiles: Sequence[tuple[int, int]], place: Tensor) -> None:
        self.parts = torch.tensor(parts, dtype=torch.int64, device=place.device)
        self.tiles = torch.tensor(tiles, dtype=torch.int64, device=place.device)
        self._dtype = DTYPE_CODES[place.dtype]

    def arguments(self, row: Tensor) -> tuple[Any, ...]:
        """Of the launcher, but for device and stream."""
        return row.data_ptr(), self.parts.data_ptr(), self.tiles.data_ptr(), len(self.tiles), self._dtype

    def launch(self, kernel: Callable[..., None], row: Tensor) -> None:
        """Run the kernel on a row of its device, on the current stream."""
        launch(kernel, self.arguments(row), row)


CopyPart = tuple[int, int, int, int, int, int, float]
MergePart = tuple[int, int, int, int, int, int, int, int, int, float]


def copy_parts(targets: Sequence[CopyTarget]) -> list[CopyPart]:
    """CopyPart of csrc/plan.h, field by field."""
    parts = []
    for target in targets:
        place = _as_matrix(target.place)
        rows, columns = place.shape
        first, step = _first(target.spec, target.start)
        where = (place.data_ptr(), max(place.stride(0), columns))
        parts.append((target.spec.offset + first, rows, columns, step, *where, target.scaling))
    return parts


def merge_parts(targets: Sequence[MergeTarget]) -> list[MergePart]:
    """MergePart of csrc/plan.h, field by field."""
    parts = []
    for target in targets:
        (rank, step), (rows, columns) = target.a.shape, target.base.shape
        top, left = target.start or (0, 0)
        halves = (target.a.offset + left, target.b.offset + top * rank)
        addresses = (target.base.data_ptr(), target.live.data_ptr(), max(target.live.stride(0), columns))
        parts.append((*halves, rank, rows, columns, step, *addresses, target.scaling))
    return parts


def copy_table(targets: Sequence[CopyTarget]) -> Table:
    """The table of a copy."""
    parts, tiles, item = [], [], targets[0].place.element_size()
    for number, (offset, rows, columns, step, place, stride, scaling) in enumerate(copy_parts(targets)):
        wide = _wide(place, *(item * count for count in (offset, columns, step, stride)))
        parts.append((offset, rows, columns, step, place, stride, _bits(scaling), wide))
        tiles += [(number, begin) for begin in range(0, rows * columns, COPY_ELEMENTS)]
    return Table(parts, tiles, targets[0].place)


def merge_table(targets: Sequence[MergeTarget]) -> Table:
    """The table of a merge."""
    parts, tiles, item = [], [], targets[0].live.element_size()
    for number, (a, b, rank, rows, columns, step, base, live, stride, scaling) in enumerate(merge_parts(targets)):
        wide = _wide(base, live, *(item * count for count in (a, columns, step, stride)))
        parts.append((a, b, rank, rows, columns, step, base, live, stride, _bits(scaling), wide))
        tiles += [(number, begin) for begin in range(0, rows, MERGE_ROWS)]
    return Table(parts, tiles, targets[0].live)


def _wide(*bytes_or_addresses: int) -> bool:
    return all(one % 16 == 0 for one in bytes_or_addresses)


def _bits(scaling: float) -> int:
    return int(np.float64(scaling).view(np.int64))


def _launches(first: Tensor, places: Sequence[Tensor]) -> bool:
    on_gpu = _C.has_cuda and first.device.type == "cuda"
    known = first.dtype in DTYPE_CODES and first.dtype != torch.float64
    return on_gpu and known and all(place.numel() < MOST_ELEMENTS for place in places)


def _compiles(place: Tensor) -> bool:
    return place.device.type == "cpu" and place.dtype in DTYPE_CODES


def _copy(targets: Sequence[CopyTarget], row: Tensor) -> None:
    """What a copy is, by torch."""
    if not targets:
        return
    torch._foreach_copy_(
        [target.place for target in targets], [_part(_view(row, target.spec), target) for target in targets]
    )
    scaled = [target for target in targets if target.scaling != 1.0]
    if scaled:
        torch._foreach_mul_([target.place for target in scaled], [target.scaling for target in scaled])


def _is_turned(place: Tensor) -> bool:
    """Whether it is the transpose of a matrix without gaps between its columns."""
    return place.dim() == 2 and not place.is_contiguous() and place.stride(0) == 1 and place.stride(1) >= len(place)


def _view(row: Tensor, spec: TensorSpec) -> Tensor:
    return row[spec.offset : spec.end].view(spec.shape)


def _part(tensor: Tensor, target: CopyTarget) -> Tensor:
    """What of the tensor belongs in the target's place."""
    if target.start is None:
        return tensor
    (row, column), place = target.start, target.place
    part = tensor[row : row + len(place)]
    return part if tensor.dim() == 1 else part[:, column : column + place.shape[1]]


def _first(spec: TensorSpec, start: tuple[int, int] | None) -> tuple[int, int]:
    """Elements of a tensor before the part that begins there, and from one of its rows to the next."""
    width = spec.numel // (spec.shape[0] if spec.shape else 1)
    row, column = start or (0, 0)
    return row * width + column, width


def _check_experts(experts: Tensor, mixture: Tensor, end: int) -> None:
    if experts.dim() != 2 or not len(experts) or experts.shape[1] < end or experts.stride(1) != 1:
        raise ValueError(f"rows of this plan are contiguous and have {end} elements or more, not {list(experts.shape)}")
    if not (experts.data_ptr() and mixture.data_ptr()) or experts.is_neg() or mixture.is_neg():  # every load asks this
        check_memory("experts", experts)
        check_memory("mixture", mixture)
    if mixture.shape != experts.shape[:1]:
        raise ValueError(f"a mixture of {len(experts)} rows has as many coefficients, not {list(mixture.shape)}")


def _numbers(experts: Tensor, mixture: Tensor) -> Tensor:
    """The mixture in the type in which these rows are mixed."""
    dtype = torch.float64 if experts.dtype == torch.float64 else torch.float32
    return mixture.to(experts.device, dtype).contiguous()


def _addresses(experts: Tensor, numbers: Tensor) -> tuple[int, int, int, int]:
    return experts.data_ptr(), experts.stride(0), len(experts), numbers.data_ptr()


def _mixed(experts: Tensor, mixture: Tensor, size: int) -> Tensor:
    """The mixture as a row."""
    row = torch.empty((1, size), dtype=experts.dtype, device=experts.device)
    mix_(row, experts[:, :size], _numbers(experts, mixture)[None])
    return row[0]


def _as_matrix(place: Tensor) -> Tensor:
    """As [rows, columns] without a copy."""
    if place.dim() == 2:
        return place
    return place.view(len(place), -1) if place.dim() else place.view(1, 1)


def _check_place(
    name: str,
    place: Tensor,
    shape: tuple[int, ...],
    start: tuple[int, int] | None,
    first: Tensor,
    *,
    turned: bool = False,
) -> None:
    if start is None:
        fits = tuple(place.shape) == shape
    else:
        # A vector is one column; what comes after the second size is not looked at.
        ends = [begin + size for begin, size in zip(start, (*place.shape, 1), strict=False)]
        fits = place.dim() == len(shape) in (1, 2) and all(map(int.__le__, ends, (*shape, 1))) and min(start) >= 0
    if not fits:
        where = "" if start is None else f" from {list(start)}"
        raise ValueError(f"the place of {name} has shape {list(place.shape)}{where}, the row's tensor {list(shape)}")
    if place.dtype != first.dtype or place.device != first.device:
        raise ValueError(
            f"the place of {name} is {place.dtype} on {place.device}, others {first.dtype} on {first.device}"
        )
    rows = place.dim() == 2 and place.stride(1) == 1 and place.stride(0) >= place.shape[1]
    if not (place.is_contiguous() or rows or (turned and _is_turned(place))):
        raise ValueError(f"the place of {name} has gaps between its columns: strides {list(place.stride())}")
    check_memory(f"the place of {name}", place)


def _checked_row(row: Tensor, end: int, like: Tensor) -> Tensor:
    if row.dim() != 1 or len(row) < end or (len(row) > 1 and row.stride(0) != 1):
        raise ValueError(f"a row of this plan is contiguous and has {end} elements or more, not {list(row.shape)}")
    check_memory("row", row)
    return row.to(like.device, like.dtype)
