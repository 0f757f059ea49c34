"""The command line: search, evaluate, demo, bench, baselines."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from modelswarms_fast.config import (
    Canary,
    DType,
    EngineConfig,
    EngineName,
    Randomness,
    Rounding,
    Scoring,
    Serve,
    StartVelocity,
    State,
    SwarmConfig,
)
from modelswarms_fast.errors import EngineError, InputError

app = typer.Typer(
    help="Adapt language-model experts to a task by swarm search, on one resident engine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Base = Annotated[str, typer.Option(help="Base model: a local folder, a hub id, or smollm2-135m-instruct.")]
Task = Annotated[str, typer.Option(help="An objective of docs/objectives.md, or a function as module:function.")]
Data = Annotated[
    list[Path] | None,
    typer.Option(help="JSON file with the lists dev and test; for lm_eval YAML; several for multitask."),
]
ScoringBy = Annotated[Scoring, typer.Option(help="loglikelihood: compare likelihoods where the task can.")]
Options = Annotated[
    list[str] | None, typer.Option("--option", help="KEY=VALUE of the objective's own; as often as needed.")
]
MaxTokens = Annotated[int | None, typer.Option(help="New tokens an example, instead of the task's limit.")]
Engine = Annotated[EngineName, typer.Option(help="vllm, or transformers: slow, exact, without vLLM.")]
ServeMode = Annotated[
    Serve,
    typer.Option(
        help="merged: into the weights; slots: several particles as LoRA; mixture: all, as mixtures; auto: the fastest."
    ),
]
Slots = Annotated[int, typer.Option(help="Particles that one batch serves with --serve slots (or auto).")]
Engines = Annotated[int, typer.Option(help="Engines side by side, each on its share of the cores.")]
TensorParallel = Annotated[int, typer.Option(help="Processes that share one engine's model, each a part of it.")]
EngineDType = Annotated[DType, typer.Option(help="Of the base model in the engine.")]
MaxModelLen = Annotated[int, typer.Option(help="Longest prompt plus its completion, in tokens.")]


@app.command("search")
def search_command(
    experts: Annotated[list[str], typer.Argument(help="A folder of expert folders, or several experts.")],
    base: Base,
    task: Task,
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    data: Data = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in --out.")] = False,
    limit_dev: Annotated[int | None, typer.Option(help="Use the first N dev examples.")] = None,
    limit_test: Annotated[int | None, typer.Option(help="Use the first N test examples.")] = None,
    max_tokens: MaxTokens = None,
    scoring: ScoringBy = "generate",
    option: Options = None,
    particles: Annotated[int | None, typer.Option(help="Default: one for each expert.")] = None,
    seed: int = SwarmConfig.seed,
    iterations: int = SwarmConfig.iterations,
    patience: int = SwarmConfig.patience,
    inertia: float = SwarmConfig.inertia,
    cognitive_coeff: float = SwarmConfig.cognitive_coeff,
    social_coeff: float = SwarmConfig.social_coeff,
    repel_coeff: float = SwarmConfig.repel_coeff,
    repel: Annotated[bool, typer.Option(help="Move away from the global worst.")] = SwarmConfig.repel,
    randomness: Annotated[
        Randomness, typer.Option(help="Draws a particle, a coordinate, or none.")
    ] = SwarmConfig.randomness,
    step_length: float = SwarmConfig.step_length,
    step_length_factor: float = SwarmConfig.step_length_factor,
    minimum_step_length: float = SwarmConfig.minimum_step_length,
    restart: Annotated[bool, typer.Option(help="Restart particles that stray.")] = SwarmConfig.restart,
    restart_patience: Annotated[float, typer.Option(help="Share of patience.")] = SwarmConfig.restart_patience,
    start_velocity: Annotated[StartVelocity, typer.Option()] = SwarmConfig.start_velocity,
    drop_k: Annotated[float, typer.Option(help="Share of iterations not evaluated.")] = SwarmConfig.drop_k,
    drop_n: Annotated[float, typer.Option(help="Share of particles not evaluated.")] = SwarmConfig.drop_n,
    state: Annotated[State, typer.Option(help="What a row holds.")] = EngineConfig.state,
    engine: Engine = EngineConfig.engine,
    serve: ServeMode = EngineConfig.serve,
    slots: Slots = EngineConfig.slots,
    engines: Engines = EngineConfig.engines,
    tensor_parallel: TensorParallel = EngineConfig.tensor_parallel,
    dtype: EngineDType = EngineConfig.dtype,
    row_dtype: Annotated[DType, typer.Option(help="Of the rows; auto: the experts'.")] = EngineConfig.row_dtype,
    rounding: Annotated[Rounding, typer.Option(help="Of moved rows to half types.")] = EngineConfig.rounding,
    max_model_len: MaxModelLen = EngineConfig.max_model_len,
    canary: Annotated[Canary, typer.Option(help="Loads to prove against transformers.")] = EngineConfig.canary,
    host_memory: Annotated[str | None, typer.Option(help="What rows may take in the host's memory: 8GB.")] = None,
    device_memory: Annotated[str | None, typer.Option(help="What rows may take in a GPU's memory.")] = None,
    spill: Annotated[str | None, typer.Option(help="Folder on a disk for rows that have no room.")] = None,
    stop_early: Annotated[
        bool, typer.Option("--stop-early", help="Drop examples that can change no decision.")
    ] = EngineConfig.stop_early,
    trace: Annotated[Path | None, typer.Option(help="File for a Chrome trace of the run.")] = None,
    confirm: Annotated[
        int, typer.Option(help="Dev examples kept back, on which the last candidates are scored before one is chosen.")
    ] = 0,
    final_test: Annotated[
        bool, typer.Option("--final-test", help="Score all experts and particles on test too, for the report.")
    ] = False,
) -> None:
    """Search for a better model among the mixtures of EXPERTS, and export the best one found."""
    settings = {name: value for name, value in locals().items() if value is not None}
    settings["options"] = read_options(settings.pop("option", None))
    if len(experts) == 1:
        settings["experts"] = experts[0]
    _search_and_show(settings)


@app.command("evaluate")
def evaluate_command(
    model: Annotated[str, typer.Argument(help="An adapter folder, a full checkpoint, or the base itself.")],
    base: Base,
    task: Task,
    data: Data = None,
    split: Annotated[str, typer.Option(help="dev or test.")] = "test",
    limit: Annotated[int | None, typer.Option(help="Use the first N examples.")] = None,
    max_tokens: MaxTokens = None,
    scoring: ScoringBy = "generate",
    option: Options = None,
    engine: Engine = EngineConfig.engine,
    serve: ServeMode = EngineConfig.serve,
    engines: Engines = EngineConfig.engines,
    tensor_parallel: TensorParallel = EngineConfig.tensor_parallel,
    dtype: EngineDType = EngineConfig.dtype,
    max_model_len: MaxModelLen = EngineConfig.max_model_len,
) -> None:
    """Score one model on a split and print the result as JSON."""
    from modelswarms_fast.one_model import evaluate

    settings = locals()
    settings.pop("evaluate")
    settings["options"] = read_options(settings.pop("option"))
    print(json.dumps(evaluate(**settings), indent=2))


@app.command("demo")
def demo_command(
    examples: Annotated[Path, typer.Option(help="The repository's examples folder.")] = Path("examples"),
    out: Annotated[Path, typer.Option(help="Run folder to write; an earlier run in it is replaced.")] = Path(
        "runs/demo"
    ),
) -> None:
    """Search over the example experts for a mix of skills that none of them covers."""
    if not (examples / "experts").is_dir():
        raise InputError(f"{examples} holds no experts; run the demo in a clone of the repository, or give --examples.")
    _search_and_show(
        {
            "experts": examples / "experts",
            "base": "smollm2-135m-instruct",
            "task": "exact_match",
            "data": examples / "data" / "skills_mix.json",
            "out": out,
            "overwrite": True,
        }
        | DEMO
    )


@app.command("bench")
def bench_command(
    groups: Annotated[
        list[str] | None,
        typer.Argument(
            help="update, mix, rows, variants, stream, shards, overhead, growth, load, evaluate, search; default: all."
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Keep the numbers in this file.")] = None,
    model_swarm: Annotated[Path | None, typer.Option(help="Your clone of the published code, to compare with.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small rows, few rounds: to see that it works.")] = False,
) -> None:
    """Measure the operators and the engine on this machine, in a clone of the repository."""
    from modelswarms_fast.bench import machine, run_benchmarks, tables

    results = run_benchmarks(groups or [], quick=quick, model_swarm=model_swarm, target=json_file)
    console = Console(width=None if sys.stdout.isatty() else 200)  # a file has room
    for table in tables(results):
        console.print(table)
    console.print(machine(results))


@app.command("token-swarm")
def token_swarm_command(
    experts: Annotated[list[str], typer.Argument(help="Full checkpoints of any architectures, or LoRA adapters.")],
    task: Task,
    data: Data,
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
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
    from modelswarms_fast.token_swarm import token_swarm

    _show(token_swarm(**settings, progress=True), f"{out}: report.html, summary.json, global_best/mixture.json")


@app.command("report")
def report_command(
    run: Annotated[Path, typer.Argument(help="The folder of a search, ended or not.")],
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Score its experts and particles on test first; starts an engine.")
    ] = False,
    plots: Annotated[Path | None, typer.Option(help="Folder for the plots as SVG files.")] = None,
) -> None:
    """Write report.html of RUN again, with all analyses that its files allow."""
    from modelswarms_fast.analysis import read_run
    from modelswarms_fast.analysis.every import PLOTS, analyse, draw
    from modelswarms_fast.report import write_report

    if evaluate:
        from modelswarms_fast.final_test import evaluate_run

        evaluate_run(run)
    written = [write_report(run)]
    if plots is not None:
        plots.mkdir(parents=True, exist_ok=True)
        for name, numbers in analyse(read_run(run)).items():
            if name in PLOTS:
                (plots / f"{name}.svg").write_bytes(draw(name, numbers))
                written.append(plots / f"{name}.svg")
    print("\n".join(map(str, written)))


SearchesAtOnce = Annotated[int, typer.Option(help="Searches under way on the engine.")]
SwarmSetting = Annotated[
    list[str] | None, typer.Option("--set", help="A setting of all searches, as in --set iterations=10; repeatable.")
]
EngineSetting = Annotated[
    list[str] | None, typer.Option("--engine-set", help="One of the engine, as in --engine-set max_model_len=512.")
]


@app.command("sweep")
def sweep_command(
    experts: Annotated[list[str], typer.Argument(help="A folder of expert folders, or several experts.")],
    base: Base,
    task: Task,
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder to write; one that a cut sweep has left goes on.")],
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
    from modelswarms_fast.sweep import parse_range, sweep

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
        swarm=_settings(swarm, SwarmConfig),
        say=_say,
        limit_dev=limit_dev,
        limit_test=limit_test,
        max_tokens=max_tokens,
        scoring=scoring,
        options=read_options(option),
        state=state,
        engine=engine,
        serve=serve,
        slots=slots,
        **_settings(more, EngineConfig),
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
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder to write; one that a cut study has left goes on.")],
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
    from modelswarms_fast.study import study

    content = study(
        kind,
        experts[0] if len(experts) == 1 else experts,
        base=base,
        task=task,
        data=data,
        out=out,
        seeds=seeds,
        at_once=at_once,
        swarm=_settings(swarm, SwarmConfig),
        say=_say,
        limit_dev=limit_dev,
        limit_test=limit_test,
        max_tokens=max_tokens,
        scoring=scoring,
        options=read_options(option),
        state=state,
        engine=engine,
        serve=serve,
        slots=slots,
        **_settings(more, EngineConfig),
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


def _settings(pairs: list[str] | None, kind: type[SwarmConfig] | type[EngineConfig]) -> dict[str, Any]:
    """Fields of a configuration from texts such as "iterations=10". Raises InputError."""
    found: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, text = pair.partition("=")
        field = kind.__dataclass_fields__.get(name)
        if field is None or not equals:
            raise InputError(
                f"{pair!r} sets nothing; give name=value with one of {', '.join(kind.__dataclass_fields__)}"
            )
        try:
            value = json.loads(text.lower() if str(field.type) == "bool" else text)
        except ValueError:
            value = text
        wanted: Any = {"int": int, "float": (int, float), "bool": bool}.get(str(field.type), object)
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            raise InputError(f"{name} is {text!r}; give a value of the type {field.type}")
        found[name] = value
    return found


def _say(line: str) -> None:
    Console(stderr=True, soft_wrap=True).print(line, highlight=False, markup=False)


# The middle of the ranges that the published code draws from; few iterations, to end within minutes on two cores.
DEMO: dict[str, Any] = {
    "inertia": 0.2,
    "cognitive_coeff": 0.3,
    "social_coeff": 0.4,
    "repel_coeff": 0.05,
    "limit_dev": 96,
    "iterations": 6,
    "max_model_len": 512,
}


def _search_and_show(arguments: dict[str, Any]) -> None:
    from modelswarms_fast.loop import search

    _show(search(**arguments, progress=True), f"{arguments['out']}: report.html, summary.json, global_best/")


def _show(summary: dict[str, Any], written: str) -> None:
    start, end, seconds = summary["start"], summary["end"], summary["seconds"]
    errors = summary["test_standard_error"]
    table = Table("", "", "dev", "test ± standard error")
    for row, who, label in (
        (start, start["expert"], "best expert"),
        (end, f"particle {end['particle']}", "Model Swarms"),
    ):
        error = errors["start" if row is start else "end"]
        table.add_row(label, who, f"{row['dev']:.4f}", f"{row['test']:.4f} ± {error:.4f}")
    console = Console()
    console.print(table)
    if summary["mixture"] is not None:
        shares = sorted(summary["mixture"].items(), key=lambda item: -abs(item[1]))
        console.print("winner = " + " ".join(f"{value:+.2f} {name}" for name, value in shares))
    phases = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
    console.print(
        f"{summary['dev_examples']} dev and {summary['test_examples']} test examples; "
        f"{summary['iterations']} iterations, stopped by {summary['stopped']}; "
        f"{summary['prompts_per_second']:.1f} prompts/s; {phases}"
    )
    if summary.get("objective"):
        console.print("objective: " + ", ".join(f"{name} {value}" for name, value in summary["objective"].items()))
    console.print(f"written to {written}")


def read_options(given: list[str] | None) -> dict[str, str]:
    """Options KEY=VALUE as a dictionary. Raises InputError."""
    options = {}
    for one in given or []:
        key, equals, value = one.partition("=")
        if not key or not equals or key in options:
            raise InputError(f"--option {one} is not of the form key=value, or is given twice; give each key once.")
        options[key] = value
    return options


def main() -> None:
    """Entry point: a user's mistake, or an engine that failed, is one sentence and exit status 2."""
    _quiet()
    try:
        app()
    except (InputError, EngineError) as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False, highlight=False)
        sys.exit(2)


def _quiet() -> None:
    """Only our own output: the engines' advice to programmers is not the user's."""
    warnings.filterwarnings("ignore")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of the engines' processes
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.getLogger("transformers").setLevel(logging.ERROR)


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
    swarm: Annotated[
        list[str] | None, typer.Option(help="A setting of Model Swarms as name=value, such as inertia=0.2; repeat it.")
    ] = None,
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
    canary: Annotated[Canary, typer.Option(help="Loads to prove against transformers.")] = EngineConfig.canary,
) -> None:
    """Compare Model Swarms with other ways to compose EXPERTS, each with the same budget of evaluations."""
    arguments: dict[str, Any] = dict(locals())
    from modelswarms_fast.comparison import compare, settings_of, table_of

    arguments["experts"] = experts[0] if len(experts) == 1 else experts
    arguments["options"] = read_options(arguments.pop("option"))
    arguments["swarm"] = settings_of(swarm or [])
    if methods is None:
        del arguments["methods"]
    else:
        arguments["methods"] = [name.strip() for name in methods.split(",") if name.strip()]
    content = compare(**arguments, progress=True)
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table_of(content))
    console.print(f"written to {out}: baselines.json")
