"""Options derived from the settings: each field of a dataclass is one option of the same name.

The field gives the option its type, its choices and its default, and the first sentence of the field's docstring is the
help. `--config FILE` reads the same options from a file.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import functools
import inspect
import json
import logging
import textwrap
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from rich.markup import escape
from typer.models import OptionInfo

from modelswarms_fast.cli.config_file import read_config, words
from modelswarms_fast.config import SwarmConfig, fields_of
from modelswarms_fast.errors import InputError
from modelswarms_fast.records.progress import log, say

PROGRAM = "modelswarms-fast"

PANELS = ("Input", "Output", "Search", "Swarm", "Engine", "Memory", "Checks", "Options")
"""Groups of --help, in this order."""

_MEMBERS = {
    "Input": (
        "base", "task", "data", "map", "dev_split", "test_split", "split_seed", "split", "limit_dev", "limit_test",
        "max_tokens", "scoring", "temperature", "top_p", "samples", "pass_k", "sample_seed", "options", "chat",
        "system", "train",
    ),
    "Output": ("out", "at", "overwrite", "resume", "force", "reuse", "log", "trace"),
    "Search": (
        "policy", "space", "particles", "iterations", "patience", "seed", "stop_early", "race", "searches", "seeds",
        "budget", "evaluations", "minutes", "methods", "ranges", "at_once",
    ),
    "Memory": ("state", "row_dtype", "rounding", "host_memory", "device_memory", "spill"),
    "Checks": ("dry_run", "parity_check", "confirm", "choose", "final_test"),
    "Options": ("config", "verbose"),
}  # fmt: skip
"""Their options, in this order. What is in none is a setting of "Swarm" or "Engine"."""

FLAGS = {"options": "--option", "map": "--map", "engine_options": "--engine-option", "ranges": "--range"}
"""Options that are given once for each entry are named in the singular."""

ARGUMENTS = ("kind", "model", "experts")
"""Given without a name, in this order."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What every command reads."""

    base: str
    """Base model of the experts: a local folder, a hub id, smollm2-135m-instruct or gemma-3-270m."""
    task: str
    """Objective: a name of the documentation's list, or a Python function as module:function."""
    data: list[str] | None = None
    """Examples: JSON, JSONL, CSV, TSV or Parquet, a folder of them, or hf:NAME[:CONFIG]; one a task, YAML for lm_eval.

    Given twice for one task: a file for dev and one for test."""


Experts = Annotated[list[str], typer.Argument(help="A folder that holds the experts' folders, or several experts.")]
Out = Annotated[Path, typer.Option(help="Folder to write.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out that was cut, if there is one.")]
Force = Annotated[
    bool, typer.Option("--force", help="With --resume: go on although experts, data, base or versions have changed.")
]
Reuse = Annotated[
    list[Path] | None,
    typer.Option(help="Run folder of the same experts, base, data and settings, whose scores are used; repeatable."),
]
AtOnce = Annotated[int, typer.Option(help="Searches that run side by side on the engine.")]


def settings(
    *kinds: type, only: Collection[str] | None = None, **defaults: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command's function an option for each field of these dataclasses, and --config and --verbose.

    The function's own parameters become options too. It gets the fields that were given, on the command line or in the
    file, as keyword arguments.

    Args:
        kinds: the dataclasses.
        only: fields to take of the last dataclass; None: all.
        defaults: other defaults than the fields have.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = [one for one in _declared(function) if one.kind != one.VAR_KEYWORD]
        derived = [
            parameter
            for kind in kinds
            for parameter in parameters_of(kind)
            if only is None or kind is not kinds[-1] or parameter.name in only
        ]
        derived = [one.replace(default=defaults.get(one.name, one.default)) for one in derived]
        found = sorted(map(_with_panel, [*own, *derived, *_declared(_everywhere)]), key=_order)

        @functools.wraps(function)
        def command(_context: typer.Context, **values: Any) -> None:
            arguments = {one.name: values[one.name] for one in own}
            for one in derived:
                if (source := _context.get_parameter_source(one.name)) is not None and source.name != "DEFAULT":
                    arguments[one.name] = values[one.name]
            for name in {"options", "map"} & arguments.keys():
                arguments[name] = read_pairs(arguments[name], FLAGS[name])
            if "engine_options" in arguments:
                texts = read_pairs(arguments["engine_options"], FLAGS["engine_options"])
                arguments["engine_options"] = {name: value_of(text) for name, text in texts.items()}
            if len(arguments.get("experts") or ()) == 1:
                arguments["experts"] = arguments["experts"][0]
            function(**arguments)

        context = inspect.Parameter("_context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        signature = inspect.Signature([context, *found])
        command.__signature__ = signature  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in signature.parameters.values()}
        return command

    return decorate


def parameters_of(kind: type) -> list[inspect.Parameter]:
    """An option for each field of a dataclass."""
    hints, helps = get_type_hints(kind), docstrings_of(kind)
    found = []
    for one in dataclasses.fields(kind):
        hint, default = hints[one.name], one.default
        if get_origin(hint) is Mapping:
            hint, default = list[str] | None, None
        elif default is dataclasses.MISSING:
            default = inspect.Parameter.empty
        names = [FLAGS[one.name]] if one.name in FLAGS else []
        option = typer.Option(*names, help=escape(first_sentence(helps[one.name])))
        found.append(
            inspect.Parameter(
                one.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, option]
            )
        )
    return found


