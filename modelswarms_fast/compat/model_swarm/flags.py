"""The flags of model_swarm's search.py, and the few of our own, as settings that have been checked."""

from __future__ import annotations

import argparse
import json
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from modelswarms_fast.compat.draws import R
from modelswarms_fast.compat.model_swarm.engine import engine_fields
from modelswarms_fast.compat.model_swarm.metrics import EVAL_TYPES
from modelswarms_fast.compat.model_swarm.objectives import PADDINGS
from modelswarms_fast.config import SwarmConfig
from modelswarms_fast.errors import InputError, quoted, short
from modelswarms_fast.errors.files import read_text

FILES = ("end", "every")

# Name, default, in the order of model_swarm; args.txt has them in this order.
_SHORT = {
    "name": "-n", "eval_type": "-e", "dataset": "-d", "gpus": "-g", "patience": "-p", "max_iteration": "-m",
    "initial_expert_directory": "-i", "base_model": "-b",
}  # fmt: skip
_PUBLISHED: dict[str, Any] = {
    "name": None, "eval_type": None, "dataset": None, "gpus": None, "num_cpu_when_merging": 1, "inertia": 0.4,
    "cognitive_coeff": 0.3, "social_coeff": 0.3, "repel_coeff": 0.3, "step_length": 1, "patience": 10,
    "max_iteration": 200, "weight_randomess": 1, "initial_expert_directory": "./initial_experts",
    "base_model": "google/gemma-7b-it", "starting_test_set_eval": 0, "fast_merge": 1, "project_name_wb": "swarm",
    "populate_initial_experts": 0, "initial_experts_num": None, "starting_velocity_mode": "random", "repel_term": 1,
    "step_length_factor": 0.95, "minimum_step_length": 0.1, "restart_stray_particles": 1, "restart_patience": 0.5,
    "clean_up_on_end": 1, "only_one_or_two": None, "to_visualize": False, "correctness_emergence": False, "dropK": 0,
    "dropN": 0,
}  # fmt: skip
_REQUIRED = ("name", "eval_type", "dataset", "gpus")


