"""Opens a search: what it was given is read and checked, its folders are made, and an engine is started."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from modelswarms_fast.compat.model_swarm.engine import count_engines
from modelswarms_fast.compat.model_swarm.events import Events
from modelswarms_fast.compat.model_swarm.flags import Settings
from modelswarms_fast.compat.model_swarm.folders import (
    expert_paths,
    make_children,
    make_run,
    now_string,
)
from modelswarms_fast.compat.model_swarm.objectives import Objective, data_file, load_objective, prepared
from modelswarms_fast.compat.model_swarm.particles import (
    begin_folders,
    check_trajectory,
)
from modelswarms_fast.compat.model_swarm.scratchpad import Scratchpad, logged_in, say
from modelswarms_fast.compat.published import PublishedSwarm
from modelswarms_fast.config import SwarmConfig
from modelswarms_fast.errors import InputError
from modelswarms_fast.records import run_folder
from modelswarms_fast.runs.experiment import Experiment
from modelswarms_fast.runs.trial_folder import config_of, inputs_of
from modelswarms_fast.weights.base_model import resolve_base
from modelswarms_fast.weights.checkpoint import scan
from modelswarms_fast.weights.expert_folders import system_errors
from modelswarms_fast.weights.population import Population

_SCALING = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")


def search(settings: Settings) -> dict[str, Any]:
    """Run a search into search/NAME, and return its final metrics.

    Raises:
        InputError: something given cannot be used; no folder is left then.
    """
    objective = load_objective(
        settings.eval_type,
        settings.dataset,
        options=settings.options,
        only=settings.only,
        limit_dev=settings.limit_dev,
        limit_test=settings.limit_test,
    )
    paths, base = expert_paths(settings.experts), resolve_base(settings.base)
    kind = check_experts(paths, base)
    objective = prepared(objective, base, settings.padding)
    config = SwarmConfig(particles=max(settings.particles or 0, len(paths)), **settings.swarm)
    if config.particles > len(paths) and kind == "full":
        raise InputError(
            f"the experts in {settings.experts} are full checkpoints, of which no children are made; leave "
            "--populate_initial_experts out."
        )
    swarm = PublishedSwarm(config, len(paths), settings.draws, children_are_experts=True)
    run = make_run(settings.name)
    begun = False
    try:
        with logged_in(run):
            run_folder.write_text(run / "args.txt", settings.arguments)
            experiment = _open(settings, objective, swarm, paths, run)
            with experiment:
                shutil.rmtree(run / "tmp", ignore_errors=True)
                with closing(_population(experiment, swarm)) as population:
                    events = Events(settings, objective, swarm, experiment, population, run)
                    begun = True
                    return events.search()
    except InputError:
        if not begun:
            shutil.rmtree(run)
        raise


def check_experts(paths: Sequence[str], base: Path) -> str:
    """Refuse what is no expert, and adapters that are scaled differently; "lora" or "full". Raises InputError."""
    with system_errors():
        experts = [scan(Path(path), base) for path in paths]
    for expert in experts:
        for name in _SCALING:
            mine, first = (one.config.get(name) or None for one in (expert, experts[0]))
            if mine != first:
                raise InputError(
                    f"{expert.config_file}: {name} is {mine}, but {first} in {experts[0].config_file}; model_swarm "
                    "mixes tensors of one scaling, give such experts to modelswarms-fast search."
                )
    return experts[0].kind


def _open(
    settings: Settings, objective: Objective, swarm: PublishedSwarm, paths: Sequence[str], run: Path
) -> Experiment:
    """The folders of all particles, and what is to evaluate them; config.json says what it all is."""
    if swarm.children:
        say("populating initial experts...")
        say(f"previously {len(paths)} experts")
        say(f"now {swarm.particles}")
        say(f"adding {len(swarm.children)} experts")
    particles = make_children(run, list(paths), swarm.children, settings.fast_merge)
    say(f"initializing search... {now_string()}")
    begin_folders(run, particles)
    Scratchpad(swarm.particles).write(run)
    engine = {"engines": count_engines(settings.gpus), "row_dtype": "auto" if settings.fast_merge else "float32"}
    experiment = Experiment(
        particles,
        base=settings.base,
        task=objective.utility,
        out=run,
        swarm={"particles": swarm.particles},
        searches=None,
        limit_dev=settings.limit_dev,
        limit_test=settings.limit_test,
        options=settings.options,
        **engine | settings.engine,
    )
    if settings.trajectory:
        check_trajectory(experiment.experts)
    data = [str(data_file(name)) for name in objective.tasks or (settings.dataset,)]
    inputs = inputs_of(experiment, settings.eval_type, data)
    own = asdict(swarm.config) | {"padding": settings.padding, "dataset": settings.dataset}
    content = {"run": "model_swarm", "directory": str(Path.cwd())} | config_of(experiment, inputs, **own)
    run_folder.write_json(run / run_folder.CONFIG, content | {"expert_products": experiment.expert_products})
    return experiment


def _population(experiment: Experiment, swarm: PublishedSwarm) -> Population:
    return Population(
        experiment.experts,
        swarm.initial_positions(),
        experiment.engine_config,
        experiment.engine.device,
        seed=swarm.config.seed,
        placement=experiment.placement,
    )
