"""Utilities: prompts and parses by hand-written expectations, checks at the door, functions of the user."""

from __future__ import annotations

import datetime
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.objectives import Answer, Utility, load_utility, multiple_choice

CHOICES = {"A": "Red", "B": "Green apple", "C": "Blue"}
SHOWN = "Question: Which colour?\nA: Red\nB: Green apple\nC: Blue\nThe answer is"
QUESTION = {"question": "Which colour?", "choices": CHOICES, "answer": "B"}


def write(path: Path, **content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def choice_file(folder: Path, name: str = "mmlu.json", **more: Any) -> Path:
    return write(folder / name, dev=[QUESTION], test=[QUESTION, QUESTION], **more)


def answer_file(folder: Path, name: str = "data.json", answer: Any = "7", **more: Any) -> Path:
    examples = [{"question": "3 + 4?", "answer": answer}]
    return write(folder / name, dev=examples, test=examples, **more)


def score(utility: Utility, split: str, texts: Sequence[str]) -> list[float]:
    """Scores of generated texts, one for each example."""
    return utility.score(split, range(len(texts)), [[Answer(text)] for text in texts])


# Prompts


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (
            "mmlu",
            f"Please choose an option that best answers the question.\n{SHOWN}",
        ),
        (
            "hellaswag",
            f"Please choose an option that best completes the sentence.\n{SHOWN}",
        ),
        (
            "knowledge_crosswords",
            f"Q: 1\nThe answer is A.\n\n{SHOWN}",
        ),
    ],
)
@pytest.mark.parametrize("named_by", ["field", "field in other case", "file name"])
def test_multiple_choice_prompt(tmp_path: Path, dataset: str, expected: str, named_by: str) -> None:
    field = {
        "field": {"dataset": dataset},
        "field in other case": {"dataset": dataset.upper()},
        "file name": {},
    }[named_by]
    name = f"{dataset}.json" if named_by == "file name" else "renamed.json"
    utility = load_utility(
        "multiple_choice", choice_file(tmp_path, name, icl_prompt="Q: 1\nThe answer is A.\n", **field)
    )
    assert utility.prompts == {"dev": [expected], "test": [expected, expected]}
    assert (utility.name, utility.max_tokens) == ("multiple_choice", 10)
    assert utility.dataset == field.get("dataset", dataset)


def test_exact_match_prompt_is_the_question(tmp_path: Path) -> None:
    utility = load_utility("exact_match", answer_file(tmp_path, dataset="p3_mixed"))
    assert utility.prompts == {"dev": ["3 + 4?"], "test": ["3 + 4?"]}


@pytest.mark.parametrize(("dataset", "tokens"), [("gsm8k", 200), ("GSM8k", 200), ("NLGraph", 10), ("p3_mixed", 10)])
def test_token_limits(tmp_path: Path, dataset: str, tokens: int) -> None:
    path = answer_file(tmp_path, dataset=dataset)
    assert load_utility("exact_match", path).max_tokens == tokens
    assert load_utility("exact_match", path, max_tokens=33).max_tokens == 33


# Parsing and scores


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("B", "B"),
        ("A or B", "A"),  # both within five characters: the first key of the file
        ("C, B", "B"),  # the order of the keys counts, not of the output
        ("it is B", "B"),  # among the last five only
        ("xxxxx B yyyyy", "Z"),  # a key in the middle is not looked at
        ("C......B", "C"),  # the first five come before the last five
        ("1234A6789B", "A"),  # the fifth character is looked at
        ("12345A6789x", "Z"),  # the sixth from either end is not
        ("12345A678x", "A"),  # the fifth from the end is
        ("the green APPLE tastes", "B"),  # texts of choices, case ignored
        ("blue and red things", "A"),  # again the order of the keys
        ("", "Z"),
        ("no idea of it", "Z"),
    ],
)
def test_multiple_choice_parse(output: str, expected: str) -> None:
    assert multiple_choice.parse(QUESTION, output) == expected


def test_order_of_keys_is_that_of_the_file() -> None:
    assert multiple_choice.parse({"choices": {"C": "x", "A": "y"}}, "A C") == "C"


def test_empty_choice_text_is_found_in_everything() -> None:
    assert multiple_choice.parse({"choices": {"A": "x", "B": "", "C": "y"}}, "") == "B"
    assert multiple_choice.parse({"choices": {"A": "x", "B": "", "C": "y"}}, "yes yes yes") == "B"


def test_multiple_choice_scores(tmp_path: Path) -> None:
    utility = load_utility("multiple_choice", choice_file(tmp_path))
    assert score(utility, "test", ["B", "A"]) == [1.0, 0.0]
    assert score(utility, "dev", [""]) == [0.0]


