"""Tables of the study of policies, from what `benchmarks.quality.policies test` has written.

    python -m benchmarks.quality.policy_tables FILE ... [--figure FILE.svg]

1. The score on test of each method at each budget, averaged over seeds and then over tasks, with a 95 % interval.
2. The difference of each to `swarm`.
3. The ways to choose a winner: dev, test, and how often the 90 % interval of `expected_test` held the test score.
4. Dev examples asked until a method is as good on test as `swarm` is at the end.

The figure has the first table's scores against evaluations. All follow benchmarks/quality/PROTOCOL.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from modelswarms_fast.records.run_folder import read_json
from modelswarms_fast.records.style import HUES, colour, legend, new_axes, svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLES, SEED, LEVEL = 10_000, 0, 0.95
BASELINE, WAY, PRIMARY = "swarm", "best", "200"
Floats = npt.NDArray[np.float64]
Task = dict[str, Any]


def scores_of(content: Task, method: str, budget: str, way: str = WAY) -> Floats | None:
    """[seeds, examples] scores on test of what a method chose at a budget; None where it was not run so far."""
    if method in content["experts"]:
        rows = [content["scores"][content["experts"][method]]]
    elif method in content.get("beside", {}):
        found = content["beside"][method].values()
        # A method that draws nothing needs the evaluations of the experts alone, and is the same at every budget.
        rows = [one["scores"] for one in found if len(found) == 1 or str(one["budget"]) == budget]
    else:
        of_seeds = [run["choices"].get(budget) for run in content["runs"].get(method, {}).values()]
        rows = [content["scores"][one[way]["test"]] for one in of_seeds if one is not None]
    return np.array([[float(one) for one in row] for row in rows]) if rows else None


def methods_of(tasks: Sequence[Task]) -> list[str]:
    """The methods that all tasks have, the baseline first."""
    names = [name for kind in ("runs", "beside") for name in tasks[0].get(kind, {})]
    common = [name for name in names if all(name in {**one["runs"], **one.get("beside", {})} for one in tasks)]
    return sorted(common, key=lambda name: name != BASELINE)


def samples(tasks: Sequence[Task], methods: Sequence[str], budget: str, count: int = SAMPLES) -> Floats:
    """[count, methods] bootstrap samples of the score on test, averaged over seeds and then over tasks.

    Test examples are drawn for all methods together, seeds for each method by itself. NaN where a method was not run.
    """
    random = np.random.default_rng(SEED)
    means = np.zeros((count, len(methods)))
    for content in tasks:
        scores = [scores_of(content, method, budget) for method in methods]
        examples = next(one.shape[1] for one in scores if one is not None)
        weights = random.multinomial(examples, np.full(examples, 1 / examples), size=count) / examples
        for column, one in enumerate(scores):
            if one is None:
                means[:, column] = np.nan
                continue
            of_seeds = weights @ one.T
            drawn = random.integers(len(one), size=of_seeds.shape)
            means[:, column] += np.take_along_axis(of_seeds, drawn, axis=1).mean(axis=1) / len(tasks)
    return means


def mean_of(tasks: Sequence[Task], method: str, budget: str) -> float:
    """The score on test, averaged over seeds and then over tasks; NaN where it was not run."""
    found = [scores_of(content, method, budget) for content in tasks]
    return float(np.mean([np.nan if one is None else one.mean() for one in found]))


def interval(values: Floats) -> tuple[float, float]:
    """The percentile interval of bootstrap samples."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def tables(tasks: Sequence[Task], count: int = SAMPLES) -> list[str]:
    """The tables of scores and of differences in Markdown: the methods that all tasks have."""
    methods = methods_of(tasks)
    budgets = list(next(iter(tasks[0]["runs"][methods[0]].values()))["choices"])
    drawn = {budget: samples(tasks, methods, budget, count) for budget in budgets}
    head = [f"| method | seeds | {' | '.join(budgets)} |", "|---|---:|" + "---:|" * len(budgets)]
    scores, differences = list(head), list(head)
    for column, method in enumerate(methods):
        seeds = min(len({**content["runs"], **content.get("beside", {})}[method]) for content in tasks)
        found, beside = [], []
        for budget in budgets:
            mean, values = mean_of(tasks, method, budget), drawn[budget]
            known = not np.isnan(mean)
            found.append("{:.3f} ({:.3f} to {:.3f})".format(mean, *interval(values[:, column])) if known else "")
            if method != BASELINE and BASELINE in methods:
                difference = mean - mean_of(tasks, BASELINE, budget)
                paired = values[:, column] - values[:, methods.index(BASELINE)]
                text = "{:+.3f} ({:+.3f} to {:+.3f})".format(difference, *interval(paired))
                beside.append("" if np.isnan(difference) else text)
        scores.append(f"| {method} | {seeds} | {' | '.join(found)} |")
        if beside:
            differences.append(f"| {method} | {seeds} | {' | '.join(beside)} |")
    return [*scores, "", *differences]


