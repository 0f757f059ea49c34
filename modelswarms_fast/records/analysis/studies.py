"""Searches that differ in one thing, beside each other: ablation, diversity, dropK and dropN, seeds, weak experts.

A study is the content of study.json: `kind`, `dataset`, `task`, and `variants`, each a list of `runs` with dev, test,
evaluations, the rank of the winner at the start, and so on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from modelswarms_fast.records.analysis import weak_to_strong
from modelswarms_fast.records.style import colour, label_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean, standard deviation over the runs, and standard error of the mean; None for those of one run."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return {"mean": mean, "deviation": None, "error": None}
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return {"mean": mean, "deviation": deviation, "error": deviation / math.sqrt(len(values))}


def summarise(variants: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """By variant the spread of dev, test and evaluations over its runs, the first variant's difference on test in
    pairs of equal seeds, and where the winners came from."""
    found: dict[str, Any] = {}
    first = {run["seed"]: run["test"] for run in next(iter(variants.values()), ())}
    for name, runs in variants.items():
        if not runs:
            continue
        pairs = [run["test"] - first[run["seed"]] for run in runs if run["seed"] in first]
        found[name] = {
            "runs": len(runs),
            **{key: spread([run[key] for run in runs]) for key in ("dev", "test", "evaluations")},
            "dev_test_gap": spread([run["dev"] - run["test"] for run in runs]),
            "test_beside_the_first": spread(pairs) if pairs else None,
            "weak_to_strong": weak_to_strong.summarise(runs),
        }
    return found


def plot(study: Mapping[str, Any]) -> Figure:
    """Test by variant: a dot a run, a bar for their mean, the best initial expert as a line; with drop also the cost.

    Dev is shown beside it in grey, as the search saw it.
    """
    from matplotlib.figure import Figure

    variants = {name: runs for name, runs in study["variants"].items() if runs}
    with_cost = study["kind"] == "drop"
    figure = Figure(figsize=(7.2 + 4.2 * with_cost, 0.9 + 0.5 * max(len(variants), 3)), layout="constrained")
    axes = figure.add_subplot(1, 1 + with_cost, 1)
    for row, runs in enumerate(variants.values()):
        for key, name, shift in (("dev", "faint", -0.18), ("test", "blue", 0.18)):
            values = [run[key] for run in runs]
            axes.scatter(values, [row + shift] * len(values), s=16, color=colour(name), alpha=0.7, linewidths=0)
            mean = math.fsum(values) / len(values)
            axes.plot([mean, mean], [row + shift - 0.16, row + shift + 0.16], color=colour(name), linewidth=2.5)
    best = study.get("best_expert")
    if best is not None and best.get("test") is not None:
        axes.axvline(best["test"], color=colour("green"), linestyle=":", linewidth=1.5)
        axes.annotate(" best expert, test", (best["test"], -0.6), fontsize=9, color=colour("green"))
    axes.set_yticks(range(len(variants)), [label_of(name) for name in variants])
    axes.set_ylim(len(variants) - 0.4, -0.8)
    axes.set_xlabel("utility (grey: dev, blue: test; a dot a run, a bar the mean)")
    if with_cost:
        _draw_cost(figure.add_subplot(1, 2, 2), variants)
    figure.suptitle(f"{study['kind']}: {study['task']} on {study['dataset']}", fontsize=10)
    return figure


def _draw_cost(axes: Any, variants: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Test against evaluations."""
    for name, runs in variants.items():
        cost, test = (spread([run[key] for run in runs])["mean"] for key in ("evaluations", "test"))
        axes.scatter([cost], [test], s=24, color=colour("blue"))
        axes.annotate(label_of(name), (cost, test), xytext=(4, 3), textcoords="offset points", fontsize=8)
    axes.set_xlabel("evaluations, mean")
    axes.set_ylabel("test, mean")
