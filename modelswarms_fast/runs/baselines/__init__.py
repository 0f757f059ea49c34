"""Other ways to compose experts, on the engine, the dev split and the budget of a search.

Each file is one method and has one function,

    def run(experiment: Experiment, budget: int, seed: int) -> Choice

`budget` counts evaluations on dev, those of the experts among them; a method may take fewer, never more. It
chooses by dev alone, and its choice is then scored on test, once.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from modelswarms_fast.errors import InputError, quoted
from modelswarms_fast.evaluation.early_stopping import Scores
from modelswarms_fast.runs.experiment import Experiment
from modelswarms_fast.swarm import Floats
from modelswarms_fast.weights.experts import Experts
from modelswarms_fast.weights.layout import TensorSpec

# In the order of docs/reference/baselines.md.
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
    "vote",
    "pack",
    "cbtm",
    "data_merge",
)

# Those that make rows of mixed or trained factors, which combine="delta" has none of.
OF_FACTORS = {"slerp", "dare_ties", "model_stock", "evolmerge", "data_merge"}


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
    """Whether `experiment.initial` is part of the method, whose cost is then added though it was paid once for all."""


Run = Callable[[Experiment, int, int], Choice]


def load_method(name: str) -> Run:
    """The function `run` of a method's file. Raises InputError for an unknown name or a library that is missing."""
    if name not in METHODS:
        raise InputError(f"there is no method {quoted(name)}; choose from {', '.join(METHODS)}.")
    try:
        run: Run = importlib.import_module(f"modelswarms_fast.runs.baselines.{name}").run
    except ModuleNotFoundError as error:
        raise InputError(f"{name} needs {error.name}; pip install 'modelswarms-fast[baselines]'.") from error
    return run


def loss(utility: float) -> float:
    """What an optimiser minimises: a NaN is worse than anything."""
    return -utility if np.isfinite(utility) else 1e9


def by_dev(experiment: Experiment) -> list[int]:
    """The experts, the best on dev first."""
    order: list[int] = np.argsort([loss(utility) for utility in experiment.initial], kind="stable").tolist()
    return order


def named(experiment: Experiment, values: Sequence[float] | Floats) -> dict[str, float]:
    """One value an expert, by its name."""
    return {name: float(value) for name, value in zip(experiment.experts.names, values, strict=True)}


def mixture_choice(
    experiment: Experiment,
    mixture: Floats,
    dev: float,
    evaluations: int,
    *,
    looks_at_experts: bool = True,
    **recipe: Any,
) -> Choice:
    """The choice of a mixture [n] of the experts."""
    return Choice(
        recipe={"mixture": named(experiment, mixture)} | recipe,
        dev=dev,
        evaluations=evaluations,
        test=lambda: experiment.score_mixtures([mixture], "test")[0],
        looks_at_experts=looks_at_experts,
    )


def tensors(experts: Experts, base: torch.Tensor | None) -> Iterator[tuple[TensorSpec, torch.Tensor, torch.Tensor]]:
    """Each tensor of the layout: its place, what the experts have there [n, numel] and the base [numel], in float32.

    Without a base (LoRA: the adapter that changes nothing) it is zeros.
    """
    for spec in experts.layout.specs:
        part = slice(spec.offset, spec.end)
        origin = torch.zeros(spec.numel) if base is None else base[part].float()
        yield spec, experts.rows[:, part].float(), origin
