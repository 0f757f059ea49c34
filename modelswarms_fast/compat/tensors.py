"""Weighted sums of adapters, tensor by tensor: each product and each sum rounded to the tensors' own number type."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from modelswarms_fast.errors import InputError, short
from modelswarms_fast.errors.arguments import checked
from modelswarms_fast.errors.files import sync
from modelswarms_fast.weights.checkpoint import weights_file

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@checked
def lora_merge(
    weights: Sequence[float],
    lora_name_list: Sequence[str | os.PathLike[str]],
    output_name: str | os.PathLike[str],
    gpu_id: object = None,
    directly_load_safetensors: int = 0,
) -> dict[str, Tensor] | None:
    """Write a weighted sum of LoRA adapters to a folder: `lora_merge` of model_swarm, with its arguments.

    Each tensor is weights[0] · t[0] + weights[1] · t[1] + …, the sum from left to right, each product and each sum
    rounded. The tensors of the first adapter are those of the sum; a later adapter may lack some.

    Nothing is on the GPU, and no model is loaded. The files are written under other names and renamed, so that the
    folder may be one of the adapters', and holds its old files until the new ones are whole.

    Args:
        weights: a factor for each adapter.
        lora_name_list: folders with an `adapter_model.safetensors`.
        output_name: a folder, which is made if it is missing; the folder around it must exist. Other files in it stay.
        gpu_id: not used.
        directly_load_safetensors: 1 sums in the number type of the tensors, and writes nothing but
            `adapter_model.safetensors`. 0 sums in float32, as model_swarm does where it loads models, and also writes
            the `adapter_config.json` of the last adapter.

    Returns:
        The tensors that were written, or None for `directly_load_safetensors=0`.

    Raises:
        InputError: the adapters do not fit together, one cannot be read, or the sum cannot be written; nothing is
            changed then.
    """
    folders, target = [Path(name) for name in lora_name_list], Path(output_name)
    directly = bool(directly_load_safetensors)
    files = [weights_file(folder, WEIGHTS) for folder in folders]
    merged = merge_states(weights, [_read(file, None if directly else torch.float32) for file in files], files)
    config = None if directly else folders[-1] / CONFIG
    if config is not None and not config.is_file():
        raise InputError(f"{config} is missing; give the folder of an adapter, or directly_load_safetensors=1.")
    _write(merged, target, config)
    return merged if directly else None


def merge_states(
    weights: Sequence[float], states: Sequence[Mapping[str, Tensor]], names: Sequence[object] = ()
) -> dict[str, Tensor]:
    """The weighted sum of state dicts, as `lora_merge` has it; tensors of the first one's number types.

    `names` says in errors where a state dict is from.

    Raises:
        InputError: not one weight for each, none at all, or tensors that do not fit together.
    """
    names = names or [f"state dict {number}" for number in range(len(states))]
    if len(weights) != len(states) or not states:
        raise InputError(f"{len(weights)} weights are given for {len(states)} adapters; give one for each, and some.")
    first = states[0]
    for name, state in zip(names, states, strict=True):
        for key, tensor in state.items():
            if key not in first:
                raise InputError(f"{name} has a tensor {short(key)} that {names[0]} lacks; give it first.")
            if sentence := other_rank(key, (name, tensor.shape), (names[0], first[key].shape)):
                raise InputError(sentence)
            if tensor.shape != first[key].shape:
                raise InputError(
                    f"{name}: tensor {short(key)} has shape {list(tensor.shape)}, but {list(first[key].shape)} in "
                    f"{names[0]}; give adapters of one rank and one base model."
                )
    merged = {}
    for key, tensor in first.items():
        total = float(weights[0]) * tensor
        for weight, state in zip(weights[1:], states[1:], strict=True):
            if key in state:
                total += float(weight) * state[key]
        merged[key] = total
    return merged


def other_rank(key: str, mine: tuple[object, Sequence[int]], first: tuple[object, Sequence[int]]) -> str | None:
    """What to say of two adapters, each a name and the shape of this tensor, that have not one rank."""
    axis = next((axis for axis, half in enumerate(("lora_A", "lora_B")) if half in key), None)
    if axis is None or min(len(mine[1]), len(first[1])) <= axis or mine[1][axis] == first[1][axis]:
        return None
    names = [name.parent if isinstance(name, Path) else name for name, _ in (mine, first)]
    return (
        f"{names[0]} has rank {mine[1][axis]}, but {names[1]} has rank {first[1][axis]} ({short(key)}); tensors are "
        "added one by one, so give adapters of one rank."
    )


def _read(file: Path, dtype: torch.dtype | None) -> dict[str, Tensor]:
    try:
        state = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} is not a complete safetensors file ({short(error)}); download it again.") from error
    return state if dtype is None else {key: tensor.to(dtype) for key, tensor in state.items()}


def _write(state: dict[str, Tensor], folder: Path, config: Path | None) -> None:
    """Into a folder that is made if it is missing; each file appears whole."""
    mark = secrets.token_hex(8)
    new = {folder / name: folder / f".{name}.{mark}" for name in (WEIGHTS, CONFIG)[: 1 if config is None else 2]}
    made = not folder.exists()
    try:
        if made:
            folder.mkdir()
        with open(new[folder / WEIGHTS], "xb") as file:
            file.write(save(state))
        if config is not None:
            shutil.copyfile(config, new[folder / CONFIG])
        for temporary in new.values():
            sync(temporary)
        for place, temporary in new.items():
            os.replace(temporary, place)
        sync(folder)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else short(error)
        raise InputError(
            f"{folder} could not be written ({reason}); give a folder in one that exists and has room."
        ) from error
    finally:
        for temporary in new.values():
            with suppress(OSError):
                temporary.unlink()
        if made:
            with suppress(OSError):  # it holds what was written
                folder.rmdir()