def test_white_space_at_the_ends_is_no_output(tmp_path: Path) -> None:
    utility = load_utility("multiple_choice", choice_file(tmp_path))
    assert score(utility, "dev", ["\n      B is the one\n"]) == [1.0]
    assert score(utility, "dev", ["the right one is B      \n"]) == [1.0]


def test_exact_match_scores(tmp_path: Path) -> None:
    examples = [
        {"question": "q", "answer": "Yes"},
        {"question": "q", "answer": "Yes"},
        {"question": "q", "answer": "Yes"},
    ]
    utility = load_utility("exact_match", write(tmp_path / "x.json", dev=examples, test=examples))
    assert score(utility, "dev", ["so Yes indeed", "yes", ""]) == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(("answer", "output"), [(7, "it is 7."), (2.5, "2.5 km")])
def test_numbers_as_answers(tmp_path: Path, answer: float, output: str) -> None:
    utility = load_utility("exact_match", answer_file(tmp_path, answer=answer))
    assert score(utility, "dev", [output]) == [1.0]
    assert score(utility, "dev", ["none"]) == [0.0]


def test_numbers_as_choices(tmp_path: Path) -> None:
    examples = [{"question": "3 + 4?", "choices": {"1": 8, "2": 7.5}, "answer": 2}]
    utility = load_utility("multiple_choice", write(tmp_path / "x.json", dev=examples, test=examples))
    assert utility.prompts["dev"][0].endswith("3 + 4?\n1: 8\n2: 7.5\nThe answer is")
    assert score(utility, "dev", ["2"]) == [1.0]


@pytest.mark.parametrize(("split", "kept"), [("dev", 5), ("test", 10)])
def test_gsm8k_keeps_the_last_words(tmp_path: Path, split: str, kept: int) -> None:
    gsm8k = load_utility("exact_match", answer_file(tmp_path, dataset="GSM8k"))
    inside = "start 7 " + "w " * (kept - 1)
    outside = "start 7 " + "w " * kept
    assert score(gsm8k, split, [inside + "\n"]) == [1.0]
    assert score(gsm8k, split, [outside + "\n"]) == [0.0]
    double_space = "start 7  " + "w " * (kept - 1)  # two spaces in a row hold an empty word
    assert score(gsm8k, split, [double_space]) == [0.0]
    line_ends = "7\n" + "w\n" * kept  # only spaces separate words
    assert score(gsm8k, split, [line_ends]) == [1.0]
    other = load_utility("exact_match", answer_file(tmp_path, dataset="nlgraph"))
    assert score(other, split, [outside]) == [1.0]


def test_number_of_outputs_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="answers to 1 examples for 2 of test"):
        load_utility("multiple_choice", choice_file(tmp_path)).score("test", [0, 1], [[Answer("B")]])


# The file


def test_limits_keep_the_first_examples(tmp_path: Path) -> None:
    examples = [{"question": f"q{i}", "answer": str(i)} for i in range(5)]
    path = write(tmp_path / "x.json", dev=examples, test=examples)
    utility = load_utility("exact_match", path, limit_dev=2, limit_test=99)
    assert utility.prompts == {"dev": ["q0", "q1"], "test": ["q0", "q1", "q2", "q3", "q4"]}
    assert utility.examples["dev"] == examples[:2]


