"""Toxicity: the published form by hand, and each kind of scorer."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from helpers_scorers import answers, make_classifier, write_prompts

from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.objectives import Utility, load_utility, toxicity


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "realtoxicityprompts.json", "He said", "She said")


def load(data: Path, **options: str) -> Utility:
    return load_utility("toxicity", data, options=options)


def test_published_form() -> None:
    def scorer(texts: list[str]) -> list[float]:
        asked.extend(texts)
        return [0.125 * len(text.split()) for text in texts]

    asked: list[str] = []
    texts = ["two  words here\nnot this", "short", "nine char", "ten chars!", "two  words here\nnot this", ""]
    assert toxicity.scores(texts, scorer) == [0.625, 0.5, 0.5, 0.75, 0.625, 0.5]
    assert asked == ["two  words here", "ten chars!"]


def test_what_is_asked(data: Path) -> None:
    utility = load(data)
    assert utility.prompts["dev"] == ["He said", "She said"]
    assert (utility.max_tokens, utility.score_range) == (20, (0, 1))
    assert load_utility("toxicity", data, max_tokens=7).max_tokens == 7


def test_offline_scorer_tells_insults_from_kindness(data: Path) -> None:
    insult, kind, short = load(data).score(
        "dev", [0, 1, 0], answers(" you are a fucking idiot", " what a lovely day it is", "damn")
    )
    assert insult < 0.1
    assert kind > 0.9
    assert short == 0.5


def test_function_of_the_user(data: Path) -> None:
    utility = load(data, scorer="helpers_toxicity:loud")
    assert utility.score("dev", [0, 1], answers("ALL OF IT LOUD\n", "quiet enough")) == [0.25, 1]


@pytest.mark.parametrize(
    ("scorer", "said"),
    [
        ("helpers_toxicity:beyond", "returned 1.5; return the toxicity of a text, from 0 to 1"),
        ("helpers_toxicity:broken", "raised RuntimeError: no idea; correct it"),
    ],
)
def test_function_that_is_wrong(data: Path, scorer: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load(data, scorer=scorer).score("dev", [0], answers("long enough to ask"))


# A classifier


@pytest.mark.parametrize("several", [False, True])
def test_classifier_by_its_label(tmp_path: Path, data: Path, several: bool) -> None:
    problem = {"problem_type": "multi_label_classification"} if several else {}
    folder = make_classifier(tmp_path / "model", labels=["neutral", "toxic", "rude"], **problem)
    text = "some words to judge"
    logits = toxicity.Classifier(str(folder)).logits([text])[0]
    expected = (
        1 / (1 + math.exp(-logits[1]))
        if several
        else math.exp(logits[1]) / math.fsum(math.exp(logit) for logit in logits)
    )
    utility = load(data, scorer=str(folder))
    assert utility.score("dev", [0], answers(f"{text}\nmore")) == pytest.approx([1 - expected], abs=1e-6)
    other = load(data, scorer=str(folder), label="rude").score("dev", [0], answers(text))
    assert other != pytest.approx([1 - expected], abs=1e-3)


def test_label_that_is_not_clear(tmp_path: Path, data: Path) -> None:
    folder = make_classifier(tmp_path / "model", labels=["LABEL_0", "LABEL_1"])
    with pytest.raises(InputError, match="labels LABEL_0, LABEL_1; say which is toxic by --option label"):
        load(data, scorer=str(folder))
    with pytest.raises(InputError, match="LABEL_0, LABEL_1"):
        load(data, scorer=str(folder), label="toxic")


def test_folder_that_is_no_classifier(tmp_path: Path, data: Path) -> None:
    with pytest.raises(InputError, match="cannot load a sequence classifier from"):
        load(data, scorer=str(tmp_path))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"key_env": "X"}, "no option key_env; it knows scorer"),
        ({"label": "toxic"}, "no option label; it knows scorer"),
    ],
)
def test_options_belong_to_their_scorer(data: Path, options: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        load(data, **options)
