"""One search, from experts to a run folder with the winner."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from modelswarms_fast.config import Budget, Choose, EngineConfig, SwarmConfig, TaskConfig, fields_of, parse_budget
from modelswarms_fast.errors import InputError
from modelswarms_fast.errors.arguments import checked
from modelswarms_fast.evaluation.holdout import CONFIRM
from modelswarms_fast.evaluation.objectives import Files
from modelswarms_fast.records import run_folder
from modelswarms_fast.records.metrics_log import MetricsKind, open_log
from modelswarms_fast.records.progress import Progress, phase
from modelswarms_fast.records.report import write_report
from modelswarms_fast.runs.choose import check_way, way_to_choose
from modelswarms_fast.runs.choose import choose as choose_winner
from modelswarms_fast.runs.dry_run import dry_search
from modelswarms_fast.runs.experiment import Experiment, check_together
from modelswarms_fast.runs.final_test import compare_on_test, write_test_scores
from modelswarms_fast.runs.known import keep_known
from modelswarms_fast.runs.scheduler import run_alone
from modelswarms_fast.runs.started import run_in
from modelswarms_fast.runs.trial import INTERRUPTED, Trial, TrialSpec
from modelswarms_fast.runs.trial_folder import (
    close_trial,
    config_of,
    export_winner,
    finish_trial,
    inputs_of,
    keep_best,
    keep_sources,
    open_trial,
)
from modelswarms_fast.swarm import Swarm
from modelswarms_fast.weights.experts import read_experts, read_model


@checked
def search(
    experts: str | Path | Sequence[str | Path],
    *,
    base: str,
    task: str,
    data: Files = None,
    out: str | Path,
    overwrite: bool = False,
    resume: bool = False,
    force: bool = False,
    reuse: Sequence[str | Path] = (),
    progress: bool = False,
    trace: str | Path | None = None,
    budget: int | str | None = None,
    confirm: int = 0,
    choose: Choose | None = None,
    final_test: bool = False,
    dry_run: bool = False,
    log: MetricsKind | None = None,
    command: Sequence[str] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Search for a better model among the affine mixtures of the experts, and export the best one found.

    Args:
        experts: a folder of expert folders, or a list of folders and hub ids (owner/name, owner/name@revision,
            owner/name@revision:folder).
        base: the base model: a local folder, a hub id, "smollm2-135m-instruct" or "gemma-3-270m".
        task: an objective by its name, or a Python function as "module:function".
        data: a file of examples (JSON, JSONL, CSV, TSV, Parquet), a folder of them, hf:NAME[:CONFIG] or one file for
            dev and one for test; several for multitask. Only `dev` steers the search. A file with one split is
            divided, and the examples are in data.json.
        out: the run folder to write: config.json, history.jsonl, summary.json, global_best/, answers.json, report.html.
        overwrite: replace an earlier run in `out`.
        resume: go on with the search in `out` that was cut, or begin it if nothing of it is there. iterations,
            patience and budget may be higher than before, also if it had ended; all else is as it was.
        force: with resume: go on although experts, data, base or versions are not what they were.
        reuse: other run folders of the same experts, base, data and settings. What they have evaluated is not evaluated
            again.
        progress: show on standard error what is being done.
        trace: a file for a trace of the run, to open in chrome://tracing or Perfetto; written at the end, and when
            the run fails.
        budget: how much the search may take: evaluations of a particle (200), prompts ("20000p") or minutes ("30m"),
            those of earlier calls among them. It ends after the iteration in which it is reached. No iteration begins
            that may take more evaluations. Minutes are those of iterations, without start and tests.
        confirm: keep back so many of the dev examples, which the search does not see. The best on dev of the last
            candidates are scored on them, and the best there is the winner.
        choose: how the winner is chosen: the best on dev (best), by the examples kept back (confirm), by the mean of a
            Gaussian process over all positions (posterior), or by its gain on the best expert, less what of it is
            chance (shrink). By default confirm where it keeps examples back, else best.
        final_test: score every expert, and every particle at its end and at its best, on test too, for the analyses
            of the report; they are in test_scores.json. Nothing is chosen by it.
        dry_run: read and check everything, start and write nothing, and return what would be sent and what the search
            would take: see `dry_search`.
        log: "tensorboard" or "wandb": write the numbers of each iteration there, too.
        command: the words of a command that would repeat the run, for the report.
        settings: fields of TaskConfig, SwarmConfig and EngineConfig; `particles` defaults to the number of experts.

    Returns:
        The content of summary.json. `end.test` is the score of global_best/, read back from the disk.

    Raises:
        InputError: something given cannot be used; the message names it and the remedy.
        TypeError: a setting does not exist.
    """
    started, out, way = time.perf_counter(), Path(out), way_to_choose(choose, confirm)
    of_task, others = fields_of(TaskConfig, settings)
    of_engine, of_swarm = fields_of(EngineConfig, others)
    # What can be refused is refused before anything is read, and that before an engine starts or a file is touched.
    check_together(SwarmConfig(**({"particles": 2} | of_swarm)), EngineConfig(**of_engine))
    limit = None if budget is None else parse_budget(budget)
    shown: dict[str, Any] = {"progress": progress, "trace": trace}
    given: dict[str, Any] = {"base": base, "task": task, "data": data, "confirm": confirm}
    with ExitStack() as stack:
        if dry_run:
            run_folder.check_run_folder(out, overwrite)
        else:
            run = stack.enter_context(run_in(out, "search", overwrite=overwrite, resume=resume))
        experiment = Experiment(
            experts, out=out, swarm=of_swarm, searches=None, **given, **shown, **of_task, **of_engine
        )
        spec = TrialSpec("search", SwarmConfig(**({"particles": len(experiment.names)} | of_swarm)))
        Swarm(spec.config, len(experiment.names))  # refuses fewer particles than experts
        check_way(way, spec.config, experiment.utility)
        iterations = most_iterations(spec.config, limit)
        keep_sources(out, (*experiment.experts.sources, experiment.base_folder))
        if dry_run:
            return dry_search(experiment, replace(spec.config, iterations=iterations))
        inputs = inputs_of(experiment, task, data)
        own = asdict(spec.config) | {"final_test": final_test, "log": log, "trace": trace, "command": command}
        own |= {"choose": way, "budget": budget}
        run.check(config_of(experiment, inputs, first=spec.first, **own), force=force, reuse=reuse)
        run.refuse_ended()
        spec = replace(spec, first_patience=run.first_patience)
        run.serve(experiment, stack)
        if spec.config.policy != "swarm" and reuse:
            experiment.known = keep_known(out, reuse, len(experiment.names))
        assert experiment.placement is not None
        memory = {"memory": experiment.placement.as_dict(), "state_reason": experiment.why_state}
        products = {"expert_products": experiment.expert_products}
        run.add(memory | products | {"objective": experiment.utility.report()})
        evaluator = experiment.evaluator
        metrics = None
        if log is not None:
            run_folder.will_write(out, f"{log}/")
            metrics = open_log(log, out, run_folder.to_json_types(inputs | asdict(spec.config)))
            stack.callback(metrics.close)
        with Progress(progress, iterations, spec.config.particles) as bar:

            def told(line: dict[str, Any]) -> None:
                bar.iteration(line["iteration"], line["global_best"]["utility"], evaluator.spent.prompts)
                if metrics is not None:
                    metrics.append(line)

            trial = open_trial(experiment, spec, out, budget=limit, metered=True, told=told)
            stack.callback(close_trial, trial)
            evaluator.trace.write()  # a place that cannot be written is better known now
            setup_seconds = time.perf_counter() - started
            try:
                run_alone(trial, evaluator, bar)
            except Exception as error:
                keep_best(experiment, trial, inputs, error)
                raise
            finally:
                evaluator.trace.write()
        summary = finish_trial(experiment, trial, inputs | memory | run.forced, ended=False)
        # From here on the winner is on the disk, and each step adds to what is there.
        summary["seconds"] = {"setup": setup_seconds} | summary["seconds"]
        _choose(experiment, trial, inputs, summary, out, way)
        testing = time.perf_counter()
        with phase("scoring the winner on test", show=progress):
            _test(experiment, trial, summary, out, confirm=bool(confirm))
        if final_test:
            every = experiment.experts
            if experiment.engine_config.state != "mixture":
                every = read_experts(list(every.sources), dtype=experiment.row_dtype, base=experiment.base_folder)
            write_test_scores(evaluator, every, trial.loop.swarm, trial.loop.population, out)
        now = time.perf_counter()
        summary["seconds"] |= {"test": now - testing, "total": now - started}
        run_folder.write_json(out / run_folder.SUMMARY, summary)
        with phase("writing the report", show=progress):
            write_report(out)
        experiment.check_base()
        summary["ended"] = trial.stopped != INTERRUPTED
        run_folder.write_json(out / run_folder.SUMMARY, summary)
        return summary


