"""The search: plan, update, load, generate, score, tell, promote."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from modelswarms_fast.base import resolve_base
from modelswarms_fast.canary import make_canary
from modelswarms_fast.config import EngineConfig, SwarmConfig
from modelswarms_fast.engines import start_engine
from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluate import Evaluator
from modelswarms_fast.experts import Experts, export, read_experts, read_model
from modelswarms_fast.journal import Journal, check_run_folder, open_run, write_json
from modelswarms_fast.memory_plan import MemoryPlan, plan_memory
from modelswarms_fast.particles import Particles
from modelswarms_fast.progress import Interrupted, Progress
from modelswarms_fast.report import write_report
from modelswarms_fast.scores import Limits
from modelswarms_fast.swarm import Floats, Plan, Swarm
from modelswarms_fast.trace import Trace
from modelswarms_fast.utilities import Utility, load_utility


def search(
    experts: str | Path | Sequence[str | Path],
    *,
    base: str,
    task: str,
    data: str | Path,
    out: str | Path,
    limit_dev: int | None = None,
    limit_test: int | None = None,
    max_tokens: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
    trace: str | Path | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Search for a better model among the affine mixtures of the experts, and export the best one found.

    Args:
        experts: a folder of expert folders, or a list of folders and hub ids.
        base: the base model: a local folder, a hub id, or "smollm2-135m-instruct".
        task: "multiple_choice", "exact_match", or a Python function as "module:function".
        data: JSON file with the lists `dev` and `test`. Only `dev` steers the search.
        out: the run folder to write: config.json, history.jsonl, summary.json, global_best/, report.html.
        limit_dev, limit_test: use only the first so many examples of a split.
        max_tokens: new tokens an example may take, instead of the task's own limit.
        overwrite: replace an earlier run in `out`.
        progress: show a progress bar on standard error.
        trace: a file for a trace of the run, to open in chrome://tracing or Perfetto; written at the end, and when
            the run fails.
        settings: fields of SwarmConfig and EngineConfig; `particles` defaults to the number of experts.

    Returns:
        The content of summary.json. `end.test` is the score of global_best/, read back from the disk.

    Raises:
        InputError: something given cannot be used; the message names it and the remedy.
        TypeError: a setting does not exist.
    """
    started = time.perf_counter()
    engine_names = {field.name for field in fields(EngineConfig)}
    engine_config = EngineConfig(**{name: value for name, value in settings.items() if name in engine_names})
    swarm_settings = {name: value for name, value in settings.items() if name not in engine_names}
    SwarmConfig(**({"particles": 2} | swarm_settings))  # refuse a bad setting before anything is read
    utility = load_utility(task, data, limit_dev=limit_dev, limit_test=limit_test, max_tokens=max_tokens)
    row_dtype = None if engine_config.row_dtype == "auto" else getattr(torch, engine_config.row_dtype)
    plan: MemoryPlan | None = None

    def place(n: int, size: int, dtype: torch.dtype) -> torch.Tensor:
        """The rows of the swarm, which begin with the experts: its first positions."""
        nonlocal plan
        here = torch.cuda.is_available() and not engine_config.own_processes
        device = torch.device("cuda" if here else "cpu")
        wanted = max(swarm_settings.get("particles", n), n)
        shape = {"particles": wanted, "experts": n, "size": size, "dtype": dtype}
        plan = plan_memory(engine_config, **shape, device=device, out=Path(out))
        return plan.place(size, dtype)

    loaded = read_experts(experts, dtype=row_dtype, place=place)
    assert plan is not None
    config = SwarmConfig(**({"particles": len(loaded.names)} | swarm_settings))
    swarm = Swarm(config, len(loaded.names))
    _check_together(config, engine_config, loaded, utility)
    base_folder = resolve_base(base)
    inputs = {
        "base": base,
        "task": task,
        "dataset": utility.dataset,
        "data": str(data),
        "experts": list(loaded.names),
    }
    counts = {f"{split}_examples": len(examples) for split, examples in utility.examples.items()}
    chosen = asdict(config) | asdict(engine_config)
    memory = {"memory": plan.as_dict()}
    check_run_folder(out, overwrite)  # what can be refused is refused before an engine starts or a file is touched
    if progress:
        Console(stderr=True, soft_wrap=True).print(str(plan), highlight=False)
    with closing(start_engine(base_folder, loaded, engine_config)) as engine:
        events = Trace(trace)
        evaluator = Evaluator(engine, utility, trace=events)
        if engine_config.serve == "auto":
            engine.choose(evaluator.prompts("dev"), utility.max_tokens)
        evaluator.canary = make_canary(engine, base_folder, loaded, engine_config)
        particles = Particles(loaded, swarm, engine_config, engine.device, plan)
        asked = inputs | {"sources": list(loaded.sources)} | counts | chosen | memory
        with closing(particles), open_run(out, asked, overwrite=overwrite) as journal:
            events.write()  # a place that cannot be written is better known now
            setup_seconds = time.perf_counter() - started
            try:
                with Progress(progress, config.iterations, config.particles) as bar:
                    initial, update_seconds, stopped, idle = _run(
                        swarm, particles, evaluator, journal, bar, stop_early=engine_config.stop_early
                    )
            finally:
                events.write()
        spent = evaluator.spent.copy()

        start = int(np.where(np.isnan(initial), -np.inf, initial)[: len(loaded.names)].argmax())
        coefficients = particles.global_best_mixture()
        mixture = None if coefficients is None else dict(zip(loaded.names, coefficients, strict=True))
        result: dict[str, Any] = {
            "start": {"particle": start, "expert": loaded.names[start], "dev": float(initial[start])},
            "end": {"particle": swarm.global_best_particle, "dev": swarm.global_best},
            "mixture": mixture,
            "test_standard_error": {},
            **counts,
        }
        winner = journal.folder / "global_best"
        provenance = inputs | {"mixture": mixture, "utility": task, "dev": swarm.global_best, "settings": chosen}
        export(winner, particles.global_best(), loaded, base=base_folder, provenance=provenance)
        testing = time.perf_counter()
        first = read_experts([loaded.sources[start]], dtype=row_dtype, minimum=1)  # its row now belongs to a particle
        for which, row in (("start", first.rows[0]), ("end", read_model(winner, loaded))):
            scores = evaluator.one(row, "test", engine_config.engines)
            result[which]["test"] = utility.utility_of("test", scores)
            result["test_standard_error"][which] = utility.error_of("test", scores)
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
        engine.restore()
        if evaluator.canary is not None:
            evaluator.canary.check(None, None)
        return summary


