"""Ensembles of the k best particles, as the published code reports them at the end of a search.

The k particles of the highest dev utility (of equals the first) vote on each test example; the most frequent answer
counts, of equally frequent ones that whose voters have the largest sum of dev utilities, then the first given. (The
published code adds one fixed particle's utility for every vote, so that there the first answer given wins a tie.)
An answer is the choice that was named, for multiple choice; for all else the score stands for it, as published.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from modelswarms_fast.records.analysis import RunFolder
from modelswarms_fast.records.style import colour, legend, new_axes, whole_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PUBLISHED = 10
"""k of the published code."""
_GROUPS = (("start", "initial particles"), ("end", "personal bests"))


def vote(labels: Sequence[Any], utilities: Sequence[float]) -> int:
    """The voter whose answer wins: the first of those that gave it."""
    count: dict[Any, int] = {}
    total: dict[Any, float] = {}
    for label, utility in zip(labels, utilities, strict=True):
        count[label], total[label] = count.get(label, 0) + 1, total.get(label, 0.0) + utility
    winner = max(count, key=lambda label: (count[label], total[label]))  # max takes the first of equals
    return list(labels).index(winner)


def ensemble(
    labels: Sequence[Sequence[Any]], scores: Sequence[Sequence[float | None]], utilities: Sequence[float], k: int
) -> list[float]:
    """Score of the ensemble on each example [E] from answers and scores [P][E] and dev utilities [P]."""
    order = np.argsort(-np.nan_to_num(np.array(utilities, dtype=np.float64), nan=-np.inf), kind="stable")[:k]
    voters = [float(utilities[index]) for index in order]
    found = []
    for example in range(len(scores[0])):
        chosen = order[vote([labels[index][example] for index in order], voters)]
        score = scores[chosen][example]
        found.append(float("nan") if score is None else float(score))
    return found


def of_run(run: RunFolder) -> dict[str, Any] | None:
    """Test mean of the ensemble of the k best for each k up to 10: of the experts (`start`) and of the personal bests
    (`end`); None without test_scores.json."""
    if run.test is None or not run.history:
        return None
    dev, groups = run.dev_utilities(), run.test["groups"]
    found: dict[str, Any] = {}
    for name, group, utilities in (("start", "start", dev["start"]), ("end", "best", dev["best"])):
        one = groups[group]
        most = min(PUBLISHED, len(one["scores"]))
        found[name] = [
            float(np.mean(ensemble(one["labels"], one["scores"], utilities.tolist(), k))) for k in range(1, most + 1)
        ]
    return found


def plot(numbers: dict[str, Any]) -> Figure:
    """Test score by the number of particles that vote, at the start and at the end."""
    figure, axes = new_axes(3.0)
    lines = []
    for (name, _), line in zip(_GROUPS, ("o--", "o-"), strict=True):
        shade = colour("blue" if name == "end" else "faint")
        lines += axes.plot(range(1, len(numbers[name]) + 1), numbers[name], line, color=shade, markersize=5)
    axes.set_xlabel("particles that vote, the best on dev first")
    axes.set_ylabel("mean score on test")
    whole_numbers(axes.xaxis)
    axes.grid(axis="y")
    legend(figure, lines, [label for _, label in _GROUPS])
    return figure


def in_words(numbers: dict[str, Any]) -> str:
    """What a reader should take from the numbers."""
    votes = " and ".join(f"{len(numbers[name])} {label} get {numbers[name][-1]:.4f}" for name, label in _GROUPS)
    return f"By majority vote on test, {votes}; the best personal best alone gets {numbers['end'][0]:.4f}."
