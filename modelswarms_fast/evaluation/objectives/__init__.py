"""Utilities: asks in, answers out, scores. No engine here, and torch only inside functions that score with a model.

Each objective is one file with a function `load(path, content, wanted)`. Generation is greedy, and a score depends on
its own example and answers alone, never on what shared a batch with it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from modelswarms_fast.config import TaskConfig
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

__all__ = ["SPLITS", "TASKS", "Answer", "Ask", "Files", "Utility", "load_utility", "named"]

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


def load_utility(task: str, data: Files = None, **settings: Any) -> Utility:
    """Read an evaluation file and make the utility of `task` from it.

    task: one of TASKS, some with a suffix as in "reward:concise", or a Python function as "module:function". data: a
    JSON file with the lists `dev` and `test`, or for "multitask" several, or the folder of a published domain; a file's
    field `dataset` (or else its name without ".json") picks the prompt and the token limit, in any case; for
    lm_eval:TASK a YAML file or a folder with some, or None for lm-eval's own tasks. settings: fields of TaskConfig.

    Every example of the file is checked, limits or not. Raises InputError, and TypeError for an unknown setting.
    """
    config = TaskConfig(**settings)
    if task not in (*_LOADERS, "multitask") and ":" not in task:
        raise InputError(f'unknown task "{task}"; choose {", ".join(TASKS)} or a function as module:function')
    kind = task.partition(":")[0]
    if config.scoring == "loglikelihood" and kind not in ("multiple_choice", "multitask"):
        raise InputError(f'scoring is "loglikelihood", which task "{task}" does not have; use multiple_choice')
    limits = {"dev": config.limit_dev, "test": config.limit_test}
    wanted = Wanted(task, limits, config.max_tokens, config.scoring, dict(config.options))
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
