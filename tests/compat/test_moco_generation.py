"""Generation as MoCo has it: texts, prompts and the law of what is drawn; engines that stay, and notice new files."""

import random
import shutil
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import helpers_moco
import pytest
import torch
from helpers_moco import COLD, SETTINGS, make_expert, make_full, theirs
from helpers_search import write_tokenizer
from scipy.stats import chi2
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelswarms_fast.compat import fleet as fleet_module
from modelswarms_fast.compat.moco import generation, session
from modelswarms_fast.errors import InputError

zoo, compat = helpers_moco.zoo, helpers_moco.compat
INPUTS = ["bad", "dig", "alongerone", "x"]


@pytest.fixture
def starts(monkeypatch):
    """The base models of the engines that were started."""
    found = []
    start = fleet_module.start_here
    monkeypatch.setattr(fleet_module, "start_here", lambda base, *more: found.append(base.name) or start(base, *more))
    return found


def test_every_text_is_that_of_transformers(compat, zoo, starts):
    """Adapters and full models of two shapes, one several times, with unequal and empty lists of inputs."""
    names = [zoo.a, zoo.other, zoo.b, zoo.a, zoo.base, zoo.c]
    inputs = [INPUTS, INPUTS[:3], INPUTS[1:], INPUTS[2:], INPUTS[:2], []]
    expected = [theirs(name, some, 6) if some else [] for name, some in zip(names, inputs, strict=True)]
    assert compat.distributed_generation(names, inputs, [0]) == expected
    assert len({text for some in expected for text in some}) > 6
    assert compat.distributed_generation(names[::-1], inputs[::-1], [0, 1, 2]) == expected[::-1]
    assert compat.batch_generate_text(zoo.b, 0, INPUTS, 3, 0.7, COLD, 32) == theirs(zoo.b, INPUTS, 3)
    assert Counter(starts) == {"base": 2, "other": 1}  # adapters of it, and the full model


def test_released_engines_start_again(compat, zoo, starts):
    before = compat.distributed_generation([zoo.a], [INPUTS], [0])
    compat.release()
    assert compat.distributed_generation([zoo.a], [INPUTS], [0]) == before
    assert starts == ["base", "base"]


def test_the_callers_random_numbers_stay_the_callers(compat, zoo, monkeypatch):
    """Packages that are imported when an engine starts draw some, and a swarm draws from there."""
    start = fleet_module.start_here
    monkeypatch.setattr(fleet_module, "start_here", lambda *given: random.random() and start(*given))
    state = random.getstate()
    compat.distributed_generation([zoo.a], [INPUTS], [0])
    assert random.getstate() == state


def test_settings_are_read_at_each_call(compat, zoo):
    lengths = []
    for length in (6, 2):
        compat.update_generation_hyperparameters(length, 0.7, COLD, 2)
        lengths.append(compat.distributed_generation([zoo.a], [INPUTS], [0])[0])
    assert lengths == [theirs(zoo.a, INPUTS, 6), theirs(zoo.a, INPUTS, 2)]
    assert compat.distributed_generation([zoo.a], [INPUTS], [0], 4)[0] == theirs(zoo.a, INPUTS, 4)


def test_files_that_are_written_again_give_new_answers(compat, zoo, tmp_path, starts):
    """Of an adapter, which stays in its engine, and of a full model, which is loaded into it."""
    adapter = make_expert(zoo.base, tmp_path / "soup", 7)
    full = make_full(tmp_path / "full", 5)
    names, twin = [adapter, str(full)], str(make_full(tmp_path / "twin", 9))
    first = compat.distributed_generation(names, [INPUTS] * 2, [0])
    assert compat.distributed_generation([twin, str(full)], [INPUTS] * 2, [0]) == [theirs(twin, INPUTS, 6), first[1]]
    assert compat.distributed_generation([str(full)], [INPUTS], [0]) == first[1:]
    make_expert(zoo.base, tmp_path / "soup", 8)
    make_full(full, 6)
    second = compat.distributed_generation(names, [INPUTS] * 2, [0])
    assert second == [theirs(name, INPUTS, 6) for name in names]
    assert first[0] != second[0]
    assert first[1] != second[1]
    assert len(starts) == 2


def test_an_engine_ends_where_another_needs_its_memory(compat, zoo, monkeypatch, starts):
    compat.distributed_generation([zoo.a], [INPUTS], [0])
    monkeypatch.setattr(fleet_module, "free_host_memory", lambda: 1)
    answers = compat.distributed_generation([zoo.other, zoo.b], [INPUTS] * 2, [0])
    assert answers == [theirs(name, INPUTS, 6) for name in (zoo.other, zoo.b)]
    assert starts == ["base", "other"], "the engine that is there generates first"
    assert len(session.session().fleet._engines) == 1