@dataclass(frozen=True)
class Settings:
    """What a search is asked for."""

    name: str
    """Of the run, with the name of the machine."""
    arguments: str
    """What args.txt says: the flags of model_swarm as they were given."""
    eval_type: str
    dataset: str
    gpus: tuple[int, ...]
    experts: str
    """Folder of expert folders."""
    base: str
    particles: int | None
    """As many as there are to be with children; None: no children."""
    swarm: dict[str, Any]
    """Fields of SwarmConfig but `particles`."""
    fast_merge: bool
    test_start: bool
    clean_up: bool
    trajectory: bool
    emergence: bool
    only: str | None
    project: str
    """Of Weights & Biases."""
    engine: dict[str, Any]
    """Fields of EngineConfig."""
    padding: str
    every: bool
    """Write weights after every iteration."""
    draws: R | None
    options: dict[str, str] = field(default_factory=dict)
    """Of the objective."""
    limit_dev: int | None = None
    limit_test: int | None = None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence in place of the usage."""
        raise InputError(f"{message}; --help lists the flags.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m modelswarms_fast.compat.model_swarm",
        description="model_swarm's search.py on a resident engine: its flags, its files, its numbers.",
    )
    published = parser.add_argument_group("flags of search.py")
    for name, default in _PUBLISHED.items():
        short_form = [_SHORT[name]] if name in _SHORT else []
        needed = "" if name not in _REQUIRED else "required"
        published.add_argument(
            *short_form, f"--{name}", default=default, help=needed or f"default: {str(default).replace('%', '%%')}"
        )
    own = parser.add_argument_group("further flags")
    own.add_argument("--padding", default="reference", help="reference (default): as published; clean: none")
    own.add_argument("--files", default="end", help="when weights are written: end (default) or every iteration")
    own.add_argument("--rounding", default="nearest", help="nearest (default) or published")
    own.add_argument("--draws", help="JSON file with the four random factors by iteration and particle")
    own.add_argument("--seed", default=42, help="of the random factors; default: 42")
    own.add_argument("--engine", default="vllm", help="vllm (default) or transformers")
    own.add_argument("--dtype", default="float16", help="of the model; default: float16")
    own.add_argument("--engine_set", action="append", default=[], metavar="K=V", help="a setting of the engine")
    own.add_argument("--option", action="append", default=[], metavar="K=V", help="an option of the objective")
    own.add_argument("--limit_dev", help="use only the first N dev examples")
    own.add_argument("--limit_test", help="use only the first N test examples")
    return parser


def read_flags(words: Sequence[str]) -> Settings:
    """The settings that the words of a command line ask for. Raises InputError for a value that cannot be used."""
    given = _parser().parse_args(words)
    for name in _REQUIRED:
        if getattr(given, name) in (None, ""):
            raise InputError(f"--{name} is missing; give {_SHORT[name]}, as search.py wants it.")
    number = _Numbers(given)
    name = f"{given.name}_{socket.gethostname()}"
    if "/" in name or "\0" in name or name.startswith("."):
        raise InputError(f"--name is {quoted(given.name)}; give a name without / that does not begin with a point.")
    populate = number.flag("populate_initial_experts")
    swarm: dict[str, Any] = {
        field_name: number.real(flag)
        for field_name, flag in {
            **{one: one for one in ("inertia", "cognitive_coeff", "social_coeff", "repel_coeff")},
            **{one: one for one in ("step_length", "step_length_factor", "minimum_step_length", "restart_patience")},
            "drop_k": "dropK",
            "drop_n": "dropN",
        }.items()
    }
    swarm |= {
        "iterations": number.whole("max_iteration", 0),
        "patience": number.whole("patience"),
        "repel": number.flag("repel_term"),
        "restart": number.flag("restart_stray_particles"),
        "randomness": "particle" if number.whole("weight_randomess", None) == 1 else "unit",
        "start_velocity": _choice(given, "starting_velocity_mode", ("random", "zero", "best")),
        "seed": number.whole("seed", 0),
    }
    SwarmConfig(particles=2, **swarm)  # what is out of range is refused before anything is read
    number.whole("num_cpu_when_merging")
    gpus = _gpus(given.gpus)
    arguments = argparse.Namespace(**{one: getattr(given, one) for one in _PUBLISHED} | {"name": name})
    return Settings(
        name=name,
        arguments=str(arguments),
        eval_type=_choice(given, "eval_type", EVAL_TYPES),
        dataset=given.dataset,
        gpus=gpus,
        experts=given.initial_expert_directory,
        base=given.base_model,
        particles=number.optional("initial_experts_num") if populate else None,
        swarm=swarm,
        fast_merge=number.flag("fast_merge"),
        test_start=number.flag("starting_test_set_eval"),
        clean_up=number.flag("clean_up_on_end"),
        trajectory=_switch(given.to_visualize),
        emergence=_switch(given.correctness_emergence),
        only=None if given.only_one_or_two is None else _choice(given, "only_one_or_two", ("one", "two")),
        project=given.project_name_wb,
        engine=engine_fields(given.engine, given.dtype, given.rounding, _pairs(given.engine_set, "--engine_set")),
        padding=_choice(given, "padding", PADDINGS),
        every=_choice(given, "files", FILES) == "every",
        draws=None if given.draws is None else _read_draws(Path(given.draws)),
        options=_pairs(given.option, "--option"),
        limit_dev=number.optional("limit_dev"),
        limit_test=number.optional("limit_test"),
    )


class _Numbers:
    """Flags as numbers; model_swarm converts them once they are parsed."""

    def __init__(self, given: argparse.Namespace) -> None:
        self._given = given

    def whole(self, name: str, least: int | None = 1) -> int:
        """A whole number. Raises InputError."""
        found: int = self._as(name, int, "a whole number")
        if least is not None and found < least:
            raise InputError(f"--{name} is {found}; give a whole number from {least} on.")
        return found

    def optional(self, name: str) -> int | None:
        """A whole number from 1 on, or None where it is left out. Raises InputError."""
        return None if getattr(self._given, name) is None else self.whole(name)

    def real(self, name: str) -> float:
        """A number. Raises InputError."""
        found: float = self._as(name, float, "a number")
        return found

    def flag(self, name: str) -> bool:
        """0, or any other whole number for yes. Raises InputError."""
        return self.whole(name, None) != 0

    def _as(self, name: str, kind: Callable[[Any], Any], words: str) -> Any:
        value = getattr(self._given, name)
        try:
            return kind(value)
        except (TypeError, ValueError) as error:
            raise InputError(f"--{name} is {quoted(value)}; give {words}.") from error


def _switch(value: object) -> bool:
    """Off for what says no, which model_swarm takes for yes as any text."""
    return str(value).strip().lower() not in ("", "0", "false", "no", "none")


def _choice(given: argparse.Namespace, name: str, choices: Sequence[str]) -> str:
    value = getattr(given, name)
    if value not in choices:
        raise InputError(f"--{name} is {quoted(value)}; choose {', '.join(choices)}.")
    return str(value)


def _gpus(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(one) for one in text.split(","))
    except ValueError as error:
        raise InputError(f"--gpus is {quoted(text)}; give numbers with commas, as in 0,1,2.") from error
    if min(found) < 0:
        raise InputError(f"--gpus is {quoted(text)}; give numbers from 0 on.")
    return tuple(dict.fromkeys(found))


def _pairs(given: Sequence[str], flag: str) -> dict[str, str]:
    found = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not name:
            raise InputError(f"{flag} is {quoted(one)}; give KEY=VALUE.")
        found[name] = value
    return found


def _read_draws(path: Path) -> R:
    """The random factors of a file: [iterations][particles][4], of inertia, cognitive, social and repel."""
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path} ({short(error)}); give a JSON file of random factors.") from error

    def draw(iteration: int, particle: int) -> Sequence[float]:
        try:
            found = [float(one) for one in content[iteration - 1][particle]]
        except (LookupError, TypeError, ValueError):
            found = []
        if len(found) != 4:
            raise InputError(
                f"{path} has no four numbers for iteration {iteration} and particle {particle}; give a list of "
                "iterations, each of particles, each of four numbers."
            )
        return found

    return draw
