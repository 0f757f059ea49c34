"""The folder of a trial: opened or gone on with, and finished with the winner and a summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from modelswarms_fast.config import Budget, Choose
from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.objectives import Files, named
from modelswarms_fast.records import run_folder
from modelswarms_fast.records.run_folder import Journal
from modelswarms_fast.runs.experiment import Experiment
from modelswarms_fast.runs.loop import Meter
from modelswarms_fast.runs.started import environment, going_on, read_config
from modelswarms_fast.runs.trial import Trial, TrialSpec
from modelswarms_fast.runs.trust import policy_of
from modelswarms_fast.swarm import Swarm
from modelswarms_fast.weights.export import check_room, export, exported_files
from modelswarms_fast.weights.mixing import row_form, truncate

# What the winner's model card says beside the settings.
_ON_THE_CARD = ("base", "task", "dataset", "data", "scoring", "options", "chat", "system", "experts")


def open_trial(
    experiment: Experiment,
    spec: TrialSpec,
    folder: Path,
    *,
    most: int | None = None,
    budget: Budget | None = None,
    metered: bool = False,
    told: Callable[[dict[str, Any]], None] = lambda line: None,
) -> Trial:
    """A trial with this folder, which has its config.json: a new one, or one that was cut before its end.

    The rest is as in `Trial`.

    Raises:
        InputError: the folder cannot be read or written.
    """
    swarm = Swarm(spec.config, len(experiment.names), spec.first, spec.first_patience)
    population = experiment.population(swarm)
    try:
        check_room(folder, row_form(experiment.experts), experiment.base_folder)
        loop = experiment.loop(swarm, population)
        journal, old = open_history(folder)
    except BaseException:
        population.close()
        raise
    return Trial(
        spec.name,
        loop,
        experiment.evaluator,
        journal,
        recorded=old,
        most=most,
        budget=budget,
        meter=Meter(experiment.evaluator, policy=spec.config.policy != "swarm") if metered else None,
        told=told,
    )


def open_history(folder: Path) -> tuple[Journal, list[dict[str, Any]]]:
    """The history of a folder, and the lines that it has. Raises InputError."""
    path = folder / run_folder.HISTORY
    old = run_folder.read_whole_history(path)  # what is damaged is told anew, by the scores that are known
    # Written anew as far as it is whole: a line that a crash cut off must not stand before the next one.
    run_folder.write_text(path, "".join(run_folder.to_line(line) for line in old))
    return Journal(path), old


def begin_trial(experiment: Experiment, spec: TrialSpec, folder: Path, inputs: Mapping[str, Any]) -> None:
    """Write the config.json of a trial among others, after a look at the one that is there. Raises InputError."""
    run_folder.begin_run(folder)
    run_folder.remove_leftovers(folder)
    config = run_folder.to_json_types(
        config_of(experiment, inputs, run="search", first=spec.first, **asdict(spec.config))
    )
    if spec.first_patience not in (None, spec.config.patience):
        config["raised"] = {"iterations": spec.config.iterations, "patience": spec.first_patience}
    path, summary = folder / run_folder.CONFIG, folder / run_folder.SUMMARY
    if path.exists():
        config |= going_on(folder, read_config(folder), config, force=True)  # what has changed is known above
        if summary.exists():  # until it is replaced
            run_folder.write_json(summary, run_folder.read_json(summary) | {"ended": False})
    run_folder.write_json(path, config | {"expert_products": experiment.expert_products})


def close_trial(trial: Trial) -> None:
    """Let go of its rows and its file."""
    trial.loop.population.close()
    assert isinstance(trial.record, Journal)
    trial.record.close()


def finish_trial(
    experiment: Experiment, trial: Trial, inputs: Mapping[str, Any], *, ended: bool = True
) -> dict[str, Any]:
    """Export the best on dev, then write summary.json; returns its content. `ended`: that is all.

    Raises:
        InputError: one of them cannot be written.
    """
    assert isinstance(trial.record, Journal)
    folder = trial.record.folder
    exported = export_winner(experiment, trial, folder, inputs, best_winner(trial))
    summary = summary_of(experiment, trial, inputs) | exported | {"ended": ended}
    run_folder.write_json(folder / run_folder.SUMMARY, summary)
    return summary


@dataclass(frozen=True)
class Winner:
    """A position of a search that is exported as its model."""

    iteration: int
    particle: int
    dev: float
    mixture: list[float] | None
    """[n] coefficients of the experts; None if it is no mixture."""
    row: Callable[[], torch.Tensor]
    """[D] its weights, valid until the next row is asked for."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Its utility on further splits."""


def best_winner(trial: Trial) -> Winner:
    """The best on dev."""
    swarm, population = trial.loop.swarm, trial.loop.population
    return Winner(
        swarm.global_best_iteration,
        swarm.global_best_particle,
        swarm.global_best,
        population.global_best_mixture(),
        population.global_best,
    )


