"""Where vLLM's live model keeps a tensor that a checkpoint has by name.

vLLM renames, fuses, reorders, transposes and ties tensors while it loads a checkpoint, pads the vocabulary, and gives
each rank of a tensor-parallel engine a part. All of this is in the model's own `load_weights`, in code that differs
from model to model. So it is asked, with tensors that hold their own row or column numbers (probes.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open

from modelswarms_fast.engines.vllm.probes import (
    FIRST,
    NUMBER,
    Recorder,
    Shape,
    WeightPart,
    Write,
    column_numbers,
    join_parts,
    named_tensors,
    parameters_kept,
    pieces,
    quiet_loader,
    row_numbers,
    without_lora,
)
from modelswarms_fast.errors import InputError

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class Weight(NamedTuple):
    """A tensor of the checkpoint in the live model."""

    name: str
    """In the checkpoint: "model.layers.0.self_attn.q_proj.weight"."""
    shape: Shape
    """Of the whole tensor, on all ranks together."""
    parts: tuple[WeightPart, ...]
    """One, unless vLLM keeps its rows in another order, or this rank a part of each of the layers fused in it."""
    parameter: str
    """The parameter that has it in the model: "model.layers.0.self_attn.qkv_proj.weight"."""
    row: int
    """Of that parameter, at which the first part begins: the first of its outputs that this weight makes."""

    @property
    def module(self) -> str:
        """Path of the module that has it in the model: "model.layers.0.self_attn.qkv_proj"."""
        return self.parameter.rpartition(".")[0]

    @property
    def part(self) -> WeightPart:
        """The only part. Raises InputError if there are several."""
        if len(self.parts) > 1:
            raise InputError(
                f"vLLM keeps the rows of {self.name} in another order than the checkpoint; use serve='merged' or "
                "engine='transformers'."
            )
        return self.parts[0]


class WeightMap:
    """Finds the tensors of a checkpoint in a model that vLLM has built from it.

    Args:
        model: vLLM's, with the base model's own weights.
        base: the folder of the base model's checkpoint.
    """

    def __init__(self, model: torch.nn.Module, base: Path) -> None:
        self._model, self._base = model, BaseTensors(base)
        self._shapes = self._base.shapes
        inner = getattr(model, "get_language_model", lambda: model)()
        self._models = [model] if inner is model else [model, inner]
        self._live: dict[str, torch.Tensor] = {}
        """Parameters and buffers by their names without LoRA's wrapping. Tied ones are there by all their names."""
        with without_lora(model):
            for name, one in named_tensors(model):
                self._live[name] = one.detach()
        self._found: dict[tuple[str, Shape], Weight | None] = {}
        """None: the loader takes no such tensor, or has no use for it."""
        self._ignored: set[tuple[str, Shape]] = set()
        """Those that it has no use for."""

    def resolve(self, wanted: Mapping[str, Shape]) -> dict[str, Weight]:
        """The live parts of the checkpoint's tensors, by name and shape; without those that vLLM has no use for.

        Raises:
            InputError: the model has no such tensor, or in another shape, or in a form that cannot be written.
        """
        for name, shape in wanted.items():
            if self._shapes.get(name, shape) != shape:
                raise _other_shape(name, shape, self._shapes[name])
        self._probe(wanted)
        found = {}
        for name, shape in wanted.items():
            weight = self._found[name, shape]
            if weight is not None:
                found[name] = weight
            elif (name, shape) not in self._ignored:
                raise self._refusal(name)
        return found

    def linear(self, wanted: Mapping[str, Shape]) -> dict[str, Weight]:
        """The weights of linear layers, by the layers' names and [outputs, inputs], in this orientation.

        A layer of a text model that the checkpoint wraps may be named as in the text model alone.

        Raises:
            InputError: as `resolve`, and for two names of one layer.
        """
        shapes = {}
        for layer, shape in wanted.items():
            turned = self._shapes.get(f"{layer}.weight") == shape[::-1]
            shapes[f"{layer}.weight"] = shape[::-1] if turned else shape
        weights = self.resolve(shapes)
        found = {}
        for layer, shape in wanted.items():
            name = f"{layer}.weight"
            if name not in weights:
                raise self._refusal(name)
            weight = _upright(weights[name], self._live)
            if weight.shape != shape:
                raise _other_shape(name, shape, weight.shape)
            found[layer] = weight
        places: dict[int, str] = {}
        for layer, weight in found.items():
            other = places.setdefault(weight.parts[0].live.data_ptr(), layer)
            if other != layer:
                raise InputError(
                    f"{other} and {layer} are the same layer of the base model; give experts that were trained on the "
                    "same class of model, the whole one or its text model alone."
                )
        return found

    def tied(self, weight: Weight) -> str | None:
        """The name of another weight that lies in the same memory, such as the embeddings under a tied head."""
        address = self._live[weight.parameter].data_ptr()
        leaves = {tuple(name.split(".")[-2:]): name for name, live in self._live.items() if live.data_ptr() == address}
        if len(leaves) < 2:  # one module, perhaps by two paths
            return None
        return next(name for leaf, name in leaves.items() if leaf != tuple(weight.name.split(".")[-2:]))

    def missing(self, found: Mapping[str, Weight]) -> str | None:
        """The first tensor of the base model's checkpoint that is not among these and does not lie where they do."""
        others = {name: shape for name, shape in self._shapes.items() if name not in found}
        self._probe(others)
        covered = {part.live.data_ptr() for weight in found.values() for part in weight.parts}
        for name, shape in others.items():
            weight = self._found[name, shape]
            if weight is not None and any(part.live.data_ptr() not in covered for part in weight.parts):
                return name
        return None

    def _refusal(self, name: str) -> InputError:
        path = name.rpartition(".")[0]
        if any(other.startswith(f"{path}.") for other in self._shapes):
            return InputError(
                f"vLLM keeps {name} packed or quantized, where it cannot be written in place; use a base model that is "
                "not quantized, without zentorch, or engine='transformers'."
            )
        return InputError(f"The experts adapt {name}, which the base model does not have; use the base they share.")

    def _probe(self, wanted: Mapping[str, Shape]) -> None:
        """Ask the model's loader for those that have not been asked for."""
        asked = [(name, shape) for name, shape in wanted.items() if (name, shape) not in self._found]
        rows: dict[tuple[str, Shape], list[Write]] = {}
        columns: dict[tuple[str, Shape], list[Write]] = {}
        with without_lora(self._model), parameters_kept(self._model), quiet_loader():
            # A wrapped text model has a loader of its own, for names as they are in the text model alone.
            for model in self._models:
                left = [one for one in asked if one not in rows]
                rows |= self._ask(model, left, row_numbers, self._ignored)
                columns |= self._ask(model, [one for one in left if one in rows], column_numbers, set())
        for one in asked:
            writes = rows.get(one)
            self._found[one] = self._alias(*one) if writes is None else self._decode(*one, writes, columns.get(one, []))

    def _ask(
        self,
        model: torch.nn.Module,
        asked: Sequence[tuple[str, Shape]],
        probe: Callable[[int, Shape], torch.Tensor],
        ignored: set[tuple[str, Shape]],
    ) -> dict[tuple[str, Shape], list[Write]]:
        """What the loader writes of each; `ignored` gets those that it takes without writing anything."""
        found: dict[tuple[str, Shape], list[Write]] = {}

        def load(ones: Sequence[tuple[str, Shape]]) -> tuple[int, bool]:
            """How many it has taken before one that it refuses, and whether it has written anything."""
            taken = 0

            def given() -> Iterator[tuple[str, torch.Tensor]]:
                nonlocal taken
                for number, (name, shape) in enumerate(ones):
                    taken = number
                    yield name, probe(FIRST + number, shape)
                taken = len(ones)

            recorder = Recorder(self._live, self._model)
            try:
                with torch.no_grad(), recorder:
                    model.load_weights(given())  # type: ignore[operator]
            except Exception:  # each loader has errors of its own for a name or shape that it does not know
                taken = min(taken, len(ones) - 1)
            for write in recorder.writes:
                value = float(write.numbers.flatten()[0]) if write.numbers.numel() else 0.0
                number = int(value) // NUMBER - FIRST if math.isfinite(value) else -1
                if 0 <= number < len(ones):
                    found.setdefault(ones[number], []).append(write)
            return taken, bool(recorder.writes)

        first = 0
        while first < len(asked):
            first += load(asked[first:])[0] + 1
        for one in asked:  # alone, as one beside it may have been refused
            if one not in found and load([one]) == (1, False):
                ignored.add(one)
        return found

    def _alias(self, name: str, shape: Shape) -> Weight | None:
        """A tensor that the loader passes over because it is tied to another one."""
        mapper = getattr(self._model, "hf_to_vllm_mapper", None)
        for parameter in (name, mapper.get_rename_mapper().map_name(name) if mapper is not None else name):
            live = self._live.get(parameter)
            if live is not None and live.dtype in FLOATS and live.dim() == len(shape) and len(live) >= shape[0]:
                weight = Weight(name, shape, (WeightPart(live[: shape[0]]),), parameter, 0)
                if self.tied(weight) is not None:
                    return weight
        return None

    def _decode(self, name: str, shape: Shape, rows: Sequence[Write], columns: Sequence[Write]) -> Weight | None:
        """The parts of a tensor; None where what is written is not the tensor's own elements."""
        if len(rows) != len(columns):
            return None
        parts: list[WeightPart] = []
        for (live, row_of), (_, column_of) in zip(rows, columns, strict=True):
            if live.dtype not in FLOATS:
                return None
            try:
                parts += pieces(live, row_of, column_of, matrix=len(shape) > 1)
            except ValueError:
                return None
        parts = join_parts(parts)
        if len(parts) == 1 and parts[0].live.squeeze().shape == tuple(size for size in shape if size != 1):
            parts = [WeightPart(parts[0].live.view(shape))]  # that of a convolution has a dimension of one channel
        first = parts[0].live
        parameter = self._owner(first)
        if any((part.start or (0, 0))[0] + len(part.live) > shape[0] for part in parts if shape):
            return None  # something was added to the numbers
        # Else vLLM has packed or quantized what it had loaded.
        if parameter is None or not all(self._base.holds(name, part) for part in (parts[0], parts[-1])):
            return None
        whole = self._live[parameter]
        offset = first.storage_offset() - whole.storage_offset()
        return Weight(name, shape, tuple(parts), parameter, offset // whole.stride(0) if whole.dim() else 0)

    def _owner(self, live: torch.Tensor) -> str | None:
        address = live.untyped_storage().data_ptr()
        return next((name for name, one in self._live.items() if one.untyped_storage().data_ptr() == address), None)


def _other_shape(name: str, shape: Shape, whole: Shape) -> InputError:
    return InputError(
        f"{name} has shape {list(shape)} by the experts but {list(whole)} in the base model; use the base they share."
    )


class BaseTensors:
    """What the checkpoint of the base model holds, in safetensors."""

    def __init__(self, folder: Path) -> None:
        self.shapes: dict[str, Shape] = {}
        self._files: dict[str, Path] = {}
        own = sorted(folder.glob("model*.safetensors"))
        for file in own or sorted(folder.glob("*.safetensors")):  # others may hold the same in another layout
            with safe_open(file, framework="pt") as handle:
                for name in handle.keys():  # noqa: SIM118
                    self.shapes[name] = tuple(handle.get_slice(name).get_shape())
                    self._files[name] = file

    def holds(self, name: str, part: WeightPart) -> bool:
        """Whether the first row of a part is what the checkpoint has there; true of a tensor that it lacks."""
        shape = self.shapes.get(name)
        if shape is None or not shape or (len(shape) > 2 and part.start is not None):
            return True
        row, column = part.start or (0, 0)
        with safe_open(self._files[name], framework="pt") as handle:
            stored = handle.get_slice(name)[row : row + 1]
        live = part.live[:1].to("cpu", torch.float32)
        right = stored[:, column : column + live.shape[1]] if len(shape) == 2 else stored
        return torch.equal(right.to(part.live.dtype).float(), live)


def _upright(weight: Weight, live: Mapping[str, torch.Tensor]) -> Weight:
    """A linear layer's weight as [outputs, inputs], which is how vLLM keeps it."""
    place = live[weight.parameter]
    if place.dim() != 2 or weight.parts[0].live.stride() == place.stride():
        return weight
    parts = [
        WeightPart(part.live.t(), None if part.start is None else (part.start[1], part.start[0]))
        for part in weight.parts
    ]
    return weight._replace(shape=weight.shape[::-1], parts=tuple(join_parts(parts)) if len(parts) > 1 else tuple(parts))