def _check_together(config: SwarmConfig, engine_config: EngineConfig, experts: Experts, utility: Utility) -> None:
    """What none of them can know alone. Raises InputError."""
    if engine_config.stop_early and utility.score_range is None:
        raise InputError(
            f"stop_early is set but the scores of {utility.name} have no known range; give the function the attribute "
            "score_range = (lowest, highest), or leave stop_early out."
        )
    if config.randomness == "coordinate" and engine_config.state == "mixture":
        raise InputError(
            "randomness is 'coordinate' but state='mixture' has no coordinates of weights; use state='weights'."
        )
    if engine_config.rounding == "stochastic" and experts.layout.dtype == torch.float32:
        raise InputError(
            "rounding is 'stochastic' but the rows are float32, which loses no step; use rounding='nearest' or "
            "row_dtype='bfloat16'."
        )


def _run(
    swarm: Swarm,
    particles: Particles,
    evaluator: Evaluator,
    journal: Journal,
    bar: Progress,
    *,
    stop_early: bool = False,
) -> tuple[Floats, float, str, float]:
    """The loop.

    Returns the initial utilities [P], the seconds of all updates, why it stopped, and the idle share of the engine.
    """
    plan: Plan | None = None  # the initial particles are evaluated where they are
    initial, update_seconds = swarm.utilities, 0.0
    everyone = list(range(swarm.config.particles))
    trace = evaluator.trace
    began, busy_before = time.perf_counter(), trace.busy()
    mark, busy = began, busy_before  # an iteration begins where the last one was measured, before its line was written

    def result(stopped: str) -> tuple[Floats, float, str, float]:
        return initial, update_seconds, stopped, trace.idle(busy - busy_before, mark - began)

    while True:
        before = evaluator.spent.copy()
        trace.now = {"iteration": swarm.iteration}
        start = time.perf_counter()
        if plan is not None:
            with trace.span("update"):
                particles.update(plan)
        updated = time.perf_counter() - start
        evaluated = everyone if plan is None else np.flatnonzero(plan.evaluate).tolist()
        limits = _limits(swarm, evaluator.utility) if stop_early and plan is not None else None
        try:
            tallies = evaluator.rows(particles, evaluated, "dev", bar.particle, limits)
        except Interrupted:
            if plan is None:
                raise KeyboardInterrupt from None  # nothing has been found yet
            return result("interrupted")
        trace.now = {"iteration": swarm.iteration}
        with trace.span("tell"):
            utilities, bounded = swarm.utilities.copy(), []
            for particle, tally in tallies.items():
                lower, utilities[particle] = tally.bounds
                if not tally.complete:
                    bounds = {"lower": lower, "upper": utilities[particle], "examples": len(tally.known)}
                    bounded.append({"particle": particle} | bounds)
            told = swarm.tell(utilities)
            particles.promote(told)
            if plan is None:
                initial = utilities
                particles.start(swarm)
        spent = evaluator.spent.since(before)
        update_seconds += updated
        now, working = time.perf_counter(), trace.busy()
        total, idle = now - mark, trace.idle(working - busy, now - mark)
        mark, busy = now, working
        with trace.span("journal"):
            journal.append(
                {
                    "iteration": swarm.iteration,
                    "utilities": utilities,
                    "evaluated": [particle in tallies for particle in everyone],
                    "bounded": sorted(bounded, key=lambda one: one["particle"]),
                    "restarts": [] if plan is None else np.flatnonzero(plan.restarts),
                    "improved": np.flatnonzero(told.improved),
                    **swarm.bests(),
                    "step_length": None if plan is None else plan.step_length,
                    "global_best_mixture": particles.global_best_mixture(),
                    "prompts": spent.prompts,
                    "tokens": spent.tokens,
                    "engine_idle_share": idle,
                    "seconds": {"update": updated} | spent.seconds | {"total": total},
                }
            )
        bar.iteration(swarm.iteration, swarm.global_best, evaluator.spent.prompts)
        if stopped := ("interrupted" if bar.asked else swarm.stopped()):
            return result(stopped)
        plan = swarm.plan()


def _limits(swarm: Swarm, utility: Utility) -> dict[int, Limits]:
    """What the next utilities are compared with, by particle."""
    assert utility.score_range is not None
    worst, bests = swarm.global_worst, swarm.personal_best.tolist()
    return {particle: Limits(best, worst, *utility.score_range) for particle, best in enumerate(bests)}
