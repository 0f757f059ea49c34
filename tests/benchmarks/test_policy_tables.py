"""The tables of the study of policies, on made-up scores."""

import numpy as np
import pytest

from benchmarks.quality.policy_tables import interval, mean_of, needed, plot, samples, tables, ways
from modelswarms_fast.records.style import svg


def run(budgets: dict[str, str], dev: float = 0.5, low: float = 0.0):
    """A search whose winner at each budget has these scores on test."""
    one = {"dev": dev, "expected_test": {"low": low, "high": 1.0}, "expert": False}
    return {"choices": {budget: {"best": one | {"test": key}} for budget, key in budgets.items()}}


def content(rates: dict[str, float], seeds: int = 4, examples: int = 400):
    """What the study would write: methods whose winners answer at these rates."""
    random = np.random.default_rng(1)
    runs, scores = {}, {}
    for method, rate in rates.items():
        for seed in range(seeds):
            key = f"{method}{seed}"
            scores[key] = "".join(str(int(one)) for one in random.random(examples) < rate)
            runs.setdefault(method, {})[str(seed)] = run({"50": key, "200": key})
    return {"task": "made up", "dev": 100, "experts": {}, "runs": runs, "scores": scores}


def test_means_are_over_seeds_and_then_over_tasks():
    one = {"experts": {}, "runs": {"swarm": {"0": run({"50": "a"}), "1": run({"50": "b"})}}}
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
    lines = tables([content({"better": 0.6, "swarm": 0.4})], count=50)
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")] == [
        "| method", "| swarm", "| better", "| method", "| better",
    ]  # fmt: skip
    assert lines[-1].count("+0.2") >= 2


def test_baselines_that_draw_nothing_stand_at_every_budget_and_the_others_at_their_own():
    one = content({"swarm": 0.4})
    of = {"budget": 200, "scores": "1" * 400}
    one["beside"] = {"soup": {"0": of}, "lorahub": {"0": of, "1": of}}
    rows = {line.split(" | ")[0]: line for line in tables([one], count=50)[:5]}
    assert rows["| soup"].count("1.000 (") == 2
    assert rows["| lorahub"].count("1.000 (") == 1


def test_the_ways_to_choose_say_how_often_the_interval_held():
    one = content({"swarm": 0.4})
    one["runs"]["swarm"]["3"] = run({"50": "swarm0", "200": "swarm0"}, low=0.9)
    (line,) = [line for line in ways([one]) if line.startswith("| best")]
    assert line.split(" | ")[1] == "4"
    assert line.split(" | ")[5] == "0.75"


def test_what_a_method_needs_is_counted_in_dev_examples():
    one = content({"swarm": 0.4, "better": 0.6})
    assert "| better | made up | 50 | 5,000 |" in needed([one])
    one["runs"]["better"] = content({"worse": 0.1})["runs"]["worse"]
    one["scores"] |= content({"worse": 0.1})["scores"]
    assert "| better | made up | not reached |  |" in needed([one])


def test_the_figure_has_a_line_a_search_and_one_for_the_best_without():
    one = content({"swarm": 0.4, "better": 0.6})
    of = {"budget": 200, "scores": "1" * 400}
    one["beside"] = {"soup": {"0": of}, "worse": {"0": of | {"scores": "0" * 400}}, "lorahub": {"0": of, "1": of}}
    figure = plot([one], count=20)
    (axes,) = figure.axes
    shown = {text.get_text() for one in figure.legends for text in one.get_texts()}
    assert shown == {"swarm", "better", "soup", "lorahub"}
    points = {len(one.lines[0].get_xdata()) for one in axes.containers}
    assert points == {1, 2}
    picture = svg(lambda tasks: plot(tasks, count=20), [one])
    assert picture.startswith(b"<?xml")