def export_winner(
    experiment: Experiment,
    trial: Trial,
    folder: Path,
    inputs: Mapping[str, Any],
    winner: Winner,
    way: Choose = "best",
) -> dict[str, Any]:
    """Write the winner as the folder's model. `way`: how it was chosen.

    Returns what summary.json says of it: which position it is, what it is made of, and with export_rank that rank and
    the error of the cut.
    """
    mixture = None if winner.mixture is None else dict(zip(experiment.names, winner.mixture, strict=True))
    facts = {name: value for name, value in inputs.items() if name in _ON_THE_CARD and value is not None}
    settings = asdict(trial.loop.swarm.config) | asdict(experiment.engine_config)
    provenance = facts | {"utility": inputs.get("task"), "dev": winner.dev, "chosen_by": way}
    provenance |= {"mixture": mixture, "settings": settings}
    form, row, cut = row_form(experiment.experts), winner.row(), {}
    if (rank := experiment.engine_config.export_rank) is not None:
        form, row, error = truncate(form, row, rank)
        cut = {"export_rank": rank, "export_error": error}
    where = folder / run_folder.GLOBAL_BEST
    run_folder.will_write(where, *exported_files(form, experiment.base_folder))
    export(where, row, form, base=experiment.base_folder, provenance=provenance | cut)
    end = {"particle": winner.particle, "iteration": winner.iteration, "dev": winner.dev, "chosen_by": way}
    return {"end": end | dict(winner.scores), "mixture": mixture} | cut


def keep_best(experiment: Experiment, trial: Trial, inputs: Mapping[str, Any], error: Exception) -> None:
    """Export the best so far of a search that an error has cut, and note in the error where it is.

    Nothing is done while an earlier record is told again: what it has found may be there already, and better.
    """
    if not trial.has_a_best or trial.replaying:
        return
    assert isinstance(trial.record, Journal)
    with suppress(Exception):  # the search's own error is the one to say
        export_winner(experiment, trial, trial.record.folder, inputs, best_winner(trial))
        where = trial.record.folder / run_folder.GLOBAL_BEST
        error.add_note(f"The best so far, {trial.loop.swarm.global_best:.4f} on dev, is in {where}.")


def summary_of(experiment: Experiment, trial: Trial, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What a search has found and what it has cost, for summary.json; of test it says nothing."""
    config, engine = trial.loop.swarm.config, experiment.engine
    summary = dict(inputs) | {
        "name": trial.name,
        "particles": config.particles,
        "seed": config.seed,
        "policy": config.policy,
        "space": config.space,
        "state": experiment.engine_config.state,
        "combine": experiment.engine_config.combine,
        "serve": engine.serve,
        "auto_timings": engine.auto_timings,
        "engine": experiment.engine_config.engine,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "iterations": trial.iterations,
        "stopped": trial.stopped,
        **trial.start_and_end(experiment.names),
        "objective": experiment.utility.report(),
        "evaluations": trial.evaluations,
        "without_score": trial.without_score,
        "wall_seconds": time.perf_counter() - trial.began,
    }
    return summary if trial.meter is None else summary | trial.meter.total()


def keep_sources(out: Path, sources: Iterable[str | Path | None]) -> None:
    """Refuse a run folder in which a model that the run is given would be replaced. Raises InputError."""
    winner = Path(out, run_folder.GLOBAL_BEST).resolve()
    for source in sources:
        if source is not None and Path(source).resolve().is_relative_to(winner):
            raise InputError(f"{source} would be replaced by the winner of this search; choose another run folder.")


def inputs_of(experiment: Experiment, task: str, data: Files) -> dict[str, Any]:
    """What all searches of an experiment share, and what their numbers depend on beside the settings."""
    return {
        "base": experiment.base,
        "task": task,
        "dataset": experiment.utility.dataset,
        "data": named(data),
        **experiment.utility.data_facts(),
        "experts": list(experiment.names),
        "sources": list(experiment.experts.sources),
        "weights": experiment.expert_digests,
        **{f"{split}_examples": len(examples) for split, examples in experiment.utility.examples.items()},
        **experiment.utility.digests(),
        **asdict(experiment.task_config),
        "confirm": experiment.confirm,
    }


def config_of(experiment: Experiment, inputs: Mapping[str, Any], **own: Any) -> dict[str, Any]:
    """What config.json says of a run on an experiment: its inputs, its settings, and what it depends on beside.

    `own`: what the command has of its own, among it the settings of the swarm.
    """
    return {
        **inputs,
        **own,
        **asdict(experiment.engine_config),
        "state_reason": experiment.why_state,
        "base_files": experiment.base_digest,
        **environment(experiment.base_folder, experiment.engine_config, policy_of(own) or "swarm"),
    }
