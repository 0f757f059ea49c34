"""A Python function of the user as the utility, named `module:function`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from modelswarms_fast.config import Sampling, TaskConfig
from modelswarms_fast.errors import InputError, quoted
from modelswarms_fast.errors.modules import import_named
from modelswarms_fast.evaluation.dataset import Data
from modelswarms_fast.evaluation.objectives.data import Wanted, dataset_of, read_examples
from modelswarms_fast.evaluation.objectives.sampling import SAMPLING
from modelswarms_fast.evaluation.objectives.utility import Answer, Ask, Utility

DEFAULT_MAX_TOKENS = 10


def load(data: Data, wanted: Wanted) -> Utility:
    """The utility of an evaluation file and the function that `wanted.task` names. Raises InputError.

    The function is called as `function(example, output)` with the example as it stands in the file and the
    generated text without white space at its ends, and returns a number (higher is better).
    """
    examples = read_examples(data, wanted, {"prompt": (str,)}, instead="question")
    wanted.check_options()
    function = import_named("task", wanted.task, "function", "my_tasks:score")
    limit = wanted.max_tokens or max_tokens(function, wanted.task)
    own = sampling(function, wanted.task)
    drawn = Sampling(own.temperature, own.top_p or 1.0) if own.temperature else None

    def score_examples(examples: Sequence[dict[str, Any]], answers: Sequence[Sequence[Answer]]) -> list[Any]:
        return [function(example, given[0].text.strip()) for example, given in zip(examples, answers, strict=True)]

    return Utility(
        wanted.task,
        dataset_of(data),
        examples,
        {split: [(Ask(prompt(one), limit, sampling=drawn),) for one in some] for split, some in examples.items()},
        score_examples,
        score_range=score_range(function, wanted.task),
        samples=own.samples or 1,
        pass_k=own.pass_k,
    )


def max_tokens(function: Callable[..., Any], task: str) -> int:
    """New tokens an example may take: the function's attribute `max_tokens`, or 10. Raises InputError."""
    value = getattr(function, "max_tokens", DEFAULT_MAX_TOKENS)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(
            f'task "{task}": the attribute max_tokens is {quoted(value)}; make it a whole number from 1 on'
        )
    return value


def sampling(function: Callable[..., Any], task: str) -> TaskConfig:
    """How the function wants answers drawn: its attributes `temperature`, `top_p`, `samples` and `pass_k`, those that
    it has. Raises InputError."""
    given = {name: getattr(function, name) for name in SAMPLING if hasattr(function, name)}
    for name, value in given.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise InputError(f'task "{task}": the attribute {name} is {quoted(value)}; make it a number')
    try:
        return TaskConfig(**given)
    except InputError as error:
        raise InputError(f'task "{task}": of the attributes of the function {error}') from error


def score_range(function: Callable[..., Any], task: str) -> tuple[float, float] | None:
    """Lowest and highest score: the function's attribute `score_range`, a pair; None without one. Raises InputError."""
    value = getattr(function, "score_range", None)
    if value is None:
        return None
    try:
        lowest, highest = (float(number) for number in value)
    except (TypeError, ValueError):
        lowest = highest = math.nan
    if not -math.inf < lowest < highest < math.inf:
        raise InputError(
            f'task "{task}": the attribute score_range is {quoted(value)}; make it (lowest, highest) score'
        )
    return lowest, highest


def prompt(example: dict[str, Any]) -> str:
    """Prompt of one example: its field `prompt`, or `question` where that is absent."""
    return str(example["prompt"] if "prompt" in example else example["question"])
