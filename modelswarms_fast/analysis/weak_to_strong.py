"""Weak to strong: how good the particle was at the start that found the winner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from modelswarms_fast.analysis import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def rank(utilities: Sequence[float | None], particle: int) -> float:
    """Rank of a particle among initial utilities, 1 the best; equals share the mean of their ranks, None is last."""
    values = np.array([-np.inf if one is None else one for one in utilities], dtype=np.float64)
    above, equal = (values > values[particle]).sum(), (values == values[particle]).sum()
    return float(above + (equal + 1) / 2)


def of_run(run: RunFolder) -> dict[str, Any] | None:
    """`rank` at the start of the particle that found the winner, `of` how many particles; None if nothing has won."""
    best = run.history[-1].get("global_best") if run.history else None
    if not best:
        return None
    utilities, winner = run.history[0]["utilities"], best["particle"]
    return {"particle": winner, "rank": rank(utilities, winner), "of": len(utilities)}


def of_runs(runs: Sequence[RunFolder]) -> dict[str, Any] | None:
    """The ranks of several runs, the share whose winner was not the best at the start, and the share from the lower
    half; None if there is no run with a history."""
    found = [one for one in map(of_run, runs) if one is not None]
    return summarise([(one["rank"], one["of"]) for one in found]) if found else None


def summarise(ranks: Sequence[tuple[float, int]]) -> dict[str, Any]:
    """Of (rank, of how many), one a run."""
    return {
        "ranks": [rank for rank, _ in ranks],
        "of": [of for _, of in ranks],
        "not_the_best": float(np.mean([rank > 1 for rank, _ in ranks])),
        "from_the_lower_half": float(np.mean([rank > (of + 1) / 2 for rank, of in ranks])),
    }


def plot(numbers: dict[str, Any]) -> Figure:
    """Runs by the rank at the start of the particle that found the winner."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.add_subplot()
    most = max(numbers["of"])
    axes.hist(numbers["ranks"], bins=[one + 0.5 for one in range(most + 1)], color="#0b62c4", rwidth=0.85)
    axes.axvline((most + 1) / 2, color="#b3461d", linestyle="--", linewidth=1)
    axes.set_xlabel(f"rank at the start, of {most}, of the particle that won; dashed: the middle")
    axes.set_ylabel("runs")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(
        f"{numbers['not_the_best']:.0%} of {len(numbers['ranks'])} winners were not the best at the start,\n"
        f"{numbers['from_the_lower_half']:.0%} came from the lower half",
        fontsize=9,
    )
    return figure
