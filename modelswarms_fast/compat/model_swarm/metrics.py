"""The numbers that model_swarm logs at the end of a search: of the best particle, of the ensemble, of the history.

The results of a particle are lists by name, as its files hold them: "golds" and "preds", or "scores".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from modelswarms_fast.compat.ensembles import mean_of_best, vote_of_best
from modelswarms_fast.errors import InputError, quoted, short
from modelswarms_fast.errors.files import read_text

CHOICES = ("multiple_choice", "AbstainQA", "multitask")
SCORES = ("exact_match", "external_api", "rm_default", "rm_verbose", "rm_concise", "rm_reverse", "human")
EVAL_TYPES = (*CHOICES, *SCORES)
SCRATCHPAD = "utility_scratchpad.json"
TOP_K = 10

Results = Mapping[str, Sequence[Any]]


def files_of(eval_type: str) -> tuple[str, ...]:
    """The results of a particle, by the names of their files without ".json"."""
    return ("golds", "preds") if eval_type in CHOICES else ("scores",)


def overall_metrics(name: str, eval_type: str, top_k: int = TOP_K) -> dict[str, Any]:
    """The metrics of the run in search/NAME, printed and returned: `overall_metrics` of model_swarm.

    Those of the start are there if each particle's folder `now` has results. Fewer than `top_k` particles vote all.

    Raises:
        InputError: the run lacks a file, or the evaluation type is unknown.
    """
    if eval_type not in EVAL_TYPES:
        raise InputError(f"eval_type is {quoted(eval_type)}; choose {', '.join(EVAL_TYPES)}.")
    run = Path("search", name)
    scratchpad = _read(run / SCRATCHPAD)
    folders: list[Path] = []
    while (folder := run / f"particle_{len(folders)}").is_dir():
        folders.append(folder)
    if not folders or not isinstance(scratchpad, dict):
        raise InputError(f"{run} has no particle_0 or no utilities; give the name of a folder in search/.")
    wanted = files_of(eval_type)
    tested = all((folder / "now" / f"{one}.json").is_file() for folder in folders for one in wanted)
    ending, starting = (
        [{one: _read(folder / place / f"{one}.json") for one in wanted} for folder in folders]
        for place in ("personal_best", "now" if tested else "personal_best")
    )
    try:
        found = metrics_of(eval_type, scratchpad, ending, starting if tested else None, top_k)
    except (LookupError, TypeError, ValueError, ZeroDivisionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{run} lacks utilities or results of a particle; give the name of a whole run.") from error
    print_metrics(found)
    return found


def metrics_of(
    eval_type: str,
    scratchpad: Mapping[str, Any],
    ending: Sequence[Results],
    starting: Sequence[Results] | None,
    top_k: int = TOP_K,
) -> dict[str, Any]:
    """The same from results: those of the personal bests and of the start, None if that was not tested."""
    particles = range(len(ending))
    found: dict[str, Any] = {}
    if starting is not None:
        utilities = [scratchpad[f"particle_{i}_history"][0] for i in particles]
        found |= _of_time("starting", eval_type, utilities, starting, _golds(eval_type, starting), top_k)
    golds = _golds(eval_type, ending if starting is None else starting)
    utilities = [scratchpad[f"particle_{i}_best"] for i in particles]
    found |= _of_time("ending", eval_type, utilities, ending, golds, top_k)
    rises = [number for number, (a, b) in enumerate(pairwise(scratchpad["g_history"]), 1) if a < b]
    return found | {
        "g_history_improve_count": len(rises),
        "g_history_last_change_index": rises[-1] if rises else None,
    }


def _golds(eval_type: str, results: Sequence[Results]) -> Sequence[Any]:
    """What all answers are compared with. Of AbstainQA that is of the particle whose files are read last."""
    return () if eval_type in SCORES else results[-1]["golds"]


def _of_time(
    time: str,
    eval_type: str,
    utilities: Sequence[float],
    results: Sequence[Results],
    golds: Sequence[Any],
    top_k: int,
) -> dict[str, Any]:
    best = utilities.index(max(utilities))
    if eval_type in SCORES:
        scores = [one["scores"] for one in results]
        single = _mean(scores[best])
        ensemble = mean_of_best if eval_type == "external_api" else _mean_of_votes
        together = ensemble(scores, utilities, top_k)
    else:
        preds = [one["preds"] for one in results]
        single = accuracy(golds, preds[best])
        together = accuracy(golds, vote_of_best(preds, utilities, top_k))
    return {
        f"{time}_best_validation_utility": max(utilities),
        f"{time}_best_particle_on_validation": best,
        f"{time}_best_single_test_accuracy": single,
        f"{time}_top-k_ensemble_test_accuracy": together,
    }


def dev_ensemble(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What is logged of metrics that were computed from results on dev."""
    return {
        f"{time}_top-k_ensemble_dev_accuracy": metrics[f"{time}_top-k_ensemble_test_accuracy"]
        for time in ("starting", "ending")
        if f"{time}_top-k_ensemble_test_accuracy" in metrics
    }


def print_metrics(found: Mapping[str, Any]) -> None:
    """A line for each number, in model_swarm's words."""
    words = {"g_history_improve_count": "# g changes", "g_history_last_change_index": "g last change index"}
    for name, value in found.items():
        print(f"{words.get(name, name.replace('_', ' '))}: ", value)


def accuracy(golds: Sequence[Any], preds: Sequence[Any]) -> float:
    """The share of answers that are the right ones."""
    if len(golds) != len(preds):
        raise InputError(f"{len(preds)} answers are compared with {len(golds)} right ones; restore the run's files.")
    right: int = sum(gold == pred for gold, pred in zip(golds, preds, strict=True))
    return right / len(golds)


def _mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)


def _mean_of_votes(scores: Sequence[Sequence[float]], utilities: Sequence[float], top_k: int) -> float:
    return _mean(vote_of_best(scores, utilities, top_k))


def _read(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; give the name of a whole run in search/.") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({short(error)}); restore a good copy.") from error
