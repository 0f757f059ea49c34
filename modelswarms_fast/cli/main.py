"""The command line: search, evaluate, demo, and the commands of more.py."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from modelswarms_fast.cli import more
from modelswarms_fast.cli.options import (
    Base,
    Data,
    Engine,
    EngineDType,
    Engines,
    MaxModelLen,
    MaxTokens,
    Options,
    ScoringBy,
    ServeMode,
    Slots,
    Task,
    TensorParallel,
    read_options,
    show,
)
from modelswarms_fast.config import (
    CheckedLoads,
    DType,
    EngineConfig,
    Randomness,
    Rounding,
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
    max_num_seqs: Annotated[int | None, typer.Option(help="Requests in one step of vLLM; default: its own.")] = None,
    parity_check: Annotated[CheckedLoads, typer.Option(help="Loads to compare.")] = EngineConfig.parity_check,
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
    engines: Engines = EngineConfig.engines,
    tensor_parallel: TensorParallel = EngineConfig.tensor_parallel,
    dtype: EngineDType = EngineConfig.dtype,
    max_model_len: MaxModelLen = EngineConfig.max_model_len,
) -> None:
    """Score one model on a split and print the result as JSON."""
    settings = locals()
    from modelswarms_fast.records.run_folder import plain
    from modelswarms_fast.runs.evaluate import evaluate

    settings["options"] = read_options(settings.pop("option"))
    print(json.dumps(plain(evaluate(**settings)), indent=2))


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
    from modelswarms_fast.runs.search import search

    show(search(**arguments, progress=True), f"{arguments['out']}: report.html, summary.json, global_best/")


app.add_typer(more.app)


def main() -> None:
    """Entry point: a user's mistake, or an engine that failed, is one sentence and exit status 2."""
    _quiet()
    if isinstance(sys.stdout, io.TextIOWrapper):  # as stderr is: what it cannot encode must not cost the results
        sys.stdout.reconfigure(errors="backslashreplace")
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
