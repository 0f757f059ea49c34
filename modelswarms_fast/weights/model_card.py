"""The model card of an exported model: what it was made of, found with, and scored by.

A card is made to be published. It names no local path, no server and no variable of a key, and what names, data and
models say is text in it, never markup.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelswarms_fast.errors import one_line

if TYPE_CHECKING:
    from modelswarms_fast.weights.experts import Experts

# Of the provenance, what the card says in places of their own.
_SAID_ELSEWHERE = {"mixture", "settings", "experts", "export_rank", "export_error"}
# Options that concern the machine alone. Of several tasks they begin with a number.
_PRIVATE = ("endpoint", "key_env", "cache")
_PATHS = ("base", "data", "chat", "spill", "options", "engine_options")
_CACHED = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/[^/]+(?:/(.+))?")
_MARKUP = re.compile(r"([\\`*\[\]|~])")


def model_card(experts: Experts, provenance: Mapping[str, Any], folder: Path) -> str:
    """YAML front matter, then tables of experts, utility and settings; arguments as in `export`, base as `folder`."""
    lora = experts.kind == "lora"
    # For full checkpoints the experts are what the result was made of.
    base = experts.config.get("base_model_name_or_path") or str(folder) if lora else list(experts.sources)
    front = [
        "---",
        f"base_model: {_yaml(_shared(base))}",
        f"library_name: {'peft' if lora else 'transformers'}",
        "tags:",
        *(f"- {tag}" for tag in (["lora"] if lora else []) + ["model-swarms", "merge"]),
        "---",
        "",
    ]
    what = "LoRA adapter" if lora else "checkpoint"
    lines = [*front, f"# {what} found by a model swarm", ""]
    lines += [
        f"A point in the weight space of {len(experts.names)} experts, found without training by the search",
        "of [Model Swarms](https://arxiv.org/abs/2410.11163). The tables name the experts, the utility",
        "and the settings of the search.",
        "",
    ]
    if (error := provenance.get("export_error")) is not None:
        lines += [
            f"What the search found was cut to rank {provenance['export_rank']} by SVD. By that the update matrices",
            f"of all modules together have a relative error of {error:.3g} (Frobenius norm).",
            "",
        ]
    mixture = provenance.get("mixture")
    columns: list[Sequence[Any]] = [experts.names, _shared(experts.sources)]
    if mixture is not None:
        columns.append([mixture[name] for name in experts.names])
    lines += _table("Experts", ("expert", "source", "coefficient")[: len(columns)], zip(*columns, strict=True))
    utility = {name: value for name, value in provenance.items() if name not in _SAID_ELSEWHERE}
    for title, values in (("Utility", utility), ("Settings", provenance.get("settings"))):
        if values:
            said = {name: _shared(value) if name in _PATHS else value for name, value in values.items()}
            lines += _table(title, ("name", "value"), said.items())
    return "\n".join(lines)


def without_path(text: str) -> str:
    """A local path as its last part, one of the hub's cache as owner/name; any other text as it is."""
    if cached := _CACHED.search(text):
        owner, name, inner = cached.groups()
        return f"{owner}/{name}" + (f":{inner}" if inner else "")
    if text.startswith(("/", "~", ".")) or os.path.exists(os.path.expanduser(text)):
        return os.path.basename(os.path.abspath(text))
    return text


def _shared(value: Any) -> Any:
    """Texts in it without local paths, and entries of mappings without what concerns the machine alone."""
    if isinstance(value, Mapping):
        return {name: _shared(one) for name, one in value.items() if str(name).rpartition(".")[2] not in _PRIVATE}
    if isinstance(value, list | tuple):
        return [_shared(one) for one in value]
    return without_path(str(value)) if isinstance(value, str | Path) else value


def _yaml(value: Any) -> str:
    """JSON, which is YAML, so that no name needs other quotes; what YAML takes for not printable as an escape."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(one if one.isprintable() else f"\\u{ord(one):04x}" for one in text)


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    lines = [f"## {title}", "", f"| {' | '.join(head)} |", f"| {' | '.join(['---'] * len(head))} |"]
    return [*lines, *(f"| {' | '.join(map(_cell, row))} |" for row in rows), ""]


def _cell(value: Any) -> str:
    if isinstance(value, Mapping | list | tuple):
        value = json.dumps(value, ensure_ascii=False, default=str)
    return _as_text(f"{value:.6g}" if isinstance(value, float) else str(value))


def _as_text(text: str) -> str:
    """A text that neither Markdown nor HTML takes for markup, on one line."""
    return html.escape(_MARKUP.sub(r"\\\1", " ".join(one_line(text).split())), quote=False)
