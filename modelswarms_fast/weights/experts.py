"""Read experts into rows, and check that they can be mixed: same base, tensors, shapes, scaling and dtype.

An expert is a PEFT LoRA folder (adapter_config.json, adapter_model.safetensors) or a full checkpoint
(config.json, model.safetensors or its shards). Whatever is wrong raises InputError, which names the first
file and tensor at fault; names, shapes and dtypes of all experts are compared before the first value is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from modelswarms_fast.config import Combine
from modelswarms_fast.errors import InputError
from modelswarms_fast.weights.adapters import LoraModule
from modelswarms_fast.weights.arena import empty_rows
from modelswarms_fast.weights.checkpoint import DTYPES, EXPECTED, Checkpoint, scan
from modelswarms_fast.weights.export import export
from modelswarms_fast.weights.hub import HUB_ID, download
from modelswarms_fast.weights.layout import Layout
from modelswarms_fast.weights.mixing import embed

__all__ = [
    "Experts", "LoraModule", "expert_folders", "export", "inner_products", "read_experts", "read_model"
]  # fmt: skip

# Weights of all experts together whose inner products are computed: a second or two.
LARGEST_PRODUCTS = 1 << 30

_ROW_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_CAST = "set row_dtype, to which all experts are cast"
_WEIGHTS = ("*.safetensors", "adapter_model.*", "pytorch_model*.bin")
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
    `config` is the first expert's adapter_config.json (or config.json), `modules` is sorted by name and empty
    for full checkpoints, `sources` are the folders or hub ids as given.
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


def read_experts(
    source: str | Path | Sequence[str | Path],
    *,
    dtype: torch.dtype | None = None,
    minimum: int = 2,
    place: Callable[[int, int, torch.dtype], Tensor] | None = None,
) -> Experts:
    """Read a folder of expert folders (sorted by name), or a list of folders and hub ids (in this order).

    `dtype` (float32, float16 or bfloat16) casts every expert; without it all need one dtype, which the rows
    keep. Fewer than `minimum` experts are refused: a search needs two. `place(n, size, dtype)` allocates n rows or
    more, n without it: the swarm's own rows can then begin with the experts. Raises InputError.
    """
    if dtype is not None and dtype not in _ROW_DTYPES:
        raise InputError(f"rows cannot be {dtype}: choose float32, float16 or bfloat16")
    with _system_errors():
        names, folders, sources = _locate(source, minimum)
        experts = [scan(folder) for folder in folders]
    first = experts[0]
    name, stored = next(iter(first.tensors.items()))
    row_dtype = dtype or DTYPES[stored.dtype]
    if row_dtype not in _ROW_DTYPES:
        raise InputError(f"{stored.file}: tensor {name} is {stored.dtype}: {_CAST}")
    meta = {name: torch.empty(stored.shape, device="meta") for name, stored in first.tensors.items()}
    layout = Layout.of(meta, row_dtype)
    for expert in experts:
        _check_same(expert, first, layout, cast=dtype is not None)
    try:
        memory = (place or empty_rows)(len(experts), layout.size, row_dtype)
    except (MemoryError, RuntimeError) as error:  # ours and torch's
        raise InputError(f"{str(error).rstrip('.')}: give fewer experts or particles, or host_memory") from error
    rows = memory[: len(experts)].zero_()
    for expert, row in zip(experts, rows, strict=True):
        expert.read(layout, row)
    return Experts(first.kind, names, layout, rows, memory, first.modules, first.config, sources)


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


def read_model(folder: str | Path, experts: Experts) -> Tensor:
    """One exported model as a row [D], checked against the experts as one of them is. Raises InputError.

    With `combine="delta"` it may have any rank up to that of all experts together.
    """
    if experts.combine == "delta":
        return embed(read_experts([folder], dtype=experts.layout.dtype, minimum=1), experts)
    with _system_errors():
        model = scan(Path(folder))
    config_file = Path(experts.sources[0]) / ("config.json" if experts.kind == "full" else "adapter_config.json")
    first = Checkpoint(experts.kind, config_file, experts.config, {}, experts.modules)
    _check_same(model, first, experts.layout, cast=False)
    row = torch.zeros(experts.layout.size, dtype=experts.layout.dtype)
    model.read(experts.layout, row)
    return row


@contextmanager
def _system_errors() -> Iterator[None]:
    """A folder that the system does not let us look into (permissions, a long name) is the user's to mend."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}: give a folder that you may read") from error


