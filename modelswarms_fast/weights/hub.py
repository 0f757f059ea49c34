"""Downloads models and adapters from the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from modelswarms_fast.errors import InputError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# Weights, settings and tokenizers; nothing that runs code when it is loaded.
FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt"]


def download(hub_id: str) -> Path:
    """The local snapshot of a repository. Raises InputError if the hub does not give it."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=FILES))
    except Exception as error:  # the hub client raises its own, the transport's and the system's errors
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{hub_id} is no folder here and the hub did not give it ({type(error).__name__}: {reason}): correct the "
            "path or id, or download it first"
        ) from error
