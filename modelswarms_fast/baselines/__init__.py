"""Other ways to compose experts, on the engine, the dev split and the budget of a search.

Each file is one method and has one function,

    def run(session: Session, budget: int, seed: int) -> Choice

`budget` counts evaluations on dev, those of the experts among them; a method may take fewer, never more. It chooses by dev
alone, and its choice is then scored on test, once.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modelswarms_fast.errors import InputError
from modelswarms_fast.scores import Scores
from modelswarms_fast.session import Session

# In the order of docs/baselines.md.
METHODS = (
    "model_swarms",
    "best_expert",
    "uniform_soup",
    "slerp",
    "dare_ties",
    "model_stock",
    "greedy_soup",
    "evolmerge",
    "lorahub",
    "random_search",
    "cma_es",
)


@dataclass(frozen=True)
class Choice:
    """What a method has chosen by dev."""

    recipe: dict[str, Any]
    """What it is made of, as JSON."""
    dev: float
    """Its utility there."""
    evaluations: int
    """On dev: whole passes of one model over the split, those of the experts included if the method looks at them."""
    test: Callable[[], Scores]
    """Scores it on each example of test; called once, after the clock has stopped."""
    looks_at_experts: bool = True
    """Whether `session.initial` is part of the method, whose cost is then added though it was paid once for all."""


Run = Callable[[Session, int, int], Choice]


def load_method(name: str) -> Run:
    """The function `run` of a method's file. Raises InputError for a name that is none, or a library that is missing."""
    if name not in METHODS:
        raise InputError(f"there is no method {name!r}; choose from {', '.join(METHODS)}.")
    try:
        run: Run = importlib.import_module(f"modelswarms_fast.baselines.{name}").run
    except ModuleNotFoundError as error:
        raise InputError(f"{name} needs {error.name}; pip install 'modelswarms-fast[baselines]'.") from error
    return run
