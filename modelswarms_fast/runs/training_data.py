"""What experts were trained on: a folder of NAME.jsonl, one file an expert, of {"prompt", "completion"} lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from modelswarms_fast.errors import InputError, short

Pairs = list[tuple[str, str]]


def read_training_data(folder: str | Path, names: Sequence[str]) -> dict[str, Pairs]:
    """Prompts and completions of each of these experts. Raises InputError when a file is missing or damaged."""
    data = {name: _read(Path(folder) / f"{name}.jsonl") for name in names}
    for name, pairs in data.items():
        if not pairs:
            raise InputError(f"{Path(folder) / f'{name}.jsonl'} is empty; give what the expert was trained on.")
    return data


def _read(path: Path) -> Pairs:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # a text may hold other separators of lines
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read {path} ({short(error)}); the training data is one NAME.jsonl for each expert NAME."
        ) from error
    pairs = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            one = json.loads(line)
            prompt, completion = one["prompt"], one["completion"]
        except (ValueError, KeyError, TypeError, RecursionError):
            prompt = completion = None
        if not isinstance(prompt, str) or not isinstance(completion, str) or not completion:
            raise InputError(f'{path}: line {number} is no {{"prompt": text, "completion": text}}; correct it.')
        pairs.append((prompt, completion))
    return pairs
