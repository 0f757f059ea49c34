"""The score of one model, without a search."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from modelswarms_fast.config import EngineConfig, TaskConfig, fields_of
from modelswarms_fast.engines.start import check_base_answers, start_engine
from modelswarms_fast.errors import InputError, quoted
from modelswarms_fast.errors.arguments import checked
from modelswarms_fast.evaluation.evaluator import Evaluator
from modelswarms_fast.evaluation.objectives import SPLITS, Files, load_utility
from modelswarms_fast.runs.dry_run import dry_evaluation
from modelswarms_fast.weights.base_model import resolve_base
from modelswarms_fast.weights.experts import read_experts


@checked
def evaluate(
    model: str,
    *,
    base: str,
    task: str,
    data: Files = None,
    split: str = "test",
    dry_run: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Score one model on a split.

    `model` is an adapter folder, a full checkpoint, or the same string as `base` for the base model. `settings` are
    fields of TaskConfig and EngineConfig; the rest is as in `search`. Several engines share the examples. `dry_run`
    reads and checks everything, starts nothing, and returns what `dry_evaluation` does.

    Returns:
        model, base, task, dataset, split, examples, score, standard_error (of the mean), prompts_per_second, and
        data_read and data_warnings, sentences on how the data were understood and what is wrong with them.

    Raises:
        InputError: something given cannot be used; the message names it and the remedy.
    """
    if split not in SPLITS:
        raise InputError(f"split is {quoted(split)}; choose dev or test.")
    one: dict[str, Any] = {"slots": 1, "parity_check": "off"}
    of_task, of_engine = fields_of(TaskConfig, settings)
    config = EngineConfig(**one | of_engine)
    utility = load_utility(task, data, **of_task)
    base_folder = resolve_base(base)
    loaded = None if model == base else read_experts([model], base=base_folder, minimum=1)
    if dry_run:
        return dry_evaluation(base_folder, utility, config, split)
    with closing(start_engine(base_folder, loaded, config)) as served:
        evaluator = Evaluator(served, utility, splits=(split,), engines=config.engines)
        check_base_answers(served, base_folder, evaluator.prompts(split)[0])
        scores = evaluator.score_base(split) if loaded is None else evaluator.score_model(loaded.rows[0], split)
    return {
        "model": model,
        "base": base,
        "task": task,
        "dataset": utility.dataset,
        "split": split,
        "examples": len(scores),
        "score": utility.utility_of(split, scores),
        "standard_error": utility.error_of(split, scores),
        **utility.data_facts(),
        "prompts_per_second": evaluator.spent.prompts / sum(evaluator.spent.seconds.values()),
    }
