"""Token swarms: a search over mixtures of what experts say next, for experts of different architectures.

A position is n coefficients (Feng et al., arXiv 2410.11163); the experts themselves are the unit vectors, where the
particles start. They move by the rules of any search, and a position is served as Σ c_j p_j(token | prefix).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modelswarms_fast.config import DType, EngineConfig, SwarmConfig, TaskConfig, fields_of
from modelswarms_fast.engines.ensemble.decoding import without_adapters
from modelswarms_fast.engines.ensemble.engine import EnsembleEngine, Member, clipped
from modelswarms_fast.engines.start import start_here
from modelswarms_fast.engines.transformers import TransformersEngine
from modelswarms_fast.errors import InputError, quoted
from modelswarms_fast.errors.arguments import checked
from modelswarms_fast.evaluation.evaluator import Evaluator
from modelswarms_fast.evaluation.objectives import Files, load_utility, named
from modelswarms_fast.policies import load_policy, problem_of
from modelswarms_fast.policies.space import space_of
from modelswarms_fast.records import run_folder
from modelswarms_fast.records.progress import Progress
from modelswarms_fast.records.report import write_report
from modelswarms_fast.records.run_folder import ENSEMBLE
from modelswarms_fast.runs.experiment import check_together, say_data
from modelswarms_fast.runs.loop import Meter, SearchLoop
from modelswarms_fast.runs.scheduler import run_alone
from modelswarms_fast.runs.started import environment, keep_data, run_in
from modelswarms_fast.runs.trial import INTERRUPTED, Trial
from modelswarms_fast.runs.trial_folder import keep_sources, open_history
from modelswarms_fast.swarm import Swarm
from modelswarms_fast.weights.base_model import digest_of_base, resolve_base
from modelswarms_fast.weights.experts import Experts, expert_folders, read_experts
from modelswarms_fast.weights.layout import Layout
from modelswarms_fast.weights.packaged import PACKAGED
from modelswarms_fast.weights.population import Population
from modelswarms_fast.weights.row_name import row_name

WINNER = Path(run_folder.GLOBAL_BEST, "mixture.json")


@checked
def token_swarm(
    experts: str | Path | Sequence[str | Path],
    *,
    task: str,
    data: Files = None,
    out: str | Path,
    base: str | None = None,
    dtype: DType = "auto",
    max_model_len: int = EngineConfig.max_model_len,
    overwrite: bool = False,
    resume: bool = False,
    force: bool = False,
    reuse: Sequence[str | Path] = (),
    progress: bool = False,
    command: Sequence[str] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Search for the best mixture of the experts' next-token distributions.

    Args:
        experts: at least two full checkpoints of any architectures (folders, hub ids, "smollm2-135m-instruct",
            "gemma-3-270m") or LoRA adapters of one base, or a folder that holds such folders. All models stay in
            memory.
        base: of the adapters, if there are any.
        dtype: that the models compute in; "auto": each its own.
        out: the run folder to write: config.json, history.jsonl, summary.json, report.html, and
            global_best/mixture.json with the winner's coefficients.
        settings: fields of TaskConfig and SwarmConfig; `particles` defaults to twice the number of experts, at least 6.
        others: as in `search`.

    Returns:
        The content of summary.json. `mixture` is what is served: negative coefficients are 0 and the rest sums to 1;
        `position` is the winner's position as it is.

    Raises:
        InputError: something given cannot be used; the message names it and the remedy.
        TypeError: a setting does not exist.
    """
    started = time.perf_counter()
    sources = _sources(experts)
    names = _names(sources)
    of_task, of_swarm = fields_of(TaskConfig, settings)
    config = SwarmConfig(**({"particles": max(2 * len(sources), 6)} | of_swarm))
    if config.randomness == "coordinate":
        raise InputError("randomness is 'coordinate', but a position has one coordinate an expert; use 'particle'.")
    if config.space != "affine":
        raise InputError(f"space is {quoted(config.space)}, but what is served sums to 1; use space='affine'.")
    Swarm(config, len(sources))  # refuses fewer particles than experts
    utility = load_utility(task, data, **of_task)
    if progress:
        say_data(utility)
    engine_config = EngineConfig(
        engine="transformers", state="mixture", dtype=dtype, max_model_len=max_model_len, parity_check="off"
    )
    check_together(config, engine_config)
    out = Path(out)
    with ExitStack() as stack:
        run = stack.enter_context(run_in(out, "token-swarm", overwrite=overwrite, resume=resume))
        keep_sources(out, [*sources, base])
        members = open_members(sources, base, engine_config)
        encode = None if utility.chat is None else utility.chat.encode
        engine = EnsembleEngine(members, slots=config.particles, encode=encode)
        inputs = {
            "base": base,
            "task": task,
            "dataset": utility.dataset,
            "data": named(data),
            **utility.data_facts(),
            "experts": names,
            "architectures": [type(without_adapters(member.engine.model)).__name__ for member in members],
            "sources": [str(source) for source in sources],
            **{f"{split}_examples": len(examples) for split, examples in utility.examples.items()},
        }
        chosen = asdict(config) | {"engine": ENSEMBLE, "dtype": dtype, "max_model_len": max_model_len}
        run.check(
            {
                **inputs,
                **asdict(TaskConfig(**of_task)),
                **chosen,
                "weights": [_digest(source, member) for source, member in zip(sources, members, strict=True)],
                "base_files": None if base is None else digest_of_base(resolve_base(base)),
                **utility.digests(),
                **environment(None, engine_config, config.policy),
                "command": command,
            },
            force=force,
            reuse=reuse,
        )
        run.refuse_ended()
        swarm = Swarm(config, len(sources), first_patience=run.first_patience)
        population = Population(
            unit_experts(names),
            swarm.initial_positions(),
            engine_config,
            torch.device("cpu"),
            randomness=config.randomness,
            seed=config.seed,
        )
        stack.enter_context(closing(population))
        evaluator = Evaluator(engine, utility)
        evaluator.keep_in(run.begin())
        keep_data(out, utility)
        journal, recorded = open_history(out)
        stack.enter_context(journal)
        setup_seconds = time.perf_counter() - started
        with Progress(progress, config.iterations, config.particles) as bar:

            def told(line: dict[str, Any]) -> None:
                bar.iteration(line["iteration"], line["global_best"]["utility"], evaluator.spent.prompts)

            space = space_of(config.space, len(names))
            policy = load_policy(config.policy, problem_of(space, config.particles, config.seed))
            loop = SearchLoop(swarm, population, utility, policy=policy)
            meter = Meter(evaluator, policy=policy is not None)
            trial = Trial("token swarm", loop, evaluator, journal, recorded=recorded, meter=meter, told=told)
            try:
                run_alone(trial, evaluator, bar)
            except Exception as error:
                so_far = population.global_best_mixture()
                if trial.has_a_best and so_far is not None:
                    with suppress(Exception):  # the search's own error is the one to say
                        _write_winner(out, names, so_far, inputs)
                        error.add_note(f"The best so far, {swarm.global_best:.4f} on dev, is in {out / WINNER}.")
                raise
        position = population.global_best_mixture()
        assert position is not None
        found, costs = trial.start_and_end(names), meter.total()
        # The winner is on the disk before anything else can fail.
        mixture = _write_winner(out, names, position, inputs)
        summary: dict[str, Any] = inputs | {
            "particles": config.particles,
            "seed": config.seed,
            "policy": config.policy,
            "engine": ENSEMBLE,
            "iterations": trial.iterations,
            "stopped": trial.stopped,
            "start": found["start"],
            "end": found["end"],
            "mixture": mixture,
            "position": dict(zip(names, position, strict=True)),
            "expert_passes": evaluator.spent.passes,
            "without_score": trial.without_score,
            **costs,
            **run.forced,
            "ended": False,
        }
        summary["seconds"] = {"setup": setup_seconds} | costs["seconds"]
        run_folder.write_json(out / run_folder.SUMMARY, summary)
        testing, errors = time.perf_counter(), {}
        best = names.index(found["start"]["expert"])
        for which, row in (("start", np.eye(len(names))[best]), ("end", np.array(position))):
            scores = evaluator.score_model(torch.from_numpy(row), "test")
            summary[which]["test"] = utility.utility_of("test", scores)
            errors[which] = utility.error_of("test", scores)
        now = time.perf_counter()
        summary |= {"test_standard_error": errors}
        summary["seconds"] |= {"test": now - testing, "total": now - started}
        run_folder.write_json(out / run_folder.SUMMARY, summary)
        write_report(out)
        summary["ended"] = trial.stopped != INTERRUPTED
        run_folder.write_json(out / run_folder.SUMMARY, summary)
        return summary


