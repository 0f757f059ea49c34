"""The commands beside the search itself: report, sweep, study, baselines, token-swarm."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from modelswarms_fast.cli.options import (
    Base,
    Data,
    Engine,
    EngineDType,
    Engines,
    EngineSetting,
    MaxModelLen,
    MaxTokens,
    Options,
    ScoringBy,
    SearchesAtOnce,
    ServeMode,
    Slots,
    SwarmSetting,
    Task,
    TensorParallel,
    read_options,
    read_settings,
    show,
)
from modelswarms_fast.config import CheckedLoads, DType, EngineConfig, State, SwarmConfig
from modelswarms_fast.errors import InputError

app = typer.Typer()


@app.command("report")
def report_command(
    run: Annotated[Path, typer.Argument(help="The folder of a search, ended or not.")],
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Score its experts and particles on test first; starts an engine.")
    ] = False,
    plots: Annotated[Path | None, typer.Option(help="Folder for the plots as SVG files.")] = None,
) -> None:
    """Write report.html of RUN again, with all analyses that its files allow."""
    from modelswarms_fast.records.analysis import read_run
    from modelswarms_fast.records.analysis.registry import PLOTS, analyse, draw
    from modelswarms_fast.records.report import write_report
    from modelswarms_fast.records.run_folder import write_text

    if evaluate:
        from modelswarms_fast.runs.final_test import evaluate_run

        evaluate_run(run)
    written = [write_report(run)]
    if plots is not None:
        found = analyse(read_run(run))
        try:
            plots.mkdir(parents=True, exist_ok=True)
            for name, numbers in found.items():
                if name in PLOTS:
                    write_text(plots / f"{name}.svg", draw(name, numbers).decode())
                    written.append(plots / f"{name}.svg")
        except OSError as error:
            raise InputError(f"cannot make {plots}: {error.strerror}; choose another folder for --plots.") from error
        except ImportError as error:
            raise InputError("--plots needs matplotlib: pip install matplotlib, or leave it out.") from error
    print("\n".join(map(str, written)))


@app.command("sweep")
def sweep_command(
    experts: Annotated[list[str], typer.Argument(help="A folder of expert folders, or several experts.")],
    base: Base,
    task: Task,
    out: Annotated[Path, typer.Option(help="Folder to write; one that a cut sweep has left goes on.")],
    data: Data = None,
    searches: Annotated[int, typer.Option(help="The most searches.")] = 20,
    ranges: Annotated[
        list[str] | None,
        typer.Option("--range", help="A setting and its ends, as in inertia=0.1:0.3; default: the published ones."),
    ] = None,
    evaluations: Annotated[int | None, typer.Option(help="Budget: particles evaluated, of all searches.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Budget: minutes of this call.")] = None,
    at_once: SearchesAtOnce = 2,
    swarm: SwarmSetting = None,
    limit_dev: Annotated[int | None, typer.Option(help="Use the first N dev examples.")] = None,
    limit_test: Annotated[int | None, typer.Option(help="Use the first N test examples.")] = None,
    max_tokens: MaxTokens = None,
    scoring: ScoringBy = "generate",
    option: Options = None,
    state: Annotated[State, typer.Option(help="What a row holds.")] = EngineConfig.state,
    engine: Engine = EngineConfig.engine,
    serve: ServeMode = EngineConfig.serve,
    slots: Slots = EngineConfig.slots,
    more: EngineSetting = None,
) -> None:
    """Search many times with settings drawn from ranges, on one engine, and keep the best by dev."""
    from modelswarms_fast.runs.sweep import parse_range, sweep

    content = sweep(
        experts[0] if len(experts) == 1 else experts,
        base=base,
        task=task,
        data=data,
        out=out,
        searches=searches,
        ranges=None if ranges is None else dict(parse_range(text) for text in ranges),
        evaluations=evaluations,
        minutes=minutes,
        at_once=at_once,
        swarm=read_settings(swarm, SwarmConfig),
        say=say,
        limit_dev=limit_dev,
        limit_test=limit_test,
        max_tokens=max_tokens,
        scoring=scoring,
        options=read_options(option),
        state=state,
        engine=engine,
        serve=serve,
        slots=slots,
        **read_settings(more, EngineConfig, own=("state", "engine", "serve", "slots")),
    )
    table = Table("search", *content["ranges"], "dev", "iterations", "evaluations", "stopped")
    for one in content["searches"]:
        drawn = [f"{one[name]:.3f}" for name in content["ranges"]]
        counts = str(one["iterations"]), str(one["evaluations"])
        table.add_row(one["name"], *drawn, f"{one['dev']:.4f}", *counts, one["stopped"])
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)
    for who, one in ((content["best"]["model"], content["best"]), ("best expert", content["best_expert"])):
        test = f"{one['test']:.4f} ± {one['test_standard_error']:.4f}"
        console.print(f"{who}: dev {one['dev']:.4f}, test {test}, dev - test {one['dev'] - one['test']:+.4f}")
    console.print(f"{content['evaluations']} evaluations; written to {out}: sweep.json")


@app.command("study")
def study_command(
    kind: Annotated[str, typer.Argument(help="ablation, diversity, drop, seeds or weak.")],
    experts: Annotated[list[str], typer.Argument(help="A folder of expert folders, or several experts.")],
    base: Base,
    task: Task,
    out: Annotated[Path, typer.Option(help="Folder to write; one that a cut study has left goes on.")],
    data: Data = None,
    seeds: Annotated[int, typer.Option(help="Searches of each variant.")] = 3,
    at_once: SearchesAtOnce = 2,
    swarm: SwarmSetting = None,
    limit_dev: Annotated[int | None, typer.Option(help="Use the first N dev examples.")] = None,
    limit_test: Annotated[int | None, typer.Option(help="Use the first N test examples.")] = None,
    max_tokens: MaxTokens = None,
    scoring: ScoringBy = "generate",
    option: Options = None,
    state: Annotated[State, typer.Option(help="What a row holds.")] = EngineConfig.state,
    engine: Engine = EngineConfig.engine,
    serve: ServeMode = EngineConfig.serve,
    slots: Slots = EngineConfig.slots,
    more: EngineSetting = None,
) -> None:
    """Run searches that differ in one thing, with several seeds each, and show them side by side."""
    from modelswarms_fast.runs.study import study

    content = study(
        kind,
        experts[0] if len(experts) == 1 else experts,
        base=base,
        task=task,
        data=data,
        out=out,
        seeds=seeds,
        at_once=at_once,
        swarm=read_settings(swarm, SwarmConfig),
        say=say,
        limit_dev=limit_dev,
        limit_test=limit_test,
        max_tokens=max_tokens,
        scoring=scoring,
        options=read_options(option),
        state=state,
        engine=engine,
        serve=serve,
        slots=slots,
        **read_settings(more, EngineConfig, own=("state", "engine", "serve", "slots")),
    )
    table = Table("variant", "runs", "dev", "test ± over seeds", "test beside the first", "evaluations")
    for name, one in content["summary"].items():
        deviation = "" if one["test"]["deviation"] is None else f" ± {one['test']['deviation']:.4f}"
        beside = "" if one["test_beside_the_first"] is None else f"{one['test_beside_the_first']['mean']:+.4f}"
        test = f"{one['test']['mean']:.4f}{deviation}"
        cost = f"{one['evaluations']['mean']:.0f}"
        table.add_row(name, str(one["runs"]), f"{one['dev']['mean']:.4f}", test, beside, cost)
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)
    best = content["best_expert"]
    console.print(f"best expert {best['expert']}: dev {best['dev']:.4f}, test {best['test']:.4f}")
    console.print(f"written to {out}: study.json, study.svg")


@app.command("baselines")
def baselines_command(
    experts: Annotated[list[str], typer.Argument(help="A folder of expert folders, or several experts.")],
    base: Base,
    task: Task,
    out: Annotated[Path, typer.Option(help="Folder for baselines.json; what it holds already is not run again.")],
    budget: Annotated[int, typer.Option(help="Evaluations on dev a method, those of the experts among them.")],
    data: Data = None,
    methods: Annotated[str | None, typer.Option(help="Names with commas between them; default: all.")] = None,
    seed: int = 0,
    swarm: SwarmSetting = None,
    train: Annotated[Path | None, typer.Option(help="What the experts were trained on, if a method needs it.")] = None,
    limit_dev: Annotated[int | None, typer.Option(help="Use the first N dev examples.")] = None,
    limit_test: Annotated[int | None, typer.Option(help="Use the first N test examples.")] = None,
    max_tokens: MaxTokens = None,
    scoring: ScoringBy = "generate",
    option: Options = None,
    state: Annotated[State, typer.Option(help="What a row of the swarm holds.")] = EngineConfig.state,
    engine: Engine = EngineConfig.engine,
    serve: ServeMode = EngineConfig.serve,
    slots: Slots = EngineConfig.slots,
    engines: Engines = EngineConfig.engines,
    tensor_parallel: TensorParallel = EngineConfig.tensor_parallel,
    dtype: EngineDType = EngineConfig.dtype,
    row_dtype: Annotated[DType, typer.Option(help="Of the rows; auto: the experts'.")] = EngineConfig.row_dtype,
    max_model_len: MaxModelLen = EngineConfig.max_model_len,
    parity_check: Annotated[CheckedLoads, typer.Option(help="Loads to compare.")] = EngineConfig.parity_check,
) -> None:
    """Compare Model Swarms with other ways to compose EXPERTS, each with the same budget of evaluations."""
    arguments: dict[str, Any] = dict(locals())
    from modelswarms_fast.runs.compare import compare, table_of

    arguments["experts"] = experts[0] if len(experts) == 1 else experts
    arguments["options"] = read_options(arguments.pop("option"))
    arguments["swarm"] = read_settings(swarm, SwarmConfig)
    if methods is None:
        del arguments["methods"]
    else:
        arguments["methods"] = [name.strip() for name in methods.split(",") if name.strip()]
    content = compare(**arguments, progress=True)
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table_of(content))
    console.print(f"written to {out}: baselines.json")


@app.command("token-swarm")
def token_swarm_command(
    experts: Annotated[list[str], typer.Argument(help="Full checkpoints of any architectures, or LoRA adapters.")],
    task: Task,
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    data: Data = None,
    base: Annotated[str | None, typer.Option(help="Base model of the adapters, if there are any.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in --out.")] = False,
    limit_dev: Annotated[int | None, typer.Option(help="Use the first N dev examples.")] = None,
    limit_test: Annotated[int | None, typer.Option(help="Use the first N test examples.")] = None,
    max_tokens: MaxTokens = None,
    scoring: ScoringBy = "generate",
    option: Options = None,
    particles: Annotated[int | None, typer.Option(help="Default: two for each expert, at least 6.")] = None,
    seed: int = SwarmConfig.seed,
    iterations: int = SwarmConfig.iterations,
    patience: int = SwarmConfig.patience,
    inertia: float = SwarmConfig.inertia,
    cognitive_coeff: float = SwarmConfig.cognitive_coeff,
    social_coeff: float = SwarmConfig.social_coeff,
    repel_coeff: float = SwarmConfig.repel_coeff,
    step_length: float = SwarmConfig.step_length,
    dtype: EngineDType = EngineConfig.dtype,
    max_model_len: MaxModelLen = EngineConfig.max_model_len,
) -> None:
    """Search over mixtures of what EXPERTS say next, token by token: for experts of different architectures."""
    settings = {name: value for name, value in locals().items() if value is not None}
    settings["experts"] = experts[0] if len(experts) == 1 else experts
    settings["options"] = read_options(settings.pop("option", None))
    from modelswarms_fast.runs.token_swarm import token_swarm

    show(token_swarm(**settings, progress=True), f"{out}: report.html, summary.json, global_best/mixture.json")


def say(line: str) -> None:
    """A line beside the results, on standard error."""
    Console(stderr=True, soft_wrap=True).print(line, highlight=False, markup=False)