def most_iterations(config: SwarmConfig, budget: Budget | None) -> int:
    """The most iterations that settings and budget allow. Raises InputError for too few evaluations to begin with."""
    if budget is None or budget.unit != "evaluations":
        return config.iterations
    if budget.amount < config.particles:
        raise InputError(
            f"budget is {budget.amount:.0f} evaluations, less than the {config.particles} particles take; give more."
        )
    if config.drop_k or config.drop_n:  # an iteration takes fewer
        return config.iterations
    return min(config.iterations, int(budget.amount) // config.particles - 1)


def _choose(
    experiment: Experiment, trial: Trial, inputs: Mapping[str, Any], summary: dict[str, Any], out: Path, way: Choose
) -> None:
    """Choose the winner, and export it if it is not the best on dev, which has been exported."""
    winner, said = choose_winner(way, experiment, trial, run_folder.read_history(out / run_folder.HISTORY))
    if way != "best":
        summary |= export_winner(experiment, trial, out, inputs, winner, way)
    summary |= said
    run_folder.write_json(out / run_folder.SUMMARY, summary)


def _test(experiment: Experiment, trial: Trial, summary: dict[str, Any], out: Path, *, confirm: bool) -> None:
    """Score the best expert and the winner, read back from the disk, on test, and note where they differ."""
    start, utility = summary["start"], experiment.utility
    number = trial.loop.swarm.first[start["particle"]]
    if experiment.engine_config.state == "mixture":
        expert = experiment.expert_row(number)
    else:  # its row in memory now belongs to a particle
        expert = read_model(experiment.experts.sources[number], experiment.experts)
    winner = read_model(out / run_folder.GLOBAL_BEST, experiment.experts)
    if confirm:
        scores = experiment.evaluator.score_model(expert, CONFIRM)
        start[CONFIRM] = utility.utility_of(CONFIRM, scores)
    scores_of, answers = compare_on_test(experiment.evaluator, expert, winner)
    summary["test_standard_error"] = {}
    for which, scores in scores_of.items():
        summary[which]["test"] = utility.utility_of("test", scores)
        summary["test_standard_error"][which] = utility.error_of("test", scores)
    run_folder.write_json(out / run_folder.SUMMARY, summary)
    names = {"best_expert": start["expert"], "winner": f"particle {summary['end']['particle']}"}
    run_folder.write_json(out / run_folder.ANSWERS, {"split": "test"} | names | answers)