def _write_winner(
    out: Path, names: Sequence[str], position: Sequence[float], inputs: Mapping[str, Any]
) -> dict[str, float]:
    """Write what is served at a position, and return it: a coefficient an expert. Raises InputError."""
    mixture: dict[str, float] = dict(zip(names, clipped(position).tolist(), strict=True))
    run_folder.make_folder(out / run_folder.GLOBAL_BEST)
    winner = {"mixture": mixture, "sources": inputs["sources"], "base": inputs["base"]}
    run_folder.write_json(out / WINNER, winner)
    return mixture


def open_members(sources: Sequence[str | Path], base: str | None, config: EngineConfig) -> list[Member]:
    """The experts' models, in this order; adapters share that of their base. Raises InputError."""
    adapters = [str(source) for source in sources if _is_adapter(source)]
    shared: TransformersEngine | None = None
    rows: dict[str, torch.Tensor] = {}
    if adapters:
        if base is None:
            raise InputError(f"{adapters[0]} is an adapter; give the base model of the adapters with --base.")
        folder = resolve_base(base)
        loaded = read_experts(adapters, base=folder, minimum=1)
        shared = _open(folder, loaded, config)
        rows = dict(zip(adapters, loaded.rows, strict=True))
    members = []
    for source in sources:
        if (row := rows.get(str(source))) is not None:
            assert shared is not None
            members.append(Member(shared, row))
        else:
            members.append(Member(_open(resolve_base(str(source)), None, config), None))
    return members


