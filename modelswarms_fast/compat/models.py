"""What a path means to code that knows models by their folders: files on the disk, or weights held in memory for it."""

from __future__ import annotations

import itertools
import json
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from modelswarms_fast.config import DType
from modelswarms_fast.errors import InputError, short
from modelswarms_fast.errors.files import sync
from modelswarms_fast.weights.base_model import VOCABULARIES, loading, read_object, resolve_base
from modelswarms_fast.weights.expert_folders import local_folder
from modelswarms_fast.weights.experts import Experts, read_experts
from modelswarms_fast.weights.export import TOKENIZER_FILES
from modelswarms_fast.weights.free_memory import free_host_memory

WEIGHTS = {"lora": "adapter_model.safetensors", "full": "model.safetensors"}
CONFIGS = {"lora": "adapter_config.json", "full": "config.json"}
KEPT = 8
"""Of the memory that is free, one part in so many may hold rows that were read from the disk."""


@dataclass(frozen=True, eq=False)
class Model:
    """A model that can be served, as it was when its path was looked up."""

    folder: Path
    """Where its tokenizer and settings lie."""
    form: Experts
    """Layout, modules and kind of its row."""
    row: Tensor | None
    """[D]; None where it was forgotten, and the files have it."""
    base: Path
    """Folder of the base model; of a full model the folder of its own, or of one like it."""
    version: Hashable
    """Another one for other weights."""
    dtype: DType | None = None
    """Number type in which its engine has the base model, where the settings of the engine leave it open."""

    def weights(self) -> Tensor:
        """[D] its row. Raises InputError if it has to be read again, and cannot be."""
        if self.row is not None:
            return self.row
        row = read(self.folder).row
        assert row is not None
        return row

    @property
    def engine(self) -> Hashable:
        """Models with the same can be served by one engine."""
        form, config = self.form, self.form.config
        if form.kind == "full":
            what = tuple(json.dumps(config.get(name)) for name in ("architectures", "model_type", "rope_theta"))
            return form.kind, self.dtype, form.layout, *what
        modules = tuple((module.name, module.rank, module.scaling) for module in form.modules)
        return form.kind, self.dtype, self.base, form.layout, modules, form.whole


class Models:
    """Finds the model that a path means.

    A folder that weights are held for means these weights, whatever its files are. Any other path means its files: it
    is looked up anew at each call, so that files that were written again give the new weights.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._held: dict[Path, Model] = {}
        self._written: dict[Path, Hashable] = {}
        """Folder → version of the weights that its file has."""
        self._read: OrderedDict[tuple[Path, Path | None], tuple[Hashable, Model]] = OrderedDict()
        """By folder, and the base that was given with it."""
        self._hub: dict[str, Path] = {}
        self._tokenizers: dict[Path, tuple[Hashable, Any]] = {}
        self._numbers = itertools.count()

    def folder(self, name: str | os.PathLike[str]) -> Path:
        """The folder of a model: a path, or what the hub has under this name. Raises InputError."""
        path = Path(name)
        if path.is_dir():
            return path.resolve()
        if str(name) not in self._hub:
            self._hub[str(name)] = local_folder(path if path.is_absolute() else str(name))
        return self._hub[str(name)]

    def find(self, name: str | os.PathLike[str], base: str | None = None, dtype: DType | None = None) -> Model:
        """The model of this path or hub id. Raises InputError if it cannot be read.

        Args:
            name: a folder or hub id.
            base: of an adapter, in place of the base model that its config names.
            dtype: that of the model.
        """
        with self._lock:
            folder = self.folder(name)
            if folder in self._held:
                return self._held[folder]
            key = folder, None if base is None else self.folder(base)
            marks = fingerprint(folder)
            if key not in self._read or self._read[key][0] != marks:
                self._read[key] = marks, read(folder, marks, base=key[1])
            self._read.move_to_end(key)
            model = self._read[key][1]
            self._forget_rows()
            return model if dtype is None else replace(model, dtype=dtype)

    def _forget_rows(self) -> None:
        """Of models that were read, keep the rows of the last ones, as many as there is room for."""
        kept = sum(model.form.layout.nbytes for _, model in self._read.values() if model.row is not None)
        allowed = (free_host_memory() + kept) // KEPT
        for key, (marks, model) in self._read.items():
            if kept > allowed and model.row is not None:
                self._read[key] = marks, replace(model, row=None)
                kept -= model.form.layout.nbytes

    def hold(self, folder: str | os.PathLike[str], row: Tensor, like: Model) -> None:
        """Serve a row [D] for a folder from now on; it is of the form of `like`, and must not be changed any more.

        The folder has small files of its own, such as a tokenizer. `write` gives it the weights.
        """
        with self._lock:
            place = Path(folder).resolve()
            if place in self._held and self._held[place].row is row:
                return  # the same weights have the same version
            self._held[place] = replace(like, folder=place, row=row, version=("held", next(self._numbers)))

    def drop(self, folder: str | os.PathLike[str]) -> None:
        """Serve what the disk has for this folder, and for those in it, from now on."""
        with self._lock:
            place = Path(folder).resolve()
            for held in [one for one in self._held if one.is_relative_to(place)]:
                del self._held[held]
                self._written.pop(held, None)

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write the weights that are held for this folder, and for those in it, where files lack them.

        A folder that is gone is left out. Raises InputError where one cannot be written.
        """
        with self._lock:
            place = Path(folder).resolve()
            for held, model in self._held.items():
                if held.is_relative_to(place) and held.is_dir() and self._written.get(held) != model.version:
                    write_weights(held, model.form.kind, model.form.layout.views(model.weights()))
                    self._written[held] = model.version

    def tokenizer(self, folder: Path) -> Any:
        """The tokenizer of a model's own folder. Raises InputError if it has none."""
        from transformers import AutoTokenizer

        with self._lock:
            marks = fingerprint(folder, TOKENIZER_FILES)
            if self._tokenizers.get(folder, (None,))[0] != marks:
                if not any((folder / name).is_file() for name in VOCABULARIES):
                    held = self._held.get(folder)
                    source = held.form.sources[0] if held else folder  # a swarm has it from where it began
                    raise InputError(
                        f"{source} has no tokenizer: copy tokenizer.json and tokenizer_config.json of "
                        "its base model into it"
                    )
                with loading(folder):
                    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
                self._tokenizers[folder] = marks, tokenizer
            return self._tokenizers[folder][1]


