"""Several tasks at once: objective 2 of the Model Swarms paper (Feng et al., arXiv 2410.11163).

The utility of a particle is the harmonic mean of the tasks' utilities u by default, which is the published form for
two tasks and falls to the worst of them when one is neglected:

    harmonic   Σ w / Σ (w / u);  the least u where one is not above 0
    mean       Σ w u / Σ w
    min        the least u

Published is 0.01 for two utilities of 0, more than for 0 and 0.9; here both are 0, so that a better score never makes
a utility fall.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

from modelswarms_fast.errors import InputError, quoted
from modelswarms_fast.evaluation.objectives.data import Wanted
from modelswarms_fast.evaluation.objectives.utility import Answer, Ask, Utility

COMBINE = ("harmonic", "mean", "min")
DOMAINS = {
    "legal": ("hearsay", "citation_prediction_classification"),
    "medical": ("medqa", "medmcqa"),
    "science": ("scifact", "stem"),
    "culture": ("normad_country", "normad_value"),
}
"""The published pairs, all of multiple choice, by the names of their files."""


def load(paths: Sequence[Path], wanted: Wanted, load_one: Callable[..., Utility]) -> Utility:
    """The utility of several evaluation files, or of a folder that holds the two of a published domain.

    `load_one` is `load_utility`. Options: `tasks`, the task of each file, or one for all; `combine`, `weights`; and
    what a task takes itself, after its number, as in `2.model`. Limits and max_tokens apply to each task. Raises
    InputError.
    """
    domain = wanted.task.partition(":")[2]
    own = {name: value for name, value in wanted.options.items() if name in ("tasks", "combine", "weights")}
    if domain:
        paths = _domain_files(domain, paths)
    if len(paths) < 2:
        raise InputError(f"{wanted.task} has {len(paths)} evaluation file; give --data for each of its tasks")
    names = [name.strip() for name in own.get("tasks", "multiple_choice").split(",")]
    names = names * len(paths) if len(names) == 1 else names
    if len(names) != len(paths):
        raise InputError(f"{wanted.task} has {len(paths)} evaluation files but {len(names)} tasks; give one for each")
    if nested := [name for name in names if name.partition(":")[0] == "multitask"]:
        raise InputError(f"{wanted.task} cannot hold {nested[0]}; give the tasks themselves")
    passed: list[dict[str, str]] = [{} for _ in names]
    for key, value in wanted.options.items():
        number, dot, option = key.partition(".")
        if dot and number.isdecimal() and 1 <= int(number) <= len(names):
            passed[int(number) - 1][option] = value
        elif key not in own:
            known = "tasks, combine, weights, and those of a task after its number, as in 2.model"
            raise InputError(f'task "{wanted.task}" has no option {key}; it knows {known}')
    weights = _weights(wanted.task, own.get("weights"), len(names))
    combine = wanted.choice("combine", *COMBINE)
    likelihoods = wanted.scoring != "generate" and "multiple_choice" in names  # the others have only one way
    tasks = [
        load_one(
            name,
            path,
            limit_dev=wanted.limits.get("dev"),
            limit_test=wanted.limits.get("test"),
            max_tokens=wanted.max_tokens,
            scoring="generate" if likelihoods and name != "multiple_choice" else wanted.scoring,
            options=options,
        )
        for name, path, options in zip(names, paths, passed, strict=True)
    ]
    return join(wanted.task, tasks, weights, combine)


def join(name: str, tasks: Sequence[Utility], weights: Sequence[float] | None, combine: str) -> Utility:
    """One utility of several: their examples one after the other, each scored by its own task.

    `weights` of the tasks; None: each its number of examples, so that the mean is that of all examples.
    Its standard error is that of the delta method, Σ (∂utility/∂u)² error², with those of the tasks, which are
    independent samples; for a minimum the error of the task that has it.
    """
    splits, ranges = tuple(tasks[0].examples), [task.score_range for task in tasks]
    known = [one for one in ranges if one is not None]

    def own(examples: Sequence[dict[str, Any]], answers: Sequence[Sequence[Answer]]) -> list[float]:
        scores = [math.nan] * len(examples)
        for which, task in enumerate(tasks):
            for split in splits:
                mine = [place for place, one in enumerate(examples) if one["_place"][:2] == (which, split)]
                numbers = [examples[place]["_place"][2] for place in mine]
                found = task.score(split, numbers, [answers[place] for place in mine])
                for place, score in zip(mine, found, strict=True):
                    scores[place] = score
        return scores

    def follow_up(example: dict[str, Any], answers: Sequence[Answer]) -> Ask | None:
        which, split, number = example["_place"]
        asked = tasks[which].follow_up
        return None if asked is None else asked(tasks[which].examples[split][number], answers)

    def choice(example: dict[str, Any], answers: Sequence[Answer]) -> Hashable:
        which, split, number = example["_place"]
        named = tasks[which].choice
        return None if named is None else named(tasks[which].examples[split][number], answers)

    def parts(split: str, scores: Sequence[float]) -> list[Sequence[float]]:
        ends = [0]
        for task in tasks:
            ends.append(ends[-1] + len(task.examples[split]))
        return [scores[start:end] for start, end in itertools.pairwise(ends)]

    def weights_on(split: str) -> Sequence[float]:
        return [float(len(task.examples[split])) for task in tasks] if weights is None else weights

    def reduce(split: str, scores: Sequence[float]) -> float:
        utilities = [task.utility_of(split, part) for task, part in zip(tasks, parts(split, scores), strict=True)]
        return combined(utilities, weights_on(split), combine)

    def standard_error(split: str, scores: Sequence[float]) -> float:
        each = list(zip(tasks, parts(split, scores), strict=True))
        slopes = gradient([task.utility_of(split, part) for task, part in each], weights_on(split), combine)
        errors = [task.error_of(split, part) for task, part in each]
        return math.hypot(*(slope * error for slope, error in zip(slopes, errors, strict=True)))

    def calibrate(examples: Sequence[dict[str, Any]], answers: Sequence[Sequence[Answer]]) -> None:
        for which, task in enumerate(tasks):
            if task.calibrate is not None:
                mine = [place for place, one in enumerate(examples) if one["_place"][0] == which]
                task.calibrate([examples[place] for place in mine], [answers[place] for place in mine])

    return Utility(
        name,
        " + ".join(task.dataset for task in tasks),
        {
            split: [
                one | {"_place": (which, split, number)}
                for which, task in enumerate(tasks)
                for number, one in enumerate(task.examples[split])
            ]
            for split in splits
        },
        {split: [asks for task in tasks for asks in task.asks[split]] for split in splits},
        own,
        follow_up if any(task.follow_up for task in tasks) else None,
        max(task.batch or 0 for task in tasks) or None,
        reduce,
        standard_error,
        (min(low for low, _ in known), max(high for _, high in known)) if len(known) == len(tasks) else None,
        calibrate if any(task.calibrate for task in tasks) else None,
        lambda: {f"{number}. {task.dataset}": task.report() for number, task in enumerate(tasks, 1) if task.report()},
        tuple(tasks),
        lambda parts: join(name, parts, weights, combine),
        choice if any(task.choice for task in tasks) else None,
        data=tuple(one for task in tasks for one in task.data),
    )


def combined(utilities: Sequence[float], weights: Sequence[float], combine: str) -> float:
    """The utilities of the tasks as one number; never falls when one of them rises.

    That holds in floating point too: each division, product and `fsum` is correctly rounded, which keeps the order.
    """
    if combine == "min" or (combine == "harmonic" and min(utilities) <= 0):
        return min(utilities)
    pairs = list(zip(weights, utilities, strict=True))
    if combine == "mean":
        return math.fsum(weight * utility for weight, utility in pairs) / math.fsum(weights)
    return math.fsum(weights) / math.fsum(weight / utility for weight, utility in pairs)


def gradient(utilities: Sequence[float], weights: Sequence[float], combine: str) -> list[float]:
    """Slope of `combined` along each utility; of a minimum only along the first that has it."""
    total, whole = math.fsum(weights), combined(utilities, weights, combine)
    if combine == "min" or (combine == "harmonic" and min(utilities) <= 0):
        least = list(utilities).index(min(utilities))
        return [float(which == least) for which in range(len(utilities))]
    if combine == "mean":
        return [weight / total for weight in weights]
    return [weight / total * (whole / utility) ** 2 for weight, utility in zip(weights, utilities, strict=True)]


def _weights(task: str, given: str | None, count: int) -> list[float]:
    if given is None:
        return [1.0] * count
    try:
        weights = [float(text) for text in given.split(",")]
    except ValueError:
        weights = []
    if len(weights) != count or not all(0 < weight < math.inf for weight in weights):
        raise InputError(
            f'task "{task}": the option weights is {quoted(given)}; give {count} numbers above 0, as in 2,1'
        )
    return weights


def _domain_files(domain: str, paths: Sequence[Path]) -> list[Path]:
    if domain not in DOMAINS:
        raise InputError(f'no domain is called "{domain}"; choose {", ".join(DOMAINS)}, or give the files one by one')
    if len(paths) != 1 or not paths[0].is_dir():
        raise InputError(f"multitask:{domain} takes one folder as --data, with {_named(domain)} in it")
    files = [paths[0] / f"{name}.json" for name in DOMAINS[domain]]
    if missing := [file for file in files if not file.is_file()]:
        raise InputError(f"multitask:{domain} needs {missing[0]}, which does not exist; put it there")
    return files


def _named(domain: str) -> str:
    return " and ".join(f"{name}.json" for name in DOMAINS[domain])
