"""Mixtures of what experts say next: against single models, against probabilities worked out by hand."""

import math

import numpy as np
import pytest
import torch
from helpers_ensemble import LETTERS, gpt2, llama
from helpers_models import make_adapter
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from modelswarms_fast.engines.ensemble.engine import EnsembleEngine, Member, clipped
from modelswarms_fast.engines.ensemble.vocabulary import Vocabulary
from modelswarms_fast.engines.protocol import Request, complete
from modelswarms_fast.engines.transformers import TransformersEngine
from modelswarms_fast.errors import InputError
from modelswarms_fast.weights.experts import read_experts

PROMPTS = ["abc", "bca", "kitten", "zebra", "a", "the quick brown"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return llama(folder / "llama", 1), gpt2(folder / "gpt2", 2)


def member(folder):
    return Member(TransformersEngine(folder, None), None)


def texts(engine, mixture, slot=0, prompts=PROMPTS, limit=8):
    engine.load_mixture(slot, torch.tensor(mixture, dtype=torch.float64))
    ids = engine.tokenizer(prompts)["input_ids"]
    return [(one.text, one.tokens) for one in complete(engine, [Request(slot, list(some)) for some in ids], limit)]


def alone(folder, prompts=PROMPTS, limit=8):
    engine = TransformersEngine(folder, None)
    ids = engine.tokenizer(prompts)["input_ids"]
    return [(one.text, one.tokens) for one in complete(engine, [Request(None, list(some)) for some in ids], limit)]


def next_probabilities(folder, prompt):
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.inference_mode():
        return torch.softmax(model(torch.tensor([prompt])).logits[0, -1].float(), dim=-1)


def test_a_unit_mixture_is_the_model_itself(models):
    engine = EnsembleEngine([member(folder) for folder in models])
    first, second = alone(models[0]), alone(models[1])
    assert first != second
    assert texts(engine, [1.0, 0.0]) == first
    assert texts(engine, [0.0, 1.0]) == second
    assert texts(engine, [-2.0, 3.0]) == second  # what is negative is clipped


def test_adapters_of_one_base_are_members(tmp_path):
    base = llama(tmp_path / "base", 3)
    for seed in range(3):
        make_adapter(base, tmp_path / "experts" / f"{seed}", seed=seed, scale=0.5)
    experts = read_experts(tmp_path / "experts")
    engine = TransformersEngine(base, experts)
    ensemble = EnsembleEngine([Member(engine, row) for row in experts.rows])
    single = TransformersEngine(base, experts)
    ids = single.tokenizer(PROMPTS)["input_ids"]
    seen = []
    for index, row in enumerate(experts.rows):
        single.load(0, row)
        answers = complete(single, [Request(0, list(some)) for some in ids], 8)
        seen.append([(one.text, one.tokens) for one in answers])
        assert texts(ensemble, np.eye(3)[index].tolist()) == seen[-1]
    assert len({str(one) for one in seen}) == 3


def test_a_uniform_mixture_has_the_mean_of_the_probabilities(models):
    engine = EnsembleEngine([member(folder) for folder in models])
    prompt = list(engine.tokenizer("kitten")["input_ids"])
    means = torch.stack([next_probabilities(folder, prompt) for folder in models]).mean(dim=0)
    engine.load_mixture(0, torch.tensor([0.5, 0.5]))
    said = engine.log_probs(Request(0, prompt))
    assert len(said) == 64
    for token, value in said.items():
        assert math.exp(value) == pytest.approx(float(means[token]), rel=1e-4)


def by_hand(models, weights, prompt, limit, fuse):
    """Greedy decoding without a cache, a batch or a padding."""
    loaded = [AutoModelForCausalLM.from_pretrained(folder) for folder in models]
    tokens = list(prompt)
    for _ in range(limit):
        with torch.inference_mode():
            logits = [model(torch.tensor([tokens])).logits[0, -1].float() for model in loaded]
        said = [torch.softmax(one, dim=-1) for one in logits] if fuse == "probabilities" else logits
        tokens.append(int(sum(weight * one for weight, one in zip(weights, said, strict=True)).argmax()))
        if tokens[-1] == 0:
            break
    return tokens[len(prompt) :]


@pytest.mark.parametrize("fuse", ["probabilities", "logits"])
def test_batches_caches_and_slots_change_nothing(models, fuse):
    engine = EnsembleEngine([member(folder) for folder in models], slots=3, fuse=fuse)
    mixtures = [(1.0, 0.0), (0.4, 0.6), (0.6, 0.4)]
    for slot, mixture in enumerate(mixtures):
        engine.load_mixture(slot, torch.tensor(mixture))
    ids = [list(some) for some in engine.tokenizer(PROMPTS)["input_ids"]]
    requests = [Request(slot, prompt) for slot in range(3) for prompt in ids]
    found = complete(engine, requests, 6)
    expected = [by_hand(models, mixtures[request.slot], request.prompt, 6, fuse) for request in requests]
    decode = engine.tokenizer.decode
    assert [one.text for one in found] == [decode(some, skip_special_tokens=True) for some in expected]
    assert [one.tokens for one in found] == [len(some) for some in expected]
    assert len({one.text for one in found}) > len(PROMPTS)  # the slots went different ways
    assert engine.passes == 2 * len(PROMPTS)  # and yet each expert read each prompt once


def test_a_likelihood_is_that_of_the_mixture(models):
    engine = EnsembleEngine([member(folder) for folder in models])
    engine.load_mixture(0, torch.tensor([0.25, 0.75]))
    prompt, more = [list(some) for some in engine.tokenizer(["kit", "ten"])["input_ids"]]
    expected = 0.0
    for index, token in enumerate(more):
        first, second = (next_probabilities(folder, prompt + more[:index]) for folder in models)
        expected += math.log(float(0.25 * first[token] + 0.75 * second[token]))
    (found,) = complete(engine, [Request(0, prompt, more)], 1)
    assert found.log_prob == pytest.approx(expected, rel=1e-4)
    assert found.tokens == 3
    assert not found.greedy


def test_different_vocabularies_are_mixed_over_the_tokens_they_share(tmp_path):
    ours, theirs = LETTERS, LETTERS[10:][::-1] + "!?"  # ten letters are ours alone, two theirs
    folders = llama(tmp_path / "a", 1, ours), gpt2(tmp_path / "b", 2, theirs, end="<stop>")
    engine = EnsembleEngine([member(folder) for folder in folders])
    engine.load_mixture(0, torch.tensor([0.5, 0.5]))
    prompt = "sunny"
    shared = ["end", *LETTERS[10:]]
    said = []
    for folder, letters in zip(folders, (ours, theirs), strict=True):
        ids = [0, *(1 + letters.index(letter) for letter in LETTERS[10:])]
        probabilities = next_probabilities(folder, [1 + letters.index(letter) for letter in prompt])[ids]
        said.append(probabilities / probabilities.sum())
    found = engine.log_probs(Request(0, list(engine.tokenizer(prompt)["input_ids"])))
    expected = {0 if index == 0 else 1 + index + 9: float(value) for index, value in enumerate(sum(said) / 2)}
    assert len(expected) == len(shared)
    assert {token: math.exp(value) for token, value in found.items()} == pytest.approx(expected, rel=1e-4)
    (answer, *_) = complete(engine, [Request(0, list(engine.tokenizer(prompt)["input_ids"]))], 8)
    assert set(answer.text.replace(" ", "")) <= set(LETTERS[10:])
    with pytest.raises(InputError, match="different tokenizers"):
        engine.submit(1, Request(0, [1, 2], [3]), 1)


def test_tokens_are_common_if_they_spell_the_same_bytes():
    ours = ["<end>", "a", "Ċ", "Ġa", "Ã©", "Ã"]  # byte-level: a line's end, a space and an a, é, its first byte
    theirs = ["<eos>", "Ċ", "\n", "▁a", "é", "a", "<0xC3>", "<0x0A>", "Ã"]  # SentencePiece: the letters Ċ and Ã
    tokenizers = []
    for tokens, decoder in ((ours, decoders.ByteLevel()), (theirs, decoders.ByteFallback())):
        tokenizer = Tokenizer(BPE({token: index for index, token in enumerate(tokens)}, []))
        tokenizer.decoder = decoder
        tokenizers.append(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    common = Vocabulary.of(tokenizers, [len(ours), len(theirs)], [[0], [0]])
    pairs = [(ours[one], theirs[two]) for one, two in zip(*(ids.tolist() for ids in common.ids), strict=True)]
    assert pairs == [("<end>", "<eos>"), ("a", "a"), ("Ċ", "\n"), ("Ġa", "▁a"), ("Ã©", "é"), ("Ã", "<0xC3>")]


def test_vocabularies_that_share_too_little_are_refused(tmp_path):
    folders = llama(tmp_path / "a", 1, LETTERS), llama(tmp_path / "b", 2, LETTERS[:20] + "αβγδεζηθικλμνξοπρστυφχψω")
    with pytest.raises(InputError, match="share 20 tokens, 45% of the smallest vocabulary"):
        EnsembleEngine([member(folder) for folder in folders])


def test_an_expert_without_a_say_is_not_run(models):
    engine = EnsembleEngine([member(folder) for folder in models])
    engine._members[1].engine.model.forward = None  # would fail if it were called
    assert texts(engine, [1.0, -0.5], prompts=["abc"])
    assert engine.passes == 1


def test_coefficients_are_clipped():
    assert clipped([0.5, -1.0, 1.5]).tolist() == [0.25, 0.0, 0.75]
    with pytest.raises(ValueError, match="positive"):
        clipped([-1.0, 0.0])
