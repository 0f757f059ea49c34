"""Numbers of each iteration for TensorBoard or Weights & Biases, written by their own libraries."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from modelswarms_fast.errors import InputError, quoted
from modelswarms_fast.records.run_folder import TENSORBOARD

MetricsKind = Literal["tensorboard", "wandb"]

PROJECT = "modelswarms-fast"
"""The project of all runs in Weights & Biases."""


class MetricsLog(Protocol):
    """What takes lines of a history."""

    def append(self, line: Mapping[str, Any], /) -> None:
        """Write the numbers of one iteration."""

    def close(self) -> None:
        """Write what is left; nothing can be appended after."""


def open_log(kind: MetricsKind, folder: str | Path, config: Mapping[str, Any]) -> MetricsLog:
    """Open a log of a run.

    TensorBoard's files are in `folder`/tensorboard. A run of Weights & Biases is named after the folder and shows
    `config`; where it is kept, and under whose name, is set with `wandb login` and its environment variables.

    Raises:
        InputError: there is no such kind, or its library is not installed.
    """
    if kind == "tensorboard":
        return _TensorBoard(_library("tensorboard.summary", kind), Path(folder))
    if kind == "wandb":
        return _Wandb(_library("wandb", kind), Path(folder), config)
    raise InputError(f"log is {quoted(kind)}; choose {' or '.join(get_args(MetricsKind))}.")


def metrics_of(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of a history that a log shows; those that are not finite are left out.

    `utility/best` is the best so far; `utility/mean` and `utility/worst` are those of all particles in this iteration.
    """
    utilities = [value for value in line["utilities"] if value is not None and math.isfinite(value)]
    seconds = line["seconds"]["total"]
    found = {
        "utility/best": line["global_best"]["utility"],
        "utility/mean": sum(utilities) / len(utilities) if utilities else math.nan,
        "utility/worst": min(utilities, default=math.nan),
        "speed/prompts_per_second": line["prompts"] / seconds if seconds else math.nan,
        "speed/engine_idle_share": line["engine_idle_share"],
    }
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}


class _TensorBoard:
    def __init__(self, summary: Any, folder: Path) -> None:
        try:
            self._writer = summary.Writer(str(folder / TENSORBOARD))
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"cannot write {folder / TENSORBOARD}: {reason}; choose another run folder.") from error

    def append(self, line: Mapping[str, Any], /) -> None:
        for name, value in metrics_of(line).items():
            self._writer.add_scalar(name, value, line["iteration"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, wandb: Any, folder: Path, config: Mapping[str, Any]) -> None:
        self._run = wandb.init(project=PROJECT, name=folder.resolve().name, dir=str(folder), config=dict(config))

    def append(self, line: Mapping[str, Any], /) -> None:
        self._run.log(metrics_of(line), step=line["iteration"])

    def close(self) -> None:
        self._run.finish()


def _library(module: str, kind: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"log is {quoted(kind)}, which is not installed: pip install {kind}, or leave log out."
        ) from error
