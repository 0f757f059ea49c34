"""Abstention: a multiple choice question is answered, then the model says whether its own answer is right.

Prompts, parsing and the measure are those of the Model Swarms paper's published evaluation (Feng et al., arXiv
2410.11163; the measure, effective reliability, is of arXiv 2402.00367): (right - wrong) / all, where an answer that the
model calls false is neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from modelswarms_fast.evaluation.dataset import Data
from modelswarms_fast.evaluation.objectives.choices import read_choices
from modelswarms_fast.evaluation.objectives.data import Wanted, dataset_of
from modelswarms_fast.evaluation.objectives.multiple_choice import (
    MAX_TOKENS,
    is_right,
    parse,
    prompt,
    read_icl_prompt,
)
from modelswarms_fast.evaluation.objectives.utility import Answer, Ask, Utility

REFLECTION = "Is the proposed answer true or false? Directly answer with true or false."


def load(data: Data, wanted: Wanted) -> Utility:
    """The utility of an evaluation file for multiple choice. Raises InputError."""
    examples, dataset = read_choices(data, wanted), dataset_of(data)
    make_prompt = partial(prompt, dataset=dataset, icl_prompt=read_icl_prompt(data, dataset))
    wanted.check_options()
    limit = wanted.max_tokens or MAX_TOKENS

    def follow_up(example: dict[str, Any], answers: Sequence[Answer]) -> Ask:
        return Ask(f"{make_prompt(example)}\nProposed answer: {answers[0].text.strip()}\n{REFLECTION}", limit)

    return Utility(
        wanted.task,
        dataset,
        examples,
        {split: [(Ask(make_prompt(one), limit),) for one in some] for split, some in examples.items()},
        _score_examples,
        follow_up,
        score_range=(-1.0, 1.0),
    )


def score(example: dict[str, Any], output: str, reflection: str) -> float:
    """0.0 when the reflection says "false" (case ignored), else 1.0 for a right answer and -1.0 for a wrong one."""
    if "false" in reflection.lower():
        return 0.0
    return 1.0 if is_right(example, parse(example, output)) else -1.0


def _score_examples(examples: Sequence[dict[str, Any]], answers: Sequence[Sequence[Answer]]) -> list[float]:
    texts = [[answer.text.strip() for answer in given] for given in answers]
    return [score(example, *said) for example, said in zip(examples, texts, strict=True)]
