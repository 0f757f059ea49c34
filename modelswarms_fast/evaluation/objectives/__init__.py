"""Utilities: asks in, answers out, scores. No engine here, and torch only inside functions that score with a model.

Each objective is one file with a function `load(path, content, wanted)`. Generation is greedy, and a score depends on
its own example and answers alone, never on what shared a batch with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from modelswarms_fast.config import Scoring
from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.objectives import (
    abstain,
    callables,
    exact_match,
    judge,
    lm_eval_task,
    multiple_choice,
    multitask,
    perplexity,
    reward,
    toxicity,
)
from modelswarms_fast.evaluation.objectives.data import SPLITS, Files, Wanted, named, paths_of, read_data
from modelswarms_fast.evaluation.objectives.utility import Answer, Ask, Utility

__all__ = ["SPLITS", "TASKS", "Answer", "Ask", "Files", "Scoring", "Utility", "load_utility", "named"]

_LOADERS: dict[str, Callable[[Path, dict[str, Any], Wanted], Utility]] = {
    "multiple_choice": multiple_choice.load,
    "exact_match": exact_match.load,
    "abstain": abstain.load,
    "perplexity": perplexity.load,
    "reward": reward.load,
    "judge": judge.load,
    "toxicity": toxicity.load,
}
TASKS = (*_LOADERS, "multitask", "lm_eval:TASK")


def load_utility(
    task: str,
    data: Files = None,
    *,
    limit_dev: int | None = None,
    limit_test: int | None = None,
    max_tokens: int | None = None,
    scoring: Scoring = "generate",
    options: Mapping[str, str] | None = None,
) -> Utility:
    """Read an evaluation file and make the utility of `task` from it.

    task: one of TASKS, some with a suffix as in "reward:concise", or a Python function as "module:function". data: a
    JSON file with the lists `dev` and `test`, or for "multitask" several, or the folder of a published domain; a file's
    field `dataset` (or else its name without ".json") picks the prompt and the token limit, in any case; for
    lm_eval:TASK a YAML file or a folder with some, or None for lm-eval's own tasks. limit_dev,
    limit_test: keep the first so many examples, or all where there are fewer. max_tokens: new tokens an ask may take,
    instead of the task's own limit. scoring: "loglikelihood" where the task can compare likelihoods instead of
    generating. options: what only one objective has, by name. Every example of the file is checked, limits or not.
    Raises InputError.
    """
    limits = {"limit_dev": limit_dev, "limit_test": limit_test, "max_tokens": max_tokens}
    for name, value in limits.items():
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; give at least 1")
    if task not in (*_LOADERS, "multitask") and ":" not in task:
        raise InputError(f'unknown task "{task}"; choose {", ".join(TASKS)} or a function as module:function')
    if scoring not in ("generate", "loglikelihood"):
        raise InputError(f"scoring is {scoring!r}; choose generate or loglikelihood")
    kind = task.partition(":")[0]
    if scoring == "loglikelihood" and kind not in ("multiple_choice", "multitask"):
        raise InputError(f'scoring is "loglikelihood", which task "{task}" does not have; use multiple_choice')
    wanted = Wanted(task, {"dev": limit_dev, "test": limit_test}, max_tokens, scoring, dict(options or {}))
    paths = paths_of(data)
    if kind == "multitask":
        return multitask.load(paths, wanted, load_utility)
    if len(paths) > 1:
        raise InputError(f'task "{task}" takes one evaluation file, not {len(paths)}; use multitask for several')
    if kind == "lm_eval":
        return lm_eval_task.load(paths[0] if paths else None, wanted)
    if not paths:
        raise InputError(f'task "{task}" needs an evaluation file; give --data')
    return _LOADERS.get(kind, callables.load)(paths[0], read_data(paths[0]), wanted)
