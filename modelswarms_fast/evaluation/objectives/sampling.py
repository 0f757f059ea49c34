"""Answers that are drawn, several of them for an example: for every objective that generates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

from modelswarms_fast.config import Sampling, TaskConfig
from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.objectives.utility import Answer, Ask, Utility, in_parts

SAMPLING = ("temperature", "top_p", "samples", "pass_k")
"""Fields of TaskConfig; None where the task itself decides."""


def sampled(utility: Utility, config: TaskConfig) -> Utility:
    """The utility with its answers drawn as the settings say, or else as the task itself does.

    Without either it is left as it is: greedy. Raises InputError for settings that contradict each other or the task.
    """
    if utility.of_parts is not None:
        return utility.of_parts([sampled(part, config) for part in utility.parts])
    given = {name: value for name in SAMPLING if (value := getattr(config, name)) is not None}
    samples, pass_k = config.samples or utility.samples, config.pass_k or utility.pass_k
    generated = [ask for asked in utility.asks.values() for some in asked for ask in some if ask.continuation is None]
    own = next((ask.sampling for ask in generated), None)
    if not given and own is None and samples == 1 and pass_k is None:
        return utility
    what = f'task "{utility.name}"'
    if not generated:
        name, value = next(iter(given.items()))
        raise InputError(f"{name} is {value}, but {what} generates nothing that could be drawn; leave {name} out")
    temperature = config.temperature if config.temperature is not None else own.temperature if own else 0.0
    drawn = _sampling(config, own, temperature)
    if samples > 1 and temperature == 0:
        raise InputError(
            f"samples is {samples}, but at temperature 0 they are all the same; give temperature, such as 0.8"
        )
    if config.top_p is not None and temperature == 0:
        raise InputError(
            f"top_p is {config.top_p}, but at temperature 0 nothing is drawn; give temperature, such as 0.8"
        )
    if samples > 1 and utility.follow_up is not None:
        raise InputError(f"samples is {samples}, but {what} asks what follows from one answer; leave samples out")
    score_range = utility.score_range
    if pass_k is not None:
        if pass_k > samples:
            raise InputError(f"pass_k is {pass_k}, but an example has {samples} samples; give samples of at least that")
        if score_range not in (None, (0.0, 1.0)):
            raise InputError(
                f"pass_k is {pass_k}, but {what} has scores from {score_range[0]:g} to {score_range[1]:g}; it counts "
                "those that are 1 of scores from 0 to 1"
            )
        score_range = (0.0, 1.0)

    def ask(one: Ask) -> Ask:
        return one if one.continuation is not None else one._replace(sampling=drawn)

    facts = {"temperature": temperature, "top_p": drawn.top_p if drawn else 1.0, "samples": samples, "pass_k": pass_k}
    return replace(
        utility,
        asks={split: [tuple(map(ask, some)) * samples for some in asked] for split, asked in utility.asks.items()},
        score_range=score_range,
        choice=None if utility.choice is None else _most_frequent(utility, samples),
        samples=samples,
        pass_k=pass_k,
        report=lambda: utility.report() | {"sampling": facts},
    )


def _sampling(config: TaskConfig, own: Sampling | None, temperature: float) -> Sampling | None:
    if temperature == 0:
        return None
    top_p = config.top_p if config.top_p is not None else own.top_p if own else 1.0
    return Sampling(temperature, top_p, config.sample_seed)


def _most_frequent(utility: Utility, samples: int) -> Any:
    """What most samples name; of equals the first."""
    named = utility.choice
    assert named is not None

    def choice(example: dict[str, Any], answers: Sequence[Answer]) -> Hashable:
        return Counter(named(example, one) for one in in_parts(answers, samples)).most_common(1)[0][0]

    return choice
