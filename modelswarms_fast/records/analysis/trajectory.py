"""Where the particles went: all positions of a run in the plane of their two main components.

A position is a mixture a of n experts, so with their inner products G [n, n] every distance between two positions is

    |Σ (a_j - b_j) expert_j|² = (a - b)ᵀ G (a - b)

whatever the number of weights. With G = L Lᵀ the rows a L have the same distances as the weights have, and their main
components are those of the weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from modelswarms_fast.records.analysis import Floats, RunFolder
from modelswarms_fast.records.style import colour, label_of, legend, new_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DOTS = 20  # iterations whose positions are marked; lines show the others


def coordinates(mixtures: Floats, products: Floats) -> Floats:
    """[..., n] points with the distances that mixtures [..., n] of the experts have as weights.

    products [n, n]: inner products of the experts.
    """
    values, vectors = np.linalg.eigh(products)  # rounding can make the least a little negative
    points: Floats = mixtures @ (vectors * np.sqrt(np.maximum(values, 0.0)))
    return points


def main_plane(points: Floats) -> tuple[Floats, Floats, Floats]:
    """Centre [n], the two main directions [2, n] of points [m, n], and the share [2] of the variance along each."""
    centre = points.mean(axis=0)
    _, sizes, directions = np.linalg.svd(points - centre, full_matrices=False)
    shares = sizes**2 / max(float((sizes**2).sum()), 1e-300)
    return centre, directions[:2], shares[:2]


def of_run(run: RunFolder) -> dict[str, Any] | None:
    """The plane: `particles` [iterations + 1, P, 2], `experts` [n, 2], `winner` [2] and what share of the variance it
    holds; None if positions are no mixtures.

    `exact` says whether distances are those of the weights, which needs their products in config.json; else they are
    those of the coefficients.
    """
    positions = run.positions()
    if positions is None:
        return None
    n = positions.shape[2]
    products = run.config.get("expert_products")
    exact = products is not None
    gram = np.array(products, dtype=np.float64) if exact else np.eye(n)
    points, experts = coordinates(positions, gram), coordinates(np.eye(n), gram)
    centre, directions, shares = main_plane(points.reshape(-1, n))
    best = coordinates(np.array(run.history[-1]["global_best_mixture"], dtype=np.float64), gram)
    return {
        "exact": exact,
        "variance": shares.tolist(),
        "names": run.experts,
        "experts": ((experts - centre) @ directions.T).tolist(),
        "particles": ((points - centre) @ directions.T).tolist(),
        "winner": ((best - centre) @ directions.T).tolist(),
    }


def plot(numbers: dict[str, Any]) -> Figure:
    """Every particle's way from its start (pale) to its end (full colour), the experts by name, the winner a star."""
    figure, axes = new_axes(5.0)
    ways = np.array(numbers["particles"])
    for particle in range(ways.shape[1]):
        axes.plot(ways[:, particle, 0], ways[:, particle, 1], color=colour("faint"), linewidth=0.8, alpha=0.8, zorder=1)
    for index in np.unique(np.linspace(0, len(ways) - 1, _DOTS).astype(int)):
        shade = 0.15 + 0.85 * index / max(len(ways) - 1, 1)
        x, y = ways[index].T
        positions = axes.scatter(x, y, s=16, color=colour("blue"), alpha=shade, linewidths=0, zorder=2)
    x, y = np.array(numbers["experts"]).T
    experts = axes.scatter(x, y, s=40, facecolors="none", edgecolors=colour("ink"), zorder=3)
    middle = (axes.get_xlim()[0] + axes.get_xlim()[1]) / 2
    for name, place in zip(numbers["names"], numbers["experts"], strict=True):
        side, shift = ("right", -6) if place[0] > middle else ("left", 6)  # of its circle, toward the middle
        axes.annotate(label_of(name), place, xytext=(shift, 4), textcoords="offset points", fontsize=9, ha=side)
    x, y = numbers["winner"]
    winner = axes.scatter([x], [y], marker="*", s=200, color=colour("red"), zorder=4)
    first, second = (f"{share:.0%} of the variance" for share in _two(numbers["variance"]))
    axes.set_xlabel(f"first main component, {first}")
    axes.set_ylabel(f"second, {second}")
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.12)
    axes.grid()
    legend(figure, [experts, positions, winner], ["experts", "particles, later is stronger", "winner"])
    return figure


def in_words(numbers: dict[str, Any]) -> str:
    """What a reader should take from the numbers."""
    of = "weights" if numbers["exact"] else "coefficients"
    held = sum(_two(numbers["variance"]))
    return f"Each point is a model, and near points have similar {of}; the plane holds {held:.0%} of their variance."


def _two(shares: list[float]) -> list[float]:
    return [*shares, 0.0, 0.0][:2]
