"""`evaluate` and `evaluate_test` of model_swarm, from one engine that stays between calls."""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelswarms_fast.compat.model_swarm.engine import engine_fields
from modelswarms_fast.compat.model_swarm.folders import write_results
from modelswarms_fast.compat.model_swarm.objectives import (
    PADDINGS,
    Objective,
    data_file,
    load_objective,
    prepared,
    tasks_of,
)
from modelswarms_fast.config import EngineConfig
from modelswarms_fast.engines.protocol import Engine
from modelswarms_fast.engines.start import start_engine
from modelswarms_fast.errors import InputError, quoted
from modelswarms_fast.evaluation.evaluator import Evaluator
from modelswarms_fast.weights.base_model import resolve_base
from modelswarms_fast.weights.experts import Experts, read_experts
from modelswarms_fast.weights.row_name import row_name

BASE = "google/gemma-7b-it"


@dataclass
class _Settings:
    engine: dict[str, Any] = field(default_factory=lambda: engine_fields("vllm", "float16", "nearest", {}))
    padding: str = PADDINGS[0]
    options: dict[str, str] = field(default_factory=dict)
    only: str | None = None


@dataclass
class _Served:
    """An engine, what it can serve, and the evaluators that ask it."""

    base: Path
    experts: Experts
    engine: Engine
    evaluators: dict[Any, tuple[Objective, Evaluator]] = field(default_factory=dict)

    def fits(self, base: Path, experts: Experts) -> bool:
        """Whether it can serve a model of this base: of the same tensors, scaled in the same way."""
        mine = self.experts
        same = (mine.kind, mine.layout, mine.modules) == (experts.kind, experts.layout, experts.modules)
        return same and (base == self.base or experts.kind == "full")


_settings = _Settings()
_served: _Served | None = None


def configure(
    *,
    engine: str = "vllm",
    dtype: str = "float16",
    padding: str = PADDINGS[0],
    engine_set: Mapping[str, str] | None = None,
    options: Mapping[str, str] | None = None,
) -> None:
    """How models are served from now on; as the flags of the command of these names, `options` as --option.

    Raises InputError for what cannot be set.
    """
    if padding not in PADDINGS:
        raise InputError(f"padding is {quoted(padding)}; choose {', '.join(PADDINGS)}.")
    fields = engine_fields(engine, dtype, "nearest", dict(engine_set or {}))
    release()
    _settings.engine, _settings.padding, _settings.options = fields, padding, dict(options or {})


def update_only_one_or_two(value: str | None) -> None:
    """Which task of multitask counts where a call does not say it: "one", "two" or None for both."""
    _settings.only = value


def evaluate(
    model_path: str | os.PathLike[str],
    eval_type: str,
    dataset: str,
    gpu_id: object = None,
    base_model: str = BASE,
    save_dev_flag: bool = False,
    only_one_or_two: str | None = None,
    skip_flag: bool = False,
) -> float | None:
    """The utility of a model on dev: `evaluate` of model_swarm. None with `skip_flag`.

    Args:
        model_path: the folder or hub id of an adapter, or of a whole model. It is read anew at each call.
        eval_type: as of the command, and so `dataset`, of which data/eval has the file.
        gpu_id: not used.
        base_model: folder or hub id of the base of an adapter.
        save_dev_flag: write the answers into the model's folder, as model_swarm does.
        only_one_or_two: "one" or "two" for the utility of that task of multitask.

    Raises:
        InputError: something given cannot be used.
    """
    if skip_flag:
        return None
    return _evaluate(model_path, eval_type, dataset, base_model, only_one_or_two, "dev", save=save_dev_flag)


def evaluate_test(
    model_path: str | os.PathLike[str],
    eval_type: str,
    dataset: str,
    gpu_id: object = None,
    base_model: str = BASE,
    only_one_or_two: str | None = None,
    obj4_save_generation: bool = False,
) -> float:
    """The same on test, where answers are always written, if the model is in a folder: `evaluate_test` of model_swarm.

    `obj4_save_generation` is not supported. Raises InputError as `evaluate`.
    """
    if obj4_save_generation:
        raise InputError("obj4_save_generation is set, which is not supported; leave it out.")
    return _evaluate(model_path, eval_type, dataset, base_model, only_one_or_two, "test", save=True)


def release() -> None:
    """End the engine, if one is running; the next call starts it again."""
    global _served
    if _served is not None:
        _served.engine.close()
        _served = None


atexit.register(release)


def _evaluate(
    model: str | os.PathLike[str], eval_type: str, dataset: str, base: str, only: str | None, split: str, *, save: bool
) -> float:
    only = only or _settings.only
    files = [data_file(name) for name in tasks_of(eval_type, dataset)]
    served, row = _serve(os.fspath(model), base)
    known_as = ((file.resolve(), file.stat().st_mtime_ns, file.stat().st_size) for file in files)
    key = (eval_type, dataset, only, *known_as)
    if key not in served.evaluators:
        objective = load_objective(eval_type, dataset, options=_settings.options, only=only)
        objective = prepared(objective, served.base, _settings.padding)
        evaluator = Evaluator(served.engine, objective.utility)
        evaluator.keep_answers(objective.keep)
        served.evaluators[key] = (objective, evaluator)
    objective, evaluator = served.evaluators[key]
    scores = evaluator.score_model(row, split)
    folder = Path(model)
    if save and folder.is_dir():
        results = objective.results(split, scores, evaluator.answers(split, row_name(row)))
        write_results(folder, results, "_dev" if split == "dev" else "")
    return objective.utility.utility_of(split, scores)


def _serve(model: str, base: str) -> tuple[_Served, Any]:
    """The engine that serves this model, started if there is none that can, and its row [D]."""
    global _served
    whole = Path(model, "config.json").is_file() and not Path(model, "adapter_config.json").is_file()
    folder = resolve_base(model if whole else base)
    experts = read_experts([model], base=folder, minimum=1)
    if _served is None or not _served.fits(folder, experts):
        release()
        config = EngineConfig(**_settings.engine)
        _served = _Served(folder, experts, start_engine(folder, experts, config))
    return _served, experts.rows[0]
