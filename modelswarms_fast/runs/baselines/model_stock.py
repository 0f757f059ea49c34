"""Model Stock (arXiv 2403.19522): of each tensor the mean, drawn toward the base as far as the experts disagree."""

from __future__ import annotations

import itertools

import torch

from modelswarms_fast.runs.baselines import Choice, tensors
from modelswarms_fast.runs.experiment import Experiment
from modelswarms_fast.weights.experts import Experts


def run(experiment: Experiment, budget: int, seed: int) -> Choice:
    """One merge. For LoRA the base is zero, and A and B are tensors of their own."""
    row, ratios = merge(experiment.experts, experiment.base_row())
    scores = experiment.score_rows([lambda: row], "dev")[0]
    middle = sorted(ratios)
    recipe = {"ratio": {"lowest": middle[0], "median": middle[len(middle) // 2], "highest": middle[-1]}}
    return Choice(
        recipe,
        experiment.utility_of("dev", scores),
        1,
        lambda: experiment.score_rows([lambda: row], "test")[0],
        looks_at_experts=False,
    )


def merge(experts: Experts, base: torch.Tensor | None) -> tuple[torch.Tensor, list[float]]:
    """The row [D] t · mean + (1 - t) · base, and the ratio t of each tensor.

    t = n cos / (1 + (n - 1) cos) with the mean cosine between the differences of two experts to the base; 0 where
    1 + (n - 1) cos is.
    """
    row = torch.zeros(experts.layout.size, dtype=experts.layout.dtype)
    ratios = []
    for spec, rows, origin in tensors(experts, base):
        ratio = interpolation(rows - origin)
        ratios.append(ratio)
        row[spec.offset : spec.end] = ratio * rows.mean(dim=0) + (1 - ratio) * origin
    return row, ratios


def interpolation(differences: torch.Tensor) -> float:
    """The ratio t of differences [n, numel]."""
    count = len(differences)
    products = torch.zeros((count, count), dtype=torch.float64)
    for start in range(0, differences.shape[1], 1 << 20):  # in float64, but not all of a tensor at once
        part = differences[:, start : start + (1 << 20)].double()
        products += part @ part.T
    norms = products.diagonal().sqrt()
    pairs = list(itertools.combinations(range(count), 2))
    cosines = [float(products[a, b] / max(float(norms[a] * norms[b]), 1e-30)) for a, b in pairs]
    cosine = sum(min(max(value, -1.0), 1.0) for value in cosines) / len(pairs)
    below = 1 + (count - 1) * cosine
    return 0.0 if abs(below) < 1e-6 else count * cosine / below
