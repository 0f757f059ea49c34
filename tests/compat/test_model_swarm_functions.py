"""`evaluate` and `evaluate_test` of model_swarm: utilities, files, and an engine that stays."""

import json
import shutil

import pytest
import torch
from helpers_model_swarm import NAMES, make_place, read
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelswarms_fast.compat import model_swarm
from modelswarms_fast.compat.model_swarm import configure, evaluate, evaluate_test, functions, lora_merge, release
from modelswarms_fast.errors import InputError


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = make_place(tmp_path_factory.mktemp("place"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        configure(engine="transformers", dtype="float32")
        yield folder
        configure()


def test_a_utility_is_that_of_the_answers_that_are_written(place):
    for name in NAMES:
        model = f"initial_experts/{name}"
        utility = evaluate(model, "multiple_choice", "quiz", 0, "base", save_dev_flag=True)
        golds, preds = (read(place / model / f"{one}_dev.json") for one in ("golds", "preds"))
        assert utility == sum(a == b for a, b in zip(golds, preds, strict=True)) / 12
        tested = evaluate_test(model, "exact_match", "nlgraph", 0, base_model="base")
        scores = read(place / model / "scores.json")
        assert tested == sum(scores) / len(scores)
        assert set(scores) <= {0, 1}


def test_one_engine_serves_all_calls(place):
    evaluate("initial_experts/ada", "exact_match", "nlgraph", 0, "base")
    engine = functions._served.engine
    for name in NAMES:
        evaluate(f"initial_experts/{name}", "multiple_choice", "quiz", 1, "base")
    assert functions._served.engine is engine
    release()
    assert functions._served is None


def test_a_file_that_is_written_anew_gives_new_answers(place, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(place / "initial_experts" / "ada", model)
    preds = []
    for other in ("ada", "bob", "ada"):
        lora_merge([1], [place / "initial_experts" / other], model, 0, 1)
        evaluate(model, "multiple_choice", "quiz", 0, "base", True)
        preds.append(read(model / "preds_dev.json"))
    assert preds[0] == preds[2] != preds[1]


def test_data_that_is_written_anew_is_read_anew(place):
    file = place / "data" / "eval" / "changing.json"
    shutil.copy(place / "data" / "eval" / "nlgraph.json", file)
    counts = []
    for last in (12, 5):
        content = read(file)
        file.write_text(json.dumps(content | {"dev": content["dev"][:last]}))
        evaluate("initial_experts/ada", "exact_match", "changing", 0, "base", save_dev_flag=True)
        counts.append(len(read(place / "initial_experts" / "ada" / "scores_dev.json")))
    assert counts == [12, 5]


def test_another_scaling_has_another_engine(place, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(place / "initial_experts" / "ada", model)
    evaluate(place / "initial_experts" / "ada", "multiple_choice", "quiz", 0, "base")
    engine = functions._served.engine
    config = (model / "adapter_config.json").read_text()
    (model / "adapter_config.json").write_text(config.replace('"lora_alpha": 8', '"lora_alpha": 80'))
    evaluate(model, "multiple_choice", "quiz", 0, "base")
    assert functions._served.engine is not engine


def test_a_whole_model_is_its_own_base(place):
    utility = evaluate("base", "exact_match", "nlgraph", 0, base_model="nowhere/nothing")
    model = place / "none"  # an adapter that changes nothing
    shutil.copytree(place / "initial_experts" / "ada", model)
    weights = load_file(model / "adapter_model.safetensors")
    save_file({name: tensor * 0 for name, tensor in weights.items()}, model / "adapter_model.safetensors")
    assert evaluate(model, "exact_match", "nlgraph", 0, "base") == utility


@pytest.mark.parametrize("penalty", [1.0, 1.7])
def test_answers_are_those_of_generate_on_batches_of_five_without_a_mask(place, penalty):
    """With what the base's generation_config.json says of repetitions, which counts pads too."""
    base = place / f"base_{penalty}"
    shutil.copytree(place / "base", base)
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": 0, "repetition_penalty": penalty}))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.load_adapter(str(place / "initial_experts" / "bob"))
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.eos_token
    examples, expected = read(place / "data" / "eval" / "nlgraph.json")["dev"], []
    for first in range(0, len(examples), 5):
        batch = examples[first : first + 5]
        ids = tokenizer([one["question"] for one in batch], return_tensors="pt", padding=True).input_ids
        for one, row in zip(batch, model.generate(ids, max_new_tokens=10, do_sample=False), strict=True):
            text = tokenizer.decode(row[ids.shape[1] :], skip_special_tokens=True).strip()
            expected.append(int(one["answer"] in text))
    evaluate("initial_experts/bob", "exact_match", "nlgraph", 0, str(base), save_dev_flag=True)
    assert read(place / "initial_experts" / "bob" / "scores_dev.json") == expected
    assert 0 < sum(expected) < len(expected)


def test_a_skipped_evaluation_is_none(place):
    assert evaluate("nowhere", "multiple_choice", "quiz", 0, skip_flag=True) is None


@pytest.mark.parametrize("which", ["one", "two"])
def test_one_of_two_tasks(place, which):
    names = ("hearsay", "citation_prediction_classification")
    model = "initial_experts/cyd"
    both = [evaluate(model, "multiple_choice", name, 0, "base") for name in names]
    alone = both[which == "two"] if sum(both) else 0.01
    assert evaluate(model, "multitask", "legal", 0, "base", only_one_or_two=which) == alone
    model_swarm.update_only_one_or_two(which)
    try:
        assert evaluate(model, "multitask", "legal", 0, "base") == alone
    finally:
        model_swarm.update_only_one_or_two(None)


def test_what_cannot_be_used_is_one_sentence(place):
    with pytest.raises(InputError, match=r"data/eval/absent\.json does not exist"):
        evaluate("initial_experts/ada", "multiple_choice", "absent", 0, "base")
    with pytest.raises(InputError, match="holds neither adapter_config"):
        evaluate("data", "multiple_choice", "quiz", 0, "base")
    with pytest.raises(InputError, match="eval_type is 'perplexity'"):
        evaluate("initial_experts/ada", "perplexity", "quiz", 0, "base")
    with pytest.raises(InputError, match="padding is 'some'"):
        configure(padding="some")
