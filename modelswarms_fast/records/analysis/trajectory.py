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
    """Every particle's way from its start (dot) to its end, the experts by name, the winner as a star."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    axes = figure.add_subplot()
    ways = np.array(numbers["particles"])
    for particle in range(ways.shape[1]):
        axes.plot(ways[:, particle, 0], ways[:, particle, 1], color="#9aa4af", linewidth=0.8, alpha=0.8, zorder=1)
    for index in np.unique(np.linspace(0, len(ways) - 1, _DOTS).astype(int)):  # later is darker
        way = ways[index]
        shade = 0.15 + 0.85 * index / max(len(ways) - 1, 1)
        axes.scatter(way[:, 0], way[:, 1], s=14, color="#0b62c4", alpha=shade, linewidths=0, zorder=2)
    for name, (x, y) in zip(numbers["names"], numbers["experts"], strict=True):
        axes.scatter([x], [y], s=36, facecolors="none", edgecolors="#1b1f24", zorder=3)
        axes.annotate(name, (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8)
    axes.scatter(
        [numbers["winner"][0]], [numbers["winner"][1]], marker="*", s=220, color="#b3461d", label="winner", zorder=4
    )
    axes.legend(frameon=False)
    of = "weights" if numbers["exact"] else "coefficients"
    first, second = (f"{share:.0%} of the variance of the {of}" for share in _two(numbers["variance"]))
    axes.set_xlabel(f"first main component, {first}")
    axes.set_ylabel(f"second, {second}")
    axes.set_title("Population from their start (light) to their end (dark); circles are the experts", fontsize=9)
    axes.set_aspect("equal", adjustable="datalim")
    return figure


def _two(shares: list[float]) -> list[float]:
    return [*shares, 0.0, 0.0][:2]
