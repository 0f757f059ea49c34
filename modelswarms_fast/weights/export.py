"""Write one row as a model folder that PEFT, Transformers and vLLM load, with tokenizer and provenance.

The folder is written beside its final place, synced and renamed: an existing folder is either the old or
the new model, never a part of both, and stays as it is when anything fails.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from modelswarms_fast.errors import InputError, short
from modelswarms_fast.errors.files import sync
from modelswarms_fast.weights.model_card import model_card

if TYPE_CHECKING:
    from modelswarms_fast.weights.experts import Experts

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model",
    "spiece.model",
)  # fmt: skip
_WRITTEN = {
    *TOKENIZER_FILES, "adapter_model.safetensors", "adapter_config.json", "model.safetensors", "config.json",
    "generation_config.json", "README.md",
}  # fmt: skip

_WEIGHTS = {"lora": "adapter_model.safetensors", "full": "model.safetensors"}


def export(folder: str | Path, row: Tensor, experts: Experts, *, base: Path, provenance: Mapping[str, Any]) -> None:
    """Write `row` [D] as a model folder; the same arguments give the same bytes.

    A LoRA row becomes adapter_model.safetensors and adapter_config.json. A full row becomes
    model.safetensors, config.json (the experts', with the row's dtype) and the generation_config.json of
    `base`. Tokenizer files are copied from `base`. Of `provenance` README.md makes three tables: the experts,
    with their coefficients if "mixture" holds them (expert name -> coefficient), the utility (all other
    entries: task, dataset, dev, test, ...) and "settings" (name -> value). "export_rank" and "export_error" become a
    sentence.

    An existing `folder` is replaced only if it is an export itself or empty. Raises InputError when the row
    holds NaN or infinity, the folder holds other files, or it cannot be written; nothing is changed then.
    """
    target = Path(os.path.realpath(folder))
    _check_target(target)
    if tuple(row.shape) != (experts.layout.size,):
        raise ValueError(f"a row of these experts has {experts.layout.size} elements, not {list(row.shape)}")
    row = row.detach().to(device="cpu", dtype=experts.layout.dtype).contiguous()
    name = experts.layout.first_not_finite(row)
    if name is not None:
        raise InputError(
            f"{folder} is not written: tensor {short(name)} holds NaN or infinity, take a smaller step length"
        )
    if not base.is_dir():
        raise InputError(f"{base} is not a folder: give the folder of the base model, its tokenizer is exported too")

    copies = _copies(experts, base)
    texts = {"README.md": model_card(experts, provenance, base), **_config(experts, base)}
    weights = _WEIGHTS[experts.kind]
    need = _bytes_of(experts, base)

    new = target.parent / f".{target.name}.new-{secrets.token_hex(8)}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        new.mkdir()  # new for certain: a link that was put there would be an error
        save_file(experts.layout.views(row), new / weights, metadata={"format": "pt"})
        for name, text in texts.items():
            (new / name).write_text(text, encoding="utf-8", errors="backslashreplace")
        for name in copies:
            shutil.copyfile(base / name, new / name)
        # The library makes its files private to the user; the others say what the umask allows.
        (new / weights).chmod((new / "README.md").stat().st_mode)
        for path in [*sorted(new.iterdir()), new]:
            sync(path)
        _swap(new, target)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(
            f"{folder} could not be written ({reason}), nothing was changed: it needs {need} bytes,"
            " make room or choose another folder"
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def check_room(folder: Path, experts: Experts, base: Path) -> None:
    """Raise InputError if the disk of a run folder has no room for what `export` writes."""
    need = _bytes_of(experts, base)
    try:
        disk = os.statvfs(folder)
    except OSError:  # the export itself will say what is wrong
        return
    free = disk.f_bavail * disk.f_frsize
    if free < need:
        raise InputError(
            f"{folder} has room for {free} bytes, and the winner needs {need}: make room, or choose another folder"
        )


def _bytes_of(experts: Experts, base: Path) -> int:
    """What an export takes on the disk, but for a few texts."""
    return experts.layout.nbytes + sum((base / name).stat().st_size for name in _copies(experts, base))


def exported_files(experts: Experts, base: Path) -> list[str]:
    """The names of the files that `export` writes."""
    return [_WEIGHTS[experts.kind], *_config(experts, base), "README.md", *_copies(experts, base)]


def _copies(experts: Experts, base: Path) -> list[str]:
    """The names of the files that the base model gives."""
    names = [*TOKENIZER_FILES, "generation_config.json"] if experts.kind == "full" else TOKENIZER_FILES
    return [name for name in names if (base / name).is_file()]


def _check_target(target: Path) -> None:
    """Refuse to replace anything but an export: what else lies there is the user's."""
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise InputError(f"{target} is a file: choose a new or empty folder")
    others = sorted({entry.name for entry in target.iterdir()} - _WRITTEN)
    if others:
        raise InputError(f"{target} holds {others[0]}, which is no part of a model: choose a new or empty folder")


def _swap(new: Path, target: Path) -> None:
    """Put `new` in the place of `target`; at any moment one complete folder exists under some name."""
    if target.exists():
        old = target.parent / f".{target.name}.old-{secrets.token_hex(8)}"
        os.rename(target, old)
        try:
            os.rename(new, target)
        except BaseException:
            os.rename(old, target)
            raise
        sync(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(new, target)
        sync(target.parent)


def _config(experts: Experts, base: Path) -> dict[str, str]:
    """File name -> text of the config; it comes from the experts, which decide the tensors' shapes."""
    if experts.kind == "lora":
        # The order of keys stays: of the patterns that match a module, the first one counts.
        config = {**experts.config, "inference_mode": True}
        config["base_model_name_or_path"] = config.get("base_model_name_or_path") or str(base)
        return {"adapter_config.json": json.dumps(config, indent=2) + "\n"}
    key = "dtype" if "dtype" in experts.config else "torch_dtype"
    config = {**experts.config, key: str(experts.layout.dtype).removeprefix("torch.")}
    return {"config.json": json.dumps(config, indent=2) + "\n"}
