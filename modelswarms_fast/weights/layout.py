"""One table explains a flat row: which tensor lies at which offset, in which shape.

A row is a vector of D elements that holds all tensors of one model, sorted by name. Each tensor starts at a
multiple of 64 bytes (one cache line, and enough for every vector load). What is left over is padding and
always zero: mixtures of rows keep it zero. Rows with the same layout can be added element by element.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

ALIGNMENT = 64  # bytes


@dataclass(frozen=True)
class TensorSpec:
    """Where one tensor lies: `offset` in elements from the start of the row, `shape` as in the file."""

    name: str
    offset: int
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        """First element after the tensor."""
        return self.offset + self.numel


@dataclass(frozen=True)
class Layout:
    """The table of a flat row of `size` elements (D, padding included) of `dtype`.

    Raises ValueError on construction when the table is not one: names that repeat, offsets that are not
    sorted or overlap, tensors without elements, or other padding than the alignment asks for.
    """

    specs: tuple[TensorSpec, ...]
    size: int
    dtype: torch.dtype

    def __post_init__(self) -> None:
        if not self.specs:
            raise ValueError("a layout needs at least one tensor")
        if len({spec.name for spec in self.specs}) != len(self.specs):
            raise ValueError("a layout cannot hold two tensors of the same name")
        expected = 0
        for spec in self.specs:
            if min(spec.shape, default=1) < 1:
                raise ValueError(f"tensor {spec.name} of shape {list(spec.shape)} has no elements")
            if spec.offset != expected:
                raise ValueError(f"tensor {spec.name} lies at offset {spec.offset}, not at {expected}")
            expected = self._aligned(spec.end)
        if self.size != expected:
            raise ValueError(f"the layout ends at {expected}, its size says {self.size}")

    @property
    def step(self) -> int:
        """Elements in one aligned block of 64 bytes."""
        return ALIGNMENT // self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of one row."""
        return self.size * self.dtype.itemsize

    def _aligned(self, elements: int) -> int:
        return -(-elements // self.step) * self.step

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> Layout:
        """The layout of these tensors (values are not read, meta tensors will do), sorted by name.

        `dtype` is that of the row; without it all tensors must share one. Raises ValueError.
        """
        if dtype is None:
            dtypes = {tensor.dtype for tensor in tensors.values()}
            if len(dtypes) != 1:
                raise ValueError(f"tensors of one row need one dtype, these have {sorted(map(str, dtypes))}")
            dtype = dtypes.pop()
        step = ALIGNMENT // dtype.itemsize
        specs, offset = [], 0
        for name in sorted(tensors):
            spec = TensorSpec(name, offset, tuple(tensors[name].shape))
            specs.append(spec)
            offset = -(-spec.end // step) * step
        return cls(tuple(specs), offset, dtype)

    def views(self, row: Tensor) -> dict[str, Tensor]:
        """Each tensor as a view into `row` [D]: no copies, so writing to one writes to the row.

        The row may be one row of a larger matrix; its elements must be contiguous. Raises ValueError.
        """
        self._check(row)
        return {spec.name: row[spec.offset : spec.end].view(spec.shape) for spec in self.specs}

    def flatten(self, tensors: Mapping[str, Tensor], out: Tensor) -> None:
        """Write the tensors into `out` [D], cast to its dtype, and zero the padding. Raises ValueError."""
        if tensors.keys() != {spec.name for spec in self.specs}:
            raise ValueError("the tensors' names are not those of the layout")
        for spec in self.specs:
            if tuple(tensors[spec.name].shape) != spec.shape:
                shape = list(tensors[spec.name].shape)
                raise ValueError(f"tensor {spec.name} has shape {shape}, the layout says {list(spec.shape)}")
        for name, view in self.views(out).items():
            view.copy_(tensors[name])
        starts = [spec.offset for spec in self.specs[1:]] + [self.size]
        for spec, start in zip(self.specs, starts, strict=True):
            if start > spec.end:
                out[spec.end : start].zero_()

    def shards(self, k: int) -> list[slice]:
        """`k` slices that cover [0, D), cut at multiples of 64 bytes wherever tensors lie.

        Their sizes differ by 64 bytes at most. Raises ValueError for k < 1.
        """
        if k < 1:
            raise ValueError(f"a row cannot be cut into {k} shards")
        blocks = self.size // self.step
        bounds = [i * blocks // k * self.step for i in range(k + 1)]
        return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]

    def first_not_finite(self, row: Tensor) -> str | None:
        """Name of the first tensor in `row` [D] that holds NaN or infinity, None if there is none."""
        # The least and the greatest value are NaN or infinite if any value is: one read, no temporary.
        least, greatest = torch.aminmax(row)
        if math.isfinite(float(least)) and math.isfinite(float(greatest)):
            return None
        return next(name for name, view in self.views(row).items() if not bool(torch.isfinite(view).all()))

    def _check(self, row: Tensor) -> None:
        if tuple(row.shape) != (self.size,) or row.dtype != self.dtype or row.stride(0) != 1:
            raise ValueError(
                f"a row of this layout is a contiguous [{self.size}] {self.dtype} vector,"
                f" not {list(row.shape)} {row.dtype} with strides {list(row.stride())}"
            )
