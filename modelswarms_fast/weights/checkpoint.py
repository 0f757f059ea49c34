"""Look into one expert's folder, LoRA or full checkpoint: config, tensor names, shapes, dtypes, then values.

Only safetensors is ever opened. Whatever is wrong with the folder by itself raises InputError here; whether
experts fit together is for experts.py.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from modelswarms_fast.errors import InputError, quoted, short
from modelswarms_fast.weights.adapter_forms import PREFIX, merge_advice, plain_names
from modelswarms_fast.weights.adapters import LoraModule, check_config, lora_modules
from modelswarms_fast.weights.base_model import PLAIN_NAME, read_object
from modelswarms_fast.weights.expert_folders import missing_config
from modelswarms_fast.weights.layout import Layout

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
_AGAIN = "download or export this expert again"
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, its values not yet read; `dtype` in the words of safetensors, `key` its name in the file."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    key: str

    def load(self) -> Tensor:
        """The values. Raises InputError."""
        with _open(self.file) as handle:
            tensor: Tensor = handle.get_tensor(self.key)
        return tensor


@dataclass(frozen=True)
class Checkpoint:
    """One expert's folder, checked by itself; `tensors` is sorted by name, `modules` empty if it is full."""

    kind: Literal["lora", "full"]
    config_file: Path
    config: dict[str, Any]
    tensors: dict[str, Stored]
    modules: tuple[LoraModule, ...]
    whole: tuple[str, ...] = ()
    """Of an adapter: tensors of the base model, by its names, that were trained whole (modules_to_save)."""

    def read(self, layout: Layout, row: Tensor, factors: Mapping[str, float] | None = None) -> None:
        """Copy the values into `row` [D], which is zero, one tensor at a time from the files' pages.

        A tensor that is smaller than the row's fills the beginning of each dimension. Those named in `factors` are
        multiplied by them, and rounded once. Raises InputError.
        """
        views = layout.views(row)
        for file in sorted({stored.file for stored in self.tensors.values()}):
            with _open(file) as handle:
                for name, stored in self.tensors.items():
                    if stored.file == file:
                        tensor = handle.get_tensor(stored.key)
                        if factors and name in factors:
                            tensor = tensor.double() * factors[name]
                        views[name][tuple(map(slice, stored.shape))].copy_(tensor)
        bad = layout.first_not_finite(row)
        if bad is not None:
            file = self.tensors[bad].file
            raise InputError(f"{file}: tensor {short(bad)} holds NaN or infinity as {layout.dtype}: {_AGAIN}")


def scan(folder: Path, base: Path | None = None) -> Checkpoint:
    """Everything about one expert but its values. Raises InputError.

    `base` is the folder of the base model: trainers save copies of its embeddings beside an adapter.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give the folder of one expert")
    config_file = folder / "adapter_config.json"
    if config_file.exists():
        config = read_object(config_file, _AGAIN)
        check_config(config, config_file)
        weights = weights_file(folder, "adapter_model.safetensors")
        tensors, whole = _adapter(_headers([weights]), weights, config, base)
        shapes = {name: stored.shape for name, stored in tensors.items()}
        modules = lora_modules(config, config_file, shapes, weights)
        return Checkpoint("lora", config_file, config, tensors, modules, whole)
    config_file = folder / "config.json"
    if not config_file.exists():
        raise missing_config(folder)
    config = read_object(config_file, _AGAIN)
    if config.get("quantization_config"):
        raise InputError(f"{config_file}: quantization_config is not supported: save the model unquantised")
    if not isinstance(config.get("model_type"), str):
        raise InputError(f"{config_file} has no model_type: give the folder of a Hugging Face checkpoint")
    index_file = folder / "model.safetensors.index.json"
    if index_file.exists() and not (folder / "model.safetensors").exists():
        return Checkpoint("full", config_file, config, _sharded(folder, index_file), ())
    return Checkpoint("full", config_file, config, _headers([weights_file(folder, "model.safetensors")]), ())


def _adapter(
    tensors: dict[str, Stored], file: Path, config: Mapping[str, Any], base: Path | None
) -> tuple[dict[str, Stored], tuple[str, ...]]:
    """An adapter's tensors, and the names of those that were trained whole; copies of the base's are left out."""
    advice = merge_advice(file.parent, str(config.get("base_model_name_or_path") or "base"))
    halves, whole = plain_names(tensors, file, advice)
    if not halves:
        raise InputError(f"{file} holds no lora_A and lora_B weights: {_AGAIN}")
    if whole and base is None:
        raise InputError(
            f"{file}: tensor {next(iter(whole))} is a whole one, which may be a copy of the base model's: name the base"
            " model"
        )
    found = {name: tensors[key] for key, name in halves.items()}
    trained = []
    if whole and base is not None:
        of_base = scan(base).tensors
        adapted = {name.removeprefix(PREFIX).partition(".lora_")[0] for name in found}
        for key, name in whole.items():
            if _is_copy(tensors[key], name, of_base):
                continue
            module, _, kind = name.rpartition(".")
            same = name in of_base and of_base[name].shape == tensors[key].shape
            if not same or module in adapted or (kind == "bias" and config.get("bias", "none") != "none"):
                raise InputError(
                    f"{file}: tensor {short(key)} is a whole one and not the base model's (a bias, a resized"
                    " vocabulary, or"
                    f" a layer that is adapted too), which is not supported: {advice}"
                )
            found[f"{PREFIX}{name}"] = tensors[key]
            trained.append(name)
    return dict(sorted(found.items())), tuple(sorted(trained))


def _is_copy(stored: Stored, name: str, of_base: Mapping[str, Stored]) -> bool:
    """Whether a tensor is the base model's, in the number type in which it was saved."""
    found = of_base.get(name)
    if found is None and name.endswith("lm_head.weight"):  # tied: it lies in the embeddings
        found = next((one for other, one in of_base.items() if other.endswith(_EMBEDDINGS)), None)
    if found is None or found.shape != stored.shape:
        return False
    ours = stored.load()
    return torch.equal(ours, found.load().to(ours.dtype))