@functools.cache
def docstrings_of(kind: type) -> Mapping[str, str]:
    """Field -> the docstring under it in the source of the dataclass."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for one, after in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and isinstance(after, ast.Expr):
            found[one.target.id] = inspect.cleandoc(ast.literal_eval(after.value))
    return found


def first_sentence(text: str) -> str:
    """The first sentence of a docstring, without its full stop."""
    return " ".join(text.split()).partition(". ")[0].removesuffix(".")


def read_pairs(given: list[str] | None, flag: str = "--option") -> dict[str, str]:
    """Texts KEY=VALUE as a dictionary. Raises InputError."""
    pairs: dict[str, str] = {}
    for one in given or []:
        key, equals, value = one.partition("=")
        if not key or not equals or key in pairs:
            raise InputError(f"{flag} {one} is not of the form key=value, or is given twice; give each key once.")
        pairs[key] = value
    return pairs


def value_of(text: str) -> Any:
    """What a text says in JSON or as a word of Python's, as in 0.6, true, None or [1, 2]; else the text itself."""
    try:
        return json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
    except (ValueError, RecursionError):
        return text


def command_of(name: str, arguments: Mapping[str, Any]) -> list[str]:
    """The words of a command line that calls the command `name` with these arguments."""
    line = [PROGRAM, name]
    for argument in ARGUMENTS:
        line += [] if arguments.get(argument) is None else words(arguments[argument])
    for key, value in arguments.items():
        flag = FLAGS.get(key, f"--{key.replace('_', '-')}")
        if key in ARGUMENTS or value is None:
            continue
        if isinstance(value, bool):
            line.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            line += [word for text in words(value) for word in (flag, text)]
    return line


def log_details(value: bool) -> bool:
    """Show details on standard error, or not."""
    log.handlers = [_Lines()] if value else []
    log.setLevel(logging.INFO if value else logging.WARNING)
    return value


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def _declared(function: Callable[..., None]) -> list[inspect.Parameter]:
    return list(inspect.signature(function, eval_str=True).parameters.values())


def _panel(name: str) -> str:
    swarm = {one.name for one in dataclasses.fields(SwarmConfig)}
    return next((panel for panel in _MEMBERS if name in _MEMBERS[panel]), "Swarm" if name in swarm else "Engine")


def _order(parameter: inspect.Parameter) -> tuple[int, int]:
    """Where --help has it; a panel of settings keeps the order of their fields."""
    if parameter.name in ARGUMENTS:
        return -1, ARGUMENTS.index(parameter.name)
    panel = _panel(parameter.name)
    return PANELS.index(panel), _MEMBERS[panel].index(parameter.name) if panel in _MEMBERS else 0


def _with_panel(parameter: inspect.Parameter) -> inspect.Parameter:
    kind, info = get_args(parameter.annotation)
    info = copy.copy(info)
    if isinstance(info, OptionInfo):
        info.rich_help_panel = _panel(parameter.name)
    return parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=Annotated[kind, info])


def _everywhere(
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML or JSON file of options by name, such as a run's config.json; the command line overrides it.",
            is_eager=True,
            callback=read_config,
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show memory, seconds and other details.", callback=log_details)
    ] = False,
) -> None:
    """Options of every command that has settings; their callbacks do the work."""


def split_settings(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of SwarmConfig, and the rest."""
    return fields_of(SwarmConfig, given)
