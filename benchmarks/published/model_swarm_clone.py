"""The whole search.py of a clone of model_swarm in one process on a CPU: run in a copy, by `model_swarm.py`.

python -m benchmarks.published.model_swarm_clone SPEC WORDS..., in the folder of the copy. SPEC is JSON: particles, and
dtype of the models. Pools are loops, pauses are left out, and packages that are missing are stood in for as in
`published_search`. The random factors are those of `factors`, which our search is given too.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import random
import runpy
import sys
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.published.published_search import Finder, Missing, count_sleeps, in_dtype, on_cpu


def factors(iteration: int, particle: int) -> list[float]:
    """The four random factors of an iteration, counted from 1, and a particle."""
    return [((7 * iteration + 3 * particle + 5 * term) % 10 + 1) / 11 for term in range(4)]


class Pool:
    """A pool of no processes."""

    def __init__(self, processes: int | None = None) -> None:
        pass

    def starmap(
        self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]], chunksize: int | None = None
    ) -> list[Any]:
        """Call after call."""
        return [function(*one) for one in arguments]

    def close(self) -> None:
        """Nothing to end."""

    def join(self) -> None:
        """Nothing to wait for."""


def uniform_of(particles: int) -> Callable[[float, float], float]:
    """`random.uniform` as moves call it: four times a particle and iteration, in order."""
    calls = count()

    def uniform(low: float, high: float) -> float:
        turn, term = divmod(next(calls), 4)
        return factors(turn // particles + 1, turn % particles)[term]

    return uniform


def main(spec: dict[str, Any], words: list[str]) -> None:
    """Run the search with these flags."""
    for owner in (torch.Tensor, PreTrainedModel):
        on_cpu(owner)
    in_dtype(spec["dtype"])
    sys.meta_path.append(Finder())  # type: ignore[arg-type]
    sys.path.insert(0, str(Path.cwd()))
    count_sleeps()
    multiprocessing.Pool = Pool  # type: ignore[assignment]
    random.uniform = uniform_of(spec["particles"])
    sys.argv = ["search.py", *words]
    importlib.import_module("evaluate")  # while stand-ins may be taken apart
    assert Missing.importing
    runpy.run_path("search.py", run_name="__main__")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2:])
