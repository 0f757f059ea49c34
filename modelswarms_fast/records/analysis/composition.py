"""What the global best was made of, iteration by iteration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from modelswarms_fast.records.analysis import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMED = 9  # colours that a person tells apart, and one for the rest


def of_run(run: RunFolder) -> dict[str, Any] | None:
    """`names` [n] and `mixtures` [iterations + 1][n] of the global best; None if it is no mixture."""
    mixtures = [line.get("global_best_mixture") for line in run.history]
    if not mixtures or any(one is None for one in mixtures):
        return None
    return {"names": run.experts, "mixtures": mixtures}


def plot(numbers: dict[str, Any]) -> Figure:
    """A stacked bar an iteration: coefficients above 0 upward, those below 0 downward; the largest at the end have
    colours of their own."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    mixtures = np.array(numbers["mixtures"], dtype=np.float64)
    order = np.argsort(-np.abs(mixtures[-1]), kind="stable")
    named, rest = order[:_NAMED], order[_NAMED:]
    parts = [(numbers["names"][index], mixtures[:, index]) for index in named]
    if len(rest):
        parts.append((f"{len(rest)} others", mixtures[:, rest].sum(axis=1)))
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    up, down = np.zeros(len(mixtures)), np.zeros(len(mixtures))
    for index, (name, values) in enumerate(parts):
        bottom = np.where(values >= 0, up, down)
        axes.bar(np.arange(len(mixtures)), values, 0.85, bottom=bottom, label=name, color=colormaps["tab10"](index))
        up, down = up + np.maximum(values, 0), down + np.minimum(values, 0)
    axes.axhline(0, color="#1b1f24", linewidth=0.8)
    axes.set_xlabel("iteration (0: initial)")
    axes.set_ylabel("coefficient")
    axes.set_title("The global best as a mixture of the experts (the sum is 1)", fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
