"""Tensors that hold their own row or column numbers, and what a loader's writing of them says.

A model's `load_weights` is given them in the place of a checkpoint's tensors. What it would copy into live parameters
is recorded, and nothing is written. The numbers say which part of which tensor belongs at each place.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

Shape = tuple[int, ...]
NUMBER = 1 << 32
"""From the numbers of one tensor to those of the next: more than the rows of any tensor."""
FIRST = 1 << 20
"""Number of the first tensor; the last is below twice that, as float64 has 53 bits. So no sum of two is a number."""


class WeightPart(NamedTuple):
    """A part of a weight that this process holds, as a view of the live parameter."""

    live: torch.Tensor
    """Transposed where the checkpoint is (GPT-2)."""
    start: tuple[int, int] | None = None
    """Row and column of the whole weight at which the part begins; None: it is the whole weight."""


class Write(NamedTuple):
    """What the loader would write: `numbers` into `live`, of the same shape."""

    live: torch.Tensor
    numbers: torch.Tensor


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps what is copied into live parameters from being written, and remembers it."""

    def __init__(self, live: Mapping[str, torch.Tensor], model: torch.nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.writes: list[Write] = []
        self._live, self._model = live, model
        self._storages = {storage_of(one) for one in live.values()} - {0}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        written = _written(func, args, kwargs)
        live = [place for place in written if storage_of(place) in self._storages]
        if func is torch.ops.aten.copy_.default and not live and (place := self._twin(args[0])) is not None:
            live = [place]
        if not live:
            return func(*args, **kwargs)
        if func is torch.ops.aten.copy_.default and args[1].shape == live[0].shape:
            self.writes.append(Write(live[0], args[1]))
        elif func is torch.ops.aten.fill_.Scalar and live[0].numel() == 1:
            self.writes.append(Write(live[0], torch.full(live[0].shape, float(args[1]), dtype=torch.float64)))
        return args[0]

    def _twin(self, place: torch.Tensor) -> torch.Tensor | None:
        """The live tensor for one that the loader has just registered in its stead (a head's bias)."""
        address = storage_of(place)
        for name, one in named_tensors(self._model):
            if storage_of(one) == address and name in self._live and self._live[name].shape == one.shape:
                base = self._live[name]
                return base.as_strided(place.shape, place.stride(), base.storage_offset() + place.storage_offset())
        return None


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The tensors that an operator writes into."""
    if not func._schema.is_mutable:
        return []
    found: list[torch.Tensor] = []
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            values = value if isinstance(value, list | tuple) else [value]
            found += [one for one in values if isinstance(one, torch.Tensor)]
    return found


def storage_of(tensor: torch.Tensor) -> int:
    """Address of the memory that a tensor lies in."""
    return tensor.untyped_storage().data_ptr()


def named_tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Its parameters and buffers, by all names that they have."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def row_numbers(number: int, shape: Shape) -> torch.Tensor:
    """A tensor of this shape, in no more memory than it has rows, that holds the numbers of its rows."""
    rows = shape[:-1] if len(shape) > 1 else shape
    counted = torch.arange(torch.Size(rows).numel(), dtype=torch.float64) + number * NUMBER
    return counted.view(rows)[..., None].expand(shape) if len(shape) > 1 else counted.view(rows)


def column_numbers(number: int, shape: Shape) -> torch.Tensor:
    """As `row_numbers`, with the numbers of its columns: a vector is one column."""
    columns = torch.arange(shape[-1] if len(shape) > 1 else 1, dtype=torch.float64) + number * NUMBER
    return columns.expand(shape)


def pieces(live: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, *, matrix: bool) -> list[WeightPart]:
    """The parts of a tensor that lie in `live`, from the numbers of their rows and columns.

    Raises ValueError if these are not rows of a tensor or of its transpose.
    """
    if live.dim() > 2 and 1 in live.shape:
        axis = list(live.shape).index(1)
        return pieces(live.squeeze(axis), rows.squeeze(axis), columns.squeeze(axis), matrix=matrix)
    if live.dim() > 2:
        found = []
        for one in zip(live, rows, columns, strict=True):
            found += pieces(*one, matrix=matrix)
        return found
    if live.dim() == 0:
        live, rows, columns = live[None], rows[None], columns[None]
    if not matrix:
        if live.dim() != 1:
            raise ValueError("a vector in a matrix")
        return [WeightPart(live[a:b], (start, 0)) for a, b, start in _runs(rows)]
    if live.dim() == 1:
        axis = 0 if _constant(rows, 0) else 1
        live, rows, columns = live.unsqueeze(axis), rows.unsqueeze(axis), columns.unsqueeze(axis)
    if not _constant(rows, 1):
        live, rows, columns = live.t(), rows.t(), columns.t()
    if not (_constant(rows, 1) and _constant(columns, 0)):
        raise ValueError("rows that are mixed")
    found = []
    for left, right, column in _runs(columns[0]):
        found += [WeightPart(live[a:b, left:right], (row, column)) for a, b, row in _runs(rows[:, 0])]
    return found


def _runs(numbers: torch.Tensor) -> list[tuple[int, int, int]]:
    """Begin, end and first number of each run of numbers [n] that follow one another."""
    whole = numbers.remainder(NUMBER).cpu()
    if not bool((whole == whole.round()).all()):
        raise ValueError("values that were changed")
    values = whole.long()
    breaks = [0, *(torch.nonzero(values.diff() != 1).flatten() + 1).tolist(), len(values)]
    return [(a, b, int(values[a])) for a, b in itertools.pairwise(breaks) if b > a]


def _constant(numbers: torch.Tensor, axis: int) -> bool:
    """Whether they are the same along an axis."""
    if numbers.stride(axis) == 0 or numbers.shape[axis] == 1:
        return True
    return bool((numbers == numbers.narrow(axis, 0, 1)).all())


def join_parts(parts: Sequence[WeightPart]) -> list[WeightPart]:
    """With one part for those that follow one another in the tensor and in memory."""
    joined: list[WeightPart] = []
    for part in sorted(parts, key=lambda one: one.start or (0, 0)):
        if joined and _follows(joined[-1], part):
            live, start = joined.pop()
            size = (len(live) + len(part.live), *live.shape[1:])
            part = WeightPart(live.as_strided(size, live.stride(), live.storage_offset()), start)
        joined.append(part)
    return joined


def _follows(one: WeightPart, other: WeightPart) -> bool:
    (row, column), (next_row, next_column) = one.start or (0, 0), other.start or (0, 0)
    live, after = one.live, other.live
    return (
        (next_row, next_column) == (row + len(live), column)
        and live.shape[1:] == after.shape[1:]
        and live.stride() == after.stride()
        and storage_of(live) == storage_of(after)
        and after.storage_offset() == live.storage_offset() + len(live) * live.stride(0)
    )


@contextmanager
def without_lora(model: torch.nn.Module) -> Iterator[None]:
    """The layers that vLLM has wrapped for LoRA in the places of their wrappers, where its loader looks for them."""
    from vllm.lora.layers import BaseLayerWithLoRA

    wrapped = [
        (path, module)
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, BaseLayerWithLoRA) and hasattr(module, "base_layer")
    ]
    try:
        for path, module in wrapped:
            _set(model, path, module.base_layer)
        yield
    finally:
        for path, module in wrapped:
            _set(model, path, module)


def _set(model: torch.nn.Module, path: str, module: torch.nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


@contextmanager
def parameters_kept(model: torch.nn.Module) -> Iterator[None]:
    """The model's own parameters, whatever its loader registers in their stead."""
    before = [(module, dict(module._parameters)) for module in model.modules()]
    try:
        yield
    finally:
        for module, parameters in before:
            module._parameters.update(parameters)


@contextmanager
def quiet_loader() -> Iterator[None]:
    """Without the loader's warnings of tensors that are not of the parameters' type."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
