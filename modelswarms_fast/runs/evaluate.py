"""The score of one model, without a search."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any

from modelswarms_fast.weights.base_model import resolve_base
from modelswarms_fast.config import DType, EngineConfig, EngineName
from modelswarms_fast.engines.protocol import start_engine
from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.evaluator import Evaluator
from modelswarms_fast.weights.experts import read_experts
from modelswarms_fast.evaluation.objectives import SPLITS, Files, Scoring, load_utility


def evaluate(
    model: str,
    *,
    base: str,
    task: str,
    data: Files = None,
    split: str = "test",
    limit: int | None = None,
    max_tokens: int | None = None,
    scoring: Scoring = "generate",
    options: Mapping[str, str] | None = None,
    engine: EngineName = EngineConfig.engine,
    engines: int = EngineConfig.engines,
    tensor_parallel: int = EngineConfig.tensor_parallel,
    dtype: DType = EngineConfig.dtype,
    max_model_len: int = EngineConfig.max_model_len,
) -> dict[str, Any]:
    """Score one model on a split.

    `model` is an adapter folder, a full checkpoint, or the same string as `base` for the base model; the rest is as in
    `search`; several engines share the examples.

    Returns:
        model, base, task, dataset, split, examples, score, standard_error (of the mean), prompts_per_second.

    Raises:
        InputError: something given cannot be used; the message names it and the remedy.
    """
    if split not in SPLITS:
        raise InputError(f"split is {split!r}; choose dev or test.")
    config = EngineConfig(
        engine=engine,
        engines=engines,
        tensor_parallel=tensor_parallel,
        dtype=dtype,
        slots=1,
        max_model_len=max_model_len,
        parity_check="off",
    )
    limits: dict[str, Any] = {f"limit_{split}": limit, "max_tokens": max_tokens, "scoring": scoring, "options": options}
    utility = load_utility(task, data, **limits)
    base_folder = resolve_base(base)
    loaded = None if model == base else read_experts([model], minimum=1)
    with closing(start_engine(base_folder, loaded, config)) as served:
        evaluator = Evaluator(served, utility, splits=(split,))
        scores = evaluator.score_base(split) if loaded is None else evaluator.score_model(loaded.rows[0], split, engines)
    return {
        "model": model,
        "base": base,
        "task": task,
        "dataset": utility.dataset,
        "split": split,
        "examples": len(scores),
        "score": utility.utility_of(split, scores),
        "standard_error": utility.error_of(split, scores),
        "prompts_per_second": evaluator.spent.prompts / sum(evaluator.spent.seconds.values()),
    }
