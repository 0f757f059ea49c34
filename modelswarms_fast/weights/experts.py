"""Read experts into rows, and check that they can be mixed.

An expert is a PEFT LoRA folder (adapter_config.json, adapter_model.safetensors) or a full checkpoint
(config.json, model.safetensors or its shards). Adapters may differ in ranks, scalings, modules and dtypes (union.py);
full checkpoints have the same tensors. Whatever is wrong raises InputError, which names the first file and tensor at
fault; names and shapes of all experts are compared before the first value is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from modelswarms_fast.config import Combine
from modelswarms_fast.errors import InputError, quoted, short
from modelswarms_fast.weights.adapter_forms import PREFIX
from modelswarms_fast.weights.adapters import LoraModule
from modelswarms_fast.weights.arena import empty_rows
from modelswarms_fast.weights.checkpoint import DTYPES, Checkpoint, scan
from modelswarms_fast.weights.expert_folders import expert_folders, local_folder, locate, system_errors
from modelswarms_fast.weights.export import export
from modelswarms_fast.weights.hub import CACHED
from modelswarms_fast.weights.layout import Layout
from modelswarms_fast.weights.mixing import embed
from modelswarms_fast.weights.union import factors, unite, widest

__all__ = [
    "Experts", "LoraModule", "base_row", "expert_folders", "export", "inner_products", "read_experts", "read_model"
]  # fmt: skip

# Weights of all experts together whose inner products are computed: a second or two.
LARGEST_PRODUCTS = 1 << 30

_ROW_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Fields that decide what the weights of a full checkpoint mean; compared where both configs have them.
_ARCHITECTURE = (
    "model_type",
    "architectures",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rope_theta",
)


@dataclass(frozen=True, eq=False)
class Experts:
    """n checked experts; `rows` [n, D] holds the files' values unscaled, one row an expert.

    `room` is what was allocated: the rows, and behind them as many more as the reader asked for.
    `config` is an adapter_config.json that describes the rows, or the first expert's config.json. `modules` is sorted
    by name and empty for full checkpoints. `sources` are the folders or hub ids as given. `notes` are sentences about
    what was understood in a way that the user should know of.
    """

    kind: Literal["lora", "full"]
    names: tuple[str, ...]
    layout: Layout
    rows: Tensor
    room: Tensor
    modules: tuple[LoraModule, ...]
    config: dict[str, Any]
    sources: tuple[str, ...]
    combine: Combine = "factors"
    """What a mixture of them is, as in `EngineConfig`."""
    notes: tuple[str, ...] = ()
    base: Path | None = None
    """Folder of the base model, if it was given."""
    whole: tuple[str, ...] = ()
    """Tensors of the base model that an expert has trained whole, by its names; in a row behind PEFT's prefix."""

    @property
    def layer_shapes(self) -> dict[str, tuple[int, int]]:
        """[outputs, inputs] of each adapted layer, by its name."""
        shapes = {spec.name: spec.shape for spec in self.layout.specs}
        return {module.name: (shapes[module.b][0], shapes[module.a][1]) for module in self.modules}


