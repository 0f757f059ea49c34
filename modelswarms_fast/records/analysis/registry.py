"""All analyses of one run by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelswarms_fast.records.analysis import RunFolder, composition, emergence, top_k, trajectory, weak_to_strong
from modelswarms_fast.records.style import svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Analysis:
    """One analysis of a run."""

    title: str
    of_run: Callable[[RunFolder], dict[str, Any] | None]
    """Its numbers, which JSON can hold; None where the run lacks what it needs."""
    plot: Callable[[dict[str, Any]], Figure]
    in_words: Callable[[dict[str, Any]], str]
    """What a reader should take from the numbers."""


ANALYSES = {
    "emergence": Analysis("How many particles answer a question", emergence.of_run, emergence.plot, emergence.in_words),
    "trajectory": Analysis("Where the particles went", trajectory.of_run, trajectory.plot, trajectory.in_words),
    "composition": Analysis(
        "How the best so far was composed", composition.of_run, composition.plot, composition.in_words
    ),
    "weak_to_strong": Analysis(
        "Where the winner came from", weak_to_strong.of_run, weak_to_strong.plot, weak_to_strong.in_words
    ),
    "top_k": Analysis("Votes of the best particles", top_k.of_run, top_k.plot, top_k.in_words),
}
"""In the order of the report."""


def analyse(run: RunFolder) -> dict[str, Any]:
    """The numbers of each analysis that the run's files allow, by its name."""
    found = {name: one.of_run(run) for name, one in ANALYSES.items()}
    return {name: numbers for name, numbers in found.items() if numbers is not None}


def draw(name: str, numbers: Any) -> bytes:
    """The plot of an analysis as an SVG file; the same numbers give the same bytes."""
    return svg(ANALYSES[name].plot, numbers)
