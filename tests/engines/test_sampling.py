"""Tokens that are drawn: from the right distribution, the same for the same seed, whatever shares the batch."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import helpers_search
import pytest
import torch
from helpers_ensemble import gpt2, llama

from modelswarms_fast.config import EngineConfig, Sampling
from modelswarms_fast.engines.ensemble.engine import EnsembleEngine, Member
from modelswarms_fast.engines.protocol import Request, complete
from modelswarms_fast.engines.sampling import Draw
from modelswarms_fast.engines.start import start_engine
from modelswarms_fast.engines.transformers import TransformersEngine
from modelswarms_fast.weights.experts import read_experts
from modelswarms_fast.weights.shared_memory import shared_rows

tiny = helpers_search.tiny
CONFIG = EngineConfig(engine="transformers", dtype="float32")
PROMPT = [11, 12, 13]


def chances(log_probs, sampling):
    """Token → its probability, written out."""
    warm = {token: value / sampling.temperature for token, value in log_probs.items()}
    warm = dict(sorted(warm.items(), key=lambda pair: -pair[1])[: sampling.top_k or None])
    total = sum(torch.tensor(list(warm.values())).double().exp().tolist())
    found = {token: float(torch.tensor(value).double().exp()) / total for token, value in warm.items()}
    kept, reached = {}, 0.0
    for token, chance in sorted(found.items(), key=lambda pair: -pair[1]):
        if reached < sampling.top_p:
            kept[token] = chance
        reached += chance
    return {token: chance / sum(kept.values()) for token, chance in kept.items()}


def check_frequencies(found, expected):
    """Each within five standard errors, and none that must not be drawn."""
    count = len(found)
    often = Counter(found)
    assert not set(often) - set(expected)
    for token, chance in expected.items():
        error = (chance * (1 - chance) / count) ** 0.5
        assert abs(often[token] / count - chance) <= 5 * error + 1 / count


CASES = [
    Sampling(1.0), Sampling(0.5), Sampling(2.0, 0.7), Sampling(1.0, 0.01), Sampling(1.5, top_k=3),
    Sampling(1.5, 0.7, top_k=3), Sampling(1.0, 0.9, top_k=100),
]  # fmt: skip


@pytest.mark.parametrize("sampling", CASES)
def test_tokens_are_drawn_as_often_as_they_are_likely(sampling):
    logits = torch.tensor([0.5, -1.0, 2.0, 1.9, -torch.inf, 0.0])
    draw = Draw(sampling)
    expected = chances(
        dict(enumerate(torch.log_softmax(logits, 0)[:4].tolist())) | {5: float(logits.log_softmax(0)[5])}, sampling
    )
    check_frequencies([draw.token(logits) for _ in range(2000)], expected)


def test_what_was_said_is_less_likely():
    logits, seen = torch.tensor([2.0, -1.0, 1.5, 0.0]), torch.tensor([0, 0, 1])
    cold = Sampling(0.0, repetition_penalty=1.5)
    assert Draw(cold).token(logits) == 0
    assert Draw(cold).token(logits, seen) == 2
    draw = Draw(Sampling(1.0, repetition_penalty=2.0))
    expected = chances(dict(enumerate([1.0, -2.0, 1.5, 0.0])), Sampling(1.0))
    check_frequencies([draw.token(logits, seen) for _ in range(2000)], expected)


def test_the_penalty_is_that_of_transformers(engine):
    """Greedy answers to prompts of several lengths in one batch; padding is not penalised."""
    cold = Sampling(0.0, repetition_penalty=1.3)
    prompts = [PROMPT, PROMPT * 4, [20, 21]]
    got = complete(engine, [Request(0, prompt, None, cold) for prompt in prompts], 12)
    for prompt, one in zip(prompts, got, strict=True):
        found = engine.model.generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, repetition_penalty=1.3, pad_token_id=0
        )
        assert list(one.ids) == found[0, len(prompt) :].tolist()
    plain = complete(engine, [Request(0, prompt) for prompt in prompts], 12)
    assert [one.ids for one in plain] != [one.ids for one in got]


def test_a_completion_has_its_tokens(engine):
    one = complete(engine, [Request(0, PROMPT)], 8)[0]
    assert len(one.ids) == one.tokens > 0
    assert one.text == engine.tokenizer.decode(one.ids, skip_special_tokens=True)


def texts(engine, expected):
    """The same by text, which tokens without a letter share."""
    found = Counter()
    for token, chance in expected.items():
        found[engine.tokenizer.decode([token], skip_special_tokens=True)] += chance
    return found


def letters(engine, slot, sampling, count):
    """The first token of so many answers, each of its own seed."""
    requests = [Request(slot, PROMPT, None, sampling._replace(seed=seed)) for seed in range(count)]
    return [one.text for one in complete(engine, requests, 1)]


@pytest.fixture(scope="module")
def experts(tiny):
    return read_experts(tiny["experts"], place=shared_rows)


@pytest.fixture(scope="module")
def engine(tiny, experts):
    engine = start_engine(Path(tiny["base"]), experts, CONFIG)
    engine.load(0, experts.rows[0])
    return engine


@pytest.mark.parametrize("sampling", [Sampling(0.3), Sampling(0.5, 0.6)])
def test_the_exact_engine_draws_from_softmax(engine, sampling):
    expected = texts(engine, chances(engine.log_probs(Request(0, PROMPT)), sampling))
    check_frequencies(letters(engine, 0, sampling, 600), expected)


def mixed(slot=0):
    """Greedy and drawn, of several lengths and seeds; two are the same."""
    hot = Sampling(0.8, 0.95, 7)
    some = [Request(slot, PROMPT[: 1 + index % 3] * (1 + index), None, hot._replace(seed=index)) for index in range(9)]
    return [*some, Request(slot, PROMPT), Request(slot, PROMPT, None, hot), Request(slot, PROMPT, None, hot)]


def test_an_answer_does_not_depend_on_what_shares_its_batch(engine):
    greedy = complete(engine, [Request(0, PROMPT)], 8)
    together = complete(engine, mixed(), 8)
    assert together == [complete(engine, [one], 8)[0] for one in mixed()]
    assert together == complete(engine, mixed()[::-1], 8)[::-1]
    assert together[-3] == greedy[0]
    assert together[-2] == together[-1] != greedy[0]
    assert len({one.text for one in together[:9]}) == 9


@pytest.mark.slow
def test_a_pool_draws_what_one_engine_draws(tiny, engine, experts):
    group = start_engine(Path(tiny["base"]), experts, replace(CONFIG, engines=2))
    try:
        for slot in (0, 1):
            group.load(slot, experts.rows[0])
        assert complete(group, mixed(0) + mixed(1), 8) == complete(engine, mixed(), 8) * 2
    finally:
        group.close()


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.5, 0.6)])
def test_an_ensemble_draws_from_what_its_experts_say_together(tmp_path, sampling):
    members = [
        Member(TransformersEngine(make(tmp_path / make.__name__, 1), None, device=torch.device("cpu")), None)
        for make in (llama, gpt2)
    ]
    engine = EnsembleEngine(members, slots=2)
    engine.load(0, torch.tensor([0.3, 0.7]))
    expected = texts(engine, chances(engine.log_probs(Request(0, PROMPT)), sampling))
    check_frequencies(letters(engine, 0, sampling, 600), expected)
    together = complete(engine, mixed(), 8)
    assert together == [complete(engine, [one], 8)[0] for one in mixed()]
    assert together[-2] == together[-1]