def _locate(
    source: str | Path | Sequence[str | Path], minimum: int
) -> tuple[tuple[str, ...], list[Path], tuple[str, ...]]:
    """Names, local folders and sources of the experts; no expert file is opened here."""
    if isinstance(source, str | Path):
        folders = expert_folders(_local(source))
        if not folders:
            raise InputError(f"{source} holds no experts: {EXPECTED}")
        labels, sources = folders, [str(folder) for folder in folders]
    else:
        folders, sources = [_local(item) for item in source], [str(item) for item in source]
        # A hub snapshot's folder is named by its commit, so the name comes from what the user wrote.
        labels = [Path(os.path.abspath(item)) for item in source]
    if len(folders) < minimum:
        what = ", ".join(sources) or "an empty list"
        raise InputError(f"{what} gives {len(folders)} expert(s), but a search needs at least two: {EXPECTED}")
    names = [label.name for label in labels]
    names = [label.name if names.count(label.name) == 1 else f"{label.parent.name}/{label.name}" for label in labels]
    seen: dict[str, str] = {}
    for name, folder, text in zip(names, folders, sources, strict=True):
        for key in (name, str(folder.resolve())):
            if key in seen:
                raise InputError(f"{seen[key]} and {text} are one expert or share their name: drop or rename one")
        seen |= {name: text, str(folder.resolve()): text}
    return tuple(names), folders, tuple(sources)


@_system_errors()
def expert_folders(parent: Path) -> list[Path]:
    """The folders of experts in `parent`, sorted by name. Raises InputError for one that has weights but no config."""
    found = []
    for entry in sorted(parent.iterdir()):
        if entry.name.startswith(".") or not entry.is_dir():
            continue
        if (entry / "adapter_config.json").exists() or (entry / "config.json").exists():
            found.append(entry)
        elif any(path for pattern in _WEIGHTS for path in entry.glob(pattern)):
            # A damaged expert: leaving it out in silence would change the result.
            raise InputError(f"{entry} holds weights but no adapter_config.json or config.json: add it")
    return found


def _local(item: str | Path) -> Path:
    """A local folder as is, else the snapshot of a hub id."""
    path = Path(item)
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(f"{item} is a file: give the folder that holds it")
    if "/" not in str(item) or not HUB_ID.fullmatch(str(item)):
        raise InputError(f"{item} does not exist: give a folder or a hub id such as owner/name")
    return download(str(item))


def _check_same(expert: Checkpoint, first: Checkpoint, layout: Layout, *, cast: bool) -> None:
    """Raise InputError at the first difference between an expert and the first one, whose layout this is."""
    file, other = expert.config_file, first.config_file
    if expert.kind != first.kind:
        words = {"lora": "a LoRA adapter", "full": "a full checkpoint"}
        raise InputError(f"{file} is of {words[expert.kind]}, {other} of {words[first.kind]}: give experts of one kind")
    for field in ("base_model_name_or_path", "revision") if expert.kind == "lora" else _ARCHITECTURE:
        mine, theirs = _meaning(expert.config, field), _meaning(first.config, field)
        if mine != theirs and (expert.kind == "lora" or (mine is not None and theirs is not None)):
            raise InputError(
                f"{file}: {field} is {expert.config.get(field)!r}, but {first.config.get(field)!r} in"
                f" {other}: give experts of the same base model"
            )
    shapes = {spec.name: spec.shape for spec in layout.specs}
    for name in sorted(shapes.keys() | expert.tensors.keys()):
        if name not in expert.tensors or name not in shapes:
            weights = next(iter(expert.tensors.values())).file
            verb = "is missing, but is" if name in shapes else "is not"
            raise InputError(f"{weights}: tensor {name} {verb} in {other.parent}: give experts of the same modules")
        stored = expert.tensors[name]
        if stored.shape != shapes[name]:
            raise InputError(
                f"{stored.file}: tensor {name} has shape {list(stored.shape)}, but {list(shapes[name])} in"
                f" {other.parent}: give experts of the same base model and ranks"
            )
        if not cast and DTYPES[stored.dtype] != layout.dtype:
            raise InputError(
                f"{stored.file}: tensor {name} is {stored.dtype}, the first expert's are {layout.dtype}: {_CAST}"
            )
    for ours, module in zip(expert.modules, first.modules, strict=True):
        if ours.scaling != module.scaling:
            raise InputError(
                f"{file}: {ours.name} is scaled by {ours.scaling:g} (lora_alpha, r, use_rslora), but by"
                f" {module.scaling:g} in {other}: give experts of one scaling, else {ours.a} cannot be mixed"
            )


def _meaning(config: Mapping[str, Any], field: str) -> Any:
    """What is compared: a local copy of a base is that base, and a revision not given is the main one."""
    value = config.get(field)
    if field == "base_model_name_or_path":
        return str(value).rstrip("/").rsplit("/", 1)[-1].lower()
    return value or "main" if field == "revision" else value