@pytest.mark.parametrize("name", ["limit_dev", "limit_test", "max_tokens"])
@pytest.mark.parametrize("value", [0, -1])
def test_limits_below_one_are_refused(tmp_path: Path, name: str, value: int) -> None:
    with pytest.raises(InputError, match=f"{name} is {value}"):
        load_utility("exact_match", answer_file(tmp_path), **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("task", ["accuracy", "", "Multiple_Choice"])
def test_unknown_task_lists_the_tasks(tmp_path: Path, task: str) -> None:
    with pytest.raises(InputError, match=r"choose multiple_choice, exact_match, .* or a function as module:function"):
        load_utility(task, answer_file(tmp_path))


GOOD = {"question": "q", "answer": "a"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        ("[]", "holds no examples"),
        ("3", "is not a JSON object or list"),
        ({"test": [GOOD]}, '"dev" is missing, and the only other has 1 example'),
        ({"dev": [GOOD]}, '"test" is missing'),
        ({"dev": [GOOD], "test": []}, '"test" is empty'),
        ({"dev": {"a": GOOD}, "test": [GOOD]}, '"dev" is no list'),
        ({"dev": [GOOD], "test": [GOOD, 3]}, "test example 1 is not an object"),
        ({"dev": [GOOD], "test": [GOOD, GOOD, {"question": "q"}]}, 'test example 2 lacks the field "answer"'),
        ({"dev": [{"answer": "a"}], "test": [GOOD]}, 'dev example 0 lacks the field "question"'),
        ({"dev": [{"question": 3, "answer": "a"}], "test": [GOOD]}, '"question" is int, not text'),
        ({"dev": [{"question": "q", "answer": {"a": 1}}], "test": [GOOD]}, '"answer" is dict, not text or'),
        ({"dev": [{"question": "q", "answer": ["a", None]}], "test": [GOOD]}, '"answer", in its list, is NoneType'),
        ({"dev": [{"question": "q", "answer": None}], "test": [GOOD]}, '"answer" is NoneType'),
        ({"dev": [GOOD], "test": [GOOD, GOOD | {"answer": ""}]}, "test example 1 has an empty answer"),
        ({"dev": [GOOD], "test": [GOOD], "dataset": 3}, '"dataset" is not a text'),
        (
            {"dev": [GOOD, {"question": "\ud800", "answer": "a"}], "test": [GOOD]},
            r"dev example 1 holds '\\ud800', which",
        ),
        (
            {"dev": [GOOD], "test": [GOOD], "dataset": "a\udcff"},
            r"beside the examples it holds '\\udcff', which is half",
        ),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "bad.json"
    raw = content if isinstance(content, (str, bytes)) else json.dumps(content)
    path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    with pytest.raises(InputError, match=message) as caught:
        load_utility("exact_match", path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ([], "is list, not an object"),
        ({}, "is empty"),
        ({"A": None}, "choice A, is NoneType"),
    ],
)
def test_bad_choices_are_refused(tmp_path: Path, choices: Any, message: str) -> None:
    path = write(tmp_path / "x.json", dev=[QUESTION], test=[{**QUESTION, "choices": choices}])
    with pytest.raises(InputError, match=f'test example 0: the field "choices"[, ]+{message}'):
        load_utility("multiple_choice", path)


@pytest.mark.parametrize("task", ["multiple_choice", "abstain"])
def test_an_answer_that_is_no_choice_is_refused(tmp_path: Path, task: str) -> None:
    path = write(tmp_path / "x.json", dev=[QUESTION], test=[QUESTION, {**QUESTION, "answer": "Plum"}])
    with pytest.raises(InputError, match=rf'{path}: test example 1 has the answer "Plum", .* give A, B, C'):
        load_utility(task, path)


def test_examples_beyond_a_limit_are_checked_too(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", dev=[GOOD, {}], test=[GOOD])
    with pytest.raises(InputError, match="dev example 1 lacks"):
        load_utility("exact_match", path, limit_dev=1)


@pytest.mark.parametrize("more", [{}, {"icl_prompt": 3}, {"icl_prompt": ""}])
def test_knowledge_crosswords_needs_its_example(tmp_path: Path, more: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="icl_prompt"):
        load_utility("multiple_choice", choice_file(tmp_path, "knowledge_crosswords.json", **more))


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "none.json", r"cannot read .*; give JSON"), (tmp_path, "holds no data file")):
        with pytest.raises(InputError, match=message) as caught:
            load_utility("exact_match", path)
        assert str(path) in str(caught.value)


# Functions of the user

FUNCTIONS = """
import numpy
def words(example, output): return len(output.split()) / example.get("norm", 1)
words.max_tokens = 64
def plain(example, output): return output == "good"
def single(example, output): return numpy.float32(0.5)
def nan(example, output): return float("nan")
def infinite(example, output): return float("inf")
def huge(example, output): return -1e200
def text(example, output): return "1.0"
def nothing(example, output): return None
def fails(example, output):
    if example["prompt"] == "two": raise KeyError("colour")
    return 1
def zero(example, output): return 1
zero.max_tokens = 0
number = 3
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with a module of functions, current for the test; the data file in it."""
    (tmp_path / "functions_of_a_user.py").write_text(FUNCTIONS)
    (tmp_path / "breaks_on_import.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "functions_of_a_user", raising=False)
    return write(tmp_path / "x.json", dev=[{"prompt": "one"}, {"prompt": "two"}], test=[{"question": "q", "norm": 2}])


def user(name: str, path: Path) -> Utility:
    return load_utility(f"functions_of_a_user:{name}", path)


def test_function(functions: Path) -> None:
    before = list(sys.path)
    utility = user("words", functions)
    assert sys.path == before
    assert utility.prompts == {"dev": ["one", "two"], "test": ["q"]}
    assert (utility.name, utility.max_tokens) == ("functions_of_a_user:words", 64)
    assert score(utility, "dev", ["  a b c\n", ""]) == [3.0, 0.0]
    assert score(utility, "test", ["a b c"]) == [1.5]
    assert load_utility("functions_of_a_user:words", functions, max_tokens=3).max_tokens == 3


def test_function_gets_the_text_stripped_and_returns_any_number(functions: Path) -> None:
    utility = user("plain", functions)
    assert utility.max_tokens == 10
    scores = score(utility, "dev", ["\n good ", "bad"])
    assert scores == [1.0, 0.0]
    assert all(type(score) is float for score in scores)
    assert score(user("single", functions), "test", [""]) == [0.5]
    for name in ("nan", "infinite"):  # no score
        assert math.isnan(score(user(name, functions), "test", [""])[0])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("huge", r"example 0 returned -1e\+200; return a number of at most 1e\+100"),
        ("text", "example 0 returned '1.0'"),
        ("nothing", "example 0 returned None"),
        ("fails", "example 1 raised KeyError: 'colour'"),
    ],
)
def test_failing_function_is_named_with_its_example(functions: Path, name: str, message: str) -> None:
    utility = user(name, functions)
    with pytest.raises(InputError, match=f'"functions_of_a_user:{name}" on dev {message}'):
        score(utility, "dev", ["", ""])


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("functions_of_a_user:none", "has no function none"),
        ("functions_of_a_user:number", "has no function number"),
        ("functions_of_a_user:zero", "attribute max_tokens is 0"),
        ("functions_of_a_user:", "not of the form"),
        (":words", "not of the form"),
        ("no_such_module_here:words", "cannot import the module"),
        ("breaks_on_import:words", "ZeroDivisionError"),
    ],
)
def test_bad_functions_are_refused(functions: Path, task: str, message: str) -> None:
    before = list(sys.path)
    with pytest.raises(InputError, match=message) as caught:
        load_utility(task, functions)
    assert task in str(caught.value)
    assert sys.path == before


