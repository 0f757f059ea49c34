"""Names of wrapped text models: every spelling of an adapter has the effect that it has in PEFT."""

import pytest
from helpers_families import FAMILIES, answers, make_lora, make_model, respell

from modelswarms_fast.engines.protocol import Request
from modelswarms_fast.engines.transformers import TransformersEngine
from modelswarms_fast.errors import InputError
from modelswarms_fast.weights.experts import export, read_experts

PROMPT = [5, 6, 7, 8, 9, 10]
WHOLE = "model.language_model."


def worst(engine, slot, right):
    return max(abs(value - right[token]) for token, value in engine.log_probs(Request(slot, PROMPT)).items())


@pytest.fixture(scope="module", params=["Gemma 3 (images)", "Qwen2.5-VL", "Mistral 3"])
def pool(request, tmp_path_factory):
    """A wrapped base model with two adapters, and what PEFT says of the base and of the second."""
    folder, family = tmp_path_factory.mktemp("wrapped"), FAMILIES[request.param]
    make_model(family, folder / "base")
    for seed in range(2):
        make_lora(family, folder / "base", folder / "experts" / str(seed), seed)
    base = answers(family, folder / "base", None, PROMPT)
    right = answers(family, folder / "base", folder / "experts" / "1", PROMPT)
    assert max(abs(a - b) for a, b in zip(base, right, strict=True)) > 0.05
    return family, folder, base, right


@pytest.mark.parametrize("spelling", [WHOLE, "language_model.model.", "model."])
def test_each_spelling_of_an_adapter_has_its_effect(pool, tmp_path, spelling):
    family, folder, base, right = pool
    if family is FAMILIES["Qwen2.5-VL"] and spelling.startswith("language_model"):
        pytest.skip("no version of transformers has called this model's layers so")
    experts = [respell(folder / "experts" / str(seed), tmp_path / str(seed), WHOLE, spelling) for seed in range(2)]
    read = read_experts(experts)
    engine = TransformersEngine(folder / "base", read, dtype="float32")
    assert worst(engine, None, base) < 5e-4
    engine.load(0, read.rows[1])
    assert worst(engine, 0, right) < 5e-4


def test_an_export_loads_with_peft_on_the_whole_model(pool, tmp_path):
    family, folder, _, right = pool
    read = read_experts(folder / "experts")
    export(tmp_path / "export", read.rows[1], read, base=folder / "base", provenance={})
    again = answers(family, folder / "base", tmp_path / "export", PROMPT)
    assert max(abs(a - b) for a, b in zip(again, right, strict=True)) < 5e-4


def test_whole_checkpoints_are_served(pool, tmp_path):
    family, folder, base, _ = pool
    for seed in (1, 2):
        make_model(family, tmp_path / "full" / str(seed), seed)
    right = answers(family, tmp_path / "full" / "2", None, PROMPT)
    read = read_experts(tmp_path / "full")
    engine = TransformersEngine(folder / "base", read, dtype="float32")
    engine.load(0, read.rows[1])
    assert worst(engine, 0, right) < 5e-4
    engine.restore()
    assert worst(engine, None, base) < 5e-4


def test_names_that_fit_nothing_are_one_sentence(pool, tmp_path):
    _, folder, _, _ = pool
    experts = [respell(folder / "experts" / str(seed), tmp_path / str(seed), WHOLE, "encoder.") for seed in range(2)]
    with pytest.raises(InputError, match=r"^encoder\.layers\.0\.mlp\.down_proj\.weight does not fit the base model; "):
        TransformersEngine(folder / "base", read_experts(experts), dtype="float32")


def test_a_pool_of_two_spellings_is_one_sentence(pool, tmp_path):
    _, folder, _, _ = pool
    experts = [folder / "experts" / "0", respell(folder / "experts" / "1", tmp_path / "1", WHOLE, "model.")]
    with pytest.raises(
        InputError, match=r" are the same tensor of the base model \(model\.language_model\.layers\.0\."
    ):
        TransformersEngine(folder / "base", read_experts(experts), dtype="float32")