@pytest.fixture
def placed(compat, monkeypatch):
    """Engines that were started, with the devices that they were given: here they are all this CPU."""
    found = []

    def start(self, model, form, config, devices):
        found.append((model.folder.name, devices, config.engines, config.tensor_parallel))
        return fleet_module.start_here(model.base, form, SETTINGS)

    monkeypatch.setattr(fleet_module, "names_of", lambda devices, gpus: tuple(map(str, devices)))
    monkeypatch.setattr(fleet_module.Fleet, "_start", start)
    session.configure(replace(SETTINGS, engine="vllm"))  # which may be spread over devices
    return found


def test_models_share_the_devices(compat, zoo, placed):
    """Engines of one call at once, each on its part; those that stay keep theirs, and the one in the way ends."""
    names = [zoo.a, zoo.other, zoo.b]
    answers = [theirs(name, INPUTS, 6) for name in names]
    assert compat.distributed_generation(names, [INPUTS] * 3, [0, 1, 2, 3]) == answers
    assert placed == [("a", ("0", "1"), 2, 1), ("other", ("2", "3"), 2, 1)]
    placed.clear()
    assert compat.distributed_generation(names, [INPUTS] * 3, [1, 0]) == answers
    assert placed == []
    assert compat.distributed_generation([zoo.base], [INPUTS], [1]) == [theirs(zoo.base, INPUTS, 6)]
    assert placed == [("base", ("1",), 1, 1)]
    placed.clear()
    assert compat.distributed_generation(names, [INPUTS] * 3, [2]) == answers
    assert placed == [("a", ("0",), 1, 1)], "on the device that was free, where 2 has an engine"


def test_threads_that_name_a_device_each_leave_each_others_engines(compat, zoo, placed):
    """As the graphs of heterogeneous swarms do, each with all models; calls that wait are answered together."""
    names = [zoo.a, zoo.other, zoo.base]
    answers = {name: theirs(name, INPUTS, 6) for name in names}

    def graph(device):
        return [compat.batch_generate_text(name, device, INPUTS, 6, 0.7, COLD, 2) for name in names]

    compat.distributed_generation([zoo.a] * 3, [[]] * 3, [0, 1, 2])
    with ThreadPoolExecutor(3) as threads:
        found = [threads.submit(graph, device) for device in range(3)]
    assert [one.result() for one in found] == [[answers[name] for name in names]] * 3
    assert sorted(name for name, *_ in placed) == ["a", "base", "other"]
    with pytest.raises(InputError, match="has 302 tokens"):
        compat.batch_generate_text(zoo.a, 0, ["a" * 300], 6, 0.7, COLD, 2)
    assert compat.batch_generate_text(zoo.a, 0, INPUTS, 6, 0.7, COLD, 2) == answers[zoo.a]


def test_calls_that_wait_are_answered_together(compat, zoo, monkeypatch):
    sizes, going = [], threading.Event()
    answer = fleet_module.Fleet._answer

    def watched(fleet, calls):
        sizes.append(len(calls))
        if len(sizes) == 1:
            going.set()
            while len(fleet._calls) < 3:
                time.sleep(0.01)
        answer(fleet, calls)

    monkeypatch.setattr(fleet_module.Fleet, "_answer", watched)
    ask = partial(compat.batch_generate_text, zoo.a, 0, max_response_length=6, temperature=1, top_p=COLD, batch_size=2)
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(ask, input_list=INPUTS)
        going.wait(60)
        others = [threads.submit(ask, input_list=INPUTS[:count]) for count in (1, 2, 3)]
    assert sizes == [1, 3]
    expected = theirs(zoo.a, INPUTS, 6)
    assert [one.result() for one in (first, *others)] == [expected, expected[:1], expected[:2], expected[:3]]


def test_a_big_model_is_spread_over_all_devices(compat, zoo, placed):
    compat.update_generation_hyperparameters(6, 0.7, COLD, 2, big_model_mode=True)
    names = [zoo.a, zoo.other]
    answers = [theirs(name, INPUTS, 6) for name in names]
    assert compat.distributed_generation(names, [INPUTS] * 2, [0, 1]) == answers
    assert placed == [("a", ("0", "1"), 1, 2), ("other", ("0", "1"), 1, 2)]


def test_prompts_are_the_chat_template_as_text(zoo):
    """`<begin>` separates what the answer begins with; a batch whose template fails is sent as it is."""
    tokenizer = AutoTokenizer.from_pretrained(zoo.a)
    got = generation.prompts_of(tokenizer, ["bad", "dig<begin>up<begin>", "x"], 2)
    assert [tokenizer.decode(one).replace(" ", "") for one in got] == ["badZ!", "digZ!up<end>begin<end>", "xZ!"]
    assert got == [tokenizer(text).input_ids for text in ("badZ!", "digZ!up<begin>", "xZ!")]
    tokenizer.chat_template = "{% if 'q' in messages[0]['content'] %}{{ raise_exception('no') }}{% endif %}Z"
    got = generation.prompts_of(tokenizer, ["a", "b", "q", "c"], 2)
    assert got == [tokenizer(text).input_ids for text in ("Z", "Z", "q", "c")]


