"""Whole searches on objectives that ask several things, with the exact engine on a tiny model."""

import json

import pytest
from helpers_search import make_tiny, told

from modelswarms_fast.runs.evaluate import evaluate
from modelswarms_fast.runs.search import search


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """The tiny search with room for published prompts, a quiz and some texts."""
    folder = tmp_path_factory.mktemp("wide")
    given = make_tiny(folder, max_position_embeddings=512)
    letters = "abcdefghijkl"
    choices = {letter: letter * 2 for letter in "abcdefghijklmnopqrstuvwxyz"}
    quiz = [
        {"question": one * 3, "choices": choices, "answer": "aeiouxyz"[index % 8]} for index, one in enumerate(letters)
    ]
    texts = [{"prompt": one, "completion": one * 2} for one in letters]
    (folder / "quiz.json").write_text(json.dumps({"dev": quiz[:8], "test": quiz[8:]}))
    (folder / "texts.json").write_text(json.dumps({"dev": texts[:8], "test": texts[8:]}))
    return given | {"max_model_len": 512, "iterations": 2}, folder


CASES = [
    ("abstain", "quiz.json", {"max_tokens": 4}),
    ("multiple_choice", "quiz.json", {"scoring": "loglikelihood"}),
    ("perplexity", "texts.json", {}),
]


@pytest.mark.parametrize(("task", "data", "more"), CASES)
def test_a_search_and_its_winner_alone(wide, tmp_path, task, data, more):
    given, folder = wide
    found = search(**given | {"task": task, "data": folder / data} | more, out=tmp_path / "run")
    assert found["scoring"] == more.get("scoring", "generate")
    assert found["options"] == more.get("options", {})
    lines = told(tmp_path / "run")
    assert task == "abstain" or len(set(lines[0]["utilities"])) > 1, "a test of something"
    engines = 2 if "scoring" in more else 1
    alone = evaluate(
        str(tmp_path / "run" / "global_best"),
        base=given["base"], task=task, data=folder / data, engine="transformers", dtype="float32", max_model_len=512,
        engines=engines, **more,
    )  # fmt: skip
    assert alone["score"] == pytest.approx(found["end"]["test"], abs=1e-6)
    assert alone["standard_error"] == pytest.approx(found["test_standard_error"]["end"], abs=1e-6)


@pytest.mark.parametrize(("task", "data", "more"), CASES[:2])
def test_early_stopping_keeps_the_search(wide, tmp_path, task, data, more):
    given, folder = wide
    asked = given | {"task": task, "data": folder / data, "iterations": 4} | more
    whole = search(**asked, out=tmp_path / "whole")
    early = search(**asked, out=tmp_path / "early", stop_early=True)
    assert early["end"]["dev"] == whole["end"]["dev"]
    assert early["mixture"] == whole["mixture"]
