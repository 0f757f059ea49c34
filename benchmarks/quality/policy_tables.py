"""Tables of the study of policies, from what `benchmarks.quality.policies test` has written.

    python -m benchmarks.quality.policy_tables FILE ...

One table: a row a method, its score on test at each budget, averaged over seeds and tasks, with a 95 % interval. One
more: the difference of each method to `swarm`. Both follow benchmarks/quality/PROTOCOL.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from modelswarms_fast.records.run_folder import read_json

SAMPLES, SEED, LEVEL = 10_000, 0, 0.95
BASELINE = "swarm"
Floats = npt.NDArray[np.float64]


def scores_of(content: dict[str, Any], method: str, budget: str) -> Floats:
    """[seeds, examples] scores on test of what a method chose at a budget."""
    runs = content["runs"][method].values()
    return np.array([[float(one) for one in content["scores"][run[budget]["test"]]] for run in runs])


def samples(tasks: Sequence[dict[str, Any]], methods: Sequence[str], budget: str, count: int = SAMPLES) -> Floats:
    """[count, methods] bootstrap samples of the score on test, averaged over seeds and then over tasks.

    Test examples are drawn for all methods together, seeds for each method by itself.
    """
    random = np.random.default_rng(SEED)
    means = np.zeros((count, len(methods)))
    for content in tasks:
        scores = [scores_of(content, method, budget) for method in methods]
        examples = scores[0].shape[1]
        for sample in range(count):
            weights = np.bincount(random.integers(examples, size=examples), minlength=examples) / examples
            for column, one in enumerate(scores):
                seeds = random.integers(len(one), size=len(one))
                means[sample, column] += float((one @ weights)[seeds].mean()) / len(tasks)
    return means


def mean_of(tasks: Sequence[dict[str, Any]], method: str, budget: str) -> float:
    """The score on test, averaged over seeds and then over tasks."""
    return float(np.mean([scores_of(content, method, budget).mean() for content in tasks]))


def interval(values: Floats) -> tuple[float, float]:
    """The percentile interval of bootstrap samples."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def tables(tasks: Sequence[dict[str, Any]], count: int = SAMPLES) -> list[str]:
    """Both tables in Markdown: the methods and budgets that all tasks have."""
    methods = [method for method in tasks[0]["runs"] if all(method in content["runs"] for content in tasks)]
    budgets = list(next(iter(tasks[0]["runs"][methods[0]].values())))
    drawn = {budget: samples(tasks, methods, budget, count) for budget in budgets}
    head = [f"| method | seeds | {' | '.join(budgets)} |", "|---|---:|" + "---:|" * len(budgets)]
    scores, differences = list(head), list(head)
    for column, method in enumerate(methods):
        seeds = min(len(content["runs"][method]) for content in tasks)
        found, beside = [], []
        for budget in budgets:
            mean, values = mean_of(tasks, method, budget), drawn[budget]
            found.append("{:.3f} ({:.3f} to {:.3f})".format(mean, *interval(values[:, column])))
            if method != BASELINE and BASELINE in methods:
                difference = mean - mean_of(tasks, BASELINE, budget)
                paired = values[:, column] - values[:, methods.index(BASELINE)]
                beside.append("{:+.3f} ({:+.3f} to {:+.3f})".format(difference, *interval(paired)))
        scores.append(f"| {method} | {seeds} | {' | '.join(found)} |")
        if beside:
            differences.append(f"| {method} | {seeds} | {' | '.join(beside)} |")
    return [*scores, "", *differences]


def main() -> None:
    """Print the tables of the files on the command line, a task each."""
    print("\n".join(tables([read_json(Path(name)) for name in sys.argv[1:]])))


if __name__ == "__main__":
    main()
