"""Examples for the objectives: what files hold, under the names that objectives know, as dev and test.

A file with one split is divided at random, by a seed of its own: the first min(200, 40 %) of the drawn order are dev.
How it was all understood is said in a line, and what makes a score too good is a warning.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelswarms_fast.config import TaskConfig
from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.dataset_files import HUB, KNOWN_SPLITS, Found, read_files

SPLITS = ("dev", "test")
MOST_DEV, DEV_SHARE = 200, (2, 5)
"""Of a file that is divided here: most examples of dev, and its share."""


@dataclass
class Data:
    """Examples of one objective, and how they were read."""

    path: str
    """What a message calls them."""
    content: dict[str, Any]
    """The lists `dev` and `test`, and what stands beside them: `dataset`, `icl_prompt`."""
    where: dict[str, list[str]]
    """By split, what a message calls each example."""
    form: str
    split: str
    """How dev and test were found, in words; empty where they have these names."""
    kept: bool
    """Whether nothing but this program says which examples these are: divided here, or from the Hub."""
    notes: list[str] = field(default_factory=list)
    """What an objective has understood of the values."""
    warnings: list[str] = field(default_factory=list)

    @property
    def line(self) -> str:
        """How the file was understood, for a person."""
        counts = ", ".join(f"{split} {len(self.content[split])}" for split in SPLITS)
        counts += f" ({self.split})" if self.split else ""
        return f"{self.path}: {'; '.join([self.form, counts, *self.notes])}"


def read_data(paths: Sequence[Path], config: TaskConfig) -> Data:
    """The examples of files, of a folder or of the Hub. Raises InputError."""
    found = read_files(paths)
    dev, test = _choose(found, config)
    examples, where = {}, {}
    if dev == test:
        rows, named = _list(found, dev, config.map)
        order = _drawn(found, dev, rows, config.split_seed)
        for split, numbers in zip(SPLITS, order, strict=True):
            examples[split], where[split] = [rows[one] for one in numbers], [named[one] for one in numbers]
        of = f' of "{dev}"' if dev else ""
        how = f"random split{of}, seed {config.split_seed}"
    else:
        for split, name in zip(SPLITS, (dev, test), strict=True):
            examples[split], where[split] = _list(found, name, config.map)
        how = "" if (dev, test) == SPLITS else f"from {dev} and {test}"
    content = {"dataset": found.dataset} | found.beside | examples
    return Data(found.path, content, where, found.form, how, dev == test or found.path.startswith(HUB))


def _list(found: Found, split: str, names: Mapping[str, str]) -> tuple[list[Any], list[str]]:
    rows, where = found.splits[split]()
    if not rows:
        what = f'the split "{split}" is empty' if split else "it holds no examples"
        raise InputError(f"{found.path}: {what}; give a list of at least one example")
    return [_mapped(*pair, names) for pair in zip(rows, where, strict=True)], where


def _choose(found: Found, config: TaskConfig) -> tuple[str, str]:
    """The names of what is dev and of what is test; the same where one is to be divided."""
    names, given = list(found.splits), (config.dev_split, config.test_split)
    for option, name in zip(("dev_split", "test_split"), given, strict=True):
        if name is not None and name not in names:
            has = f"it has {', '.join(names)}" if names != [""] else "it has one list without a name, leave it out"
            raise InputError(f'{option} is "{name}" but {found.path} has no such split; {has}')
    dev, test = given
    known = sorted((name for name in names if name.lower() in KNOWN_SPLITS), key=_rank)
    if dev is None and test is None and len(names) == 1:
        return names[0], names[0]
    if test is None:
        others = [name for name in known if name != dev]
        test = others[-1] if others and (dev is not None or len(others) > 1) else None
    if dev is None and test is not None:
        others = [name for name in known if name != test and name.lower() != "test"]
        dev = "dev" if "dev" in others else others[-1] if others else None
    if len(names) == 1:
        return names[0], names[0]
    if dev is None or test is None:
        raise InputError(
            f"{found.path} has the lists {', '.join(names)}, of which dev and test cannot be told; give --dev-split "
            "and --test-split"
        )
    return dev, test


def _rank(name: str) -> int:
    return KNOWN_SPLITS.index(name.lower())


def _drawn(found: Found, split: str, rows: Sequence[Any], seed: int) -> tuple[list[int], list[int]]:
    """Numbers of the examples of dev and of test, both in the drawn order, so that a limit keeps a random part.

    What is the same as an example of dev is in dev too.
    """
    count = len(rows)
    if count < 2:
        other = next((name for name in SPLITS if name != split), "test")
        what = f'the split "{other}" is missing, and the only other' if split else "it"
        raise InputError(f"{found.path}: {what} has {count} example, too few to divide; give dev and test")
    order = list(range(count))
    random.Random(seed).shuffle(order)
    dev = max(1, min(MOST_DEV, count * DEV_SHARE[0] // DEV_SHARE[1]))
    keys = [_identity(row) if isinstance(row, dict) else "" for row in rows]
    seen = {keys[number] for number in order[:dev]}
    again = [number for number in order[dev:] if keys[number] in seen]
    if len(again) == count - dev:  # nothing else is left
        return order[:dev], order[dev:]
    return order[:dev] + again, [number for number in order[dev:] if keys[number] not in seen]


def _mapped(example: Any, where: str, names: Mapping[str, str]) -> Any:
    """The example with the fields that objectives know, beside its own."""
    if not isinstance(example, dict):
        return example
    found = {}
    for name, source in names.items():
        if source in example or "," not in source:
            found[name] = _value(example, where, source)
        else:  # several fields, of which some examples may lack some
            values = [_value(example, where, one.strip(), None) for one in source.split(",")]
            found[name] = [value for value in values if value is not None]
    return example | found


_NEEDED = object()


def _value(example: dict[str, Any], where: str, source: str, default: Any = _NEEDED) -> Any:
    """The field `source`; a dot leads into an object."""
    if source in example:
        return example[source]
    value: Any = example
    for name in source.split("."):
        if not isinstance(value, dict) or name not in value:
            if default is not _NEEDED:
                return default
            raise InputError(f'{where} has no field "{source}", which map names; it has {", ".join(example)}')
        value = value[name]
    return value


def warnings_of(examples: Mapping[str, Sequence[dict[str, Any]]]) -> list[str]:
    """What makes scores on these examples worse measures than they seem."""
    keys = {split: [_identity(one) for one in some] for split, some in examples.items()}
    found = []
    seen = set(keys["dev"])
    if both := sum(key in seen for key in keys["test"]):
        found.append(
            f"{both} of {len(keys['test'])} test examples are in dev too, so the test score is too high; remove them"
        )
    for split in SPLITS:
        if again := len(keys[split]) - len(set(keys[split])):
            found.append(f"{again} of {len(keys[split])} {split} examples stand there more than once")
    return found


def _identity(example: dict[str, Any]) -> str:
    """What makes two examples the same: the words of what is asked, without case and white space, and the choices."""
    asked = [example.get(name, "") for name in ("question", "prompt", "completion", "text")]
    choices = example.get("choices")
    texts = choices.values() if isinstance(choices, dict) else choices if isinstance(choices, list) else ()
    return json.dumps([list(map(_words, asked)), sorted(map(_words, texts))])


def _words(value: Any) -> str:
    return " ".join(str(value).casefold().split())
