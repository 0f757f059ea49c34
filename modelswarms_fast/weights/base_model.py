"""Where the base model comes from: a local folder, a hub id, or a small model that packages carry."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from modelswarms_fast.errors import InputError, quoted, short
from modelswarms_fast.errors.arguments import check_path
from modelswarms_fast.errors.files import check_regular, read_text
from modelswarms_fast.ops.extension import _C
from modelswarms_fast.weights.export import TOKENIZER_FILES
from modelswarms_fast.weights.hub import HUB_ID, download
from modelswarms_fast.weights.packaged import PACKAGED, packaged_folder

# Fields of a config that are counted up to when a model is built.
_LAYERS = re.compile(r"num_hidden_layers|num_layers|n_layers?|(num_)?(encoder|decoder)_layers")
_COUNTED = re.compile(r"layers?|experts?|labels|groups|heads")
_FEW_LAYERS, _MOST = 256, 1_000_000

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# Directories, drives, ".." and pickles: an index may name safetensors files of its own folder only.
PLAIN_NAME = re.compile(r"[^/\\:\0]+\.safetensors")


def resolve_base(base: str) -> Path:
    """The folder of the base model: config.json, safetensors weights and a tokenizer, checked.

    base: a local folder, a hub id, or the name of a packaged model (converted once into the cache folder).
    Raises InputError when the folder, its weights, its tokenizer or the hub repository cannot be used.
    """
    check_path("base", base)
    if base in PACKAGED:
        return packaged_folder(base)
    folder = Path(os.path.expanduser(base))  # leaves the ~ of a user who does not exist
    if folder.is_dir():
        return _checked(folder)
    if folder.exists():
        raise InputError(f"{folder} is a file; the base model is given by the folder that holds its config.json")
    if not HUB_ID.fullmatch(base):
        raise InputError(
            f"the base model folder {folder} does not exist; give a folder, a hub id or one of {', '.join(PACKAGED)}"
        )
    return _checked(download(base))


def digest_of_base(folder: Path) -> str:
    """Names the weights, the config and the tokenizer of a base model; its files are read once, on all threads."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(folder.iterdir()):
        if file.suffix == ".safetensors":
            content = np.memmap(file, mode="r")
            name: bytes = _C.row_name(content.ctypes.data, content.nbytes)
        elif file.name == "config.json" or file.name in TOKENIZER_FILES:
            name = file.read_bytes()
        else:
            continue
        digest.update(f"{file.name} {len(name)} ".encode(errors="backslashreplace") + name)
    return digest.hexdigest()


def _checked(folder: Path) -> Path:
    """The folder itself when it holds a complete checkpoint that loads without unpickling anything."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has no config.json; give the folder of a Hugging Face checkpoint")
    if not any(folder.glob("*.safetensors")):
        if any(path for pattern in PICKLED for path in folder.glob(pattern)):
            raise InputError(
                f"{folder} holds pickled weights only, which are never loaded because unpickling runs code; "
                "save the model again with safe_serialization=True"
            )
        raise InputError(f"{folder} has no *.safetensors file; the weights of the base model are missing")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            named = set(json.loads(read_text(index))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise InputError(f"{index} is not a safetensors index; copy the checkpoint again") from None
        for name in named:
            if not isinstance(name, str) or not PLAIN_NAME.fullmatch(name):
                raise InputError(
                    f"{index} names {quoted(name)}, which is not the plain name of a safetensors file in the same "
                    "folder; copy the checkpoint again from a source you trust"
                )
        missing = sorted(name for name in named if not (folder / name).is_file())
        if missing:
            raise InputError(f"{folder} lacks {short(missing[0])}, which {index.name} names; copy the checkpoint again")
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise InputError(f"{folder} has no tokenizer; copy tokenizer.json and tokenizer_config.json into it")
    _check_whole(folder)
    return folder


def cap_attention(model: Any) -> Any:
    """A model of transformers whose attention caps its scores where the config says so, as in Gemma 2.

    The attention that transformers takes by itself, torch's, leaves the cap out without a word.
    """
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None:
        model.set_attn_implementation("eager")
    return model


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Whatever transformers raises when it loads a model or tokenizer from here is one sentence: an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of nearly every type: its own checks are few
        reason = short(error, 200) or "no reason given"
        raise InputError(
            f"{folder} cannot be loaded by transformers ({type(error).__name__}: {reason}); correct its files, or give "
            "another model"
        ) from error


def read_object(file: Path, remedy: str) -> dict[str, Any]:
    """The JSON object that a file of a model holds. Raises InputError, which says what to do about it."""
    try:
        content = json.loads(read_text(file))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else short(error)
        raise InputError(f"{file} cannot be read as JSON ({reason}): {remedy}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} is not a JSON object: {remedy}")
    return content


def check_finite(folder: Path) -> None:
    """Read all weights, and raise InputError for the first tensor that holds NaN or infinity."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118
                tensor = handle.get_tensor(name)
                if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                    raise InputError(
                        f"{file}: tensor {short(name)} of the base model holds NaN or infinity; copy the"
                        " checkpoint again"
                    )


def _check_whole(folder: Path) -> None:
    """Raise InputError for a file that was cut off: the engines would say so in words of their own."""
    from safetensors import SafetensorError, safe_open

    tensors = 0
    for file in sorted(folder.glob("*.safetensors")):
        try:
            check_regular(file)
            with safe_open(file, framework="numpy") as handle:
                tensors += len(handle.keys())
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{file} is not a complete safetensors file ({short(error)}); copy the checkpoint again"
            ) from error
    remedy = "copy the checkpoint again"
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        if os.path.lexists(file := folder / name):
            content = read_object(file, remedy)
            if name != "tokenizer.json":
                _check_sizes(content, file, tensors)


def _check_sizes(config: dict[str, Any], file: Path, tensors: int) -> None:
    """Raise InputError for numbers that transformers would count up to for ever, or would compare with a length.

    A model has as many layers as its file says, each of a tensor or more; a few share theirs.
    """
    longest = config.get("model_max_length")
    if longest is not None and type(longest) not in (int, float):
        raise InputError(f"{file}: model_max_length is {quoted(longest)}; make it a number")
    parts = [config, *(one for one in config.values() if isinstance(one, dict))]
    for name, value in ((name, value) for part in parts for name, value in part.items()):
        most = max(tensors, _FEW_LAYERS) if _LAYERS.fullmatch(name) else _MOST if _COUNTED.search(name) else None
        if most is not None and type(value) in (int, float) and not value <= most:
            raise InputError(f"{file}: {short(name)} is {quoted(value)}, more than {most:,}; copy the checkpoint again")
