"""Prompts padded as by code that masks nothing, answers that are kept beside scores, and the name of a data set."""

import json
from dataclasses import replace
from pathlib import Path

import helpers_search
import pytest
import torch
from helpers_evaluate import Rows, ScriptedEngine, utility
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelswarms_fast.config import EngineConfig
from modelswarms_fast.engines.start import start_engine
from modelswarms_fast.evaluation.evaluator import Evaluator
from modelswarms_fast.evaluation.objectives import Ask, load_utility
from modelswarms_fast.evaluation.padding import Padding, batches_of
from modelswarms_fast.evaluation.requests import RequestTracker
from modelswarms_fast.weights.experts import read_experts
from modelswarms_fast.weights.row_name import row_name

tiny = helpers_search.tiny
PROMPTS = ["abc", "a", "abcd", "ab", "b"]


def padding_of(side="left", count=5, size=2):
    return Padding(ord("."), side, {"dev": batches_of(count, size), "test": [range(1)]})


def sent(engine):
    return [text for kind, _, text in (entry for entry in engine.log if entry[0] == "submit")]


def test_batches_are_consecutive():
    assert batches_of(5, 2) == [range(2), range(2, 4), range(4, 5)]
    assert batches_of(3, 10, first=4) == [range(4, 7)]


@pytest.mark.parametrize(
    ("side", "expected"),
    [("left", ["abc", "..a", "abcd", "..ab", "b"]), ("right", ["abc", "a..", "abcd", "ab..", "b"])],
)
def test_prompts_are_as_long_as_the_longest_of_their_batch(side, expected):
    tracker = RequestTracker(ScriptedEngine(), utility(PROMPTS, padding=padding_of(side)), ["dev", "test"])
    assert ["".join(map(chr, ids)) for ids in tracker.prompts("dev")] == expected


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_follow_ups_wait_for_their_batch_and_are_padded_with_it(at_once):
    answers = dict(zip(PROMPTS, ["x", "xxx", "x", "x", "xxxxx"], strict=True))

    def answer(held, prompt):
        return answers.get(prompt.strip("."), "1")

    def follow_up(example, given):
        return Ask(f"{example['prompt']}{given[0].text}?", 5)

    engine = ScriptedEngine(1, at_once, answer=answer)
    evaluator = Evaluator(engine, utility(PROMPTS, padding=padding_of(), follow_up=follow_up))
    found = evaluator.score_population(Rows(1, 2).some([0, 1]), "dev")
    assert [one.scores for one in found.values()] == [[1.0] * 5] * 2
    after = sorted(text for text in sent(engine) if text.endswith("?"))
    assert after == sorted(2 * ["abcx?", "axxx?", "abcdx?", "..abx?", "bxxxxx?"])


def test_one_padded_request_is_what_generate_makes_of_a_batch_without_a_mask(tiny):
    """EOS pads are ordinary context there: the texts are equal, and others than without pads."""
    base = Path(tiny["base"])
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    model.load_adapter(str(tiny["experts"] / "ada"))
    inputs = tokenizer(PROMPTS, return_tensors="pt", padding=True).input_ids
    output = model.generate(inputs, max_new_tokens=8, do_sample=False)
    rows = output[:, inputs.shape[1] :]
    expected = [tokenizer.decode(row, skip_special_tokens=True) for row in rows]

    experts = read_experts([tiny["experts"] / name for name in helpers_search.NAMES], base=base)
    engine = start_engine(base, experts, EngineConfig(engine="transformers", dtype="float32"))
    padding = Padding(tokenizer.eos_token_id, "left", {"dev": [range(5)], "test": [range(1)]})
    texts = {}
    for name, used in (("padded", padding), ("plain", None)):
        asks = {"dev": [(Ask(one, 8),) for one in PROMPTS], "test": [(Ask("a", 8),)]}
        evaluator = Evaluator(engine, utility(PROMPTS, lambda example, text: 0.0, asks=asks, padding=used))
        evaluator.keep_answers(lambda example, given: given[0].text)
        evaluator.score_model(experts.rows[0], "dev")
        texts[name] = next(iter(evaluator._said.values()))
    assert [texts["padded"][example] for example in range(5)] == expected
    assert texts["plain"] != texts["padded"]


def test_answers_are_kept_beside_scores_that_are_known_too():
    source, engine = Rows(3, 1, 3), ScriptedEngine(2)
    evaluator = Evaluator(engine, utility(PROMPTS))
    evaluator.keep_answers(lambda example, given: (example["prompt"], float(given[0].text)))
    candidates = source.some([0, 1, 2])
    found = evaluator.score_population(candidates, "dev")
    assert source.loaded == [0, 1]
    for number, candidate in candidates.items():
        kept = evaluator.answers("dev", candidate.name())
        assert kept == list(zip(PROMPTS, found[number].scores, strict=True))
    assert evaluator.answers("test", candidates[0].name()) == [None]
    (score,) = evaluator.score_model(source.row(1), "test")
    assert evaluator.answers("test", row_name(source.row(1))) == [("a test", score)]


def test_the_name_of_a_data_set_may_be_given(tmp_path):
    path = tmp_path / "gsm8k.json"
    example = {"question": "q", "answer": "1"}
    path.write_text(json.dumps({"dataset": "GSM8K of mine", "dev": [example], "test": [example]}))
    assert load_utility("exact_match", path).max_tokens == 10
    given = load_utility("exact_match", path, dataset="gsm8k")
    assert (given.dataset, given.max_tokens) == ("gsm8k", 200)
    assert given.examples["test"][0]["_last_words"] == 10
    assert replace(given, padding=padding_of()).digests() == given.digests()
