"""What the global best was made of, iteration by iteration."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from modelswarms_fast.records.analysis import RunFolder
from modelswarms_fast.records.style import HUES, colour, label_of, legend, new_axes, whole_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def of_run(run: RunFolder) -> dict[str, Any] | None:
    """`names` [n] and `mixtures` [iterations + 1][n] of the global best; None if it is no mixture."""
    mixtures = [line.get("global_best_mixture") for line in run.history]
    if not mixtures or any(one is None for one in mixtures):
        return None
    return {"names": run.experts, "mixtures": mixtures}


def plot(numbers: dict[str, Any]) -> Figure:
    """A stacked bar an iteration: coefficients above 0 upward, those below 0 downward.

    The experts that are largest at the end have colours of their own.
    """
    mixtures = np.array(numbers["mixtures"], dtype=np.float64)
    order = np.argsort(-np.abs(mixtures[-1]), kind="stable")
    named, rest = order[: len(HUES)], order[len(HUES) :]
    parts = [
        (label_of(numbers["names"][index]), colour(hue), mixtures[:, index])
        for index, hue in zip(named, HUES, strict=False)
    ]
    if len(rest):
        parts.append((f"{len(rest)} more", colour("faint"), mixtures[:, rest].sum(axis=1)))
    figure, axes = new_axes(3.6 + 0.2 * (len(parts) // 3))
    up, down = np.zeros(len(mixtures)), np.zeros(len(mixtures))
    bars = []
    for _, fill, values in parts:
        bottom = np.where(values >= 0, up, down)
        bars.append(axes.bar(np.arange(len(mixtures)), values, 0.85, bottom=bottom, color=fill))
        up, down = up + np.maximum(values, 0), down + np.minimum(values, 0)
    axes.axhline(0, color=colour("soft"), linewidth=0.8)
    axes.set_xlabel("iteration (0: the start)")
    axes.set_ylabel("coefficient")
    whole_numbers(axes.xaxis)
    legend(figure, bars, [name for name, _, _ in parts])
    return figure


def in_words(numbers: dict[str, Any]) -> str:
    """What a reader should take from the numbers."""
    steps = list(pairwise(numbers["mixtures"]))
    changes = sum(one != other for one, other in steps)
    return f"The coefficients sum to 1. The best so far changed in {changes} of {len(steps)} iterations."