def unit_experts(names: Sequence[str]) -> Experts:
    """Experts whose rows are the unit vectors: a position then is its own mixture."""
    rows = torch.eye(len(names))
    width = Layout.of({"coefficients": rows[0]}).size
    room = torch.zeros((len(names), width))
    room[:, : len(names)] = rows
    return Experts("full", tuple(names), Layout.of({"coefficients": rows[0]}), room, room, (), {}, tuple(names))


def _open(folder: Path, loaded: Experts | None, config: EngineConfig) -> TransformersEngine:
    engine = start_here(folder, loaded, config)
    assert isinstance(engine, TransformersEngine)
    return engine


def _sources(experts: str | Path | Sequence[str | Path]) -> list[str | Path]:
    """The experts one by one; those of a folder sorted by name."""
    if not isinstance(experts, str | Path):
        found = list(experts)
    else:
        folder = Path(experts)
        if not folder.is_dir():
            raise InputError(f"{experts} is no folder of experts; give a folder that holds them, or several experts.")
        found = list(expert_folders(folder))
    if len(found) < 2:
        raise InputError(f"{experts} gives {len(found)} expert(s), but a search needs at least two.")
    return found


def _names(sources: Sequence[str | Path]) -> list[str]:
    names = [str(source) if str(source) in PACKAGED else Path(str(source).rstrip("/")).name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two experts are called {name}; rename one of their folders.")
    return names


def _digest(source: str | Path, member: Member) -> str:
    """Names the weights of an expert."""
    return digest_of_base(resolve_base(str(source))) if member.row is None else row_name(member.row).hex()


def _is_adapter(source: str | Path) -> bool:
    return (Path(source) / "adapter_config.json").is_file()
