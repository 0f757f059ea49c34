"""The search, from experts to a run folder with the winner."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from modelswarms_fast.config import EngineConfig, SwarmConfig
from modelswarms_fast.runs.confirm import CONFIRM
from modelswarms_fast.runs.confirm import confirm as choose
from modelswarms_fast.errors import InputError
from modelswarms_fast.weights.experts import export, read_experts, read_model
from modelswarms_fast.runs.final_test import write_test_scores
from modelswarms_fast.runs.loop import run_iterations
from modelswarms_fast.records.run_folder import GLOBAL_BEST, check_name, check_run_folder, open_run, write_json
from modelswarms_fast.records.progress import Progress
from modelswarms_fast.records.report import write_report
from modelswarms_fast.runs.experiment import Experiment, check_together
from modelswarms_fast.swarm import Swarm
from modelswarms_fast.evaluation.objectives import Files, Scoring, named


def search(
    experts: str | Path | Sequence[str | Path],
    *,
    base: str,
    task: str,
    data: Files = None,
    out: str | Path,
    limit_dev: int | None = None,
    limit_test: int | None = None,
    max_tokens: int | None = None,
    scoring: Scoring = "generate",
    options: Mapping[str, str] | None = None,
    overwrite: bool = False,
    progress: bool = False,
    trace: str | Path | None = None,
    confirm: int = 0,
    final_test: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Search for a better model among the affine mixtures of the experts, and export the best one found.

    Args:
        experts: a folder of expert folders, or a list of folders and hub ids.
        base: the base model: a local folder, a hub id, or "smollm2-135m-instruct".
        task: an objective by its name (docs/objectives.md), or a Python function as "module:function".
        data: JSON file with the lists `dev` and `test`, several for multitask, or what the objective takes instead.
            Only `dev` steers the search.
        out: the run folder to write: config.json, history.jsonl, summary.json, global_best/, report.html.
        limit_dev, limit_test: use only the first so many examples of a split.
        max_tokens: new tokens an example may take, instead of the task's own limit.
        scoring: "loglikelihood" compares likelihoods where the task can, instead of generating.
        options: what only one objective has, by name.
        overwrite: replace an earlier run in `out`.
        progress: show a progress bar on standard error.
        trace: a file for a trace of the run, to open in chrome://tracing or Perfetto; written at the end, and when
            the run fails.
        confirm: keep back so many of the dev examples, which the search does not see; the best on dev of the last
            candidates are scored on them, and the best there is the winner.
        final_test: score every expert, and every particle at its end and at its best, on test too, for the analyses
            of the report; they are in test_scores.json. Nothing is chosen by it.
        settings: fields of SwarmConfig and EngineConfig; `particles` defaults to the number of experts.

    Returns:
        The content of summary.json. `end.test` is the score of global_best/, read back from the disk.

    Raises:
        InputError: something given cannot be used; the message names it and the remedy.
        TypeError: a setting does not exist.
    """
    started = time.perf_counter()
    engine_names = {field.name for field in fields(EngineConfig)}
    engine_settings = {name: value for name, value in settings.items() if name in engine_names}
    swarm_settings = {name: value for name, value in settings.items() if name not in engine_names}
    # A bad setting is refused before anything is read.
    check_together(SwarmConfig(**({"particles": 2} | swarm_settings)), EngineConfig(**engine_settings))
    experiment = Experiment(
        experts,
        base=base,
        task=task,
        data=data,
        out=out,
        limit_dev=limit_dev,
        limit_test=limit_test,
        max_tokens=max_tokens,
        scoring=scoring,
        options=options,
        progress=progress,
        trace=trace,
        only_search=swarm_settings.get("particles", 0),
        confirm=confirm,
        **engine_settings,
    )
    loaded, utility, engine_config = experiment.experts, experiment.utility, experiment.engine_config
    assert experiment.placement is not None
    config = SwarmConfig(**({"particles": len(loaded.names)} | swarm_settings))
    swarm = Swarm(config, len(loaded.names))
    inputs = {
        "base": base,
        "task": task,
        "dataset": utility.dataset,
        "data": named(data),
        "scoring": scoring,
        "options": dict(options or {}),
        "experts": list(loaded.names),
    }
    counts = {f"{split}_examples": len(examples) for split, examples in utility.examples.items()}
    chosen = asdict(config) | asdict(engine_config)
    memory = {"memory": experiment.placement.as_dict()}
    limits = {"limit_dev": limit_dev, "limit_test": limit_test, "max_tokens": max_tokens, "confirm": confirm}
    products = {"expert_products": experiment.expert_products}
    # What can be refused is refused before an engine starts or a file is touched.
    check_name(out)
    check_run_folder(out, overwrite)
    for source in (*map(Path, loaded.sources), experiment.base_folder):
        if source.resolve().is_relative_to(Path(out, GLOBAL_BEST).resolve()):
            raise InputError(f"{source} would be replaced by the winner of this search; choose another run folder.")
    with ExitStack() as stack:
        stack.enter_context(experiment)
        engine, evaluator, events = experiment.engine, experiment.evaluator, experiment.evaluator.trace
        particles = experiment.particles(swarm)
        stack.callback(particles.close)
        asked = inputs | {"sources": list(loaded.sources)} | counts | limits | chosen | memory | products
        asked |= {"objective": utility.report()}
        with open_run(out, asked, overwrite=overwrite) as journal:
            events.write()  # a place that cannot be written is better known now
            setup_seconds = time.perf_counter() - started
            try:
                with Progress(progress, config.iterations, config.particles) as bar:
                    initial, update_seconds, stopped, idle = run_iterations(
                        swarm, particles, evaluator, journal, bar, stop_early=engine_config.stop_early
                    )
            finally:
                events.write()
            found = choose(evaluator, swarm, particles) if confirm else None
        spent = evaluator.spent.copy()

        start = int(np.where(np.isnan(initial), -np.inf, initial)[: len(loaded.names)].argmax())
        particle = swarm.global_best_particle if found is None else found.particle
        end = {"particle": particle, "dev": swarm.global_best if found is None else found.dev}
        # A particle's best is the global best if it found that.
        coefficients = particles.best_mixture(particle)
        mixture = None if coefficients is None else dict(zip(loaded.names, coefficients, strict=True))
        result: dict[str, Any] = {
            "start": {"particle": start, "expert": loaded.names[start], "dev": float(initial[start])},
            "end": end,
            "mixture": mixture,
            "test_standard_error": {},
            **counts,
        }
        winner = journal.folder / GLOBAL_BEST
        provenance = inputs | {"mixture": mixture, "utility": task, "dev": end["dev"], "settings": chosen}
        export(winner, particles.row(particle, best=True), loaded, base=experiment.base_folder, provenance=provenance)
        testing = time.perf_counter()
        # Its row now belongs to a particle.
        first = read_experts([loaded.sources[start]], dtype=experiment.row_dtype, minimum=1)
        if found is not None:
            scores = evaluator.score_model(first.rows[0], CONFIRM, engine_config.engines)
            result["start"][CONFIRM], result["end"][CONFIRM] = utility.utility_of(CONFIRM, scores), found.confirm
            result["candidates"] = found.candidates
        for which, row in (("start", first.rows[0]), ("end", read_model(winner, loaded))):
            scores = evaluator.score_model(row, "test", engine_config.engines)
            result[which]["test"] = utility.utility_of("test", scores)
            result["test_standard_error"][which] = utility.error_of("test", scores)
        if final_test:
            every = read_experts(list(loaded.sources), dtype=experiment.row_dtype)
            write_test_scores(evaluator, every, swarm, particles, journal.folder)
        seconds = {"setup": setup_seconds, "update": update_seconds} | spent.seconds
        summary = inputs | {
            "particles": config.particles,
            "seed": config.seed,
            "state": engine_config.state,
            "serve": engine.serve,
            "auto_timings": engine.auto_timings,
            "engine": engine_config.engine,
            "dtype": str(engine.dtype).removeprefix("torch."),
            "iterations": swarm.iteration - swarm.waiting,
            "stopped": stopped,
            **memory,
            **result,
            "objective": utility.report(),
            "evaluations": spent.evaluations,
            "prompts": spent.prompts,
            "tokens": spent.tokens,
            "reused_scores": spent.reused,
            "skipped_examples": spent.skipped,
            "engine_idle_share": idle,
            "prompts_per_second": spent.prompts / (update_seconds + sum(spent.seconds.values())),
            "seconds": seconds | {"test": time.perf_counter() - testing, "total": time.perf_counter() - started},
        }
        write_json(journal.folder / "summary.json", summary)
        write_report(journal.folder)
        experiment.check_base()
        return summary
