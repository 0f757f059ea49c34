"""Model Swarms beside other ways to compose the same experts: one engine, one dev split, one budget, one table."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from modelswarms_fast.config import LONGEST, EngineConfig, SwarmConfig, fields_of
from modelswarms_fast.errors import InputError, quoted
from modelswarms_fast.errors.arguments import check_range, checked
from modelswarms_fast.evaluation.objectives import Files
from modelswarms_fast.records.checks import check
from modelswarms_fast.records.run_folder import read_json, write_json
from modelswarms_fast.records.schemas import Results
from modelswarms_fast.runs.baselines import METHODS, OF_FACTORS, Run, load_method
from modelswarms_fast.runs.experiment import Experiment, check_together
from modelswarms_fast.runs.started import Run as StartedRun
from modelswarms_fast.runs.started import run_in
from modelswarms_fast.runs.trial_folder import config_of, inputs_of

RESULTS = "baselines.json"
RESAMPLES = 10_000
SWARM = "model_swarms"
REMEDY = "choose another folder, or remove it"


@checked
def compare(
    experts: str | Path | Sequence[str | Path],
    *,
    base: str,
    task: str,
    data: Files = None,
    out: str | Path,
    budget: int,
    methods: Sequence[str] | None = None,
    seed: int = 0,
    swarm: dict[str, Any] | None = None,
    resume: bool = False,
    force: bool = False,
    reuse: Sequence[str | Path] = (),
    progress: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Run every method, score what each chooses on test, and compare it with Model Swarms.

    Args:
        experts, base, task, data, progress: as in `search`.
        out: the folder of baselines.json, which is written anew after each method.
        budget: evaluations on dev that a method may take, those of the experts among them.
        methods: names, see docs/reference/baselines.md; None: all, data_merge only with `train`, and with
            combine="delta" none that makes rows of factors.
        seed: of all that is drawn.
        swarm: fields of SwarmConfig for Model Swarms, where the defaults are not wanted.
        resume: go on with the comparison in `out`, or begin it if nothing of it is there. methods may be others than
            before; those that have ended are not run again.
        force, reuse: as in `search`.
        settings: the other arguments of `Experiment`, fields of EngineConfig among them.

    Returns:
        The content of baselines.json: `methods` has for each its dev, test, test_standard_error, test_scores,
        evaluations, prompts, seconds and recipe, `against_model_swarms` the paired bootstrap, `objective` what the
        utility tells of itself.

    Raises:
        InputError: something given cannot be used, or `out` holds results of other arguments.
        TypeError: a setting does not exist.
    """
    swarm = swarm or {}
    check_range("budget", budget, 1, LONGEST)
    if unknown := swarm.keys() - {field.name for field in fields(SwarmConfig)}:
        raise InputError(f"swarm has no setting {quoted(sorted(unknown)[0])}; give fields of SwarmConfig.")
    SwarmConfig(particles=2, seed=seed)
    engine, _ = fields_of(EngineConfig, settings)
    check_together(SwarmConfig(**({"particles": 2} | swarm)), EngineConfig(**engine))
    delta = settings.get("combine") == "delta"
    if methods is None:
        methods = [name for name in METHODS if name != "data_merge" or settings.get("train") is not None]
        methods = [name for name in methods if not (delta and name in OF_FACTORS)]
    if delta and (unable := [name for name in methods if name in OF_FACTORS]):
        raise InputError(
            f"{unable[0]} makes factors of factors, which combine='delta' has none of; use combine='factors'."
        )
    if "data_merge" in methods and settings.get("train") is None:
        raise InputError("data_merge needs what the experts were trained on; give it with --train, or leave it out.")
    runs: dict[str, Run] = {name: load_method(name) for name in methods}  # a name that is none is refused at once
    if SWARM in runs:
        runs[SWARM] = partial(runs[SWARM], **swarm)
    out = Path(out)
    with ExitStack() as stack:
        run = stack.enter_context(run_in(out, "compare", resume=resume))
        experiment = Experiment(
            experts, base=base, task=task, data=data, out=out, progress=progress, swarm=swarm, searches=1, **settings
        )
        if budget < len(experiment.experts.names):
            raise InputError(
                f"the budget is {budget} evaluations, less than the {len(experiment.experts.names)} experts take; "
                "give more."
            )
        inputs, train = inputs_of(experiment, task, data), experiment.train
        own = {"budget": budget, "methods": ",".join(runs), "seed": seed, "swarm": swarm}
        own |= {"train": None if train is None else str(train)}
        run.check(config_of(experiment, inputs, **own), force=force, reuse=reuse)
        content = _start(out / RESULTS, run, len(experiment.utility.examples["test"]))
        left = [name for name in runs if name not in content["methods"]]
        if "cbtm" in left:  # what it cannot use is refused before an engine starts
            importlib.import_module("modelswarms_fast.runs.baselines.cbtm").prompts_of(experiment)
        if not left:
            return content
        console = Console(stderr=True, quiet=not progress)
        run.serve(experiment, stack)
        for name in left:
            experiment.evaluator.asked_by = name
            result = _measure(experiment, partial(runs[name], experiment, budget, seed))
            content["methods"][name] = result
            content["objective"] = experiment.utility.report()
            known = {} if name == SWARM else content.get("against_model_swarms", {})
            content["against_model_swarms"] = against_model_swarms(experiment, content["methods"], seed, known)
            write_json(out / RESULTS, content)
            console.print(f"{name}: dev {_text(result['dev'])}, test {_text(result['test'])}", highlight=False)
        experiment.check_base()
        return read_json(out / RESULTS)


