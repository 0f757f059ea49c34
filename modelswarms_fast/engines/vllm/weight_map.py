"""Where vLLM's live model keeps a tensor that a checkpoint has by name.

vLLM fuses linear layers into one parameter, pads the vocabulary, ties heads to embeddings, wraps layers for LoRA, and
gives each rank of a tensor-parallel engine a part of a weight. `WeightMap.resolve` is the one place that knows this.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from vllm.model_executor.layers.linear import ColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from modelswarms_fast.errors import InputError


class WeightPart(NamedTuple):
    """A part of a weight that this process holds, as a view of the live parameter."""

    live: torch.Tensor
    start: tuple[int, int] | None = None
    """Row and column of the whole weight at which the part begins; None: it is the whole weight."""


class Weight(NamedTuple):
    """A tensor of the checkpoint in the live model."""

    name: str
    """In the checkpoint: "model.layers.0.self_attn.q_proj.weight"."""
    shape: tuple[int, ...]
    """Of the whole tensor, on all ranks together."""
    parts: tuple[WeightPart, ...]
    """One, unless this rank holds parts of several layers that the checkpoint fuses as vLLM does."""
    module: str
    """Path of the module that has it in the model: "model.layers.0.self_attn.qkv_proj"."""
    row: int
    """Of the module's parameter, at which `parts` begin: the first of its outputs that this weight makes."""

    @property
    def part(self) -> WeightPart:
        """The only part. Raises InputError if there are several."""
        if len(self.parts) > 1:
            raise InputError(
                f"{self.name} holds several layers, and a rank has a part of each; use serve='merged' or "
                "tensor_parallel=1."
            )
        return self.parts[0]


class _Layer(NamedTuple):
    """One of the layers that are fused in a parameter; unfused parameters have one."""

    row: int
    """Of the live parameter, at which it begins."""
    size: int
    """Rows of it here."""
    whole: int
    """Rows of it on all ranks."""
    first: int
    """Of those, the first that is here."""


class WeightMap:
    """Finds the tensors of a checkpoint in a model that vLLM has built from it."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._packed: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
        self._fused: dict[str, list[tuple[str, int]]] = {}
        """Last name of a layer in the checkpoint → where it may be fused: last name in the model, number."""
        for fused, names in self._packed.items():
            for number, name in enumerate(names):
                if name != fused:
                    self._fused.setdefault(name, []).append((fused, number))
        self._parameters: dict[str, tuple[Any, torch.Tensor]] = {}
        """Name without LoRA's wrapping → owner, parameter. Tied ones are there by all their names."""
        for name, parameter in model.named_parameters(remove_duplicate=False):
            owner = model.get_submodule(name.rpartition(".")[0])
            self._parameters[name.replace(".base_layer", "")] = owner, parameter.data

    def resolve(self, name: str, shape: tuple[int, ...]) -> Weight:
        """The live parts of the checkpoint's tensor `name`, which must have this shape.

        Raises:
            InputError: the model has no such tensor, or in another shape, or in a form that cannot be written.
        """
        path, _, kind = name.rpartition(".")
        parent, dot, leaf = path.rpartition(".")
        holders: list[tuple[str, int | None]] = [(path, None)]
        holders += [(f"{parent}{dot}{fused}", number) for fused, number in self._fused.get(leaf, ())]
        found = [(holder, number) for holder, number in holders if f"{holder}.{kind}" in self._parameters]
        if not found:
            beside = tuple(f"{holder}." for holder, _ in holders)
            if kind == "weight" and any(other.startswith(beside) for other in self._parameters):
                raise _unwritable(name)  # quantized: it has qweight and scales
            raise InputError(f"The experts adapt {name}, which the base model does not have; use the base they share.")
        holder, number = found[0]
        owner, live = self._parameters[f"{holder}.{kind}"]
        if live.numel() == 0 or live.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise _unwritable(name)
        whole, parts, row = _parts(owner, live, number, len(self._packed.get(holder.rpartition(".")[2], ())), name)
        if whole != shape:
            raise InputError(
                f"{name} has shape {list(shape)} by the experts but {list(whole)} in the base model; "
                "use the base they share."
            )
        return Weight(name, whole, parts, holder, row)

    def tied(self, weight: Weight) -> str | None:
        """The name of another weight that lies in the same memory, such as the embeddings under a tied head."""
        own = f"{weight.module}.{weight.name.rpartition('.')[2]}"
        address, leaf = self._parameters[own][1].data_ptr(), own.split(".")[-2:]
        for name, (_, live) in self._parameters.items():
            if live.data_ptr() == address and name.split(".")[-2:] != leaf:  # not one module by two paths
                return name
        return None

    def missing(self, names: Collection[str]) -> str | None:
        """The first tensor of the model that a checkpoint of these names lacks and that is tied to none of them."""
        lacking: dict[str, torch.Tensor] = {}
        there = set()
        for name, (_, live) in self._parameters.items():
            path, _, kind = name.rpartition(".")
            parent, dot, leaf = path.rpartition(".")
            parts = [f"{parent}{dot}{part}.{kind}" for part in self._packed.get(leaf, ())] or [name]
            lost = [part for part in parts if part not in names]
            if name in names or not lost:
                there.add(live.data_ptr())
            else:
                lacking[lost[0]] = live
        return next((name for name, live in lacking.items() if live.data_ptr() not in there), None)