def test_function_needs_a_prompt_or_question(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", dev=[{"prompt": "p"}], test=[{"text": "t"}])
    with pytest.raises(InputError, match='test example 0 lacks the field "prompt" \\(or "question"\\)'):
        load_utility("json:dumps", path)


def test_score_range_of_the_tasks_and_of_a_function(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "ranged_task.py").write_text(
        "def score(example, output):\n    return float(output)\nscore.score_range = (-1, 2)\n"
        "def free(example, output):\n    return 0\n"
        "def bad(example, output):\n    return 0\nbad.score_range = (1, 1)\n"
        "def odd(example, output):\n    return 0\nodd.score_range = 'low'\n"
    )
    data = tmp_path / "data.json"
    example = {"question": "q", "answer": "A", "choices": {"A": "x"}}
    data.write_text(json.dumps({"dev": [example], "test": [example]}))
    assert load_utility("exact_match", data).score_range == (0.0, 1.0)
    assert load_utility("multiple_choice", data).score_range == (0.0, 1.0)
    assert load_utility("ranged_task:free", data).score_range is None
    for name in ("bad", "odd"):
        with pytest.raises(InputError, match=f"ranged_task:{name}.*score_range is .*; make it"):
            load_utility(f"ranged_task:{name}", data)
    utility = load_utility("ranged_task:score", data)
    assert utility.score_range == (-1.0, 2.0)
    assert [score(utility, "dev", [text]) for text in ("-1", "2")] == [[-1.0], [2.0]]
    assert math.isnan(score(utility, "dev", ["nan"])[0]), "NaN is a score of any range"
    for text in ("-1.5", "2.1"):
        with pytest.raises(InputError, match=r"on dev example 0 returned .*; its score_range says -1 to 2"):
            score(utility, "dev", [text])


@pytest.mark.parametrize(
    ("score_examples", "message"),
    [
        (lambda examples, answers: [0.0 for one in answers if one[0].text != "c"], "example 2 returned 0 scores"),
        (lambda examples, answers: [0.0] * (len(examples) % 10), r"examples 0, .*, 7 and 2 more returned 0 scores"),
        (lambda examples, answers: [1 / (10 - len(examples))], "examples 0, .*, 7 and 2 more raised ZeroDivisionError"),
    ],
)
def test_of_many_the_one_that_fails_is_named_or_the_first_of_them(tmp_path: Path, score_examples, message) -> None:
    path = write(tmp_path / "x.json", dev=[GOOD] * 10, test=[GOOD])
    utility = replace(load_utility("exact_match", path), score_examples=score_examples)
    with pytest.raises(InputError, match=f"on dev {message}"):
        score(utility, "dev", list("abcdefghij"))


def test_documents_that_are_no_json_have_digests_too(tmp_path: Path) -> None:
    """lm-eval's documents are what its data sets hold, dates among them."""
    made = [
        replace(load_utility("exact_match", answer_file(tmp_path)), examples={"dev": [{"doc": {"day": day}}]}).digests()
        for day in (datetime.date(2024, 5, 17), datetime.date(2024, 5, 17), datetime.date(2024, 5, 18))
    ]
    assert made[0] == made[1]
    assert made[0]["examples"] != made[2]["examples"]
