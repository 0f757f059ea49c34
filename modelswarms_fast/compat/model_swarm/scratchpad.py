"""What model_swarm records of a search as it goes: utility_scratchpad.json, log.txt, and Weights & Biases."""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from modelswarms_fast.compat.model_swarm.metrics import SCRATCHPAD
from modelswarms_fast.records.run_folder import write_text
from modelswarms_fast.swarm import Floats

_FORM = "%(levelname)s:%(name)s:%(message)s"


class Scratchpad:
    """The utilities of a search up to now, by model_swarm's names and in its order."""

    def __init__(self, particles: int) -> None:
        self._particles = range(particles)
        self.content: dict[str, Any] = {"g": None, "g_worst": None, "g_history": []}
        for i in self._particles:
            self.content |= {f"particle_{i}_now": None, f"particle_{i}_best": None, f"particle_{i}_history": []}

    def tell(self, utilities: Floats, personal_best: Floats, bests: Mapping[str, Mapping[str, float]]) -> list[str]:
        """Take in the utilities [P] of an iteration, and the bests with them; what the log says of new bests."""
        content, said = self.content, []
        for i, (utility, best) in enumerate(zip(utilities.tolist(), personal_best.tolist(), strict=True)):
            before = content[f"particle_{i}_best"]
            if before is not None and best > before:
                said.append(f"new personal best for particle_{i}: {utility}")
            content[f"particle_{i}_now"] = utility
            content[f"particle_{i}_best"] = best if math.isfinite(best) else utility
            content[f"particle_{i}_history"].append(utility)
        g = bests["global_best"]["utility"]
        if content["g"] is not None and g > content["g"]:
            said.append(f"new global best: {g}")
        content["g"], content["g_worst"] = g, bests["global_worst"]["utility"]
        content["g_history"].append(g)
        return said

    @property
    def best_particle(self) -> int:
        """The particle that the log calls the global best: the last whose best is it."""
        content = self.content
        return [i for i in self._particles if content[f"particle_{i}_best"] == content["g"]][-1]

    @property
    def numbers(self) -> dict[str, float]:
        """What is shown of an iteration."""
        names = ("g", "g_worst", *(f"particle_{i}_now" for i in self._particles))
        return {name: self.content[name] for name in names}

    def write(self, run: Path) -> None:
        """Write the file of a run. Raises InputError."""
        write_text(run / SCRATCHPAD, json.dumps(self.content, indent=4))


class Curves:
    """The files of two figures of the paper, a point or a list of rights at the start of each iteration."""

    def __init__(self, run: Path, name: str, particles: int) -> None:
        """`name` of the file."""
        self._path = run / name
        self._content: dict[str, list[Any]] = {str(i): [] for i in range(particles)}

    def add(self, values: Sequence[Any]) -> None:
        """Append a value for each particle. Raises InputError if the file cannot be written."""
        for known, value in zip(self._content.values(), values, strict=True):
            known.append(value)
        write_text(self._path, json.dumps(self._content, indent=4))


@contextmanager
def logged_in(run: Path) -> Iterator[None]:
    """Until the block ends everything that is logged goes to log.txt, as model_swarm has it."""
    root, handler = logging.getLogger(), logging.FileHandler(run / "log.txt", encoding="utf-8")
    handler.setFormatter(logging.Formatter(_FORM))
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()


def say(message: str) -> None:
    """A line of the log."""
    logging.getLogger().info("%s", message)


class Shown:
    """A run of Weights & Biases, where that is installed and not disabled; else nothing is shown."""

    def __init__(self, name: str, project: str, config: Mapping[str, Any]) -> None:
        self._wandb: Any = None
        if os.environ.get("WANDB_MODE") == "disabled" or os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1"):
            return
        try:
            self._wandb = importlib.import_module("wandb")
            self._wandb.init(name=name, project=project).config.update(dict(config))
        except ImportError:
            self._wandb = None
        except Exception as error:  # of a library that is there for show: the search goes on
            self._wandb = None
            say(f"nothing is shown in Weights & Biases ({type(error).__name__}: {' '.join(str(error).split())})")

    def log(self, numbers: Mapping[str, Any]) -> None:
        """Show some numbers."""
        if self._wandb is not None:
            self._wandb.log({name: _plain(value) for name, value in numbers.items()})

    def close(self) -> None:
        """Nothing more is shown."""
        if self._wandb is not None:
            self._wandb.finish()


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