def _unwritable(name: str) -> InputError:
    return InputError(
        f"vLLM keeps {name} packed or quantized, where it cannot be written in place; use a base model that is not "
        "quantized, without zentorch, or engine='transformers'."
    )


def _parts(
    owner: Any, live: torch.Tensor, number: int | None, fused: int, name: str
) -> tuple[tuple[int, ...], tuple[WeightPart, ...], int]:
    """Whole shape, parts here and first row of a layer: of all of a parameter, or of one of the `fused` in it."""
    if isinstance(owner, VocabParallelEmbedding):  # padded behind each rank's tokens
        first, stop = owner.shard_indices.org_vocab_start_index, owner.shard_indices.org_vocab_end_index
        return (owner.org_vocab_size, *live.shape[1:]), (WeightPart(live[: stop - first], (first, 0)),), 0
    ranks = getattr(owner, "tp_size", 1)
    if ranks > 1 and isinstance(owner, RowParallelLinear) and live.dim() == 2:
        rows, columns = live.shape
        return (rows, columns * ranks), (WeightPart(live, (0, owner.tp_rank * columns)),), 0
    split = ranks > 1 and isinstance(owner, ColumnParallelLinear)
    if number is None and not split:
        return tuple(live.shape), (WeightPart(live),), 0
    layers = _layers(owner, live, split)
    if number is not None:
        if len(layers) != fused:
            raise InputError(
                f"vLLM fuses {name} with others in a way that is not known here; use engine='transformers'."
            )
        one = layers[number]
        part = WeightPart(live[one.row : one.row + one.size], (one.first, 0) if split else None)
        return (one.whole, *live.shape[1:]), (part,), one.row
    starts = list(itertools.accumulate((one.whole for one in layers), initial=0))
    parts = tuple(
        WeightPart(live[one.row : one.row + one.size], (start + one.first, 0))
        for one, start in zip(layers, starts, strict=False)
    )
    return (starts[-1], *live.shape[1:]), parts, 0


def _layers(owner: Any, live: torch.Tensor, split: bool) -> list[_Layer]:
    """The layers that are fused in a parameter, one behind the other."""
    layers, row = [], 0
    for number, size in enumerate(getattr(owner, "output_partition_sizes", [len(live)])):
        ranks, rank = (owner.tp_size, owner.tp_rank) if split else (1, 0)
        # Fewer key-value heads than ranks: several ranks hold the same.
        copies = owner.num_kv_head_replicas if split and number and isinstance(owner, QKVParallelLinear) else 1
        layers.append(_Layer(row, size, size * ranks // copies, rank // copies * size))
        row += size
    return layers
