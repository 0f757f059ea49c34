"""Find the folders of a pool of experts as trainers leave them; no file of an expert is opened here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from modelswarms_fast.errors import InputError
from modelswarms_fast.weights.hub import CACHED, HUB_ID, download

EXPECTED = (
    "a folder of experts holds at least two sub-folders, each with adapter_config.json and"
    " adapter_model.safetensors (or config.json and model.safetensors)"
)
_WEIGHTS = ("*.safetensors", "adapter_model.*", "pytorch_model*.bin")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@contextmanager
def system_errors() -> Iterator[None]:
    """A folder that the system does not let us look into (permissions, a long name) is the user's to mend."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}: give a folder that you may read") from error


def locate(
    source: str | Path | Sequence[str | Path], minimum: int
) -> tuple[tuple[str, ...], list[Path], tuple[str, ...]]:
    """Names, local folders and sources of the experts. Raises InputError for fewer than `minimum`, and for doubles."""
    if isinstance(source, str | Path):
        parent = local_folder(source)
        folders = expert_folders(parent)
        if not folders:
            raise InputError(f"{source} holds no experts: {EXPECTED}")
        labels, sources = [folder / "default" if folder == parent else folder for folder in folders], map(str, folders)
    else:
        folders, sources = [local_folder(item) for item in source], map(str, source)
        labels = [_label(item, folder) for item, folder in zip(source, folders, strict=True)]
    texts = tuple(sources)
    if len(folders) < minimum:
        what = ", ".join(texts) or "an empty list"
        raise InputError(f"{what} gives {len(folders)} expert(s), but a search needs at least two: {EXPECTED}")
    names = [label.name for label in labels]
    names = [label.name if names.count(label.name) == 1 else f"{label.parent.name}/{label.name}" for label in labels]
    seen: dict[str, str] = {}
    for name, folder, text in zip(names, folders, texts, strict=True):
        for key in (name, str(folder.resolve())):
            if key in seen:
                raise InputError(f"{seen[key]} and {text} are one expert or share their name: drop or rename one")
        seen |= {name: text, str(folder.resolve()): text}
    return tuple(names), folders, texts


@system_errors()
def expert_folders(parent: Path) -> list[Path]:
    """The folders of experts in `parent`, sorted by name.

    If `parent` has an adapter itself, as PEFT saves the one called "default" above those with other names, it is the
    first, and its checkpoint-N are none. Raises InputError for a folder that has weights but no config, and for one
    that only has experts below it.
    """
    found = [parent] if (parent / "adapter_config.json").exists() else []
    for entry in _folders(parent):
        if found[:1] == [parent] and _CHECKPOINT.fullmatch(entry.name):
            continue
        if _is_expert(entry):
            found.append(entry)
        elif any(path for pattern in _WEIGHTS for path in entry.glob(pattern)):
            # A damaged expert: leaving it out in silence would change the result.
            raise InputError(f"{entry} holds weights but no adapter_config.json or config.json: add it")
        elif below := _below(entry):
            raise InputError(f"{entry} is no expert itself: {below}, in a list with the others")
    return found


def local_folder(item: str | Path) -> Path:
    """A local folder as is, else that of a hub id. Raises InputError for one that only has experts below it."""
    path = Path(item)
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(f"{item} is a file: give the folder that holds it")
    if "/" not in str(item) or not HUB_ID.fullmatch(str(item)):
        raise InputError(
            f"{item} does not exist: give a folder or a hub id such as owner/name, owner/name@revision or"
            " owner/name@revision:folder"
        )
    return download(str(item))


def missing_config(folder: Path) -> InputError:
    """What is wrong with a folder that should be an expert and has no config."""
    text = f"{folder} holds neither adapter_config.json nor config.json"
    return InputError(f"{text}: {_below(folder) or EXPECTED}")


def _below(folder: Path) -> str | None:
    """Which of the experts below a folder to give instead of it."""
    below = [entry for entry in _folders(folder) if _is_expert(entry)]
    numbers = {entry: int(match[1]) for entry in below if (match := _CHECKPOINT.fullmatch(entry.name))}
    if numbers:
        return f"give one of its checkpoints, such as the newest, {max(numbers, key=lambda entry: numbers[entry])}"
    return f"give one of those below it, such as {below[0]}" if below else None


def _folders(parent: Path) -> list[Path]:
    return [entry for entry in sorted(parent.iterdir()) if not entry.name.startswith(".") and entry.is_dir()]


def _is_expert(folder: Path) -> bool:
    return (folder / "adapter_config.json").exists() or (folder / "config.json").exists()


def _label(item: str | Path, folder: Path) -> Path:
    """What an expert is named by: for one of the hub not its snapshot, which is named by a commit."""
    if folder != Path(item):
        match = HUB_ID.fullmatch(str(item))
        return Path(match["id"], match["folder"]) if match and match["folder"] else Path(item)
    path = Path(os.path.abspath(item))
    cached = CACHED.search(str(path))
    return Path(cached["name"], cached["folder"]) if cached else path
