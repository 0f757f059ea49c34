"""Prediction merge: every expert answers, and the answer that most give is taken."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from modelswarms_fast.evaluation.objectives import Answer, Utility
from modelswarms_fast.runs.baselines import Choice, loss, named
from modelswarms_fast.runs.experiment import Experiment
from modelswarms_fast.swarm import best_of

Answers = list[list[Answer]]
"""By example, what one expert answered."""


def run(experiment: Experiment, budget: int, seed: int) -> Choice:
    """All experts and the best k by dev vote, k from 3; dev chooses k. See `modelswarms_fast.runs.baselines`.

    The experts' scores come from the answers that vote, so that all of it costs one evaluation an expert.
    """
    utility = experiment.utility
    dev = _ask(experiment, "dev", range(len(experiment.experts.names)))
    alone = [experiment.utility_of("dev", _scores(utility, "dev", answers)) for answers in dev]
    order = sorted(range(len(dev)), key=lambda expert: loss(alone[expert]))
    sizes = list(range(min(3, len(order)), len(order) + 1))
    utilities = [
        experiment.utility_of(
            "dev", _scores(utility, "dev", vote(utility, "dev", [dev[expert] for expert in order[:k]]))
        )
        for k in sizes
    ]
    best = best_of(np.array(utilities))
    voters = order[: sizes[best]]

    def test() -> list[float]:
        return _scores(utility, "test", vote(utility, "test", _ask(experiment, "test", voters)))

    recipe = {
        "voters": [experiment.experts.names[expert] for expert in voters],
        "dev_by_voters": {str(k): value for k, value in zip(sizes, utilities, strict=True)},
        "dev_alone": named(experiment, alone),
    }
    return Choice(recipe, utilities[best], len(dev), test, looks_at_experts=False)


def vote(utility: Utility, split: str, experts: Sequence[Answers]) -> Answers:
    """By example, the answers of the first expert among those who give the most frequent one.

    The experts are sorted by dev, so that among answers of equal frequency that of the best expert wins.
    """
    merged = []
    for number, example in enumerate(utility.examples[split]):
        said = [meaning(utility, example, answers[number]) for answers in experts]
        winner = max(range(len(said)), key=lambda expert: (said.count(said[expert]), -expert))
        merged.append(experts[winner][number])
    return merged


def meaning(utility: Utility, example: dict[str, Any], answers: Sequence[Answer]) -> Hashable:
    """What is compared of an expert's answers to one example.

    The choice that they name for the score, where there are choices; else of several likelihoods the place of the
    highest, of texts those in lower case with single spaces and no punctuation at their ends.
    """
    if utility.choice is not None and (named := utility.choice(example, answers)) is not None:
        return named
    if len(answers) > 1 and not math.isnan(answers[0].log_prob):
        return max(range(len(answers)), key=lambda place: answers[place].log_prob)
    return tuple(re.sub(r"^\W+|\W+$", "", " ".join(answer.text.casefold().split())) for answer in answers)


def _ask(experiment: Experiment, split: str, experts: Sequence[int]) -> list[Answers]:
    return [experiment.evaluator.generate(experiment.expert_row(expert), split) for expert in experts]


def _scores(utility: Utility, split: str, answers: Answers) -> list[float]:
    return utility.score(split, range(len(answers)), answers)
