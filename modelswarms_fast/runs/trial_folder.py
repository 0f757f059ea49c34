"""The folder of a trial: opened or gone on with, and finished with the winner and a summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.objectives import Files, Utility, named
from modelswarms_fast.records import run_folder
from modelswarms_fast.records.run_folder import Journal
from modelswarms_fast.runs.experiment import Experiment
from modelswarms_fast.runs.loop import Meter
from modelswarms_fast.runs.trial import Trial, TrialSpec
from modelswarms_fast.swarm import Swarm
from modelswarms_fast.weights.export import export, exported_files
from modelswarms_fast.weights.mixing import row_form, truncate

# What a config.json says beside what decides the numbers of a search. Sums in another order have other last digits.
_TOLD = {
    "expert_products", "memory", "objective", "command", "host_memory", "device_memory", "spill", "state_reason",
    "data_read", "data_warnings",
}  # fmt: skip
_CONTENTS = ("asks", "examples")  # named last: a setting that changes them says more
# What the winner's model card says beside the settings.
_ON_THE_CARD = ("base", "task", "dataset", "data", "scoring", "options", "chat", "system", "experts")


def open_trial(
    experiment: Experiment,
    spec: TrialSpec,
    folder: Path,
    inputs: Mapping[str, Any],
    *,
    extra: Mapping[str, Any] | None = None,
    most: int | None = None,
    metered: bool = False,
    told: Callable[[dict[str, Any]], None] = lambda line: None,
) -> Trial:
    """A trial with this folder: a new one, or that of the same search, cut before its end.

    inputs: what config.json and summary.json say of the search beside its settings. extra: what config.json says
    beside that, which decides no number. The rest is as in `Trial`.

    Raises:
        InputError: the folder holds a search with other settings, or cannot be written.
    """
    config = dict(inputs) | {"first": spec.first} | asdict(spec.config) | asdict(experiment.engine_config)
    config = run_folder.to_json_types(config)
    old, path = [], folder / run_folder.HISTORY
    if path.exists():
        known = run_folder.read_json(folder / run_folder.CONFIG) if (folder / run_folder.CONFIG).exists() else config
        names = sorted((config.keys() | known.keys()) - _TOLD)
        for name in sorted(names, key=_CONTENTS.__contains__):
            if config.get(name) != known.get(name):
                raise InputError(f"{folder} holds a search with other settings ({name} differs); choose another folder")
        old = run_folder.read_history(path)
    swarm = Swarm(spec.config, len(experiment.names), spec.first)
    population = experiment.population(swarm)
    try:
        run_folder.begin_run(folder)
        # Written anew as far as it is whole: a line that a crash cut off must not stand before the next one.
        run_folder.write_text(path, "".join(run_folder.to_line(line) for line in old))
        told_too = {"expert_products": experiment.expert_products} | dict(extra or {})
        run_folder.write_json(folder / run_folder.CONFIG, config | told_too)
        journal = Journal(path)
    except BaseException:
        population.close()
        raise
    return Trial(
        spec.name,
        experiment.loop(swarm, population),
        experiment.evaluator,
        journal,
        recorded=old,
        most=most,
        meter=Meter(experiment.evaluator) if metered else None,
        told=told,
    )


def close_trial(trial: Trial) -> None:
    """Let go of its rows and its file."""
    trial.loop.population.close()
    assert isinstance(trial.record, Journal)
    trial.record.close()


def finish_trial(experiment: Experiment, trial: Trial, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Export the best on dev, then write summary.json; returns its content.

    Raises:
        InputError: one of them cannot be written.
    """
    assert isinstance(trial.record, Journal)
    folder = trial.record.folder
    exported = export_winner(experiment, trial, folder, inputs)
    summary = summary_of(experiment, trial, inputs) | exported
    run_folder.write_json(folder / run_folder.SUMMARY, summary)
    return summary