def _start(file: Path, run: StartedRun, examples: int) -> dict[str, Any]:
    """What was found up to now, on so many test examples. Raises InputError."""
    content: dict[str, Any] = {"methods": {}}
    if run.goes_on and file.exists():
        content = read_json(file)
        check(Results, content, file, REMEDY)
        if any(len(one["test_scores"]) != examples for one in content["methods"].values()):
            raise InputError(f"{file} has scores of other test examples; {REMEDY}")
    return {"config": run.config} | content | run.forced


def _measure(experiment: Experiment, run: Callable[[], Any]) -> dict[str, Any]:
    """One method: what it took until it had chosen, and how its choice does on test."""
    experiment.initial  # noqa: B018 - evaluated now, by none of the methods
    before, start = experiment.evaluator.spent.copy(), time.perf_counter()
    choice = run()
    seconds, prompts = time.perf_counter() - start, experiment.evaluator.spent.since(before).prompts
    if choice.looks_at_experts:
        seconds += sum(experiment.initial_spent.seconds.values())
        prompts += experiment.initial_spent.prompts
    scores = choice.test()
    return {
        "dev": choice.dev,
        "test": experiment.utility_of("test", scores),
        "test_standard_error": experiment.utility.error_of("test", scores),
        "test_scores": scores,
        "evaluations": choice.evaluations,
        "prompts": prompts,
        "seconds": seconds,
        "recipe": choice.recipe,
    }


def against_model_swarms(
    experiment: Experiment, methods: dict[str, dict[str, Any]], seed: int, known: Mapping[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Each method's test scores against those of Model Swarms, if not known yet; nothing before that has run."""
    if SWARM not in methods:
        return {}
    # Of several tasks each keeps its number of examples.
    strata = [str(example.get("_place", ("",))[0]) for example in experiment.utility.examples["test"]]
    reduce = partial(experiment.utility_of, "test")
    ours = methods[SWARM]["test_scores"]
    return {
        name: known.get(name) or paired(ours, result["test_scores"], reduce, strata, seed)
        for name, result in methods.items()
        if name != SWARM
    }


def paired(
    ours: Sequence[float],
    theirs: Sequence[float],
    reduce: Callable[[Sequence[float]], float],
    strata: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    """The paired bootstrap of two lists of scores, whose utilities `reduce` makes.

    difference: our utility minus theirs; interval: the middle 95 % of it over RESAMPLES samples of the examples, drawn
    with replacement within each stratum and the same for both; share: of the samples in which we are ahead, ties
    counted by half. NaN where a score is.
    """
    pair, places = np.array([ours, theirs], dtype=np.float64), np.arange(len(ours))
    random, labels = np.random.default_rng(seed), np.array(strata)
    groups = [np.flatnonzero(labels == label) for label in sorted(set(strata))]
    samples = np.empty(RESAMPLES)
    for sample in range(RESAMPLES):
        for group in groups:
            places[group] = group[random.integers(len(group), size=len(group))]
        drawn = pair[:, places].tolist()
        samples[sample] = reduce(drawn[0]) - reduce(drawn[1])
    low, high = np.quantile(samples, [0.025, 0.975])
    share = float(np.mean((samples > 0) + 0.5 * (samples == 0))) if np.isfinite(samples).all() else math.nan
    difference = reduce(pair[0].tolist()) - reduce(pair[1].tolist())
    return {"difference": difference, "interval": [float(low), float(high)], "share": share}


def table_of(content: dict[str, Any]) -> Table:
    """The results as a table, in the order in which they were found."""
    measured = ("dev", "test ± standard error", "evaluations", "prompts", "seconds")
    table = Table("", *measured, "Model Swarms ahead by", "in")
    for name, result in content["methods"].items():
        against = content.get("against_model_swarms", {}).get(name)
        ahead, share = "", ""
        if against is not None and against["difference"] is not None:
            low, high = against["interval"]
            ahead = f"{against['difference']:+.4f} [{low:+.4f}, {high:+.4f}]"
            share = f"{100 * against['share']:.1f} %"
        test = f"{_text(result['test'])} ± {_text(result['test_standard_error'])}"
        cost = (str(result["evaluations"]), str(result["prompts"]), f"{result['seconds']:.1f}")
        table.add_row(name, _text(result["dev"]), test, *cost, ahead, share)
    return table


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
