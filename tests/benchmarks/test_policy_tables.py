"""The tables of the study of policies, on made-up scores."""

import numpy as np
import pytest

from benchmarks.quality.policy_tables import interval, mean_of, samples, tables


def content(rates: dict[str, float], seeds: int = 4, examples: int = 400):
    """What the study would write: methods whose winners answer at these rates."""
    random = np.random.default_rng(1)
    runs, scores = {}, {}
    for method, rate in rates.items():
        for seed in range(seeds):
            key = f"{method}{seed}"
            scores[key] = "".join(str(int(one)) for one in random.random(examples) < rate)
            runs.setdefault(method, {})[str(seed)] = {"50": {"test": key}, "200": {"test": key}}
    return {"runs": runs, "scores": scores}


def test_means_are_over_seeds_and_then_over_tasks():
    one = {"runs": {"swarm": {"0": {"50": {"test": "a"}}, "1": {"50": {"test": "b"}}}}}
    tasks = [one | {"scores": {"a": "1100", "b": "1111"}}, one | {"scores": {"a": "00", "b": "00"}}]
    assert mean_of(tasks, "swarm", "50") == pytest.approx((0.75 + 0.0) / 2)


def test_intervals_hold_the_difference_and_tell_apart_what_differs():
    tasks = [content({"swarm": 0.4, "same": 0.4, "better": 0.6})]
    found = samples(tasks, ["swarm", "same", "better"], "50", count=400)
    low, high = interval(found[:, 1] - found[:, 0])
    assert low < 0 < high
    low, high = interval(found[:, 2] - found[:, 0])
    assert 0 < low < 0.2 < high
    assert found.mean(axis=0) == pytest.approx(
        [mean_of(tasks, one, "50") for one in ("swarm", "same", "better")], abs=0.01
    )


def test_seeds_are_a_part_of_the_interval():
    """Seeds that differ widen it: to draw examples alone would not see that."""
    steady, wild = content({"swarm": 0.5}, examples=2000), content({"swarm": 0.5}, examples=2000)
    for seed, value in enumerate("0011"):
        wild["scores"][f"swarm{seed}"] = value * 2000
    widths = [np.ptp(interval(samples([one], ["swarm"], "50", count=300)[:, 0])) for one in (steady, wild)]
    assert widths[1] > 5 * widths[0]


def test_the_tables_have_a_row_a_method():
    lines = tables([content({"swarm": 0.4, "better": 0.6})], count=50)
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")] == [
        "| method", "| swarm", "| better", "| method", "| better",
    ]  # fmt: skip
    assert lines[-1].count("+0.2") >= 2
