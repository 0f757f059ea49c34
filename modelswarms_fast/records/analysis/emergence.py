"""Correctness emergence: which questions the swarm answers after the search and missed before.

The level of a question is how many particles answer it. As in the Model Swarms paper (arXiv 2410.11163, on
correctness emergence):

    C-surge    share of all questions whose level has risen from the initial particles to the final ones
    C-emerge   of the questions that all initial experts miss, the share that some final particle answers

C-emerge rises with the number of particles by chance alone: any model answers some questions that others miss. So the
numbers have a base rate, measured on the initial experts:

    one_more_expert    of the questions that all other experts miss, the share that one expert answers, by mean
    as_many_experts    1 - (1 - one_more_expert)^Q: what Q such experts would answer if they erred independently
    per_particle       the share that one final particle answers, by mean; compares with one_more_expert

Final particles are alike, so they count as far fewer than Q independent models. The particles were chosen on dev, so
dev flatters; the search never saw test.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from modelswarms_fast.records.analysis import Floats, RunFolder, right
from modelswarms_fast.records.style import WIDTH, colour, legend, whole_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def emergence(experts: Floats, before: Floats, after: Floats) -> dict[str, Any] | None:
    """Numbers from the scores of the initial experts [n, E], the initial particles [P, E] and the final ones [P, E].

    None where the scores are not right or wrong.
    """
    groups = [right(scores) for scores in (experts, before, after)]
    if any(group is None for group in groups):
        return None
    known, start, end = (np.asarray(group) for group in groups)
    levels = start.sum(axis=0), end.sum(axis=0)
    missed = ~known.any(axis=0)
    count = int(missed.sum())
    emerged = end[:, missed].any(axis=0)
    rates = [_share(one[~others]) for one, others in _each_beside_the_others(known)]
    one_more = _mean([rate for rate in rates if rate is not None])
    return {
        "questions": known.shape[1],
        "experts": len(known),
        "particles": len(end),
        "c_surge": _share(levels[1] > levels[0]),
        "c_fall": _share(levels[1] < levels[0]),
        "missed_by_all_experts": count,
        "c_emerge": _share(emerged),
        "c_emerge_standard_error": None if not count else float(np.sqrt(emerged.mean() * (1 - emerged.mean()) / count)),
        "per_particle": _share(end[:, missed]),
        "one_more_expert": one_more,
        "as_many_experts": None if one_more is None else 1 - (1 - one_more) ** len(end),
        "level_before": np.bincount(levels[0], minlength=len(start) + 1).tolist(),
        "level_after": np.bincount(levels[1], minlength=len(end) + 1).tolist(),
    }


def of_run(run: RunFolder) -> dict[str, Any] | None:
    """By split what can be known: dev from the history, test from test_scores.json; None if neither."""
    found: dict[str, Any] = {}
    if (dev := run.dev_scores()) is not None:
        found["dev"] = emergence(dev["start"][run.initial_experts], dev["start"], dev["end"])
    if (test := run.test_scores()) is not None and "end" in test:
        found["test"] = emergence(test["experts"], test["start"], test["end"])
    found = {split: numbers for split, numbers in found.items() if numbers is not None}
    return found or None


def plot(numbers: dict[str, Any]) -> Figure:
    """Questions by level before and after, a panel a split."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 0.4 + 2.4 * len(numbers)), layout="constrained")
    bars: list[Any] = []
    for index, (split, one) in enumerate(numbers.items()):
        axes = figure.add_subplot(len(numbers), 1, index + 1)
        levels = np.arange(len(one["level_before"]))
        bars = [
            axes.bar(levels - 0.2, one["level_before"], 0.4, color=colour("faint")),
            axes.bar(levels + 0.2, one["level_after"], 0.4, color=colour("blue")),
        ]
        axes.set_title(f"{split}, {one['questions']} questions", loc="left", color=colour("ink"))
        axes.set_xlabel(f"particles (of {one['particles']}) that answer a question")
        axes.set_ylabel("questions")
        whole_numbers(axes.xaxis)
        whole_numbers(axes.yaxis)
        axes.grid(axis="y")
    legend(figure, bars, ["before the search", "after"])
    return figure


def in_words(numbers: dict[str, Any]) -> str:
    """What a reader should take from the numbers."""
    words, further = [], None
    for split, one in numbers.items():
        further = one["one_more_expert"]
        risen = f"On {split}, {one['c_surge']:.1%} of {one['questions']} questions are answered by more particles"
        words.append(f"{risen} than before (C-surge).")
        if one["c_emerge"] is not None:
            missed = f"Of the {one['missed_by_all_experts']} that all experts miss, the final particles answer"
            words.append(f"{missed} {one['c_emerge']:.1%} (C-emerge).")
    if further is not None:
        words.append(f"For comparison, one expert answers {further:.1%} of what the others miss.")
    return " ".join(words)


def _each_beside_the_others(known: Any) -> list[tuple[Any, Any]]:
    """Each expert's right answers [E], and where any other is right [E]."""
    count = known.sum(axis=0)
    return [(one, count - one > 0) for one in known]


def _share(values: Any) -> float | None:
    return float(np.mean(values)) if np.size(values) else None


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
