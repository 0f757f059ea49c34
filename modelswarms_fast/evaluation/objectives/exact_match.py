"""Exact match: the question is the prompt, an output is right when it contains the answer.

Token limits and the words kept are those of the Model Swarms paper's published evaluation (Feng et al., arXiv
2410.11163).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.dataset import Data
from modelswarms_fast.evaluation.objectives.data import (
    ANSWER,
    Fields,
    Wanted,
    dataset_of,
    read_examples,
    right_answers,
)
from modelswarms_fast.evaluation.objectives.utility import Answer, Ask, Utility

FIELDS: Fields = {"question": (str,), "answer": ANSWER}

# A worked solution names many numbers; only its end is searched. The published evaluation keeps fewer words
# on dev.
_WORKED_SOLUTIONS = {"gsm8k": {"dev": 5, "test": 10}}


def load(data: Data, wanted: Wanted) -> Utility:
    """The utility of an evaluation file. Raises InputError."""
    examples, dataset = read_examples(data, wanted, FIELDS, check=_check_answer), dataset_of(data)
    wanted.check_options()
    limit = wanted.max_tokens or max_tokens(dataset)
    kept = last_words(dataset)
    examples = {
        split: [one | {"_last_words": kept[split]} for one in some] if split in kept else some
        for split, some in examples.items()
    }
    return Utility(
        wanted.task,
        dataset,
        examples,
        {split: [(Ask(prompt(one), limit),) for one in some] for split, some in examples.items()},
        _score_examples,
        score_range=(0.0, 1.0),
    )


def _check_answer(example: dict[str, Any], where: str) -> None:
    if not all(str(one).strip() for one in right_answers(example)):
        raise InputError(f"{where} has an empty answer, which every output contains; give one")


def max_tokens(dataset: str) -> int:
    """New tokens an example may take: 200 for gsm8k (any case), which reasons before it answers, else 10."""
    return 200 if dataset.lower() in _WORKED_SOLUTIONS else 10


def last_words(dataset: str) -> dict[str, int]:
    """Words kept from the end of an output, by split; a split that is absent keeps the whole output."""
    return dict(_WORKED_SOLUTIONS.get(dataset.lower(), {}))


def prompt(example: dict[str, Any]) -> str:
    """Prompt of one example: its question, unchanged."""
    return str(example["question"])


def score(example: dict[str, Any], output: str) -> float:
    """1.0 when `output` contains the example's answer, or one of several, else 0.0.

    Case matters, but not of true and false.

    Of an example with the field `_last_words` only so many words of the output are looked at; single spaces separate
    words.
    """
    if "_last_words" in example:
        output = " ".join(output.split(" ")[-example["_last_words"] :])
    return float(any(_contains(output, one) for one in right_answers(example)))


def _contains(output: str, answer: Any) -> bool:
    return str(answer).lower() in output.lower() if isinstance(answer, bool) else str(answer) in output


def _score_examples(examples: Sequence[dict[str, Any]], answers: Sequence[Sequence[Answer]]) -> list[float]:
    return [score(example, given[0].text.strip()) for example, given in zip(examples, answers, strict=True)]
