"""Options that commands share, what reads them, and how a search's end is shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from modelswarms_fast.config import DType, EngineConfig, EngineName, Scoring, Serve, SwarmConfig
from modelswarms_fast.errors import InputError

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
Slots = Annotated[int, typer.Option(help="Population that one batch serves with --serve slots (or auto).")]
Engines = Annotated[int, typer.Option(help="Engines side by side, each on its share of the cores.")]
TensorParallel = Annotated[int, typer.Option(help="Processes that share one engine's model, each a part of it.")]
EngineDType = Annotated[DType, typer.Option(help="Of the base model in the engine.")]
MaxModelLen = Annotated[int, typer.Option(help="Longest prompt plus its completion, in tokens.")]


SearchesAtOnce = Annotated[int, typer.Option(help="Searches under way on the engine.")]
SwarmSetting = Annotated[
    list[str] | None, typer.Option("--set", help="A setting of all searches, as in --set iterations=10; repeatable.")
]
EngineSetting = Annotated[
    list[str] | None,
    typer.Option("--engine-set", help="Another one of the engine, as in --engine-set max_model_len=512."),
]


def read_options(given: list[str] | None) -> dict[str, str]:
    """Options KEY=VALUE as a dictionary. Raises InputError."""
    options = {}
    for one in given or []:
        key, equals, value = one.partition("=")
        if not key or not equals or key in options:
            raise InputError(f"--option {one} is not of the form key=value, or is given twice; give each key once.")
        options[key] = value
    return options


def read_settings(
    pairs: list[str] | None, kind: type[SwarmConfig] | type[EngineConfig], own: Sequence[str] = ()
) -> dict[str, Any]:
    """Fields of a configuration from texts such as "iterations=10"; those in `own` have options of their own.

    Raises InputError.
    """
    found: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, text = pair.partition("=")
        field = kind.__dataclass_fields__.get(name)
        if field is None or not equals:
            names = [name for name in kind.__dataclass_fields__ if name not in own]
            raise InputError(f"{pair!r} sets nothing; give name=value with one of {', '.join(names)}")
        if name in own:
            raise InputError(f"{name} has an option of its own; give --{name} {text} instead of {pair!r}")
        try:
            value = json.loads(text.lower() if str(field.type) == "bool" else text)
        except ValueError:
            value = text
        wanted: Any = {"int": int, "int | None": int, "float": (int, float), "bool": bool}.get(str(field.type), object)
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            raise InputError(f"{name} is {text!r}; give a value of the type {field.type}")
        found[name] = value
    return found


def show(summary: dict[str, Any], written: str) -> None:
    """Start and end of a search, what the winner is made of, and the time of each phase."""
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
