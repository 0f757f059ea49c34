"""The files of a run in search/: each appears whole under its name, or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from modelswarms_fast.compat.tensors import lora_merge
from modelswarms_fast.errors import InputError, short
from modelswarms_fast.errors.files import sync
from modelswarms_fast.records.own_files import temporary_beside
from modelswarms_fast.weights.experts import Experts

SEARCH = Path("search")
RESULTS = ("golds", "preds", "scores")
_WEIGHTS = {"lora": "adapter_model.safetensors", "full": "model.safetensors"}
_OF_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def now_string() -> str:
    """The time as model_swarm writes it."""
    return datetime.now().strftime("%Y-%m-%d %H:%M:%S")


def make_run(name: str) -> Path:
    """A new folder in search/, with the time in its name if the name is taken. Raises InputError."""
    folder = SEARCH / name
    if folder.exists():
        folder = SEARCH / f"{name}{now_string().replace(' ', '_')}"
    try:
        SEARCH.mkdir(exist_ok=True)
        folder.mkdir()
    except OSError as error:
        raise InputError(f"cannot make {folder}: {error.strerror}; choose another --name.") from error
    return folder


def expert_paths(folder: str) -> list[str]:
    """The folders of experts in a folder, sorted; hidden ones too. Raises InputError for fewer than two."""
    try:
        found = sorted(os.path.join(folder, name) for name in os.listdir(folder) if Path(folder, name).is_dir())
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror}; give the folder of the experts with -i.") from error
    if len(found) < 2:
        raise InputError(f"{folder} has {len(found)} folders; give one with the folders of two experts or more by -i.")
    return found


def make_children(run: Path, paths: Sequence[str], children: Iterable[tuple[int, int, float]], fast: bool) -> list[str]:
    """The paths with a folder for each child: that of its first parent, with the weights of both. Raises InputError."""
    found = list(paths)
    for number, (first, second, share) in enumerate(children):
        child = run / "tmp" / f"child_{number}"
        copy_folder(Path(found[first]), child)
        lora_merge([share, 1 - share], [found[first], found[second]], child, 0, int(fast))
        found.append(str(child))
    return found


def copy_folder(source: Path, target: Path) -> None:
    """A copy that appears whole. Raises InputError."""
    new = temporary_beside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, new)
        os.rename(new, target)
    except (OSError, shutil.Error) as error:
        shutil.rmtree(new, ignore_errors=True)
        raise InputError(f"{source} could not be copied to {target} ({short(error)}); make room.") from error


def copy_files(source: Path, target: Path, *, results_only: bool = False) -> None:
    """Lay the files of a model's folder over those of another, but for its weights. Raises InputError.

    `results_only`: nothing but golds, preds and scores.
    """
    for path in sorted(source.iterdir()):
        result = path.name.removesuffix(".json").removesuffix("_dev") in RESULTS
        weights = any(path.match(one) for one in _OF_WEIGHTS)
        if path.is_file() and (result or not (results_only or weights or path.name.startswith("."))):
            _put(target / path.name, partial(shutil.copyfile, path))


def write_results(folder: Path, results: Mapping[str, Any], mark: str = "") -> None:
    """Write a particle's results; `mark` is "_dev" for those on dev. Raises InputError."""
    for name, content in results.items():
        _put(folder / f"{name}{mark}.json", partial(_write_text, json.dumps(content)))


def write_weights(folder: Path, row: Tensor, experts: Experts) -> None:
    """Write a row [D] as the weights of a model's folder, in place of those that it has. Raises InputError."""
    views = experts.layout.views(row.detach().to("cpu").contiguous())
    target = folder / _WEIGHTS[experts.kind]
    metadata = {"format": "pt"} if experts.kind == "full" else None
    _put(target, lambda new: save_file(views, new, metadata))
    for other in [path for pattern in _OF_WEIGHTS for path in folder.glob(pattern) if path != target]:
        other.unlink()  # shards of the expert that the folder began with


def use_dev_results(folder: Path, names: Iterable[str], results: Mapping[str, Any]) -> None:
    """Keep the results on test as NAME_test.json, and write those on dev as NAME.json. Raises InputError."""
    for name in names:
        tested = folder / f"{name}.json"
        if tested.is_file():
            os.replace(tested, folder / f"{name}_test.json")
        (folder / f"{name}_dev.json").unlink(missing_ok=True)
    write_results(folder, results)


def _write_text(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def _put(path: Path, write: Callable[[Path], object]) -> None:
    """Have a file written under another name, make it durable, and rename it. Raises InputError."""
    new = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.touch(exist_ok=False)
        mode = new.stat().st_mode
        write(new)
        new.chmod(mode)  # the library makes its files private to the user
        sync(new)
        os.replace(new, path)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else short(error)
        raise InputError(f"{path} could not be written ({reason}); make room, or choose another --name.") from error
    finally:
        with suppress(OSError):
            new.unlink()
