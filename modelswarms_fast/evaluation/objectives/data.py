"""What the objectives are given: settings, and examples as `dev` and `test`, checked at the door."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelswarms_fast.config import Scoring
from modelswarms_fast.errors import InputError, quoted, short
from modelswarms_fast.evaluation.dataset import SPLITS, Data

Files = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None
"""An evaluation file, a folder or hf:NAME; several for several tasks; None for a task that brings its own data."""
Fields = Mapping[str, tuple[type, ...]]
"""Name of a field → types that it may have."""

MOST = 1e30
"""Bound of an option that is a number."""
ANSWER = (str, int, float, bool, list)
"""Types of an answer, or of several that are right."""

_KIND_NAMES = {
    str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "an object", list: "a list"
}  # fmt: skip
_ASKED = ("question", "prompt")  # an empty one asks nothing


@dataclass(frozen=True)
class Wanted:
    """What the user asks of an objective."""

    task: str
    limits: Mapping[str, int | None] = field(default_factory=dict)
    """By split: keep the first so many examples."""
    max_tokens: int | None = None
    """New tokens an ask may take, instead of the task's own limit."""
    scoring: Scoring = "generate"
    options: Mapping[str, str] = field(default_factory=dict)

    def check_options(self, *names: str) -> None:
        """Raise InputError for an option that is none of these."""
        for name in self.options:
            if name not in names:
                known = f"it knows {', '.join(names)}" if names else "it has none"
                raise InputError(f'task "{self.task}" has no option {short(name)}; {known}')

    def choice(self, name: str, *choices: str) -> str:
        """The value of an option, the first choice where it is not given. Raises InputError for any other."""
        value = self.options.get(name, choices[0])
        if value not in choices:
            raise InputError(f'option {name} of task "{self.task}" is {quoted(value)}; choose {", ".join(choices)}')
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """The value of an option. Raises InputError where it is empty, or missing without a default."""
        if not (value := self.options.get(name, default)):
            raise InputError(
                f'task "{self.task}" needs --option {name}=...; docs/reference/objectives.md says what it is'
            )
        return value

    def number(self, name: str, default: float | None = None, least: float = -math.inf, most: float = MOST) -> float:
        """A number from `least` to `most`. Raises InputError."""
        text = self.text(name, None if default is None else str(default))
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (least <= value and abs(value) <= most):
            limit = f" from {least:g} on" if least > -math.inf else ""
            limit = limit if not value >= least or value == math.inf else f" of at most {most:g}"
            raise InputError(f'option {name} of task "{self.task}" is {quoted(text)}; give a number{limit}')
        return value

    def whole(self, name: str, default: int, least: int = 1, most: int = 1_000_000) -> int:
        """A whole number from `least` to `most`. Raises InputError."""
        value = self.number(name, default, least, most)
        if value != int(value):
            raise InputError(f'option {name} of task "{self.task}" is {value:g}; give a whole number')
        return int(value)


def paths_of(data: Files) -> list[Path]:
    """The files, of which there may be none."""
    if data is None:
        return []
    return [Path(data)] if isinstance(data, (str, os.PathLike)) else [Path(one) for one in data]


def named(data: Files) -> str | list[str] | None:
    """What a record of a run calls them: a name, a list of several, None for none."""
    names = [str(path) for path in paths_of(data)]
    return names[0] if len(names) == 1 else names or None


def dataset_of(data: Data) -> str:
    """The file's field `dataset`, or else its name without the suffix. Raises InputError."""
    dataset = data.content["dataset"]
    if not isinstance(dataset, str) or not dataset:
        raise InputError(f'{data.path}: the field "dataset" is not a text; make it one or leave it out')
    return dataset


def read_examples(
    data: Data,
    wanted: Wanted,
    fields: Fields,
    *,
    instead: str | None = None,
    check: Callable[[dict[str, Any], str], None] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """The examples of each split, as many as are wanted.

    All are checked, wanted or not: InputError for one that lacks a field or has one of another type; the field
    `instead` may stand for a missing one. check: of (example, where it is), what fields alone do not tell.
    """
    for split in SPLITS:
        for example, where in zip(data.content[split], data.where[split], strict=True):
            _check_example(example, fields, instead, where)
            if check is not None:
                check(example, where)
    beside = {name: value for name, value in data.content.items() if name not in SPLITS}
    _check_texts(beside, f"{data.path}: beside the examples it")
    return limited(data, wanted)


def limited(data: Data, wanted: Wanted) -> dict[str, list[dict[str, Any]]]:
    """The examples of each split, as many as are wanted."""
    return {split: data.content[split][: wanted.limits.get(split)] for split in SPLITS}


def _check_example(example: Any, fields: Fields, instead: str | None, where: str) -> None:
    if not isinstance(example, dict):
        raise InputError(f"{where} is not an object")
    for name, types in fields.items():
        if name not in example and instead in example:
            name = str(instead)
        if name not in example:
            other = f' (or "{instead}")' if instead else ""
            raise InputError(
                f'{where} lacks the field "{name}"{other}; add it, name it with --map {name}=NAME, or choose another '
                "task"
            )
        _check_value(example[name], types, f'{where}: the field "{name}"')
        if name in _ASKED and not example[name].strip():
            raise InputError(f'{where}: the field "{name}" is empty; give a text or remove the example')
    _check_texts(example, where)


def _check_texts(value: dict[str, Any], where: str) -> None:
    r"""Raise InputError for half a character: JSON has them, as in "\ud800", but tokenizers do not take them."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise InputError(f"{where} holds {quoted(half)}, which is half a character; correct the text") from error


def _check_value(value: Any, types: tuple[type, ...], where: str) -> None:
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        wanted = " or ".join(_KIND_NAMES[kind] for kind in types)
        raise InputError(f"{where} is {type(value).__name__}, not {wanted}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where} is {value}; give a number")
    if isinstance(value, list):  # several right answers
        if not value:
            raise InputError(f"{where} is an empty list; give at least one answer")
        for one in value:
            _check_value(one, tuple(kind for kind in types if kind is not list), f"{where}, in its list,")
    if isinstance(value, dict):  # choices: key -> text
        if not value:
            raise InputError(f"{where} is empty; give at least one choice")
        for key, text in value.items():
            _check_value(text, (str, int, float), f"{where}, choice {key},")


def right_answers(example: dict[str, Any]) -> list[Any]:
    """What is right: the answer, or each of several."""
    answer = example["answer"]
    return answer if isinstance(answer, list) else [answer]
