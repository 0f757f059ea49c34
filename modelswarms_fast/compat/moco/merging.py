"""MoCo's `lora_merge`, of adapters and of full models, and the sums of rows that its swarm moves by."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from modelswarms_fast.compat import tensors
from modelswarms_fast.compat.moco.session import session
from modelswarms_fast.compat.models import CONFIGS, write_weights
from modelswarms_fast.errors import InputError, short
from modelswarms_fast.weights.base_model import read_object
from modelswarms_fast.weights.checkpoint import scan

Shapes = Mapping[str, tuple[int, ...]]

CHUNK = 1 << 24
"""Elements that are summed at once in float32."""
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".index.json")


def lora_merge(
    weights: Sequence[float],
    lora_name_list: Sequence[str],
    output_path: str,
    gpu_id: object,
    directly_load_safetensors: bool | int = 0,
    base_model: object = None,
) -> dict[str, Tensor] | None:
    """Write a weighted sum of models to a folder: `lora_merge` of MoCo, with its arguments.

    With `directly_load_safetensors` each product and sum is rounded to the number type of the adapters, which
    `compat.lora_merge` describes. Without it the sum is computed in float32: of adapters it is kept in float32, of full
    models in float16, with the first model's config and tokenizer. Weights are not divided by their sum.

    Args:
        weights: a factor for each model.
        lora_name_list: folders or hub ids; positions of a swarm need no files.
        output_path: a folder, which is made if it is missing.
        gpu_id: not used.
        directly_load_safetensors: see above.
        base_model: not used.

    Returns:
        With `directly_load_safetensors` the tensors, else None.

    Raises:
        InputError: the models do not fit together, one cannot be read, or the sum cannot be written.
    """
    models = session().models
    folders = [models.folder(name) for name in lora_name_list]
    for folder in folders:
        models.write(folder)
    full = [not (folder / CONFIGS["lora"]).exists() for folder in folders]
    merged = None
    if directly_load_safetensors or not any(full):
        merged = tensors.lora_merge(weights, folders, output_path, gpu_id, int(directly_load_safetensors))
    else:
        _merge_full(weights, folders, Path(output_path))
    models.drop(output_path)  # its files are what counts from now on
    return merged


def _merge_full(weights: Sequence[float], folders: Sequence[Path], output: Path) -> None:
    """One tensor after the other, so that no more than the sum is in memory."""
    if len(weights) != len(folders):
        raise InputError(f"{len(weights)} weights are given for {len(folders)} models; give one for each.")
    found = [scan(folder) for folder in folders]
    shapes = [{name: stored.shape for name, stored in one.tensors.items()} for one in found]
    for folder, one, shape in zip(folders, found, shapes, strict=True):
        if one.kind != "full":
            raise InputError(f"{folder} is an adapter and {folders[0]} is not; give models of one kind.")
        check_shapes(str(folder), shape, str(folders[0]), shapes[0])
    merged = {}
    for name in shapes[0]:
        parts = [one.tensors[name].load().float() for one in found]
        merged[name] = weighted(weights, parts).half()
    output.mkdir(parents=True, exist_ok=True)
    copy_small_files(folders[0], output, torch.float16)
    write_weights(output, "full", merged)


def weighted(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    """A weighted sum from left to right, each product and each sum rounded to the tensors' number type."""
    total = float(weights[0]) * tensors[0]
    for weight, tensor in zip(weights[1:], tensors[1:], strict=True):
        total += float(weight) * tensor
    return total


def wide_sum(weights: Sequence[float], rows: Sequence[Tensor]) -> Tensor:
    """The same of rows [D], computed in float32 and rounded once."""
    total = torch.empty_like(rows[0])
    for first in range(0, len(total), CHUNK):
        total[first : first + CHUNK] = weighted(weights, [row[first : first + CHUNK].float() for row in rows])
    return total


def check_shapes(path: str, shapes: Shapes, first_path: str, others: Shapes) -> None:
    """Raise InputError for the first tensor that two models do not have in common."""
    for name in sorted(shapes.keys() | others.keys()):
        if name in shapes and name in others:
            sentence = tensors.other_rank(name, (path, shapes[name]), (first_path, others[name]))
            if sentence is not None:
                raise InputError(sentence)
        if shapes.get(name) != others.get(name):
            mine, theirs = (list(one[name]) if name in one else "missing" for one in (shapes, others))
            raise InputError(
                f"{path}: tensor {short(name)} is {mine}, but {theirs} in {first_path}; give models of one base and "
                "one rank."
            )


def copy_small_files(source: Path, folder: Path, dtype: torch.dtype | None = None) -> None:
    """All files of a model's folder but weights, into one that is made; a full model's config then says this dtype."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        if file.is_file() and not file.name.endswith(_WEIGHTS) and not file.name.startswith("."):
            shutil.copyfile(file, folder / file.name)
    if dtype is not None:
        config = read_object(source / CONFIGS["full"], "download it again")
        config["dtype" if "dtype" in config else "torch_dtype"] = str(dtype).removeprefix("torch.")
        (folder / CONFIGS["full"]).write_text(json.dumps(config, indent=2) + "\n")
