"""Rewards: the scaling by hand, the scorer against transformers, and a search that measures its constants."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers_scorers import CHAT, answers, make_classifier, write_prompts
from helpers_search import make_tiny
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.objectives import Utility, load_utility
from modelswarms_fast.evaluation.objectives.classifier import Classifier
from modelswarms_fast.evaluation.objectives.reward import Reward
from modelswarms_fast.runs.search import search


class Words:
    """A scorer whose reward is the number at the end of a text, and whose tokens are words after one of its own."""

    name, labels, truncated = "words", ("reward",), 0
    tokenizer = SimpleNamespace(chat_template=None)

    def __init__(self) -> None:
        self.asked: list[str] = []

    def logits(self, texts: list[str], *, special: bool) -> list[list[float]]:
        self.asked += texts
        return [[float(text.split()[-1])] for text in texts]

    def count_tokens(self, texts: list[str]) -> list[int]:
        return [1 + len(text.split()) for text in texts]


def response(reward: float, tokens: int = 1) -> tuple[str, str]:
    """A pair with this reward; its response has so many tokens, the first that every text has among them."""
    return "Say", " ".join([*["w"] * (tokens - 2), str(reward)])


def reward(
    variant: str, constants: tuple[float, float] | None = (-2.0, 2.0), longest: int = 200
) -> tuple[Reward, Words]:
    words: Any = Words()
    made = Reward(words, variant, longest)
    made.constants = constants
    return made, words


@pytest.mark.parametrize(("raw", "scaled"), [(-2, 0), (2, 1), (0, 0.5), (1, 0.75), (-9, 0), (9, 1)])
def test_scaling(raw: float, scaled: float) -> None:
    assert reward("general")[0].scores([response(raw)]) == [scaled]
    assert reward("reverse")[0].scores([response(raw)]) == [1 - scaled]


@pytest.mark.parametrize(("tokens", "length"), [(10, 0), (201, 1), (105.5, 0.5), (3, 0), (400, 1)])
def test_length(tokens: float, length: float) -> None:
    """Published: 0 at 10 tokens, 1 at 201, which are 200 and the one that begins a text."""
    below, above = response(1, math.floor(tokens)), response(1, math.ceil(tokens))
    for variant, expected in (("verbose", (0.75 + length) / 2), ("concise", (0.75 + 1 - length) / 2)):
        scores = reward(variant)[0].scores([below, above])
        assert sum(scores) / 2 == pytest.approx(expected, abs=1e-12)


def test_length_is_that_of_what_may_be_generated() -> None:
    assert reward("verbose", longest=19)[0].scores([response(2, 15), response(2, 20)]) == [0.75, 1]


def test_a_reward_that_is_no_number_stays_none() -> None:
    scores = reward("general")[0].scores([response(math.nan), response(0)])
    assert math.isnan(scores[0])
    assert scores[1] == 0.5


def test_constants_are_measured_once() -> None:
    scorer, words = reward("general", None)
    with pytest.raises(InputError, match="no constants"):
        scorer.scores([response(1)])
    scorer.calibrate([response(math.nan), response(3), response(-1), response(0)])
    scorer.calibrate([response(100), response(-100)])
    assert scorer.constants == (-1, 3)
    assert scorer.scores([response(0), response(3), response(7)]) == [0.25, 1, 1]
    assert scorer.report() == {"low": -1, "high": 3, "pairs": 5, "truncated": 0}
    assert len(words.asked) == 5  # each pair once: nothing is asked for the second calibration


def test_nothing_to_scale() -> None:
    with pytest.raises(InputError, match="the same reward"):
        reward("general", None)[0].calibrate([response(3), response(3)])


# The scorer


@pytest.mark.parametrize("chat", [None, CHAT])
@pytest.mark.parametrize("pad", [True, False])
def test_rewards_are_those_of_transformers_one_by_one(tmp_path: Path, chat: str | None, pad: bool) -> None:
    folder = make_classifier(tmp_path / "model", chat=chat, pad=pad)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    pairs = [("Say", "a"), ("Say", "something longer than that"), ("Do", "it"), ("Name one", "")]
    expected = []
    for prompt, said in pairs:
        text = f"<user>{prompt}<assistant>{said}" if chat else f"{prompt}\n{said}"
        with torch.inference_mode():
            ids = torch.tensor([tokenizer(text, add_special_tokens=chat is None)["input_ids"]])
            expected.append(float(model.score(model.model(input_ids=ids).last_hidden_state[:, -1])))
    rewards = Reward(Classifier(str(folder), batch=3), "general").rewards(pairs)
    assert rewards == pytest.approx(expected, abs=1e-4)
    assert max(rewards) - min(rewards) > 0.01


def test_a_pair_keeps_its_reward_whatever_it_is_batched_with(tmp_path: Path) -> None:
    scorer = Reward(Classifier(str(make_classifier(tmp_path / "model"))), "general")
    alone = scorer.rewards([("Say", "yes")])
    assert scorer.rewards([("Say", "no, never in all these years"), ("Say", "yes")])[1:] == alone


def test_a_long_text_loses_its_beginning_and_is_counted(tmp_path: Path) -> None:
    classifier = Classifier(str(make_classifier(tmp_path / "model")))
    long, end = "x" * 40 + "y" * 64, "y" * 64
    assert classifier.logits([long], special=False)[0] == pytest.approx(classifier.logits([end], special=False)[0])
    assert classifier.truncated == 1
    kept = classifier.logits(["y" * 63])[0]  # and the token that begins a text
    assert classifier.logits([long])[0] == pytest.approx(kept)


def test_bfloat16(tmp_path: Path) -> None:
    folder = str(make_classifier(tmp_path / "model"))
    exact, half = (Classifier(folder, dtype=dtype).logits(["some text"])[0][0] for dtype in ("float32", "bfloat16"))
    assert exact != half
    assert half == pytest.approx(exact, rel=0.1, abs=0.1)


def test_a_causal_model_is_no_scorer(tmp_path: Path) -> None:
    """transformers would give it a random head."""
    tiny = make_tiny(tmp_path)
    with pytest.raises(InputError, match=r"has no weights for score\.weight"):
        Classifier(tiny["base"])
    with pytest.raises(InputError, match="folder /no/model does not exist"):
        Classifier("/no/model")


# The task


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(make_classifier(tmp_path / "model"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "rm.json", "Say", "Do")


def load(data: Path, task: str = "reward", **options: str) -> Utility:
    return load_utility(task, data, options=options)


def test_what_is_asked(data: Path, model: str) -> None:
    utility = load(data, model=model)
    assert utility.prompts["dev"] == ["Say", "Do"]
    assert (utility.max_tokens, utility.score_range, utility.batch) == (200, (0, 1), 16)
    assert utility.calibrate is not None


def test_constants_by_option(data: Path, model: str) -> None:
    utility = load(data, model=model, low="-1000", high="1000", batch="2")
    assert utility.calibrate is None
    raw = Reward(Classifier(model), "general").rewards([("Do", "it now")])[0]
    assert utility.score("dev", [1], answers(" it now\n")) == pytest.approx([0.5 + raw / 2000], abs=1e-9)
    assert utility.report() == {"low": -1000, "high": 1000, "pairs": 1, "truncated": 0}


def test_calibration_by_the_examples(data: Path, model: str) -> None:
    utility = load(data, model=model)
    assert utility.calibrate is not None
    utility.calibrate([*utility.examples["dev"]] * 2, answers("one", "two", "three", "four"))
    scores = utility.score("dev", [0, 1, 0, 1], answers("one", "two", "three", "four"))
    assert (min(scores), max(scores)) == (0, 1)


@pytest.mark.parametrize(
    ("task", "options", "said"),
    [
        ("reward:brief", {}, "choose reward:general, reward:verbose, reward:concise, reward:reverse"),
        ("reward:reverse", {}, "to study its misuse; it needs --option adversarial=yes"),
        ("reward:concise", {"adversarial": "yes"}, "no other reward takes that"),
        ("reward", {"low": "1"}, "needs --option high"),
        ("reward", {"low": "1", "high": "1"}, "low is 1 and high 1; give low below high"),
        ("reward", {"low": "x", "high": "1"}, "option low .* give a number"),
        ("reward", {"dtype": "int8"}, "choose float32, bfloat16, float16"),
        ("reward", {"batch": "2.5"}, "give a whole number"),
        ("reward", {"device": "toaster"}, "give cpu or cuda"),
        ("reward", {"colour": "red"}, "no option colour"),
    ],
)
def test_refusals(data: Path, model: str, task: str, options: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        load(data, task, **{"model": model} | options)


@pytest.mark.parametrize("task", ["reward:verbose", "reward:concise"])
def test_lengths_need_room(data: Path, model: str, task: str) -> None:
    with pytest.raises(InputError, match=rf"max_tokens is 9, but {task} scores lengths from 10 tokens on"):
        load_utility(task, data, max_tokens=9, options={"model": model})
    load_utility(task, data, max_tokens=10, options={"model": model})


def test_a_model_is_needed(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs --option model="):
        load(data)
    several = make_classifier(tmp_path / "several", labels=["good", "bad"])
    with pytest.raises(InputError, match="has 2 outputs, a reward model has one"):
        load(data, model=str(several))


def test_search_measures_its_constants_on_the_experts(tmp_path: Path) -> None:
    tiny = make_tiny(tmp_path)
    model = str(make_classifier(tmp_path / "model"))
    arguments = tiny | {"task": "reward:concise", "max_tokens": 10, "options": {"model": model}}
    summary = search(**arguments, out=tmp_path / "run")
    constants = summary["objective"]["low"], summary["objective"]["high"]
    assert constants[0] < constants[1]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["objective"]["low"], config["objective"]["high"]) == constants
    fixed = {"model": model, "low": repr(constants[0]), "high": repr(constants[1])}
    again = search(**arguments | {"options": fixed}, out=tmp_path / "again")
    assert again["end"] == summary["end"]  # the same search, with what the first has measured
    assert 0 <= summary["start"]["dev"] <= summary["end"]["dev"] <= 1
