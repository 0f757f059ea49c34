"""How likely a continuation is: against a log-softmax written out here, on the exact engine and on a group of two."""

from dataclasses import replace
from pathlib import Path

import helpers_search
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from modelswarms_fast.config import EngineConfig
from modelswarms_fast.engines import transformers
from modelswarms_fast.engines.pool import pool
from modelswarms_fast.engines.protocol import Request, complete
from modelswarms_fast.engines.start import start_engine
from modelswarms_fast.weights.experts import read_experts
from modelswarms_fast.weights.shared_memory import shared_rows

tiny = helpers_search.tiny
CONFIG = EngineConfig(engine="transformers", dtype="float32", max_model_len=100)
PAIRS = [([5, 6, 7], [9]), ([11], [12, 13, 14, 15]), ([20, 21], [22, 23]), ([40] * 17, [41, 42]), ([3], [50, 51])]


@pytest.fixture(scope="module")
def experts(tiny):
    return read_experts(tiny["experts"], place=shared_rows)


@pytest.fixture(scope="module")
def engine(tiny, experts):
    return start_engine(Path(tiny["base"]), experts, CONFIG)


@pytest.fixture(scope="module")
def right(tiny):
    """Sum of log-probabilities and whether all are the likeliest, one text at a time, by transformers alone."""

    def likelihood(expert, prompt, continuation):
        model = AutoModelForCausalLM.from_pretrained(tiny["base"])
        if expert is not None:
            model = PeftModel.from_pretrained(model, tiny["experts"] / expert)
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + continuation])).logits[0].double()
        chances = logits.exp() / logits.exp().sum(-1, keepdim=True)
        total, greedy = 0.0, True
        for place, token in enumerate(continuation, start=len(prompt) - 1):
            total += float(chances[place, token].log())
            greedy = greedy and int(chances[place].argmax()) == token
        return total, greedy

    return likelihood


def greedy_continuation(engine, slot, prompt):
    """Token ids of what the engine would generate, and a prompt."""
    found = []
    for _ in range(3):
        chances = engine.log_probs(Request(slot, prompt + found))
        found.append(max(chances, key=chances.get))
    return prompt, found


def check(engine, slot, expert, right):
    pairs = [*PAIRS, greedy_continuation(engine, slot, [8, 9])]
    found = complete(engine, [Request(slot, *pair) for pair in pairs], 5)
    for one, pair in zip(found, pairs, strict=True):
        total, greedy = right(expert, *pair)
        assert one.log_prob == pytest.approx(total, abs=1e-4)
        assert (one.text, one.tokens, one.greedy) == ("", len(pair[1]), greedy)
    assert found[-1].greedy
    assert not found[0].greedy


def test_base_and_particle_by_the_exact_engine(engine, experts, right):
    engine.restore()
    check(engine, None, None, right)
    engine.load(0, experts.rows[1])
    check(engine, 0, "bob", right)


@pytest.mark.parametrize("logits", [1, 12])
def test_a_pass_holds_no_more_tokens_than_it_may(engine, experts, right, monkeypatch, logits):
    monkeypatch.setattr(transformers, "LOGITS", logits)
    engine.load(0, experts.rows[0])
    check(engine, 0, "ada", right)


def test_prompts_and_continuations_side_by_side(engine, experts):
    engine.load(0, experts.rows[0])
    requests = [Request(0, [5, 6]), Request(0, [5, 6], [7]), Request(0, [9]), Request(0, [9], [7, 8])]
    together = complete(engine, requests, 4)
    for one, request in zip(together, requests, strict=True):
        alone = complete(engine, [request], 4)[0]
        assert one == alone._replace(log_prob=pytest.approx(alone.log_prob, abs=1e-4))
    assert [one.log_prob == 0 for one in together] == [True, False, True, False]
    for key, request in enumerate(requests):
        engine.submit(100 + key, request, 4)
    engine.drop([101, 103])
    ended = []
    while step := engine.step():
        ended += [key for key, _ in step]
    assert ended == [102, 100]


def test_a_group_says_what_one_engine_says(tiny, experts, right, monkeypatch):
    monkeypatch.setattr(pool, "MOST", 4)  # forgotten and told again
    engines = start_engine(Path(tiny["base"]), experts, replace(CONFIG, engines=2))
    try:
        for slot, expert in enumerate(("ada", "cyd")):
            engines.load(slot, experts.rows[experts.names.index(expert)])
        for _ in range(2):
            for slot, expert in enumerate(("ada", "cyd")):
                check(engines, slot, expert, right)
        assert len(engines._prompts) < 8 + 2 * len(PAIRS)
    finally:
        engines.close()