def read(folder: Path, version: Hashable = None, dtype: torch.dtype | None = None, base: Path | None = None) -> Model:
    """The model whose files lie in a folder, as a row of this number type or of its own. Raises InputError.

    `base`: of an adapter, in place of the one that its config names.
    """
    found = base_of(folder) if base is None or not is_adapter(folder) else resolve_base(str(base)).resolve()
    experts = read_experts([folder], minimum=1, base=found if found != folder else None, dtype=dtype)
    nothing = experts.rows[:0]
    return Model(folder, replace(experts, rows=nothing, room=nothing), experts.rows[0], found, (folder, version))


def is_adapter(folder: Path) -> bool:
    """Whether a folder has an adapter rather than a full model."""
    return (folder / CONFIGS["lora"]).exists()


def base_of(folder: Path) -> Path:
    """The folder of an adapter's base model; of a full model its own. Raises InputError."""
    if not is_adapter(folder):
        return folder
    named = read_object(folder / CONFIGS["lora"], "download it again").get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise InputError(f"{folder / CONFIGS['lora']} names no base model: set base_model_name_or_path")
    return resolve_base(named).resolve()


def fingerprint(folder: Path, names: tuple[str, ...] = ()) -> Hashable:
    """Name, size, time and inode of each file that says what a model is; of these names, or all of its kinds."""
    found = []
    try:
        for entry in sorted(os.scandir(folder), key=lambda one: one.name):
            if entry.name in names or (not names and entry.name.endswith((".safetensors", ".json"))):
                facts = entry.stat()
                found.append((entry.name, facts.st_size, facts.st_mtime_ns, facts.st_ino))
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}): give a folder that you may read") from error
    return tuple(found)


def write_weights(folder: Path, kind: str, tensors: Mapping[str, Tensor]) -> None:
    """Write the file of weights of a "lora" or "full" model, whole or not at all, and no other. Raises InputError."""
    place = folder / WEIGHTS[kind]
    new = folder / f".{place.name}.{secrets.token_hex(8)}"
    try:
        save_file(dict(tensors), new, metadata={"format": "pt"})
        sync(new)
        os.replace(new, place)
    except Exception as error:  # the system's, and those of safetensors
        raise InputError(f"{place} could not be written ({short(error)}): make room on the disk") from error
    finally:
        new.unlink(missing_ok=True)
