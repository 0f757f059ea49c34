"""Choices and answers in the forms that data sets have, made the published one: `choices` by key, `answer` a key.

How answers are to be read is decided for the whole file: by key, by index, or by the text of the choice. A canonical
example stays as it is.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from typing import Any

from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.dataset import SPLITS, Data
from modelswarms_fast.evaluation.objectives.data import ANSWER, Fields, Wanted, limited, read_examples, right_answers

FIELDS: Fields = {"question": (str,), "choices": (dict,), "answer": ANSWER}
LETTERS = string.ascii_uppercase

Examples = dict[str, list[dict[str, Any]]]
_Read = Callable[[dict[str, Any], Any], str | None]
"""(example, one answer) → the key that it means, or None."""


def read_choices(data: Data, wanted: Wanted) -> Examples:
    """The examples of each split, as many as are wanted, with choices by key and keys as answers. Raises InputError."""
    forms = [[_with_choices(*pair) for pair in zip(data.content[s], data.where[s], strict=True)] for s in SPLITS]
    for split, some in zip(SPLITS, forms, strict=True):
        data.content[split] = [example for example, _ in some]
    read_examples(data, wanted, FIELDS)
    names = dict.fromkeys(form for some in forms for _, form in some if form)
    data.notes += [f"choices from {' and '.join(names)}"] if names else []
    _resolve_answers(data)
    return limited(data, wanted)


def _with_choices(example: Any, where: str) -> tuple[Any, str]:
    """The example with choices by key, and what they were in words; empty if they were that."""
    if not isinstance(example, dict):
        return example, ""
    choices = example.get("choices")
    if choices is None and "choices" not in example and "A" in example and "B" in example:
        keys = [key for key in LETTERS if key in example]
        others = {name: value for name, value in example.items() if name not in keys}
        return others | {"choices": {key: example[key] for key in keys}}, "columns A, B, …"
    if (
        isinstance(choices, dict)
        and set(choices) == {"text", "label"}
        and all(isinstance(v, list) for v in choices.values())
    ):
        return example | {"choices": _labelled(choices["label"], choices["text"], where)}, "labels and texts"
    if not isinstance(choices, list) or not choices:
        return example, ""
    if all(isinstance(one, dict) and {"text", "label"} <= one.keys() for one in choices):
        labels, texts = ([one[name] for one in choices] for name in ("label", "text"))
        return example | {"choices": _labelled(labels, texts, where)}, "labels and texts"
    if len(choices) > len(LETTERS):
        raise InputError(
            f"{where} has {len(choices)} choices in a list; give at most {len(LETTERS)}, or keys of your own"
        )
    return example | {"choices": dict(zip(LETTERS, choices, strict=False))}, "a list"


def _labelled(labels: list[Any], texts: list[Any], where: str) -> dict[str, Any]:
    made = dict(zip(map(str, labels), texts, strict=False))
    if not len(labels) == len(texts) == len(made):
        raise InputError(
            f"{where} has {len(labels)} labels and {len(texts)} texts of choices; give each choice one label"
        )
    return made


def _resolve_answers(data: Data) -> None:
    """Make each answer a key, or a list of several. Raises InputError that names the example."""
    asked = [
        (example, answer, where)
        for split in SPLITS
        for example, where in zip(data.content[split], data.where[split], strict=True)
        for answer in right_answers(example)
    ]
    first, why = _first_index([(example, answer) for example, answer, _ in asked])
    ways: dict[str, _Read] = {
        "key": _by_key,
        f"index{why}": lambda example, answer: _by_index(example, answer, first),
        "text": _by_text,
    }
    found = {name: [read(example, answer) for example, answer, _ in asked] for name, read in ways.items()}
    whole = [name for name, keys in found.items() if None not in keys]
    tried = whole or list(ways)
    used: dict[str, None] = {}
    keys = []
    for number, (example, answer, where) in enumerate(asked):
        meant = {name: key for name in tried if (key := found[name][number]) is not None}
        if len(set(meant.values())) > 1:
            said = ", but as ".join(f"{name} {key}" for name, key in meant.items())
            raise InputError(f'{where} has the answer "{answer}", which means as {said}; write the key of the choice')
        if not meant:
            raise InputError(
                f'{where} has the answer "{answer}", which is no key, index or text of one of its choices; give '
                f"{', '.join(example['choices'])}"
            )
        way, key = next(iter(meant.items()))
        used[way] = None
        keys.append(answer if str(answer) == key else key)
    if list(used) != ["key"]:
        data.notes.append(f"answers by {' and '.join(used)}")
    rest = iter(keys)
    for split in SPLITS:
        data.content[split] = [_answered(one, [next(rest) for _ in right_answers(one)]) for one in data.content[split]]


def _answered(example: dict[str, Any], keys: list[Any]) -> dict[str, Any]:
    return example | {"answer": keys[0] if len(keys) == 1 else keys}


def _by_key(example: dict[str, Any], answer: Any) -> str | None:
    """The key itself, or in another case, or as (A)."""
    if isinstance(answer, bool):
        return None
    if str(answer) in example["choices"]:
        return str(answer)
    bare = re.sub(r"^\(?\s*(.*?)\s*[).]?$", r"\1", str(answer).strip()).casefold()
    fits = [key for key in example["choices"] if key.casefold() == bare]
    return fits[0] if len(fits) == 1 else None


def _number(answer: Any) -> int | None:
    if isinstance(answer, bool):
        return None
    if isinstance(answer, str):
        return int(answer) if re.fullmatch("[0-9]{1,3}", answer.strip()) else None
    return int(answer) if answer == int(answer) else None


def _first_index(asked: list[tuple[dict[str, Any], Any]]) -> tuple[int, str]:
    """What the first choice is counted as, in all examples, and a word on it: 1 where 0 cannot be."""
    numbers = [(len(example["choices"]), number) for example, one in asked if (number := _number(one)) is not None]
    from_one = any(number == count for count, number in numbers) and all(number > 0 for _, number in numbers)
    return (1, " from 1") if from_one else (0, " from 0")


def _by_index(example: dict[str, Any], answer: Any, first: int) -> str | None:
    """The key of the choice with this index; keys that are numbers are no indices."""
    keys, number = list(example["choices"]), _number(answer)
    if number is None or any(key.isdecimal() for key in keys) or not first <= number < first + len(keys):
        return None
    return str(keys[number - first])


def _by_text(example: dict[str, Any], answer: Any) -> str | None:
    """The key of the only choice with this text; case and white space count only if several are alike without."""
    for same in (str, lambda value: " ".join(str(value).casefold().split())):
        fits = [key for key, text in example["choices"].items() if same(text) == same(answer)]
        if fits:
            return fits[0] if len(fits) == 1 else None
    return None