def export_winner(
    experiment: Experiment, trial: Trial, folder: Path, inputs: Mapping[str, Any], particle: int | None = None
) -> dict[str, Any]:
    """Write the personal best of a particle, or the global best, as the folder's model.

    Returns what summary.json says of it: with export_rank that rank, and the error of the cut.
    """
    swarm, population = trial.loop.swarm, trial.loop.population
    if particle is None:
        row, dev, coefficients = population.global_best(), swarm.global_best, population.global_best_mixture()
    else:
        row, dev = population.row(particle, best=True), float(swarm.personal_best[particle])
        coefficients = population.best_mixture(particle)
    mixture = None if coefficients is None else dict(zip(experiment.names, coefficients, strict=True))
    facts = {name: value for name, value in inputs.items() if name in _ON_THE_CARD and value is not None}
    settings = asdict(swarm.config) | asdict(experiment.engine_config)
    provenance = facts | {"utility": inputs.get("task"), "dev": dev, "mixture": mixture, "settings": settings}
    form, cut = row_form(experiment.experts), {}
    if (rank := experiment.engine_config.export_rank) is not None:
        form, row, error = truncate(form, row, rank)
        cut = {"export_rank": rank, "export_error": error}
    where = folder / run_folder.GLOBAL_BEST
    run_folder.will_write(where, *exported_files(form, experiment.base_folder))
    export(where, row, form, base=experiment.base_folder, provenance=provenance | cut)
    return cut


def keep_best(experiment: Experiment, trial: Trial, inputs: Mapping[str, Any], error: Exception) -> None:
    """Export the best so far of a search that an error has cut, and note in the error where it is.

    Nothing is done while an earlier record is told again: what it has found may be there already, and better.
    """
    if not trial.has_a_best or trial.replaying:
        return
    assert isinstance(trial.record, Journal)
    with suppress(Exception):  # the search's own error is the one to say
        export_winner(experiment, trial, trial.record.folder, inputs)
        where = trial.record.folder / run_folder.GLOBAL_BEST
        error.add_note(f"The best so far, {trial.loop.swarm.global_best:.4f} on dev, is in {where}.")


def summary_of(experiment: Experiment, trial: Trial, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What a search has found and what it has cost, for summary.json; of test it says nothing."""
    config, engine = trial.loop.swarm.config, experiment.engine
    summary = dict(inputs) | {
        "name": trial.name,
        "particles": config.particles,
        "seed": config.seed,
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


def check_out(out: Path, *, overwrite: bool, resume: bool = False) -> None:
    """Refuse a run folder that cannot be written, or that holds something else than is said; touch nothing.

    Raises InputError.
    """
    run_folder.check_name(out)
    if not resume:
        run_folder.check_run_folder(out, overwrite)
    elif overwrite:
        raise InputError("overwrite and resume contradict each other; give one of them.")
    elif not (out / run_folder.HISTORY).exists():
        raise InputError(f"{out} holds no {run_folder.HISTORY}, so there is nothing to resume; leave resume out.")
    elif (out / run_folder.SUMMARY).exists():
        raise InputError(f"the run in {out} has ended; there is nothing to resume.")


def keep_sources(out: Path, sources: Iterable[str | Path | None]) -> None:
    """Refuse a run folder in which a model that the run is given would be replaced. Raises InputError."""
    winner = Path(out, run_folder.GLOBAL_BEST).resolve()
    for source in sources:
        if source is not None and Path(source).resolve().is_relative_to(winner):
            raise InputError(f"{source} would be replaced by the winner of this search; choose another run folder.")


def claim_folder(folder: Path, name: str, asked: dict[str, Any]) -> None:
    """Have the folder say in a file of this name what is asked for. Raises InputError if it says something else."""
    run_folder.check_links(folder)
    if (folder / name).exists():
        if run_folder.read_json(folder / name) != run_folder.to_json_types(asked):
            raise InputError(f"{folder} holds searches of other arguments ({name}); choose another folder")
        return
    run_folder.check_name(folder)
    run_folder.check_run_folder(folder)
    run_folder.begin_run(folder)
    run_folder.write_json(folder / name, asked)


def keep_data(folder: Path, utility: Utility) -> None:
    """Write the examples that were divided here, or are from the Hub, as files that can be given as data again.

    So are those that came from this folder, of which an earlier run was just removed. Raises InputError.
    """
    if any(one.kept or Path(one.path).absolute().parent == folder.absolute() for one in utility.data):
        names = (
            [run_folder.DATA] if len(utility.data) == 1 else [f"data_{n + 1}.json" for n in range(len(utility.data))]
        )
        for name, one in zip(names, utility.data, strict=True):
            run_folder.write_json(folder / name, one.content)


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
