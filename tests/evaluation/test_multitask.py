"""Several tasks as one utility: by hand, against finite differences and a bootstrap, and in a search."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from helpers_scorers import answers, write_prompts
from helpers_search import make_tiny, told, write_data
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from modelswarms_fast.cli.main import app
from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.holdout import hold_back
from modelswarms_fast.evaluation.objectives import Answer, Ask, Utility, load_utility
from modelswarms_fast.evaluation.objectives.data import Wanted
from modelswarms_fast.evaluation.objectives.multitask import combined, gradient, join, load
from modelswarms_fast.records.run_folder import read_history
from modelswarms_fast.runs.search import search


def answer_file(path: Path, *expected: str, test: int = 1) -> Path:
    examples = [{"question": f"{path.stem} {index}?", "answer": answer} for index, answer in enumerate(expected)]
    path.write_text(json.dumps({"dev": examples, "test": examples[:test]}), encoding="utf-8")
    return path


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """Three examples of one task and two of another."""
    return [answer_file(tmp_path / "a.json", "1", "2", "3"), answer_file(tmp_path / "b.json", "x", "y")]


def matched(paths: list[Path], **options: str) -> Utility:
    return load_utility("multitask", paths, options={"tasks": "exact_match"} | options)


# The utility


@pytest.mark.parametrize(
    ("combine", "weights", "expected"),
    [
        ("harmonic", [1, 1], 2 * 0.6 * 0.3 / 0.9),
        ("harmonic", [2, 1], 3 / (2 / 0.6 + 1 / 0.3)),
        ("mean", [1, 1], 0.45),
        ("mean", [2, 1], 0.5),
        ("min", [1, 1], 0.3),
    ],
)
def test_combined_by_hand(combine: str, weights: list[float], expected: float) -> None:
    assert combined([0.6, 0.3], weights, combine) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("utilities", "expected"), [([0.0, 0.9], 0.0), ([0.0, 0.0], 0.0), ([-0.4, 0.9], -0.4)])
def test_harmonic_of_nothing_is_the_least(utilities: list[float], expected: float) -> None:
    assert combined(utilities, [1.0, 1.0], "harmonic") == expected


amounts = st.one_of(st.floats(0, 1), st.floats(-1, 10), st.sampled_from([0.0, 5e-324, 1e-300, 0.1, 1.0]))


@given(
    st.lists(st.tuples(amounts, amounts, st.floats(1e-3, 1e3)), min_size=1, max_size=4),
    st.sampled_from(["harmonic", "mean", "min"]),
)
def test_combined_never_falls_when_a_utility_rises(rows: list[tuple[float, float, float]], combine: str) -> None:
    low = [min(a, b) for a, b, _ in rows]
    high = [max(a, b) for a, b, _ in rows]
    weights = [weight for _, _, weight in rows]
    assert combined(low, weights, combine) <= combined(high, weights, combine)


@pytest.mark.parametrize("combine", ["harmonic", "mean", "min"])
def test_gradient_is_that_of_small_steps(combine: str) -> None:
    utilities, weights, step = [0.3, 0.7, 0.5], [1.0, 2.0, 0.5], 1e-6
    for which, slope in enumerate(gradient(utilities, weights, combine)):
        up = [value + step * (index == which) for index, value in enumerate(utilities)]
        change = combined(up, weights, combine) - combined(utilities, weights, combine)
        assert slope == pytest.approx(change / step, abs=1e-4)


def test_utility_of_scores_by_hand(pair: list[Path]) -> None:
    utility = matched(pair)
    assert utility.utility_of("dev", [1, 0, 0, 1, 0]) == pytest.approx(2 * (1 / 3) * (1 / 2) / (5 / 6))
    assert utility.utility_of("dev", [1, 1, 1, 0, 0]) == 0
    assert utility.utility_of("test", [1, 1]) == 1  # one example each
    assert math.isnan(utility.utility_of("dev", [1, math.nan, 0, 1, 0]))
    assert matched(pair, combine="mean", weights="1,3").utility_of("dev", [1, 1, 1, 0, 0]) == 0.25


@pytest.mark.parametrize("combine", ["harmonic", "mean"])
def test_standard_error_is_that_of_a_bootstrap(tmp_path: Path, combine: str) -> None:
    sizes = (300, 120)
    paths = [answer_file(tmp_path / f"{size}.json", *["1"] * size) for size in sizes]
    utility = matched(paths, combine=combine, weights="1,2")
    rng = random.Random(1)
    scores = [float(rng.random() < 0.3) for _ in range(300)] + [float(rng.random() < 0.7) for _ in range(120)]
    drawn = []
    for _ in range(600):
        again = rng.choices(scores[:300], k=300) + rng.choices(scores[300:], k=120)
        drawn.append(utility.utility_of("dev", again))
    center = sum(drawn) / len(drawn)
    spread = math.sqrt(sum((value - center) ** 2 for value in drawn) / (len(drawn) - 1))
    assert utility.error_of("dev", scores) == pytest.approx(spread, rel=0.12)


def test_standard_error_of_a_minimum_is_that_of_its_task(pair: list[Path]) -> None:
    utility = matched(pair, combine="min")
    assert utility.error_of("dev", [1, 1, 1, 1, 0]) == pytest.approx(0.5)  # of [1, 0]
    assert utility.error_of("dev", [1, 1, 0, 1, 1]) == pytest.approx(1 / 3)  # of [1, 1, 0]
    assert matched(pair).error_of("dev", [0, 0, 0, 1, 0]) == 0  # every score of the task that is 0 is 0


# Its examples


def test_examples_are_asked_and_scored_by_their_own_tasks(tmp_path: Path) -> None:
    choice = {"question": "Which?", "choices": {"A": "no", "B": "yes"}, "answer": "B"}
    first = tmp_path / "quiz.json"
    first.write_text(json.dumps({"dev": [choice] * 2, "test": [choice]}), encoding="utf-8")
    second = answer_file(tmp_path / "gsm8k.json", "7", "8")
    utility = load_utility("multitask", [first, second], options={"tasks": "multiple_choice, exact_match"})
    assert utility.dataset == "quiz + gsm8k"
    assert [asks[0].max_tokens for asks in utility.asks["dev"]] == [10, 10, 200, 200]
    assert utility.prompts["dev"][2:] == ["gsm8k 0?", "gsm8k 1?"]
    # Out of order, as they end: 7 among the last five words of dev, but among the last ten of test.
    words = "7 a b c d e"
    assert utility.score("dev", [3, 0, 2], answers("it is 8", "B", words)) == [1] * 2 + [0]
    assert utility.score("test", [1, 0], answers(words, "A")) == [1, 0]
    assert utility.score_range == (0, 1)


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        ("multiple_choice,exact_match", ["loglikelihood", "generate"]),
        ("exact_match,exact_match", ["loglikelihood", "loglikelihood"]),  # to be refused by the task
    ],
)
def test_likelihoods_are_for_multiple_choice_among_them(tasks: str, expected: list[str]) -> None:
    asked = []

    def load_one(task: str, path: Path, *, scoring: str, **more: Any) -> Utility:
        asked.append(scoring)
        return made(task)

    wanted = Wanted("multitask", scoring="loglikelihood", options={"tasks": tasks})
    load([Path("a.json"), Path("b.json")], wanted, load_one)
    assert asked == expected


def test_limits_and_tokens_apply_to_each_task(pair: list[Path]) -> None:
    options = {"tasks": "exact_match"}
    utility = load_utility("multitask", pair, limit_dev=1, limit_test=5, max_tokens=3, options=options)
    assert utility.prompts == {"dev": ["a 0?", "b 0?"], "test": ["a 0?", "b 0?"]}
    assert utility.max_tokens == 3


def made(name: str, **more: Any) -> Utility:
    """A task of two examples that scores the length of an answer."""
    examples = {split: [{"prompt": f"{name}{number}"} for number in range(2)] for split in ("dev", "test")}
    asks = {split: [(Ask(one["prompt"], 5),) for one in some] for split, some in examples.items()}

    def score(examples: Any, answers: Any) -> list[float]:
        more.get("seen", []).append([one["prompt"] for one in examples])
        return [float(sum(len(one.text) for one in given)) for given in answers]

    return Utility(name, name, examples, asks, score, **{key: value for key, value in more.items() if key != "seen"})


def test_follow_ups_ranges_batches_and_reports_are_those_of_the_tasks() -> None:
    def ask_again(example: dict[str, Any], given: Any) -> Ask | None:
        return Ask(f"{example['prompt']} sure?", 2)

    batches: list[list[str]] = []
    one = made("one", follow_up=ask_again, score_range=(1.0, 10.0), batch=2, seen=batches, report=lambda: {"cost": 3})
    two = made("two", score_range=(-1.0, 1.0))
    utility = join("multitask", [one, two], [1.0, 1.0], "harmonic")
    assert utility.follow_up is not None
    assert utility.follow_up(utility.examples["dev"][1], answers("x")[0]) == Ask("one1 sure?", 2)
    assert utility.follow_up(utility.examples["dev"][2], answers("x")[0]) is None
    assert utility.score_range == (-1, 10)
    assert utility.batch == 2
    assert utility.score("dev", [0, 2, 1], answers("abc", "", "ab")) == [3, 0, 2]
    assert batches == [["one0"], ["one1"]]  # the utility hands out two at a time: one0 and two0, one1
    assert utility.report() == {"1. one": {"cost": 3}}
    assert join("multitask", [one, made("free")], [1.0, 1.0], "mean").score_range is None


def test_a_task_keeps_its_own_reduction() -> None:
    best = made("best", reduce=lambda split, scores: max(scores), standard_error=lambda split, scores: 0.25)
    utility = join("multitask", [best, made("plain")], [1.0, 1.0], "mean")
    assert utility.utility_of("dev", [1, 5, 2, 4]) == 4
    assert utility.error_of("dev", [1, 5, 3, 3]) == 0.125


def test_a_score_out_of_its_tasks_range_is_refused() -> None:
    utility = join(
        "multitask", [made("one", score_range=(0.0, 1.0)), made("two", score_range=(0.0, 9.0))], [1, 1], "min"
    )
    with pytest.raises(InputError, match='"one" on dev example 0'):
        utility.score("dev", [0], answers("long"))


def test_calibration_reaches_each_task_with_its_own_examples() -> None:
    seen: list[tuple[list[str], list[list[Answer]]]] = []

    def calibrate(examples: Any, given: Any) -> None:
        seen.append(([one["prompt"] for one in examples], list(given)))

    utility = join("multitask", [made("plain"), made("tuned", calibrate=calibrate)], [1.0, 1.0], "min")
    assert utility.calibrate is not None
    given = answers("a", "b", "c", "d")
    utility.calibrate(utility.examples["dev"], given)
    assert seen == [(["tuned0", "tuned1"], given[2:])]


# Options and files


def test_each_task_keeps_back_its_part_for_confirm(tmp_path: Path) -> None:
    paths = [answer_file(tmp_path / name, *(f"{name}{index}" for index in range(size))) for name, size in
             (("one.json", 7), ("two.json", 4))]  # fmt: skip
    whole = matched(paths)
    kept = hold_back(whole, 5)
    assert [len(kept.examples[split]) for split in ("dev", "confirm", "test")] == [4 + 2, 3 + 2, 2]
    answers = [[one["answer"] for one in kept.examples[split]] for split in ("dev", "confirm")]
    assert sorted(answers[0] + answers[1]) == sorted(one["answer"] for one in whole.examples["dev"])
    # The harmonic mean of 2 of 3 and 1 of 2, by the tasks' own part of what was kept back.
    right = [Answer(text) for text in answers[1]]
    given = [[right[0]], [right[1]], [Answer("")], [right[3]], [Answer("")]]
    scores = kept.score("confirm", range(5), given)
    assert kept.utility_of("confirm", scores) == pytest.approx(2 / (3 / 2 + 2))
    with pytest.raises(InputError, match="confirm is 1 but multitask has 2 tasks"):
        hold_back(whole, 1)


def test_options_of_one_task_are_numbered(tmp_path: Path, pair: list[Path]) -> None:
    prompts = write_prompts(tmp_path / "p.json", "Say")
    with pytest.raises(InputError, match="no option colour"):
        load_utility("multitask", [pair[0], prompts], options={"tasks": "exact_match,toxicity", "2.colour": "red"})
    utility = load_utility(
        "multitask",
        [pair[0], prompts],
        options={"tasks": "exact_match,toxicity", "2.scorer": "helpers_toxicity:loud"},
    )
    assert utility.score("dev", [3], answers("QUITE LOUD WORDS")) == [0.25]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tasks": "exact_match,exact_match,exact_match"}, "2 evaluation files but 3 tasks"),
        ({"tasks": "exact_match,multitask"}, "cannot hold multitask"),
        ({"combine": "sum"}, "combine .* choose harmonic, mean, min"),
        ({"weights": "1"}, "give 2 numbers above 0"),
        ({"weights": "1,0"}, "give 2 numbers above 0"),
        ({"weights": "1,x"}, "give 2 numbers above 0"),
        ({"weights": "1,nan"}, "give 2 numbers above 0"),
        ({"colour": "red"}, "no option colour"),
        ({"3.model": "x"}, "no option 3.model"),
    ],
)
def test_refusals(pair: list[Path], options: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_utility("multitask", pair, options={"tasks": "exact_match"} | options)


def test_one_file_is_no_multitask(pair: list[Path]) -> None:
    with pytest.raises(InputError, match="1 evaluation file; give --data for each"):
        load_utility("multitask", pair[:1])


def test_several_files_are_for_multitask_alone(pair: list[Path]) -> None:
    with pytest.raises(InputError, match="takes one evaluation file"):
        load_utility("exact_match", pair)


@pytest.mark.parametrize(
    ("domain", "files"),
    [
        ("legal", ["hearsay", "citation_prediction_classification"]),
        ("medical", ["medqa", "medmcqa"]),
        ("science", ["scifact", "stem"]),
        ("culture", ["normad_country", "normad_value"]),
    ],
)
def test_published_domains(tmp_path: Path, domain: str, files: list[str]) -> None:
    for name in files:
        choice = {"question": name, "choices": {"A": "no", "B": "yes"}, "answer": "B"}
        (tmp_path / f"{name}.json").write_text(json.dumps({"dev": [choice], "test": [choice]}), encoding="utf-8")
    utility = load_utility(f"multitask:{domain}", tmp_path)
    assert (utility.name, utility.dataset) == (f"multitask:{domain}", " + ".join(files))
    assert utility.utility_of("dev", [1, 0.5]) == pytest.approx(2 / 3)
    (tmp_path / f"{files[1]}.json").unlink()
    with pytest.raises(InputError, match=f"{files[1]}.json, which does not exist"):
        load_utility(f"multitask:{domain}", tmp_path)
    with pytest.raises(InputError, match=f"takes one folder as --data, with {files[0]}.json"):
        load_utility(f"multitask:{domain}", tmp_path / f"{files[0]}.json")


def test_unknown_domain(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="choose legal, medical, science, culture"):
        load_utility("multitask:sports", tmp_path)


# In a search


def test_search_stops_early_and_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelswarms_fast.evaluation.evaluator.FLOOR", 1)
    tiny = make_tiny(tmp_path)
    write_data(tmp_path / "other.json", 20)
    arguments = tiny | {
        "task": "multitask",
        "data": [tiny["data"], tmp_path / "other.json"],
        "options": {"tasks": "helpers_search:rich"},
        "iterations": 6,
    }
    whole = search(**arguments, out=tmp_path / "whole")
    early = search(**arguments, out=tmp_path / "early", stop_early=True)
    assert early["end"] == whole["end"]
    assert early["skipped_examples"] > 0
    assert 0 < whole["start"]["dev"] < 1
    assert whole["data"] == [str(tiny["data"]), str(tmp_path / "other.json")]
    assert [line["global_best"] for line in told(tmp_path / "early")] == [
        line["global_best"] for line in told(tmp_path / "whole")
    ]


def test_files_and_options_on_the_command_line(tmp_path: Path) -> None:
    tiny = make_tiny(tmp_path)
    write_data(tmp_path / "other.json", 4)
    arguments = ["search", str(tiny["experts"]), "--base", tiny["base"], "--engine", "transformers"]
    arguments += ["--data", str(tiny["data"]), "--data", str(tmp_path / "other.json"), "--task", "multitask"]
    arguments += ["--option", "tasks=helpers_search:vowels", "--option", "combine=min", "--iterations", "1"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "run")], catch_exceptions=False)
    assert result.exit_code == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["data"] == [str(tiny["data"]), str(tmp_path / "other.json")]
    assert summary["dev_examples"] == 16
    assert len(read_history(tmp_path / "run" / "history.jsonl")) >= 1
