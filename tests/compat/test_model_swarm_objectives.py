"""The evaluation types of model_swarm: its sums, its batches, and what its files hold."""

import json
import math
from types import SimpleNamespace

import pytest
from helpers_model_swarm import write_choices, write_questions

from modelswarms_fast.compat.model_swarm.objectives import load_objective, padded
from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.objectives import Answer


@pytest.fixture
def place(tmp_path, monkeypatch):
    for name in ("quiz", "hearsay", "citation_prediction_classification"):
        write_choices(tmp_path, name, 12, seed=len(name))
    for name in ("nlgraph", "gsm8k", "maths"):
        write_questions(tmp_path, name, 12)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("place")
def test_two_utilities_of_0_are_001_which_is_more_than_one_of_0():
    utility = load_objective("multitask", "legal").utility
    assert utility.utility_of("dev", [0.0] * 24) == 2 * 0.01 * 0.01 / (0.01 + 0.01)
    assert utility.utility_of("dev", [0.0] * 12 + [1.0] * 12) == 0.0
    a, b = 5 / 12, 7 / 12
    assert utility.utility_of("dev", [1.0] * 5 + [0.0] * 12 + [1.0] * 7) == 2 * a * b / (a + b)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(("only", "utility"), [("one", 0.25), ("two", 1.0)])
def test_one_task_alone(only, utility):
    objective = load_objective("multitask", "legal", only=only)
    assert objective.utility.utility_of("test", [1.0] * 3 + [0.0] * 9 + [1.0] * 12) == utility
    assert objective.utilities("test", [1.0] * 3 + [0.0] * 9 + [1.0] * 12) == [0.25, 1.0]


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("eval_type", "dataset", "dev", "test"),
    [
        ("multiple_choice", "quiz", [10, 2], [10, 2]),
        ("AbstainQA", "quiz", [10, 2], [10, 2]),
        ("exact_match", "nlgraph", [5, 5, 2], [5, 5, 2]),
        ("exact_match", "maths", [10, 2], [5, 5, 2]),  # on test always five
        ("multitask", "legal", [10, 2, 10, 2], [10, 2, 10, 2]),  # of each task by itself
    ],
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_batches(eval_type, dataset, dev, test, side):
    tokenizer = SimpleNamespace(eos_token_id=7, padding_side=side)
    padding = padded(load_objective(eval_type, dataset), tokenizer).utility.padding
    assert (padding.token, padding.side) == (7, side)
    assert {split: list(map(len, some)) for split, some in padding.batches.items()} == {"dev": dev, "test": test}


@pytest.mark.usefixtures("place")
def test_more_words_of_a_solution_are_looked_at_on_test():
    utility = load_objective("exact_match", "gsm8k").utility
    assert utility.max_tokens == 200
    assert {split: some[0]["_last_words"] for split, some in utility.examples.items()} == {"dev": 5, "test": 10}


@pytest.mark.usefixtures("place")
def test_files_of_abstentions_are_flags():
    objective = load_objective("AbstainQA", "quiz", limit_dev=3)
    examples = objective.utility.examples["dev"]
    said = [(examples[0]["answer"], "True."), ("Z", "It is false."), ("Z", "true")]
    given = [[Answer(answer), Answer(reflection)] for answer, reflection in said]
    kept = [objective.keep(*pair) for pair in zip(examples, given, strict=True)]
    assert objective.results("dev", [1.0, 0.0, -1.0], kept) == {"golds": [1, 0, 0], "preds": [1, 0, 1]}


@pytest.mark.usefixtures("place")
def test_scores_that_are_whole_numbers_are_written_as_such():
    (scores,) = load_objective("exact_match", "maths").results("dev", [1.0, 0.0, 0.25, math.nan], []).values()
    assert json.dumps(scores) == "[1, 0, 0.25, NaN]"


@pytest.mark.usefixtures("place")
def test_a_tokenizer_without_an_end_cannot_pad():
    with pytest.raises(InputError, match="use --padding clean"):
        padded(load_objective("exact_match", "maths"), SimpleNamespace(eos_token_id=None))
