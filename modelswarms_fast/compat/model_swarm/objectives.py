"""The evaluation types of model_swarm as utilities: prompts by the name of the file, its padding, its sums.

A utility here gives the numbers of model_swarm's `evaluate` and `evaluate_test`, and `results` the content of the files
that they write.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from modelswarms_fast.compat.model_swarm.engine import tokenizer_of
from modelswarms_fast.compat.model_swarm.metrics import CHOICES, EVAL_TYPES
from modelswarms_fast.config import Sampling
from modelswarms_fast.errors import InputError, quoted
from modelswarms_fast.evaluation.dataset import SPLITS
from modelswarms_fast.evaluation.objectives import Answer, Ask, Utility, load_utility
from modelswarms_fast.evaluation.objectives.multiple_choice import is_right, parse
from modelswarms_fast.evaluation.objectives.multitask import DOMAINS, join
from modelswarms_fast.evaluation.padding import Padding, batches_of
from modelswarms_fast.records.run_folder import read_json

PADDINGS = ("reference", "clean")
BATCH = 10
_SMALL_BATCH = 5
_OWN_BATCH = ("nlgraph", "nlgraph_mini")
_REWARDS = {"rm_default": "general", "rm_verbose": "verbose", "rm_concise": "concise", "rm_reverse": "reverse"}
_TASKS = {"AbstainQA": "abstain", "external_api": "toxicity", "human": "judge"}
_DUMMY = 0.01  # in place of each of two utilities of 0

Scores = Sequence[float]


@dataclass(frozen=True)
class Objective:
    """An evaluation type on a data set."""

    eval_type: str
    utility: Utility
    tasks: tuple[str, ...] = ()
    """Of multitask, the names of the two data sets."""
    utilities: Callable[[str, Scores], list[float]] = field(default=lambda split, scores: [])
    """Of multitask, (split, scores) → the utility of each."""

    def keep(self, example: Mapping[str, Any], answers: Sequence[Answer]) -> Any:
        """What the files need of an example, beside its score."""
        if self.eval_type == "AbstainQA":
            said = [answer.text.strip() for answer in answers]
            right = is_right(dict(example), parse(dict(example), said[0]))
            return int(right), int("false" not in said[-1].lower())
        return None if self.utility.choice is None else self.utility.choice(dict(example), answers)

    def results(self, split: str, scores: Scores, kept: Sequence[Any]) -> dict[str, list[Any]]:
        """The content of the files of a particle, by name; of multitask those of the second task."""
        if self.eval_type not in CHOICES:
            return {"scores": [int(score) if float(score).is_integer() else score for score in scores]}
        if self.eval_type == "AbstainQA":
            return {"golds": [right for right, _ in kept], "preds": [answered for _, answered in kept]}
        examples = self.utility.examples[split]
        first = len(self.utility.parts[0].examples[split]) if self.utility.parts else 0
        return {"golds": [one["answer"] for one in examples[first:]], "preds": list(kept[first:])}


def data_file(dataset: str) -> Path:
    """Where model_swarm looks for a data set. Raises InputError if it is not there."""
    path = Path("data", "eval", f"{dataset}.json")
    if not path.is_file():
        raise InputError(f"{path} does not exist in {Path.cwd()}; start this in the folder that holds data/eval.")
    return path


def tasks_of(eval_type: str, dataset: str) -> tuple[str, ...]:
    """The data sets of an evaluation: two for a domain of multitask. Raises InputError for an unknown one."""
    if eval_type not in EVAL_TYPES:
        raise InputError(f"eval_type is {quoted(eval_type)}; choose {', '.join(EVAL_TYPES)}.")
    if eval_type != "multitask":
        return (dataset,)
    if dataset not in DOMAINS:
        raise InputError(f"dataset is {quoted(dataset)}; choose a domain for multitask: {', '.join(DOMAINS)}.")
    return DOMAINS[dataset]


def load_objective(
    eval_type: str,
    dataset: str,
    *,
    options: Mapping[str, str] | None = None,
    only: str | None = None,
    limit_dev: int | None = None,
    limit_test: int | None = None,
) -> Objective:
    """Read data/eval/DATASET.json, or the two files of a domain for multitask.

    `options` are those of the objective that scores: of `reward`, `judge` or `toxicity`. `only`: "one" or "two" for the
    utility of that task of multitask alone. Raises InputError.
    """
    names = tasks_of(eval_type, dataset)
    if only not in (None, "one", "two"):
        raise InputError(f"only_one_or_two is {quoted(only)}; choose one or two.")
    settings: dict[str, Any] = {"limit_dev": limit_dev, "limit_test": limit_test, "options": dict(options or {})}
    if eval_type == "multitask":
        parts = [load_utility("multiple_choice", data_file(name), dataset=name, **settings) for name in names]
        return _both(parts, names, only)
    task = f"reward:{_REWARDS[eval_type]}" if eval_type in _REWARDS else _TASKS.get(eval_type, eval_type)
    if eval_type == "rm_reverse":
        settings["options"] |= {"adversarial": "yes"}
    if eval_type == "human":
        settings["chat"] = "base"
    utility = load_utility(task, data_file(dataset), dataset=dataset, **settings)
    if eval_type == "rm_reverse":
        utility = replace(utility, score_examples=_reversed(utility.score_examples), score_range=(-1.0, -0.5))
    return Objective(eval_type, replace(utility, reduce=lambda split, scores: _mean(scores)))


def _both(parts: Sequence[Utility], names: tuple[str, ...], only: str | None) -> Objective:
    """Two tasks, whose harmonic mean is the utility, or the utility of one of them."""
    joined = join("multitask", parts, [1.0, 1.0], "harmonic")

    def utilities(split: str, scores: Scores) -> list[float]:
        first = len(parts[0].examples[split])
        return [_mean(scores[:first]), _mean(scores[first:])]

    def reduce(split: str, scores: Scores) -> float:
        both = utilities(split, scores)
        a, b = both if sum(both) else (_DUMMY, _DUMMY)
        return {"one": a, "two": b}[only] if only else 2 * a * b / (a + b)

    return Objective("multitask", replace(joined, reduce=reduce), names, utilities)


def _mean(scores: Scores) -> float:
    return sum(scores) / len(scores)


def _reversed(score: Callable[..., Sequence[float]]) -> Callable[..., list[float]]:
    """From 1 - reward to the negative of the mean of the reward and a length that is always 1."""

    def scores(examples: Sequence[dict[str, Any]], answers: Sequence[Sequence[Answer]]) -> list[float]:
        return [-((1 - one) + 1) / 2 for one in score(examples, answers)]

    return scores


def prepared(objective: Objective, base: Path, padding: str) -> Objective:
    """The same as this base model is asked: with padding, unless it is "clean", and its penalty of repetitions.

    Raises InputError for a base model that says neither.
    """
    file = base / "generation_config.json"
    penalty = (read_json(file, "download it again") if file.is_file() else {}).get("repetition_penalty") or 1.0
    if not isinstance(penalty, int | float) or penalty <= 0:
        raise InputError(f"{file}: repetition_penalty is {quoted(penalty)}; make it a number above 0.")
    if penalty != 1:
        objective = replace(objective, utility=_penalised(objective.utility, float(penalty)))
    return padded(objective, tokenizer_of(base)) if padding == "reference" else objective


def _penalised(utility: Utility, penalty: float) -> Utility:
    sampling, follow_up = Sampling(0.0, repetition_penalty=penalty), utility.follow_up

    def penalised(ask: Ask) -> Ask:
        return ask._replace(sampling=sampling)

    def follow(example: dict[str, Any], answers: Sequence[Answer]) -> Ask | None:
        ask = None if follow_up is None else follow_up(example, answers)
        return None if ask is None else penalised(ask)

    asks = {split: [tuple(map(penalised, some)) for some in asked] for split, asked in utility.asks.items()}
    return replace(utility, asks=asks, follow_up=None if follow_up is None else follow)


def padded(objective: Objective, tokenizer: Any) -> Objective:
    """The same with the padding of model_swarm: batches in the order of the file, filled up with the token of the end.

    `tokenizer` as it is read from the base model's folder, which says on which side. Prompts in a chat template are
    sent one by one there, without padding. Raises InputError for a tokenizer without that token.
    """
    utility = objective.utility
    if objective.eval_type == "human":
        return objective
    if tokenizer.eos_token_id is None:
        raise InputError(
            "the tokenizer has no token that ends a text, which prompts are padded with; use --padding clean."
        )
    batches: dict[str, list[range]] = {}
    for split in SPLITS:
        batches[split] = []
        for part in utility.parts or (utility,):
            size, before = _batch(objective.eval_type, part.dataset, split), batches[split]
            before += batches_of(len(part.examples[split]), size, first=before[-1].stop if before else 0)
    side: Literal["left", "right"] = "right" if tokenizer.padding_side == "right" else "left"
    return replace(objective, utility=replace(utility, padding=Padding(tokenizer.eos_token_id, side, batches)))


def _batch(eval_type: str, dataset: str, split: str) -> int:
    small = eval_type == "exact_match" and (dataset in _OWN_BATCH or split == "test")
    return _SMALL_BATCH if small else BATCH
