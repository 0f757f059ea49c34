"""All analyses of one run by name."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from modelswarms_fast.records.analysis import RunFolder, composition, emergence, top_k, trajectory, weak_to_strong

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OF_RUN = {
    "composition": composition.of_run,
    "trajectory": trajectory.of_run,
    "emergence": emergence.of_run,
    "weak_to_strong": weak_to_strong.of_run,
    "top_k": top_k.of_run,
}


def analyse(run: RunFolder) -> dict[str, Any]:
    """The numbers of each analysis that the run's files allow, by its name."""
    found = {name: of_run(run) for name, of_run in _OF_RUN.items()}
    return {name: numbers for name, numbers in found.items() if numbers is not None}


def draw(name: str, numbers: Any) -> bytes:
    """The plot of an analysis as SVG; the same numbers give the same bytes. Raises ImportError without matplotlib."""
    return svg(PLOTS[name], numbers)


PLOTS = {
    "composition": composition.plot,
    "trajectory": trajectory.plot,
    "emergence": emergence.plot,
    "top_k": top_k.plot,
}
"""Of the analyses that have one for a single run."""


def svg(plot: Callable[[Any], Figure], numbers: Any) -> bytes:
    """What `plot` draws of the numbers, as the bytes of an SVG file. Raises ImportError without matplotlib."""
    from matplotlib import rc_context

    file = io.BytesIO()
    # Names in the file would be drawn anew each time, and an expert's name may have dollar signs.
    with rc_context({"svg.hashsalt": "modelswarms", "text.parse_math": False}):
        plot(numbers).savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
