"""`python -m modelswarms_fast.compat.moco -c CONFIG -l LOGS`: MoCo's own runner, on engines that stay."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from modelswarms_fast.compat.moco.patching import PACKAGE, patch, unpatch
from modelswarms_fast.compat.moco.session import settings_of
from modelswarms_fast.config import EngineConfig
from modelswarms_fast.errors import EngineError, InputError, quoted, short
from modelswarms_fast.weights.base_model import read_object

KEYS = ("method", "task", "task_type", "gpu_ids", "model_names", "hyperparameters")


def main(arguments: Sequence[str]) -> None:
    """Run MoCo's `run_main` with what it knows of these arguments.

    Raises:
        InputError: an argument or the config cannot be used, or MoCo cannot be imported.
    """
    parser = argparse.ArgumentParser(
        prog="python -m modelswarms_fast.compat.moco", description="MoCo's runner on engines that stay."
    )
    parser.add_argument("-c", "--config_file", required=True, help="MoCo's JSON file of a method and its models")
    parser.add_argument("-l", "--log_dir", help="folder for the results; by default MoCo's own")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the engines, such as engine=transformers, dtype=float32, max_model_len=8192, serve=slots, "
        "slots=8 or engine_options={gpu_memory_utilization: 0.6}; given once for each",
    )
    parser.add_argument(
        "--files", choices=("end", "every"), default="end", help="write positions of a swarm at its end, or every move"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of drawn answers")
    given = parser.parse_args(arguments)
    settings = engine_settings(given.set) if given.set else None
    _check_config(given.config_file)
    logs = [] if given.log_dir is None else ["-l", given.log_dir]
    if logs and not os.path.isdir(given.log_dir):
        raise InputError(f"{given.log_dir} is not a folder; make it, or give another as -l.")
    patch(settings, files=given.files, seed=given.seed)
    try:
        runner = _runner()
        sys.argv = ["moco", "-c", given.config_file, *logs]
        runner.run_main()
    finally:
        unpatch()


def engine_settings(pairs: Sequence[str]) -> EngineConfig:
    """Settings of the engines, MoCo's where none is given. Raises InputError."""
    values: dict[str, Any] = {}
    known = {field.name for field in fields(EngineConfig)}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or key not in known:
            raise InputError(f"--set {quoted(pair)} is no setting of the engines; give KEY=VALUE, as in dtype=float32.")
        try:
            values[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(
                f"--set {quoted(pair)} has a value that is no YAML ({short(error)}); correct it."
            ) from error
    own = settings_of()
    return EngineConfig(**{"dtype": own.dtype, "max_model_len": own.max_model_len} | values)


def _check_config(path: str) -> None:
    config = read_object(Path(path), "give a config of MoCo")
    for key in KEYS:
        if key not in config:
            raise InputError(f"{path} has no {quoted(key)}; MoCo needs {', '.join(KEYS)}.")


def _runner() -> Any:
    try:
        return importlib.import_module(f"{PACKAGE}.main")
    except ImportError as error:
        raise InputError(f"{PACKAGE}.main cannot be imported ({short(error)}); install MoCo.") from error


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (InputError, EngineError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