def read_experts(
    source: str | Path | Sequence[str | Path],
    *,
    dtype: torch.dtype | None = None,
    base: Path | None = None,
    minimum: int = 2,
    place: Callable[[int, int, torch.dtype], Tensor] | None = None,
) -> Experts:
    """Read a folder of expert folders (sorted by name), or a list of folders and hub ids (in this order).

    Rows have the dtype `dtype` (float32, float16 or bfloat16), or the widest of the experts. `base` is the folder of
    the base model; adapters that were saved with copies of its tensors need it. Fewer than `minimum` experts are
    refused: a search needs two. `place(n, size, dtype)` allocates n rows or more, n without it: the swarm's own rows
    can then begin with the experts. Raises InputError.
    """
    if dtype is not None and dtype not in _ROW_DTYPES:
        raise InputError(f"rows cannot be {dtype}: choose float32, float16 or bfloat16")
    with system_errors():
        names, folders, sources = locate(source, minimum)
        experts = [scan(folder, base) for folder in folders]
    first = experts[0]
    for expert in experts:
        _check_kind(expert, first)
    notes = []
    whole: tuple[str, ...] = ()
    if first.kind == "lora":
        union = unite(experts)
        modules, shapes, config, whole = union.modules, union.shapes, union.config, union.whole
        notes += _base_names(names, experts)
    else:
        modules, config = (), first.config
        shapes = {name: stored.shape for name, stored in first.tensors.items()}
        for expert in experts:
            _check_same(expert, first, shapes)
    row_dtype = dtype
    if row_dtype is None:
        row_dtype, note = _widest(experts)
        notes += note
    layout = Layout.of({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, row_dtype)
    try:
        memory = (place or empty_rows)(len(experts), layout.size, row_dtype)
    except (MemoryError, RuntimeError) as error:  # ours and torch's
        raise InputError(f"{str(error).rstrip('.')}: give fewer experts or particles, or host_memory") from error
    rows = memory[: len(experts)].zero_()
    for expert, row in zip(experts, rows, strict=True):
        expert.read(layout, row, factors(expert, modules))
        _take_from_base(whole, expert.whole, base, layout.views(row))
    told = tuple(notes)
    return Experts(
        first.kind, names, layout, rows, memory, modules, config, sources, notes=told, base=base, whole=whole
    )


def base_row(experts: Experts) -> Tensor | None:
    """[D] the base model in a layout of adapters that hold tensors trained whole; None if they hold none."""
    if not experts.whole:
        return None
    row = torch.zeros(experts.layout.size, dtype=experts.layout.dtype)
    _take_from_base(experts.whole, (), experts.base, experts.layout.views(row))
    return row


def inner_products(rows: Tensor) -> list[list[float]] | None:
    """[n, n] inner products of rows [n, D] in float64; None of rows so large that they are not worth the time."""
    if rows.numel() > LARGEST_PRODUCTS:
        return None
    total = torch.zeros((len(rows), len(rows)), dtype=torch.float64)
    for first in range(0, rows.shape[1], 1 << 18):
        part = rows[:, first : first + (1 << 18)].to("cpu", torch.float64)
        total += part @ part.T
    products: list[list[float]] = total.tolist()
    return products


def read_model(source: str | Path, experts: Experts) -> Tensor:
    """One model, an expert or an export, as a row [D] of these experts. A Path is a folder, a str may be a hub id.

    With `combine="delta"` it may have any rank up to that of all experts together. Raises InputError if it does not fit
    them.
    """
    if experts.combine == "delta":
        return embed(read_experts([source], dtype=experts.layout.dtype, base=experts.base, minimum=1), experts)
    with system_errors():
        model = scan(source if isinstance(source, Path) else local_folder(source), experts.base)
    config_file = Path(experts.sources[0]) / ("config.json" if experts.kind == "full" else "adapter_config.json")
    first = Checkpoint(experts.kind, config_file, experts.config, {}, experts.modules)
    _check_kind(model, first)
    shapes = {spec.name: spec.shape for spec in experts.layout.specs}
    if experts.kind == "lora":
        _check_part(model, first, shapes)
    else:
        _check_same(model, first, shapes)
    row = torch.zeros(experts.layout.size, dtype=experts.layout.dtype)
    model.read(experts.layout, row, factors(model, experts.modules))
    _take_from_base(experts.whole, model.whole, experts.base, experts.layout.views(row))
    return row


def _take_from_base(
    whole: Sequence[str], trained: Sequence[str], base: Path | None, views: Mapping[str, Tensor]
) -> None:
    """Give a row the base model's values of the tensors of `whole` that the expert has not trained."""
    if lacking := [name for name in whole if name not in trained]:
        assert base is not None  # without it no tensor is known to be a trained one
        of_base = scan(base).tensors
        for name in lacking:
            views[f"{PREFIX}{name}"].copy_(of_base[name].load())


def _check_kind(expert: Checkpoint, first: Checkpoint) -> None:
    if expert.kind != first.kind:
        words = {"lora": "a LoRA adapter", "full": "a full checkpoint"}
        raise InputError(
            f"{expert.config_file} is of {words[expert.kind]}, {first.config_file} of {words[first.kind]}: give experts"
            " of one kind"
        )


def _check_same(expert: Checkpoint, first: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise InputError at the first difference between a full checkpoint and the first one, whose shapes these are."""
    other = first.config_file
    for field in _ARCHITECTURE:
        mine, theirs = expert.config.get(field), first.config.get(field)
        if mine != theirs and mine is not None and theirs is not None:
            raise InputError(
                f"{expert.config_file}: {field} is {quoted(mine)}, but {quoted(theirs)} in {other}: give experts"
                " of the same base"
                " model"
            )
    for name in sorted(shapes.keys() | expert.tensors.keys()):
        if name not in expert.tensors or name not in shapes:
            weights = next(iter(expert.tensors.values())).file
            verb = "is missing, but is" if name in shapes else "is not"
            raise InputError(
                f"{weights}: tensor {short(name)} {verb} in {other.parent}: give experts of the same modules"
            )
        stored = expert.tensors[name]
        if stored.shape != shapes[name]:
            raise InputError(
                f"{stored.file}: tensor {short(name)} has shape {list(stored.shape)}, but {list(shapes[name])} in"
                f" {other.parent}: give experts of the same base model"
            )


def _check_part(model: Checkpoint, first: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise InputError for a tensor of an adapter that has no place in rows of these shapes."""
    for name, stored in model.tensors.items():
        if name not in shapes:
            raise InputError(
                f"{stored.file}: tensor {short(name)} is not in {first.config_file.parent} and the other experts:"
                " give a model"
                " of their modules"
            )
        if len(stored.shape) != len(shapes[name]) or any(map(int.__gt__, stored.shape, shapes[name])):
            raise InputError(
                f"{stored.file}: tensor {short(name)} has shape {list(stored.shape)}, but {list(shapes[name])} in"
                " the rows of"
                f" {first.config_file.parent} and the other experts: give a model of their base and ranks"
            )


def _widest(experts: Sequence[Checkpoint]) -> tuple[torch.dtype, list[str]]:
    """The dtype that holds all values, and a note if they have several. Raises InputError for float64."""
    found: dict[str, Path] = {}
    for expert in experts:
        for name, stored in expert.tensors.items():
            if DTYPES[stored.dtype] not in _ROW_DTYPES:
                raise InputError(
                    f"{stored.file}: tensor {short(name)} is {stored.dtype}: set row_dtype, to which it is cast"
                )
            found.setdefault(stored.dtype, stored.file)
    dtype = widest(DTYPES[word] for word in found)
    if len(found) == 1:
        return dtype, []
    where = ", ".join(f"{word} in {file}" for word, file in found.items())
    name = str(dtype).removeprefix("torch.")
    return dtype, [f"The experts are of several dtypes ({where}): all are cast to {name}; row_dtype sets another."]


def _base_names(names: Sequence[str], experts: Sequence[Checkpoint]) -> list[str]:
    """A note if the experts name different base models. It is no error: shapes decide."""
    meant: dict[str, tuple[str, list[str]]] = {}
    for name, expert in zip(names, experts, strict=True):
        given = str(expert.config.get("base_model_name_or_path") or "").rstrip("/ ")
        revision = expert.config.get("revision") or "main"
        cached = CACHED.search(given)
        # A local copy of a base is that base.
        meaning = f"{(cached['name'] if cached else given.rsplit('/', 1)[-1]).lower()}@{revision}"
        shown = (given or "none") + ("" if revision == "main" else f"@{revision}")
        meant.setdefault(meaning, (shown, []))[1].append(name)
    if len(meant) == 1:
        return []
    listed = "; ".join(f"{shown} ({', '.join(users)})" for shown, users in meant.values())
    return [f"The experts name different base models: {listed}. Their shapes decide whether they fit."]
