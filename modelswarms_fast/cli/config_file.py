"""`--config FILE`: options from a YAML or JSON file, which the command line overrides."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import typer
import yaml

from modelswarms_fast.config import EngineConfig, SwarmConfig, TaskConfig
from modelswarms_fast.errors import InputError, quoted, short
from modelswarms_fast.errors.arguments import check_path
from modelswarms_fast.errors.files import read_text

LARGEST = 1 << 23
"""Bytes of a file of settings: 8 MiB. YAML is read slowly."""

RECORDED = {
    "architectures", "asks", "at_once", "base_files", "budget", "command", "computed_in", "confirm_examples",
    "data_read", "data_warnings", "dataset", "dev_examples", "directory", "evaluations", "examples",
    "expert_products", "experts", "final_test", "first", "forced", "kind", "log", "memory", "methods", "minutes",
    "objective", "raised", "ranges", "reuse", "run", "seal", "searches", "seeds", "served", "sources", "state_reason",
    "swarm", "test_examples", "trace", "train", "versions", "weights",
}  # fmt: skip
"""What a run's config.json holds beside its settings."""

SETTINGS = {field.name for kind in (TaskConfig, SwarmConfig, EngineConfig) for field in fields(kind)} | {
    "base", "task", "data", "confirm", "choose"
}  # fmt: skip
"""What a file may hold for other commands."""


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make the values of a file the defaults of a command's options.

    Raises:
        InputError: the file cannot be read, or sets what is no option of any command.
    """
    if path is None or context.resilient_parsing:
        return path
    content = _content(path)
    if isinstance(content.get("sources"), list):  # a run records its experts' names, and where they are
        content["experts"] = content["sources"]
    parameters = {one.name: one for one in context.command.params if one.name not in ("config", "verbose", "help")}
    names = {key(text): name for name, one in parameters.items() for text in (str(name), *one.opts)}
    found: dict[str, Any] = {}
    for given, value in content.items():
        name = names.get(key(given))
        if name is None:
            if key(given) in RECORDED | SETTINGS:
                continue
            raise InputError(f"{path} sets {quoted(given)}, which is no option of {context.info_name}; see its --help.")
        several = parameters[name].nargs == -1 or getattr(parameters[name], "multiple", False)
        if isinstance(value, list | dict) and not several:
            raise InputError(f"{path} gives several values for {short(given)}; give one.")
        if value is not None:
            found[str(name)] = words(value) if several else words(value)[0]
    context.default_map = found
    return path


def key(text: str) -> str:
    """The name of a setting that an option or a key of a file gives."""
    return str(text).lstrip("-").replace("-", "_")


def words(value: Any) -> list[str]:
    """A value as it is written on a command line; several words for a list or a mapping."""
    if isinstance(value, Mapping):
        return [
            f"{name}={json.dumps(one) if isinstance(one, list | dict) else words(one)[0]}"
            for name, one in value.items()
        ]
    if isinstance(value, list | tuple):
        return [word for one in value for word in words(one)]
    return [_word(value)]


def _word(value: Any) -> str:
    return value if isinstance(value, str) else str(value) if isinstance(value, Path) else json.dumps(value)


def _content(path: Path) -> dict[str, Any]:
    """What a file of settings holds. Each value of YAML is a text, so that it means what it does on a command line."""
    form = "JSON" if path.suffix == ".json" else "YAML"
    try:
        check_path("config", path)
        text = read_text(path, LARGEST)
        content = json.loads(text) if form == "JSON" else yaml.load(text, yaml.BaseLoader)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; give another file with --config.") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path} is not {form} ({short(error, 200)}); correct it.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no names with values; write lines such as 'iterations: 10'.")
    if form == "YAML":
        content = {str(name): None if value in ("", "~", "null") else value for name, value in content.items()}
    return content