def _sharded(folder: Path, index_file: Path) -> dict[str, Stored]:
    index = read_object(index_file, _AGAIN).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise InputError(f"{index_file} has no weight_map: {_AGAIN}")
    for name, file in index.items():
        if not isinstance(file, str) or not PLAIN_NAME.fullmatch(file):
            raise InputError(
                f"{index_file}: {short(name)} lies in {quoted(file)}, which is not the plain name of a"
                " safetensors"
                " file in the same folder: download the checkpoint again from a source you trust"
            )
    tensors = _headers([weights_file(folder, file) for file in sorted(set(index.values()))])
    for name in sorted(index.keys() | tensors.keys()):
        if name not in tensors or name not in index or tensors[name].file.name != index[name]:
            where = tensors[name].file if name in tensors else folder / index[name]
            raise InputError(f"{where}: tensor {short(name)} is not where {index_file.name} says: {_AGAIN}")
    return tensors


def weights_file(folder: Path, name: str) -> Path:
    """The file of this name in an expert's folder. Raises InputError, which says how to convert a pickle."""
    file = folder / name
    if file.is_file():
        return file
    pickles = sorted(folder.glob("adapter_model.bin" if name.startswith("adapter") else "pytorch_model*.bin"))
    if pickles and not file.exists():
        if name.startswith("adapter"):
            how = f"convert it, which runs no code of the file: {_conversion(pickles[0], file)}"
        else:
            how = f"convert it to {name} (load it where you trust it, then save_pretrained writes safetensors)"
        raise InputError(f"{pickles[0]} is a pickle, which is never loaded: {how}")
    raise InputError(f"{file} {'is not a file' if file.exists() else 'is missing'}: {_AGAIN}")


def _conversion(pickle: Path, file: Path) -> str:
    """A command that writes an adapter's tensors as safetensors. `weights_only` unpickles tensors and nothing else."""
    code = (
        "import torch; from safetensors.torch import save_file; "
        f"t = torch.load({str(pickle)!r}, map_location='cpu', weights_only=True); "
        f"save_file({{k: v.clone().contiguous() for k, v in t.items()}}, {str(file)!r}, {{'format': 'pt'}})"
    )
    return "python -c " + (shlex.quote(code) if set(code) & set('"$`\\!') else f'"{code}"')


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} is not a complete safetensors file ({short(error)}): {_AGAIN}") from error


def _headers(files: Iterable[Path]) -> dict[str, Stored]:
    tensors: dict[str, Stored] = {}
    for file in files:
        with _open(file) as handle:
            for name in sorted(handle.keys()):
                part = handle.get_slice(name)
                stored = Stored(file, tuple(part.get_shape()), part.get_dtype(), name)
                if name in tensors:
                    raise InputError(
                        f"{file}: tensor {short(name)} is also in {tensors[name].file}: delete one of them"
                    )
                if stored.dtype not in DTYPES:
                    raise InputError(f"{file}: tensor {short(name)} is {stored.dtype}: save it as bfloat16 or float32")
                if math.prod(stored.shape) == 0:
                    raise InputError(f"{file}: tensor {short(name)} of shape {list(stored.shape)} is empty: {_AGAIN}")
                tensors[name] = stored
        if not tensors:
            raise InputError(f"{file} holds no tensors: {_AGAIN}")
    return dict(sorted(tensors.items()))