def ways(tasks: Sequence[Task], budget: str = PRIMARY) -> list[str]:
    """The table of the ways to choose, over the searches of all tasks, methods and seeds, at one budget."""
    lines = ["| way | searches | dev | test | test - dev | interval held | kept an expert |", "|---|" + "---:|" * 6]
    names = list(next(iter(next(iter(tasks[0]["runs"].values())).values()))["choices"][budget])
    for way in names:
        rows = []
        for content in tasks:
            for run in (run for seeds in content["runs"].values() for run in seeds.values()):
                if (found := run["choices"].get(budget, {}).get(way)) is None:
                    continue
                test = np.mean([float(one) for one in content["scores"][found["test"]]])
                expected = found["expected_test"]
                rows.append((found["dev"], test, expected["low"] <= test <= expected["high"], found["expert"]))
        dev, test, held, expert = np.array(rows, dtype=np.float64).mean(axis=0)
        lines.append(
            f"| {way} | {len(rows)} | {dev:.3f} | {test:.3f} | {test - dev:+.3f} | {held:.2f} | {expert:.2f} |"
        )
    return lines


def needed(tasks: Sequence[Task]) -> list[str]:
    """The table of the dev examples that each method asks until it is as good as the baseline at the end."""
    lines = ["| method | task | budget | dev examples |", "|---|---|---:|---:|"]
    for content in tasks:
        budgets = list(next(iter(content["runs"][BASELINE].values()))["choices"])
        goal = mean_of([content], BASELINE, budgets[-1])
        for method in content["runs"]:
            reached = (budget for budget in budgets if mean_of([content], method, budget) >= goal)
            budget = next(reached, None)
            cost = "" if budget is None else f"{int(budget) * content['dev']:,}"
            lines.append(f"| {method} | {content['task']} | {budget or 'not reached'} | {cost} |")
    return lines


def plot(tasks: Sequence[Task], count: int = SAMPLES) -> Figure:
    """Scores on test against evaluations: a line a search, and across it the best method that searches nothing."""
    figure, axes = new_axes(3.6)
    methods = methods_of(tasks)
    budgets = list(next(iter(tasks[0]["runs"][methods[0]].values()))["choices"])
    drawn = [samples(tasks, methods, budget, count) for budget in budgets]
    handles, labels = [], []
    steady = {name: mean for name in methods if (mean := mean_of(tasks, name, "none")) == mean}
    if steady:
        best = max(steady, key=lambda name: steady[name])
        handles.append(axes.axhline(steady[best], color=colour("faint"), linestyle="--"))
        labels.append(best)
    searches = [name for name in methods if name not in steady]
    for number, name in enumerate(searches):
        shown = [(at, found) for at, found in enumerate(drawn) if not np.isnan(mean_of(tasks, name, budgets[at]))]
        column = methods.index(name)
        means = np.array([mean_of(tasks, name, budgets[at]) for at, _ in shown])
        ends = np.array([interval(found[:, column]) for _, found in shown])
        # Beside each other, so that no interval hides another.
        places = [int(budgets[at]) * 1.02 ** (number - len(searches) / 2) for at, _ in shown]
        errors = np.abs(ends.T - means)
        style = {"color": colour(HUES[number % len(HUES)]), "linestyle": "-" if number < len(HUES) else ":"}
        handles.append(axes.errorbar(places, means, errors, marker="o", markersize=3.5, linewidth=1.4, **style))
        labels.append(name)
    axes.set_xscale("log")
    axes.set_xticks([int(budget) for budget in budgets], budgets)
    axes.minorticks_off()
    axes.set_xlabel("evaluations of all dev examples")
    axes.set_ylabel("score on test")
    axes.grid(axis="y")
    legend(figure, handles, labels)
    return figure


def main() -> None:
    """Print the tables of the files on the command line, a task each, and draw the figure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.policy_tables")
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    tasks = [read_json(file) for file in given.files]
    if given.figure:
        given.figure.write_bytes(svg(plot, tasks))
    print("\n".join([*tables(tasks), "", *ways(tasks), "", *needed(tasks)]))


if __name__ == "__main__":
    main()
