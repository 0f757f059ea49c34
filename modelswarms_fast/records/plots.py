"""The two plots of a run that belong to no analysis: utility by iteration, and the mixture of the winner.

None stands for a value that is not known (a particle that was not evaluated, or a NaN utility) and leaves a gap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from modelswarms_fast.records.style import colour, label_of, legend, new_axes, whole_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Series = Sequence[float | None]


@dataclass(frozen=True)
class Utilities:
    """Utilities on dev by iteration; each series has one value an iteration."""

    iterations: list[int]
    particles: list[Series]
    global_best: Series
    global_worst: Series
    restarts: list[tuple[int, int]]
    """(index of the iteration, particle)."""
    start: float | None
    """A utility to compare with, named `start_label`."""
    start_label: str

    @property
    def known(self) -> bool:
        """Whether there is anything to draw."""
        return any(value is not None for one in (*self.particles, self.global_best) for value in one)


def utilities(shown: Utilities) -> Figure:
    """Every particle as a thin line; the best so far, the worst so far and the start as lines of their own."""
    figure, axes = new_axes(3.6)
    iterations = np.array(shown.iterations)
    handles: dict[str, Any] = {}

    def draw(series: Series, label: str, **style: Any) -> None:
        y = _floats(series)
        handles[label] = axes.plot(iterations, y, **style)[0]
        gap = np.isnan(np.concatenate([[np.nan], y, [np.nan]]))
        alone = ~np.isnan(y) & gap[:-2] & gap[2:]  # a line of one point is not seen
        axes.scatter(iterations[alone], y[alone], s=8, color=style["color"])

    for series in shown.particles:
        draw(series, f"{len(shown.particles)} particles", color=colour("faint"), linewidth=0.9, alpha=0.7)
    draw(shown.global_worst, "worst so far", color=colour("red"), linewidth=1.4, linestyle="--")
    if shown.start is not None:
        handles[shown.start_label] = axes.axhline(shown.start, color=colour("green"), linewidth=1.6, linestyle=":")
    draw(shown.global_best, "best so far", color=colour("blue"), linewidth=2.6)
    places = [
        (iterations[index], value)
        for index, one in shown.restarts
        if (value := shown.particles[one][index]) is not None
    ]
    if places:
        size = 18 if len(places) <= 100 else 5  # many of them must not hide the lines
        x, y = np.array(places).T
        handles["restart"] = axes.scatter(
            x, y, s=size, facecolors="none", edgecolors=colour("ink"), linewidths=1.0, zorder=3
        )
    axes.set_xlabel("iteration (0: the start)")
    axes.set_ylabel("utility on dev")
    whole_numbers(axes.xaxis)
    axes.grid(axis="y")
    order = ["best so far", "worst so far", shown.start_label, f"{len(shown.particles)} particles", "restart"]
    names = [name for name in order if name in handles]
    legend(figure, [handles[name] for name in names], names)
    return figure


def mixture(coefficients: Mapping[str, float]) -> Figure:
    """Bars of the coefficients by expert, largest first; at least one."""
    ranked = sorted(coefficients.items(), key=lambda item: -item[1])
    figure, axes = new_axes(0.5 + 0.27 * len(ranked))
    values = [value for _, value in ranked]
    bars = axes.barh(range(len(ranked)), values, 0.66, color=[colour("red" if v < 0 else "blue") for v in values])
    axes.bar_label(bars, [f"{round(value, 3) + 0.0:+.3f}" for value in values], padding=4, color=colour("soft"))
    axes.axvline(0, color=colour("soft"), linewidth=0.8)
    axes.set_yticks(range(len(ranked)), [label_of(name) for name, _ in ranked], color=colour("ink"))
    axes.invert_yaxis()
    low, high = min(0.0, *values), max(0.0, *values)
    room = 0.3 * (high - low or 1.0)  # for a number beyond the end of its bar
    axes.set_xlim(low - room * (low < 0), high + room * (high >= 0))
    axes.margins(y=0.5 / len(ranked))
    axes.tick_params(length=0)
    axes.xaxis.set_visible(False)
    axes.spines[:].set_visible(False)
    return figure


def _floats(values: Series) -> Any:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
