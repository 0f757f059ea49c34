"""One iteration of the published code on a CPU: run as a script, in a copy of the user's clone, by `published.py`.

python published_search.py SPEC, in the folder of the copy. Its functions are called as its search calls them; nothing
of it is here. Around them: packages that are missing and not used on this path are stood in for by objects that raise
when they are used, "cuda:N" means the CPU, and its pauses (`time.sleep`) are counted and left out.

SPEC is JSON: experts (folders, one a particle), base (folder), dataset (name of a file in data/eval), measured (the
numbers of the particles to move and evaluate), dtype ("" for what the code asks for). One JSON line a measured particle
goes to standard output: update, evaluate and sleep in seconds (sleep is what was left out), utility, dtype.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

PACKAGES = ("datasets", "googleapiclient", "sklearn", "tenacity", "trl", "vertexai", "wandb")
NAME = "benchmark"


class Missing(types.ModuleType):
    """A package that is not installed: may be imported, called and taken apart until `importing` ends."""

    importing = True
    __path__: Sequence[str] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Missing(f"{self.__name__}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As a decorator or a constructor, while the code is being imported."""
        if not Missing.importing:
            raise RuntimeError(f"the published code used {self.__name__}, which is not installed")
        return self


class Finder:
    """Finds `Missing` for the packages that are not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """A module of a missing package."""
        if name.partition(".")[0] not in PACKAGES:
            return None
        return importlib.util.spec_from_loader(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: Any) -> types.ModuleType:
        """The stand-in."""
        return Missing(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


def on_cpu(owner: type) -> None:
    """`to("cuda:N")` stays on the CPU."""
    original = owner.to  # type: ignore[attr-defined]

    def to(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = ["cpu" if isinstance(value, str) and value.startswith("cuda") else value for value in args]
        return original(self, *given, **kwargs)

    owner.to = to  # type: ignore[attr-defined]


def in_dtype(dtype: str) -> None:
    """Models are read in this dtype instead of the one that is asked for."""
    original = AutoModelForCausalLM.from_pretrained

    def from_pretrained(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **(kwargs | {"torch_dtype": getattr(torch, dtype)}))

    AutoModelForCausalLM.from_pretrained = from_pretrained


def count_sleeps() -> list[float]:
    """Seconds that would have been slept; nobody sleeps."""
    slept: list[float] = []
    time.sleep = slept.append  # type: ignore[assignment]
    return slept


def start(experts: Sequence[str], merge: Any) -> Path:
    """The files of a search whose initial particles have been evaluated: the first expert is best, the last worst."""
    folder = Path("search", NAME)
    for index, expert in enumerate(experts):
        particle = folder / f"particle_{index}"
        for kind in ("now", "personal_best"):
            shutil.copytree(expert, particle / kind)
        merge([-1, 1], [expert, experts[index - 1]], str(particle / "velocity"), 0, 1)
    shutil.copytree(experts[0], folder / "global_best")
    shutil.copytree(experts[-1], folder / "global_worst")
    return folder


def main(spec: dict[str, Any]) -> None:
    """Move all measured particles, then evaluate each of them; print what it took."""
    for owner in (torch.Tensor, PreTrainedModel):
        on_cpu(owner)
    if spec["dtype"]:
        in_dtype(spec["dtype"])
    sys.meta_path.append(Finder())  # last: what is installed is used
    sys.path.insert(0, str(Path.cwd()))
    search, evaluation = importlib.import_module("search"), importlib.import_module("evaluate")
    Missing.importing = False
    slept = count_sleeps()
    folder = start(spec["experts"], search.lora_merge)
    updates = []
    for index in spec["measured"]:
        before = time.perf_counter()
        # The defaults of its command line: randomness, inertia, three coefficients, fast merge, step length, repel.
        search.particle_update(index, 0, NAME, 1, 0.4, 0.3, 0.3, 0.3, 1, 1.0, 1, False)
        updates.append(time.perf_counter() - before)
    for index, update in zip(spec["measured"], updates, strict=True):
        slept.clear()
        before = time.perf_counter()
        utility = evaluation.evaluate(
            str(folder / f"particle_{index}" / "now"), "exact_match", spec["dataset"], 0, spec["base"]
        )
        seconds = time.perf_counter() - before
        dtype = str(evaluation.model.dtype).removeprefix("torch.")
        found = {"update": update, "evaluate": seconds, "sleep": sum(slept), "utility": utility, "dtype": dtype}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
