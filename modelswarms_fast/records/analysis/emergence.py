"""Correctness emergence: which questions the swarm answers after the search that it missed before.

The level of a question is how many particles answer it. As in the Model Swarms paper (arXiv 2410.11163, on
correctness emergence):

    C-surge    share of all questions whose level has risen from the initial particles to the final ones
    C-emerge   of the questions that all initial experts miss, the share that some final particle answers

A union over many particles rises by chance alone: whatever differs a little answers some questions that others miss.
So each number stands beside its base rate, measured on the initial experts: of the questions that all but one of
them miss, the share that this one answers (`one_more_expert`, mean over the experts). That is what a further model
brings that nobody has searched for; Q of them, if they erred independently, would bring 1 - (1 - rate)^Q
(`as_many_experts`). Final particles are alike, hence far fewer than Q independent models.
`per_particle` is what one final particle brings, on average, and compares with `one_more_expert`.
On dev the particles were chosen by these very questions, which flatters; test was not searched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from modelswarms_fast.records.analysis import Floats, RunFolder, right

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
    """Questions by level before and after, a panel a split, with the three shares in its title."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(numbers), 3.6), layout="constrained")
    for index, (split, one) in enumerate(numbers.items()):
        axes = figure.add_subplot(1, len(numbers), index + 1)
        levels = np.arange(len(one["level_before"]))
        axes.bar(levels - 0.2, one["level_before"], 0.4, label="before the search", color="#9aa4af")
        axes.bar(levels + 0.2, one["level_after"], 0.4, label="after", color="#0b62c4")
        shares = [
            f"{name} {one[key]:.0%}"
            for name, key in (("C-surge", "c_surge"), ("C-emerge", "c_emerge"))
            if one[key] is not None
        ]
        if one["one_more_expert"] is not None and one["per_particle"] is not None:
            shares.append(
                f"of what all experts miss,\na particle answers {one['per_particle']:.0%}, "
                f"a further expert would {one['one_more_expert']:.0%}"
            )
        axes.set_title(f"{split}: {', '.join(shares)}", fontsize=9)
        axes.set_xlabel(f"particles (of {one['particles']}) that answer a question")
        axes.set_ylabel("questions")
        axes.legend(frameon=False)
    return figure


def _each_beside_the_others(known: Any) -> list[tuple[Any, Any]]:
    """Each expert's right answers [E], and where any other is right [E]."""
    count = known.sum(axis=0)
    return [(one, count - one > 0) for one in known]


def _share(values: Any) -> float | None:
    return float(np.mean(values)) if np.size(values) else None


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
