"""Perplexity: how likely the model finds a text, or a completion of a prompt.

The score is the mean natural log-probability of a token, the negative logarithm of the perplexity: it rises as the
perplexity falls, and at most to 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.dataset import Data
from modelswarms_fast.evaluation.objectives.data import Wanted, dataset_of, read_examples
from modelswarms_fast.evaluation.objectives.utility import Answer, Ask, Utility


def load(data: Data, wanted: Wanted) -> Utility:
    """The utility of an evaluation file: examples have `text`, or `prompt` and `completion`. Raises InputError.

    Prompt and completion are joined as they are. A text alone is looked at after the tokenizer's first token.
    """
    examples = read_examples(data, wanted, {"text": (str,)}, instead="completion")
    wanted.check_options()
    if wanted.max_tokens is not None:
        raise InputError(f'max_tokens is given, but task "{wanted.task}" generates nothing; leave it out')
    asks: dict[str, list[tuple[Ask, ...]]] = {}
    for split, some in examples.items():
        asks[split] = [(_ask(one, where),) for one, where in zip(some, data.where[split], strict=False)]
    return Utility(wanted.task, dataset_of(data), examples, asks, _score_examples)


def _ask(example: dict[str, Any], where: str) -> Ask:
    if "text" in example:
        prompt, text = "", example["text"]
    else:
        prompt, text = example.get("prompt", ""), example["completion"]
    if not isinstance(prompt, str) or not text:
        raise InputError(f"{where} has an empty text or a prompt that is none; give both a text")
    return Ask(prompt, 1, text)


def score(answer: Answer) -> float:
    """Mean natural log-probability of a token."""
    return answer.log_prob / answer.tokens


def _score_examples(examples: Sequence[dict[str, Any]], answers: Sequence[Sequence[Answer]]) -> list[float]:
    return [score(given[0]) for given in answers]
