"""Utilities: prompts in, generated texts out, scores. No engine and no torch here.

Generation is greedy, and a score depends on its own example and output alone, never on what shared a batch
with it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelswarms_fast.errors import InputError
from modelswarms_fast.utilities import callables, exact_match, multiple_choice

__all__ = ["SPLITS", "TASKS", "Utility", "load_utility"]

SPLITS = ("dev", "test")
TASKS = ("multiple_choice", "exact_match")

_KIND_NAMES = {str: "text", int: "a whole number", float: "a number", dict: "an object"}


@dataclass(frozen=True)
class Utility:
    """What a search maximises: prompts by split and the rule that scores a generated text.

    `score_example` gets an example and a text without white space at its ends. `last_words` is the number of
    words kept from the end of a text before it is scored, by split; a split that is absent keeps the whole
    text.
    """

    name: str
    dataset: str
    examples: dict[str, list[dict[str, Any]]]
    prompts: dict[str, list[str]]
    max_tokens: int
    score_example: Callable[[dict[str, Any], str], float]
    last_words: Mapping[str, int] = field(default_factory=dict)
    score_range: tuple[float, float] | None = None
    """Lowest and highest score there is, if that is known; NaN aside."""

    def score(self, split: str, outputs: Sequence[str]) -> list[float]:
        """Scores of `outputs`, one for each example of `split` in order; their mean is a particle's utility.

        1.0 is right and 0.0 wrong; a function of the user may return any finite number, or NaN (then the
        utility is NaN, which never becomes a best). Raises InputError when it raises or returns anything
        else, ValueError when the number of outputs is not that of the examples.
        """
        count = len(self.examples[split])
        if len(outputs) != count:
            raise ValueError(f"{len(outputs)} outputs for the {count} examples of {split}")
        return [self.score_one(split, index, output) for index, output in enumerate(outputs)]

    def score_one(self, split: str, index: int, output: str) -> float:
        """Score of the output for one example of `split`, by its number; as in `score`. Raises InputError."""
        text = output.strip()
        if split in self.last_words:
            text = " ".join(text.split(" ")[-self.last_words[split] :])
        return self._checked_score(self.examples[split][index], text, f'"{self.name}" on {split} example {index}')

    def _checked_score(self, example: dict[str, Any], text: str, where: str) -> float:
        try:
            returned = self.score_example(example, text)
        except Exception as error:  # whatever a function of the user raises
            raise InputError(f"{where} raised {type(error).__name__}: {error}; correct the function") from error
        remedy = "return a finite number or NaN"
        try:
            score = math.inf if isinstance(returned, (str, bytes)) else float(returned)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise InputError(f"{where} returned {returned!r}; {remedy}") from error
        if math.isinf(score):
            raise InputError(f"{where} returned {returned!r}; {remedy}")
        if self.score_range is not None and (score < self.score_range[0] or score > self.score_range[1]):
            lowest, highest = self.score_range
            raise InputError(
                f"{where} returned {returned!r}; its score_range says {lowest:g} to {highest:g}, correct it"
            )
        return score


def load_utility(
    task: str,
    data: str | os.PathLike[str],
    *,
    limit_dev: int | None = None,
    limit_test: int | None = None,
    max_tokens: int | None = None,
) -> Utility:
    """Read an evaluation file and make the utility of `task` from it.

    task: "multiple_choice", "exact_match" or a Python function as "module:function". data: a JSON file with
    the lists `dev` and `test`; its field `dataset` (or else its name without ".json") picks the prompt and
    the token limit, in any case. limit_dev, limit_test: keep the first so many examples, or all where there
    are fewer. max_tokens: new tokens an example may take, instead of the task's own limit. Every example of
    the file is checked, limits or not. Raises InputError.
    """
    limits = {"limit_dev": limit_dev, "limit_test": limit_test, "max_tokens": max_tokens}
    for name, value in limits.items():
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; give at least 1")
    if task not in TASKS and ":" not in task:
        raise InputError(f'unknown task "{task}"; choose {", ".join(TASKS)} or a function as module:function')

    path = Path(data)
    content = _read_json(path)
    dataset = content.get("dataset", path.stem)
    if not isinstance(dataset, str) or not dataset:
        raise InputError(f'{path}: the field "dataset" is not a text; make it one or leave it out')
    splits = {split: _read_split(path, content, split) for split in SPLITS}
    examples = {"dev": splits["dev"][:limit_dev], "test": splits["test"][:limit_test]}

    make_prompt: Callable[[dict[str, Any]], str]
    score_example: Callable[[dict[str, Any], str], float]
    last_words: dict[str, int] = {}
    score_range: tuple[float, float] | None = (0.0, 1.0)
    if task == "multiple_choice":
        _check_examples(path, splits, multiple_choice.FIELDS)
        icl_prompt = content.get("icl_prompt", "")
        if multiple_choice.needs_icl_prompt(dataset) and (not isinstance(icl_prompt, str) or not icl_prompt):
            raise InputError(f'{path}: {dataset} needs its in-context example as a text in the field "icl_prompt"')

        def make_prompt(example: dict[str, Any]) -> str:
            return multiple_choice.prompt(example, dataset, icl_prompt)

        score_example = multiple_choice.score
        limit = multiple_choice.MAX_TOKENS
    elif task == "exact_match":
        _check_examples(path, splits, exact_match.FIELDS)
        make_prompt, score_example = exact_match.prompt, exact_match.score
        limit, last_words = exact_match.max_tokens(dataset), exact_match.last_words(dataset)
    else:
        _check_examples(path, splits, {"prompt": (str,)}, instead="question")
        make_prompt, score_example = callables.prompt, callables.import_function(task)
        limit = callables.max_tokens(score_example, task)
        score_range = callables.score_range(score_example, task)
    return Utility(
        name=task,
        dataset=dataset,
        examples=examples,
        prompts={split: [make_prompt(example) for example in examples[split]] for split in SPLITS},
        max_tokens=max_tokens or limit,
        score_example=score_example,
        last_words=last_words,
        score_range=score_range,
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"cannot read the evaluation file {path}: {error.strerror}; give an existing JSON file"
        ) from error
    except (ValueError, RecursionError) as error:  # neither UTF-8 nor JSON
        raise InputError(f"the evaluation file {path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f'the evaluation file {path} is not an object with the lists "dev" and "test"')
    return content


def _read_split(path: Path, content: dict[str, Any], split: str) -> list[dict[str, Any]]:
    examples = content.get(split)
    if not isinstance(examples, list) or not examples:
        what = "is empty" if examples == [] else "is no list" if split in content else "is missing"
        raise InputError(f'{path}: the split "{split}" {what}; give a list of at least one example')
    return examples


def _check_examples(
    path: Path,
    splits: dict[str, list[dict[str, Any]]],
    fields: dict[str, tuple[type, ...]],
    *,
    instead: str | None = None,
) -> None:
    """Refuse an example that lacks a field or has one of another type; the field `instead` may stand for a
    missing one.
    """
    for split, examples in splits.items():
        for index, example in enumerate(examples):
            where = f"{path}: {split} example {index}"
            if not isinstance(example, dict):
                raise InputError(f"{where} is not an object")
            for name, types in fields.items():
                if name not in example and instead in example:
                    name = str(instead)
                if name not in example:
                    other = f' (or "{instead}")' if instead else ""
                    raise InputError(f'{where} lacks the field "{name}"{other}; add it or choose another task')
                _check_value(example[name], types, f'{where}: the field "{name}"')


def _check_value(value: Any, types: tuple[type, ...], where: str) -> None:
    if not isinstance(value, types) or isinstance(value, bool):
        wanted = " or ".join(_KIND_NAMES[kind] for kind in types)
        raise InputError(f"{where} is {type(value).__name__}, not {wanted}")
    if isinstance(value, dict):  # choices: key -> text
        if not value:
            raise InputError(f"{where} is empty; give at least one choice")
        for key, text in value.items():
            _check_value(text, (str, int, float), f"{where}, choice {key},")