@pytest.mark.parametrize(
    ("text", "left"), [("so</think> a b ", "a b"), ("x</think>y</think>\n z", "z"), (" a ", " a "), ("</think>", "")]
)
def test_what_a_model_thinks_is_cut_off(text, left):
    assert generation.after_thought(text) == left


def test_tokens_are_drawn_as_often_as_in_moco(compat, zoo):
    """χ² against softmax(logits / T) of the 50 likeliest, cut to top_p; each call draws anew."""
    count, temperature, top_p = 2000, 2.5, 0.97
    found = compat.batch_generate_text(zoo.a, 0, ["bad"] * count, 1, temperature, top_p, 64)
    assert compat.batch_generate_text(zoo.a, 0, ["bad"] * 50, 1, temperature, top_p, 64) != found[:50]
    tokenizer, model = AutoTokenizer.from_pretrained(zoo.a), AutoModelForCausalLM.from_pretrained(zoo.a)
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer("badZ!").input_ids])).logits[0, -1].double()
    values, tokens = (logits / temperature).topk(50)
    chances = values.softmax(0)
    kept = int((chances.cumsum(0) - chances < top_p).sum())
    assert 20 < kept < 50
    chances = chances[:kept] / chances[:kept].sum()
    texts = tokenizer.batch_decode(tokens[:kept, None], skip_special_tokens=True)
    often = Counter(found)
    assert set(often) <= set(texts)
    statistic = sum(
        (often[text] - count * p) ** 2 / (count * p) for text, p in zip(texts, chances.tolist(), strict=True)
    )
    assert chi2.sf(statistic, kept - 1) > 0.001


def test_draws_are_those_of_the_models_own_config(compat, zoo, tmp_path):
    """top_k and the repetition penalty are not MoCo's settings, and transformers takes them from the model."""
    full = make_full(tmp_path / "full", 5)
    models = session.session().models
    assert generation.sampling_of(models.folder(full), 0.7, 0.9)[3:] == (50, 1.0)
    (full / "generation_config.json").write_text('{"top_k": 1, "repetition_penalty": 1.3, "eos_token_id": 0}')
    assert generation.sampling_of(models.folder(full), 0.7, 0.9) == (0.7, 0.9, 0, 1, 1.3)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(full), AutoTokenizer.from_pretrained(full)
    ids = tokenizer("badZ!", return_tensors="pt").input_ids
    output = model.generate(ids, do_sample=False, max_new_tokens=12, repetition_penalty=1.3, pad_token_id=0)
    text = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    assert compat.batch_generate_text(str(full), 0, ["bad"], 12, 3.0, 1.0, 1) == [text]


def test_a_session_draws_the_same_again(zoo, compat):
    def drawn(seed):
        session.configure(SETTINGS, seed=seed)
        return compat.batch_generate_text(zoo.a, 0, INPUTS, 6, 2.0, 1.0, 4)

    assert drawn(0) == drawn(0) != drawn(1)


def test_what_cannot_be_served_is_one_sentence(compat, zoo, tmp_path):
    bare = make_expert(zoo.base, tmp_path / "bare", 1)
    for file in (tmp_path / "bare").glob("*token*"):
        file.unlink()
    with pytest.raises(InputError, match=r"bare has no tokenizer: copy tokenizer.json"):
        compat.distributed_generation([bare], [INPUTS], [0])
    models = session.session().models
    models.hold(shutil.copytree(bare, tmp_path / "now"), models.find(bare).weights(), models.find(bare))
    with pytest.raises(InputError, match="bare has no tokenizer"):  # where a swarm has it from
        compat.distributed_generation([str(tmp_path / "now")], [INPUTS], [0])
    write_tokenizer(tmp_path / "bare")  # without a template
    assert len(compat.distributed_generation([bare], [INPUTS], [0])[0]) == len(INPUTS)
    with pytest.raises(InputError, match="has 302 tokens, and the engine takes 256"):
        compat.distributed_generation([zoo.a], [["a" * 300]], [0])
    with pytest.raises(InputError, match="1 models and 2 lists of inputs"):
        compat.distributed_generation([zoo.a], [INPUTS] * 2, [0])
    with pytest.raises(InputError, match="A list of inputs is 'bad'"):
        compat.distributed_generation([zoo.a], ["bad"], [0])
    with pytest.raises(InputError, match=r"nowhere does not exist"):
        compat.distributed_generation([str(tmp_path / "nowhere")], [INPUTS], [0])
    compat.update_generation_hyperparameters(None, 0.7, COLD, 2)
    with pytest.raises(InputError, match="MAX_RESPONSE_LENGTH is not set"):
        compat.distributed_generation([zoo.a], [INPUTS], [0])
    assert compat.distributed_generation([zoo.a], [["bad"]], [0], 3)[0] == theirs(zoo.a, ["bad"], 3)
