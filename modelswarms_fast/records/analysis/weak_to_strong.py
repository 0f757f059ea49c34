"""Weak to strong: how good the particle was at the start that found the winner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from modelswarms_fast.records.analysis import RunFolder
from modelswarms_fast.records.style import colour, legend, new_axes, whole_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def standing(utilities: Sequence[float | None], particle: int) -> dict[str, Any]:
    """Of a particle among initial utilities its `rank`, 1 the best, and how many are better (`above`).

    Equals share the mean of their ranks, None is last. A rank of 2 may be that of a joint best of three, hence `above`.
    """
    values = np.array([-np.inf if one is None else one for one in utilities], dtype=np.float64)
    above, equal = int((values > values[particle]).sum()), int((values == values[particle]).sum())
    return {"rank": above + (equal + 1) / 2, "above": above}


def of_run(run: RunFolder) -> dict[str, Any] | None:
    """Of the `particle` that found the winner `rank` and `above` at the start, `of` how many particles; of all
    particles the utilities on dev at the `start` and at their personal `best`. None if nothing has won."""
    best = run.history[-1].get("global_best") if run.history else None
    if not best:
        return None
    utilities, winner = run.history[0]["utilities"], best["particle"]
    of = {"particle": winner, **standing(utilities, winner), "of": len(utilities)}
    return of | {"start": utilities, "best": run.dev_utilities()["best"].tolist()}


def plot(numbers: dict[str, Any]) -> Figure:
    """Every particle's utility on dev, from the start up to its personal best; the best at the start stands first."""
    start, best = (np.array(numbers[key], dtype=np.float64) for key in ("start", "best"))
    order = np.argsort(-np.nan_to_num(start, nan=-np.inf), kind="stable")
    ranks = np.arange(1, len(order) + 1)
    figure, axes = new_axes(3.0)
    axes.vlines(ranks, start[order], best[order], color=colour("faint"), linewidth=1.2)
    before = axes.scatter(ranks, start[order], s=30, facecolors="none", edgecolors=colour("soft"), zorder=3)
    after = axes.scatter(ranks, best[order], s=30, color=colour("blue"), linewidths=0, zorder=2)
    at = int(np.flatnonzero(order == numbers["particle"])[0])
    winner = axes.scatter(ranks[at], best[order][at], marker="*", s=180, color=colour("red"), zorder=4)
    axes.set_xlabel("rank of the particle at the start")
    axes.set_ylabel("utility on dev")
    whole_numbers(axes.xaxis)
    axes.grid(axis="y")
    legend(figure, [before, after, winner], ["at the start", "at its best", "winner"])
    return figure


def in_words(numbers: dict[str, Any]) -> str:
    """What a reader should take from the numbers."""
    return f"The particle that found the winner was number {numbers['rank']:g} of {numbers['of']} at the start."


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The ranks of the runs of a study, the share whose winner was not the best at the start nor one of several that
    were, and the share from the lower half."""
    return {
        "ranks": [run["rank"] for run in runs],
        "of": [run["particles"] for run in runs],
        "not_the_best": float(np.mean([run["above"] > 0 for run in runs])),
        "from_the_lower_half": float(np.mean([run["rank"] > (run["particles"] + 1) / 2 for run in runs])),
    }
