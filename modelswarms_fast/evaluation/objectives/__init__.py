"""Utilities: asks in, answers out, scores. No engine here, and torch only inside functions that score with a model.

Each objective is one file with a function `load(data, wanted)`; `sampling` has an example answered several times. A
score depends on its own example and answers alone, never on what shared a batch with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from modelswarms_fast.config import TaskConfig
from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.chat import read_chat
from modelswarms_fast.evaluation.dataset import SPLITS, Data, read_data, warnings_of
from modelswarms_fast.evaluation.dataset_files import split_of
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
from modelswarms_fast.evaluation.objectives.data import Files, Wanted, named, paths_of
from modelswarms_fast.evaluation.objectives.sampling import SAMPLING, sampled
from modelswarms_fast.evaluation.objectives.utility import Answer, Ask, Utility

__all__ = ["READING", "SPLITS", "TASKS", "Answer", "Ask", "Files", "Utility", "load_utility", "named"]

_LOADERS: dict[str, Callable[[Data, Wanted], Utility]] = {
    "multiple_choice": multiple_choice.load,
    "exact_match": exact_match.load,
    "abstain": abstain.load,
    "perplexity": perplexity.load,
    "reward": reward.load,
    "judge": judge.load,
    "toxicity": toxicity.load,
}
READING = ("map", "dev_split", "test_split", "split_seed")
"""Settings of how a file is read, which hold for each of several tasks."""
TASKS = (*_LOADERS, "multitask", "lm_eval:TASK")


def is_function(task: str) -> bool:
    """Whether a task is a Python function, which is imported."""
    kind, colon, _ = task.partition(":")
    return bool(colon) and kind not in (*_LOADERS, "multitask", "lm_eval")


def load_utility(task: str, data: Files = None, *, dataset: str | None = None, **settings: Any) -> Utility:
    """Read an evaluation file and make the utility of `task` from it.

    task: one of TASKS, some with a suffix as in "reward:concise", or a Python function as "module:function". data: a
    file (JSON, JSONL, CSV, TSV, Parquet), a folder, hf:NAME[:CONFIG], or a file for dev and one for test, as
    `dataset.read_data` reads them; for "multitask" several, or the folder of a published domain; a file's field
    `dataset` (or else its name without the suffix) picks the prompt and the token limit, in any case; for lm_eval:TASK
    a YAML file or a folder with some, or None for lm-eval's own tasks. dataset: the name that picks them instead, of
    a task with one file. settings: fields of TaskConfig.

    Every example of the file is checked, limits or not. Raises InputError, and TypeError for an unknown setting.
    """
    config = TaskConfig(**settings)
    if (chat := read_chat(config)) is not None:
        plain = load_utility(task, data, dataset=dataset, **settings | {"chat": None, "system": None})
        return replace(plain, chat=chat)
    if task not in (*_LOADERS, "multitask") and ":" not in task:
        raise InputError(f'unknown task "{task}"; choose {", ".join(TASKS)} or a function as module:function')
    kind = task.partition(":")[0]
    if config.scoring == "loglikelihood" and kind not in ("multiple_choice", "multitask"):
        raise InputError(f'scoring is "loglikelihood", which task "{task}" does not have; use multiple_choice')
    limits = {"dev": config.limit_dev, "test": config.limit_test}
    wanted = Wanted(task, limits, config.max_tokens, config.scoring, dict(config.options))
    paths = paths_of(data)
    if kind == "multitask":
        passed = {name: getattr(config, name) for name in (*READING, *SAMPLING, "sample_seed")}
        return multitask.load(paths, wanted, partial(load_utility, **passed))
    parts = [split_of(path) for path in paths]
    if len(paths) > 1 and (kind == "lm_eval" or None in parts or len(set(parts)) < len(parts)):
        raise InputError(
            f'task "{task}" takes one evaluation file, not {len(paths)}; use multitask for several, or name two files '
            "after dev and test"
        )
    if kind == "lm_eval":
        if given := [name for name in READING if getattr(config, name) != getattr(TaskConfig(), name)]:
            raise InputError(f"{given[0]} is given, but {task} reads its own data; leave it out")
        return sampled(lm_eval_task.load(paths[0] if paths else None, wanted), config)
    if not paths:
        raise InputError(f'task "{task}" needs an evaluation file; give --data')
    read = read_data(paths, config)
    if dataset is not None:
        read.content["dataset"] = dataset
    utility = _LOADERS.get(kind, callables.load)(read, wanted)
    read.warnings += [f"{read.path}: {one}" for one in warnings_of(utility.examples)]
    return sampled(replace(utility, data=(read,)), config)
