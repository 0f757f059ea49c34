"""Downloads models and adapters from the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from modelswarms_fast.errors import InputError

# owner/name, owner/name@revision, owner/name:folder, owner/name@revision:folder.
HUB_ID = re.compile(
    r"(?P<id>[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?)(@(?P<revision>[\w./-]+))?"
    r"(:(?P<folder>(?!\.)[\w. -]+(/(?!\.)[\w. -]+)*))?"
)
# A folder in the hub's cache: of which repository, and what in it.
CACHED = re.compile(r"models--[^/]*?--(?P<name>[^/]+)/snapshots/[^/]+/?(?P<folder>.*)")
# Weights, settings and tokenizers; nothing that runs code when it is loaded.
FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt"]


def download(hub_id: str) -> Path:
    """The local snapshot of a repository, or a folder of it; `hub_id` is one as HUB_ID has them.

    Raises InputError if the hub does not give it.
    """
    from huggingface_hub import snapshot_download

    match = HUB_ID.fullmatch(hub_id)
    assert match is not None
    folder = match["folder"] or ""
    options: dict[str, Any] = {"allow_patterns": [f"{folder}/{name}" if folder else name for name in FILES]}
    if match["revision"]:
        options["revision"] = match["revision"]
    try:
        found = Path(snapshot_download(match["id"], **options)) / folder
    except Exception as error:  # the hub client raises its own, the transport's and the system's errors
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{hub_id} is no folder here and the hub did not give it ({type(error).__name__}: {reason}): correct the "
            "path or id, or download it first"
        ) from error
    if not found.is_dir():
        raise InputError(f"{hub_id}: the repository has no folder {folder} with weights: correct it")
    return found
