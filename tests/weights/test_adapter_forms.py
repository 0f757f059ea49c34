"""The forms in which trainers and hubs leave adapters: each is read as PEFT means it, or refused in one sentence."""

import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import helpers_models
import huggingface_hub
import pytest
import torch
from helpers_models import ALL_LINEAR, edit_config, make_adapter, make_base
from helpers_search import write_tokenizer
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from modelswarms_fast.config import EngineConfig
from modelswarms_fast.engines.protocol import Request
from modelswarms_fast.engines.start import start_engine
from modelswarms_fast.engines.transformers import TransformersEngine
from modelswarms_fast.errors import InputError
from modelswarms_fast.weights.experts import Experts, base_row, export, read_experts, read_model

tiny_base = helpers_models.tiny_base

TOKENS = torch.arange(12).reshape(2, 6)


def updates(experts: Experts, row: torch.Tensor) -> dict[str, torch.Tensor]:
    """Module -> scaling · B A in float64."""
    views = experts.layout.views(row)
    return {one.name: one.scaling * views[one.b].double() @ views[one.a].double() for one in experts.modules}


def same_update(alone: Experts, pool: Experts, index: int, *, exact: bool = True) -> None:
    """The expert adds in the pool what it adds alone: the same, where it has no module nothing."""
    wanted, found = updates(alone, alone.rows[0]), updates(pool, pool.rows[index])
    for name, update in found.items():
        expected = wanted.get(name, torch.zeros_like(update))
        if exact:
            assert torch.equal(update, expected), name
        else:
            torch.testing.assert_close(update, expected, rtol=1e-6, atol=1e-8)


UNEQUAL: dict[str, list[dict[str, Any]]] = {
    "ranks": [{"r": 4}, {"r": 8, "lora_alpha": 16}],
    "alphas": [{"lora_alpha": 8}, {"lora_alpha": 16}, {"lora_alpha": 4}],
    "ranks and alphas": [{"r": 2, "lora_alpha": 16}, {"r": 8, "lora_alpha": 8}],
    "modules": [{"target_modules": ["q_proj", "v_proj"]}, {"target_modules": ["v_proj", "up_proj"]}],
    "modules as an expression": [{"target_modules": r".*\.1\..*_proj"}, {"target_modules": ALL_LINEAR}],
    "layers": [{"layers_to_transform": [1], "target_modules": ["q_proj"]}, {"target_modules": ["q_proj"]}],
    "modules and ranks": [{"target_modules": ["q_proj"], "r": 8}, {"r": 2}, {"target_modules": ["down_proj"], "r": 4}],
    "rank patterns": [{"rank_pattern": {"q_proj": 8}}, {"rank_pattern": {"v_proj": 2, "layers.1.mlp.up_proj": 1}}],
    "alpha patterns": [{"alpha_pattern": {"q_proj": 32}}, {"alpha_pattern": {"layers.0.mlp.down_proj": 4}}],
    "rslora": [{"use_rslora": True}, {"lora_alpha": 16}],
    "no scaling": [{"lora_alpha": 0}, {}],
}


@pytest.fixture(params=UNEQUAL)
def unequal(request: pytest.FixtureRequest, tiny_base: Path, tmp_path: Path) -> Path:
    for index, lora in enumerate(UNEQUAL[request.param]):
        make_adapter(tiny_base, tmp_path / "pool" / f"e{index}", seed=index, **lora)
    return tmp_path / "pool"


def test_an_expert_of_an_unequal_pool_adds_what_it_adds_alone(unequal: Path) -> None:
    """Bit for bit: the scalings' ratios are powers of two."""
    pool = read_experts(unequal)
    for index, name in enumerate(pool.names):
        alone = read_experts([unequal / name], minimum=1)
        same_update(alone, pool, index)
        own = {module.name: module.rank for module in alone.modules}
        assert {module.name: module.ranks[index] for module in pool.modules if module.ranks[index]} == own
        assert torch.equal(read_model(unequal / name, pool), pool.rows[index])
    assert all(module.rank == max(module.ranks) for module in pool.modules)


def test_the_transformers_engine_serves_an_unequal_pool(unequal: Path, tiny_base: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    write_tokenizer(base)
    pool = read_experts(unequal)
    engine = TransformersEngine(base, pool, dtype="float32")
    for name, row in zip(pool.names, pool.rows, strict=True):
        expert = read_experts([unequal / name], minimum=1)
        alone = TransformersEngine(base, expert, dtype="float32")
        alone.load(0, expert.rows[0])
        engine.load(0, row)
        found, wanted = (one.log_probs(Request(0, [11, 12, 13])) for one in (engine, alone))
        assert found == pytest.approx(wanted, rel=1e-5)


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match")
def test_peft_loads_the_export_of_an_unequal_pool(unequal: Path, tiny_base: Path, tmp_path: Path) -> None:
    """With the logits of the expert, and of a mixture what the row says; read back, it is the same row."""
    pool = read_experts(unequal)
    mixture = pool.rows.mean(dim=0)
    for index, row in enumerate([*pool.rows, mixture]):
        folder = tmp_path / "exports" / str(index)
        export(folder, row, pool, base=tiny_base, provenance={})
        loaded = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tiny_base), folder)
        by_hand = LlamaForCausalLM.from_pretrained(tiny_base)
        with torch.no_grad():
            for name, update in updates(pool, row).items():
                by_hand.get_submodule(name).weight += update.float()
            torch.testing.assert_close(loaded(TOKENS).logits, by_hand(TOKENS).logits, rtol=1e-5, atol=1e-5)
            if index < len(pool.names):
                alone = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tiny_base), unequal / f"e{index}")
                torch.testing.assert_close(loaded(TOKENS).logits, alone(TOKENS).logits, rtol=1e-5, atol=1e-5)
        back = read_experts([folder], minimum=1)
        assert torch.equal(read_model(folder, pool), row)
        assert torch.equal(back.rows[0], row)
        assert [(one.name, one.rank, one.scaling) for one in back.modules] == [
            (one.name, one.rank, one.scaling) for one in pool.modules
        ]


def test_scalings_that_are_no_power_of_two_apart_are_rounded_once(tiny_base: Path, tmp_path: Path) -> None:
    for index, alpha in enumerate([8, 12]):
        make_adapter(tiny_base, tmp_path / str(index), seed=index, lora_alpha=alpha)
    pool = read_experts(tmp_path)
    same_update(read_experts([tmp_path / "0"], minimum=1), pool, 0)
    same_update(read_experts([tmp_path / "1"], minimum=1), pool, 1, exact=False)
    views, module = pool.layout.views(pool.rows[1]), pool.modules[0]
    stored = load_file(tmp_path / "1" / "adapter_model.safetensors")[module.b]
    assert torch.equal(views[module.b], (stored.double() * 1.5).float())


def test_a_pool_of_equal_scalings_keeps_its_values_and_config(tiny_base: Path, tmp_path: Path) -> None:
    for index in range(2):
        make_adapter(tiny_base, tmp_path / str(index), seed=index, r=3, lora_alpha=5, use_rslora=True)
    pool = read_experts(tmp_path)
    saved = json.loads((tmp_path / "0" / "adapter_config.json").read_text())
    assert pool.config == {name: saved[name] for name in pool.config}
    assert pool.config.keys() >= {"r", "lora_alpha", "use_rslora", "target_modules", "base_model_name_or_path"}
    assert {module.scaling for module in pool.modules} == {5 / math.sqrt(3)}
    for index, row in enumerate(pool.rows):
        content = load_file(tmp_path / str(index) / "adapter_model.safetensors")
        assert all(torch.equal(view, content[name]) for name, view in pool.layout.views(row).items())


def test_a_pool_without_effect_has_no_place_for_a_model_that_has_one(tiny_base: Path, tmp_path: Path) -> None:
    for index, alpha in enumerate([0, 0, 8]):
        make_adapter(tiny_base, tmp_path / str(index), seed=index, lora_alpha=alpha)
    pool = read_experts([tmp_path / "0", tmp_path / "1"])
    with pytest.raises(InputError, match=r"2/adapter_config.json: model.layers.0.* is scaled by 2, but by 0 in all"):
        read_model(tmp_path / "2", pool)


def test_a_scaled_value_that_overflows_is_named(tiny_base: Path, tmp_path: Path) -> None:
    for index, alpha in enumerate([1, 1 << 20]):
        make_adapter(tiny_base, tmp_path / str(index), seed=index, lora_alpha=alpha, dtype=torch.float16)
    with pytest.raises(InputError, match=r"1/adapter_model.safetensors: tensor .*lora_B.weight .* as torch.float16"):
        read_experts(tmp_path)


Q = "base_model.model.model.layers.0.self_attn.q_proj."
KEYS: dict[str, Callable[[str], str]] = {
    "as PEFT saves them": lambda key: key,
    "with the adapter's name": lambda key: key.replace(".weight", ".default.weight"),
    "with another name": lambda key: key.replace(".weight", ".my-law_2.weight"),
    "without prefix": lambda key: key.removeprefix("base_model.model."),
    "of DistributedDataParallel": lambda key: f"module.{key}",
    "of torch.compile": lambda key: f"_orig_mod.{key}",
    "compiled inside": lambda key: key.replace("base_model.model.", "base_model.model._orig_mod."),
    "all of it": lambda key: "module." + key.removeprefix("base_model.model.").replace(".weight", ".default.weight"),
}


def pool_of_one_form(tiny_base: Path, folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """Two adapters, of which the second is stored in another form."""
    for index in range(2):
        make_adapter(tiny_base, folder / str(index), seed=index)
    file = folder / "1" / "adapter_model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})
    return folder


@pytest.mark.parametrize("form", KEYS)
def test_keys_of_every_trainer_are_those_of_peft(form: str, tiny_base: Path, tmp_path: Path) -> None:
    make_adapter(tiny_base, tmp_path / "right" / "1", seed=1)
    folder = pool_of_one_form(
        tiny_base, tmp_path / "pool", lambda file: {KEYS[form](key): tensor for key, tensor in file.items()}
    )
    pool = read_experts(folder)
    assert all(spec.name in load_file(folder / "0" / "adapter_model.safetensors") for spec in pool.layout.specs)
    alone = read_experts([tmp_path / "right" / "1"], minimum=1)
    assert torch.equal(pool.rows[1], alone.rows[0])


def test_two_adapters_in_one_file_and_one_tensor_twice_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    def two(file: dict[str, Any]) -> dict[str, Any]:
        return {key.replace(".weight", f".{name}.weight"): one.clone() for key, one in file.items() for name in "xy"}

    def twice(file: dict[str, Any]) -> dict[str, Any]:
        return file | {f"module.{Q}lora_A.weight": file[f"{Q}lora_A.weight"].clone()}

    for name, change, words in (
        ("two", two, r"1/adapter_model.safetensors holds several adapters \(.*\.x\.weight, .*\.y\.weight\): save each"),
        ("twice", twice, r"1/adapter_model.safetensors: tensors .* are the same one"),
    ):
        with pytest.raises(InputError, match=words):
            read_experts(pool_of_one_form(tiny_base, tmp_path / name, change))


COPIES = {
    "embeddings": "base_model.model.model.embed_tokens.weight",
    "beside LoRA": "base_model.model.model.embed_tokens.base_layer.weight",
    "of modules_to_save": "base_model.model.model.embed_tokens.modules_to_save.default.weight",
    "a tied head": "base_model.model.lm_head.base_layer.weight",
    "without prefix": "model.embed_tokens.weight",
    "another tensor": "base_model.model.model.norm.weight",
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", COPIES)
def test_copies_of_the_base_are_left_out(form: str, dtype: torch.dtype, tiny_base: Path, tmp_path: Path) -> None:
    """In the number type in which they were saved; without the base nobody can say that they are copies."""
    of_base = load_file(tiny_base / "model.safetensors")
    copy = of_base["model.norm.weight" if "norm" in COPIES[form] else "model.embed_tokens.weight"].to(dtype)
    folder = pool_of_one_form(tiny_base, tmp_path / "pool", lambda file: file | {COPIES[form]: copy})
    pool = read_experts(folder, base=tiny_base)
    assert torch.equal(pool.rows[1], read_model(folder / "1", pool))
    assert {spec.name.split(".")[-2] for spec in pool.layout.specs} == {"lora_A", "lora_B"}
    assert pool.notes == ()
    with pytest.raises(InputError, match=r"1/adapter_model.safetensors: tensor .* name the base model"):
        read_experts(folder)


WHOLE = {
    "a head of a tied model": ("base_model.model.lm_head.weight", (64, 32)),
    "the same, as older versions saved it": ("base_model.model.lm_head.modules_to_save.weight", (64, 32)),
    "a resized vocabulary": ("base_model.model.model.embed_tokens.weight", (70, 32)),
    "a layer that is adapted too": (f"{Q}base_layer.weight", (32, 32)),
    "a bias": (f"{Q}bias", (32,)),
    "a bias of the base": (f"{Q}base_layer.bias", (32,)),
}


@pytest.mark.parametrize("form", WHOLE)
def test_whole_tensors_without_a_place_are_refused_with_the_way_out(form: str, tiny_base: Path, tmp_path: Path) -> None:
    key, shape = WHOLE[form]
    folder = pool_of_one_form(tiny_base, tmp_path / "pool", lambda file: file | {key: torch.full(shape, 0.5)})
    with pytest.raises(InputError) as caught:
        read_experts(folder, base=tiny_base)
    words = ["1/adapter_model.safetensors", key, "merge_and_unload()", "save_pretrained("]
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.fixture
def whole(tmp_path: Path) -> tuple[Path, Experts]:
    """An untied base, and three experts of which one has trained the head and one a norm and the embeddings."""
    base = make_base(tmp_path / "base", shape={"tie_word_embeddings": False, "head_dim": 32})
    write_tokenizer(base)
    for index, modules in enumerate([["lm_head"], None, ["embed_tokens", "model.norm"]]):
        make_adapter(base, tmp_path / "pool" / f"e{index}", seed=index, modules_to_save=modules)
        file = tmp_path / "pool" / f"e{index}" / "adapter_model.safetensors"
        generator = torch.Generator().manual_seed(index)
        tensors = load_file(file)
        for name, tensor in tensors.items():
            if "lora_" not in name:
                tensors[name] = tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        save_file(tensors, file, {"format": "pt"})
    return base, read_experts(tmp_path / "pool", base=base)


def test_tensors_trained_whole_lie_beside_the_factors(whole: tuple[Path, Experts], tmp_path: Path) -> None:
    """An expert has the base's values of those that others have trained; a mixture of all answers as the export."""
    base, pool = whole
    assert pool.whole == ("lm_head.weight", "model.embed_tokens.weight", "model.norm.weight")
    assert pool.config["modules_to_save"] == ["lm_head", "model.embed_tokens", "model.norm"]
    of_base, origin = load_file(base / "model.safetensors"), base_row(pool)
    assert origin is not None
    trained = {0: {"lm_head.weight"}, 1: set(), 2: {"model.embed_tokens.weight", "model.norm.weight"}}
    for name in pool.whole:
        assert torch.equal(pool.layout.views(origin)[f"base_model.model.{name}"], of_base[name])
        for index, row in enumerate(pool.rows):
            same = torch.equal(pool.layout.views(row)[f"base_model.model.{name}"], of_base[name])
            assert same == (name not in trained[index])
    engine = TransformersEngine(base, pool, dtype="float32")
    prompt = [11, 12, 13]
    plain = TransformersEngine(base, None, dtype="float32").log_probs(Request(None, prompt))
    mixture = torch.tensor([0.5, 0.9, -0.4]) @ pool.rows
    for index, row in enumerate([*pool.rows, mixture]):
        folder = tmp_path / "exports" / str(index)
        export(folder, row, pool, base=base, provenance={})
        assert torch.equal(read_model(folder, pool), row)
        engine.load(0, row)
        served = engine.log_probs(Request(0, prompt))
        sources = [folder] + ([tmp_path / "pool" / f"e{index}"] if index < 3 else [])
        for source in sources:
            loaded = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), source).eval()
            with torch.no_grad():
                expected = torch.log_softmax(loaded(torch.tensor([prompt])).logits[0, -1], dim=-1)
            assert served == pytest.approx(dict(enumerate(expected.tolist())), rel=1e-5, abs=1e-5)
    engine.restore()
    assert engine.log_probs(Request(None, prompt)) == pytest.approx(plain, rel=1e-6)


@pytest.mark.vllm
def test_vllm_serves_tensors_trained_whole_in_its_own_weights(whole: tuple[Path, Experts]) -> None:
    """Merged, with the base model as it was afterwards; slots and mixtures have no place for them."""
    base, pool = whole
    with closing(TransformersEngine(base, pool, dtype="float32")) as right:
        config = EngineConfig(serve="auto", state="mixture", dtype="float32", max_model_len=64, slots=2)
        with closing(start_engine(base, pool, config)) as engine:
            assert engine.serve == "merged"
            before = engine.log_probs(Request(None, [11, 12, 13]))
            for row in pool.rows:
                engine.load(0, row)
                right.load(0, row)
                expected = right.log_probs(Request(0, [11, 12, 13]))
                served = engine.log_probs(Request(0, [11, 12, 13]))
                assert served == pytest.approx({token: expected[token] for token in served}, abs=1e-4)
            engine.load_mixture(0, torch.tensor([0.5, 0.9, -0.4]))
            right.load(0, torch.tensor([0.5, 0.9, -0.4]) @ pool.rows)
            expected = right.log_probs(Request(0, [11, 12, 13]))
            served = engine.log_probs(Request(0, [11, 12, 13]))
            assert served == pytest.approx({token: expected[token] for token in served}, abs=1e-4)
            engine.restore()
            assert engine.log_probs(Request(None, [11, 12, 13])) == before


@pytest.mark.parametrize("field", [{"modules_to_save": ["embed_tokens"]}, {"bias": "lora_only"}, {"bias": "all"}])
def test_fields_that_name_no_trained_tensor_change_nothing(
    field: dict[str, Any], tiny_base: Path, tmp_path: Path
) -> None:
    """Their tensors are the base's, or it has none: a Llama has no biases."""
    for index in range(2):
        make_adapter(tiny_base, tmp_path / "pool" / str(index), seed=index, **(field if index else {}))
        make_adapter(tiny_base, tmp_path / "plain" / str(index), seed=index)
    pool = read_experts([tmp_path / "pool" / name for name in "10"], base=tiny_base)
    assert torch.equal(pool.rows.flip(0), read_experts(tmp_path / "plain").rows)
    assert (pool.config["modules_to_save"], pool.config["bias"]) == (None, "none")


def test_copies_alone_are_no_adapter(tiny_base: Path, tmp_path: Path) -> None:
    norm = load_file(tiny_base / "model.safetensors")["model.norm.weight"]
    folder = pool_of_one_form(tiny_base, tmp_path / "pool", lambda file: {COPIES["another tensor"]: norm})
    with pytest.raises(InputError, match=r"1/adapter_model.safetensors holds no lora_A and lora_B weights"):
        read_experts(folder, base=tiny_base)


def test_lora_beside_copies_as_peft_saves_them(tiny_base: Path, tmp_path: Path) -> None:
    """PEFT saves the base's head beside LoRA of it; the base has none of its own here."""
    for index, modules in enumerate([["q_proj", "lm_head"], ["q_proj"]]):
        make_adapter(tiny_base, tmp_path / str(index), seed=index, target_modules=modules)
    assert "base_model.model.lm_head.base_layer.weight" in load_file(tmp_path / "0" / "adapter_model.safetensors")
    pool = read_experts(tmp_path, base=tiny_base)
    assert [module.name for module in pool.modules if module.ranks == (4, 0)] == ["lm_head"]


ACCEPTED: dict[str, dict[str, Any]] = {
    "GPT-2's orientation": {"fan_in_fan_out": True},
    "LoRA-GA": {"init_lora_weights": "lora_ga"},
    "EVA": {"init_lora_weights": "eva"},
    "a dropout": {"lora_dropout": 0.1},
}


@pytest.mark.parametrize("form", ACCEPTED)
def test_settings_of_training_alone_change_nothing(form: str, tiny_base: Path, tmp_path: Path) -> None:
    for index in range(2):
        make_adapter(tiny_base, tmp_path / str(index), seed=index)
    plain = read_experts(tmp_path)
    edit_config(tmp_path / "0", **ACCEPTED[form])
    found = read_experts(tmp_path)
    assert torch.equal(found.rows, plain.rows)
    assert found.modules == plain.modules
    assert found.config["init_lora_weights"] is True


ODD: dict[str, dict[str, Any]] = {
    "no patterns": {"alpha_pattern": None, "rank_pattern": None},
    "layers": {"layers_to_transform": [0, 1], "layers_pattern": "layers"},
    "layers that are none": {"layers_to_transform": {"a": 1}, "layers_pattern": 3},
    "excluded modules": {"exclude_modules": "x"},
    "a runtime": {"runtime_config": {"ephemeral_gpu_offload": 3}},
    "a task": {"task_type": "x"},
    "a start": {"init_lora_weights": "x"},
    "no numbers": {"lora_dropout": "x", "fan_in_fan_out": 3, "inference_mode": [], "bias": 7, "revision": 1.5},
    "fields of other methods": {"eva_config": 3, "corda_config": "x", "loftq_config": [], "lora_ga_config": 1},
    "unknown": {"nobody_knows": {"a": [None]}},
}


@pytest.mark.parametrize("form", ODD)
def test_what_says_nothing_about_the_tensors_is_neither_given_to_peft_nor_exported(form: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", shape={"head_dim": 32})
    write_tokenizer(base)
    for index in range(2):
        make_adapter(base, tmp_path / "pool" / str(index), seed=index)
    plain = read_experts(tmp_path / "pool")
    edit_config(tmp_path / "pool" / "0", **ODD[form])
    found = read_experts(tmp_path / "pool")
    assert torch.equal(found.rows, plain.rows)
    assert found.modules == plain.modules
    engine = TransformersEngine(base, found)
    engine.load(0, found.rows[0])
    export(tmp_path / "winner", found.rows[0], found, base=base, provenance={})
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, tmp_path / "winner")
    tokens = torch.tensor([[1, 2, 3]])
    ours = engine.log_probs(Request(0, [1, 2, 3]))
    theirs = torch.log_softmax(model(tokens).logits[0, -1].float(), dim=-1)
    assert max(abs(ours[token] - float(value)) for token, value in enumerate(theirs)) < 1e-5


@pytest.mark.parametrize("field", ["target_modules", "rank_pattern", "alpha_pattern"])
def test_a_pattern_that_backtracks_for_ever_is_refused_within_seconds(
    field: str, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelswarms_fast.weights.adapters.SECONDS", 0.2)
    for index in range(2):
        make_adapter(tiny_base, tmp_path / str(index), seed=index)
    pattern = r"(?:(\w|.)+)+[!?]"
    edit_config(tmp_path / "1", **{field: pattern if field == "target_modules" else {pattern: 4}})
    with pytest.raises(InputError, match=r"1/adapter_config.json: the patterns .* take more than 0.2 s to match"):
        read_experts(tmp_path)
    edit_config(tmp_path / "1", **{field: "x" * 10**6 if field == "target_modules" else {"x" * 10**6: 4}})
    with pytest.raises(InputError, match=r"has a pattern of 1,000,000 characters, more than 10,000: shorten it"):
        read_experts(tmp_path)


MERGED = [
    "from_pretrained('/models/base')",
    "PeftModel.from_pretrained(model,",
    "merge_and_unload()",
    "save_pretrained(",
]
REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "DoRA": ({"use_dora": True}, ["use_dora", *MERGED]),
    "bias of LoRA": ({"lora_bias": True}, ["lora_bias", *MERGED]),
    "parameters": ({"target_parameters": ["w"]}, ["target_parameters", *MERGED]),
    "trainable tokens": ({"trainable_token_indices": [1]}, ["trainable_token_indices", *MERGED]),
    "IA3": ({"peft_type": "IA3"}, ["'IA3'", *MERGED]),
    "LoHa": ({"peft_type": "LOHA"}, ["'LOHA'", *MERGED]),
    "AdaLoRA": ({"peft_type": "ADALORA"}, ["'ADALORA'", *MERGED]),
    "PiSSA": ({"init_lora_weights": "pissa"}, ["'pissa'", "path_initial_model_for_weight_conversion"]),
    "OLoRA": ({"init_lora_weights": "olora"}, ["'olora'", "path_initial_model_for_weight_conversion"]),
    "LoftQ": ({"init_lora_weights": "loftq"}, ["'loftq'", "path_initial_model_for_weight_conversion"]),
}


@pytest.mark.parametrize("form", REFUSED)
def test_more_than_lora_is_refused_with_the_way_out(form: str, tiny_base: Path, tmp_path: Path) -> None:
    for index in range(2):
        make_adapter(tiny_base, tmp_path / str(index), seed=index)
    fields, words = REFUSED[form]
    edit_config(tmp_path / "1", base_model_name_or_path="/models/base", **fields)
    with pytest.raises(InputError) as caught:
        read_experts(tmp_path)
    assert [word for word in ["1/adapter_config.json", *words] if word not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


@pytest.fixture
def pair(tiny_base: Path, tmp_path: Path) -> Path:
    """A pool of two adapters, a and b."""
    for index, name in enumerate("ab"):
        make_adapter(tiny_base, tmp_path / "pool" / name, seed=index)
    return tmp_path / "pool"


def test_what_a_trainer_leaves_beside_an_adapter_is_never_opened(pair: Path, tiny_base: Path) -> None:
    rows = read_experts(pair).rows
    make_adapter(tiny_base, pair / "a" / "checkpoint-500", seed=7)
    (pair / "runs").mkdir()
    for folder in (pair / "a", pair / "a" / "checkpoint-500"):
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "trainer_state.json"):
            (folder / name).write_bytes(b"nothing that loads")
            (folder / name).chmod(0)
    pool = read_experts(pair)
    assert pool.names == ("a", "b")
    assert torch.equal(pool.rows, rows)


def test_the_default_adapter_lies_above_the_named_ones(tiny_base: Path, tmp_path: Path) -> None:
    """As PEFT saves a model that has several."""
    lora = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    model = get_peft_model(LlamaForCausalLM.from_pretrained(tiny_base), LoraConfig(**lora))
    model.add_adapter("law", LoraConfig(**lora))
    model.save_pretrained(tmp_path / "model")
    make_adapter(tiny_base, tmp_path / "model" / "checkpoint-9", seed=7)
    pool = read_experts(tmp_path / "model")
    assert pool.names == ("default", "law")
    assert pool.sources == (str(tmp_path / "model"), str(tmp_path / "model" / "law"))


def test_a_folder_of_checkpoints_names_the_newest(pair: Path) -> None:
    for number in (500, 90, 1000):
        shutil.copytree(pair / "b", pair / "c" / f"checkpoint-{number}")
    newest = pair / "c" / "checkpoint-1000"
    for source in (pair, [pair / "a", pair / "c"]):
        with pytest.raises(InputError, match=f"^{pair}/c .*: give one of its checkpoints, .* {newest}"):
            read_experts(source)
    assert read_experts([pair / "a", newest]).names == ("a", "checkpoint-1000")
    assert len(read_experts(pair / "c").names) == 3


def test_a_folder_of_named_adapters_is_not_left_out(pair: Path) -> None:
    shutil.copytree(pair / "b", pair / "c" / "law")
    with pytest.raises(InputError, match=f"^{pair}/c is no expert itself: .*such as {pair}/c/law"):
        read_experts(pair)


def test_a_cached_snapshot_of_links_is_read(pair: Path, tmp_path: Path) -> None:
    rows = read_experts(pair).rows
    blobs, snapshots = tmp_path / "hub" / "blobs", []
    blobs.mkdir(parents=True)
    for name in "ab":
        snapshots.append(tmp_path / "hub" / f"models--owner--{name}" / "snapshots" / "0a1b")
        snapshots[-1].mkdir(parents=True)
        for number, file in enumerate(sorted((pair / name).iterdir())):
            file.rename(blobs / f"{name}{number}")
            (snapshots[-1] / file.name).symlink_to(Path("../../../blobs") / f"{name}{number}")
    pool = read_experts([f"{snapshots[0]}/", snapshots[1]])
    assert pool.names == ("a", "b")
    assert torch.equal(pool.rows, rows)


def test_hub_ids_have_revisions_and_folders(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no pickles or code are asked for."""
    shutil.copytree(pair / "b", pair / "a" / "law" / "v2")
    asked: dict[str, dict[str, Any]] = {}

    def snapshot(repo: str, **options: Any) -> str:
        asked[f"{repo} {options.get('revision')}"] = options
        return str(pair / repo[-1])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    sources = ["o/expert-a", "o/expert-b@refs/pr/1", "o/expert-a:law/v2"]
    experts = read_experts(sources[:2])
    assert experts.names == ("expert-a", "1")
    assert experts.sources == tuple(sources[:2])
    experts = read_experts(["o/expert-a@v1.0", "o/expert-a@main:law/v2"])
    assert experts.names == ("expert-a@v1.0", "v2")
    assert list(asked) == ["o/expert-a None", "o/expert-b refs/pr/1", "o/expert-a v1.0", "o/expert-a main"]
    assert "law/v2/*.safetensors" in asked["o/expert-a main"]["allow_patterns"]
    patterns = [pattern for options in asked.values() for pattern in options["allow_patterns"]]
    assert not any(end in pattern for pattern in patterns for end in (".bin", ".py", ".pt"))
    with pytest.raises(InputError, match="o/expert-a:law/v3: the repository has no folder law/v3"):
        read_experts(["o/expert-b", "o/expert-a:law/v3"])
    for wrong in ("o/expert-a:../b", "o/expert-a:/etc", "o/expert-a/law/v2"):
        with pytest.raises(InputError, match=f"{wrong} does not exist: give a folder or a hub id"):
            read_experts(["o/expert-b", wrong])


@pytest.mark.parametrize("name", ["b", "it's $HOME"])
def test_the_command_that_converts_a_pickle_does_it(pair: Path, name: str) -> None:
    folder = (pair / "b").rename(pair / name)
    rows = read_experts(pair).rows
    file = folder / "adapter_model.safetensors"
    torch.save(load_file(file), folder / "adapter_model.bin")
    file.unlink()
    with pytest.raises(InputError, match=r"adapter_model.bin is a pickle.*weights_only=True") as caught:
        read_experts(pair)
    command = str(caught.value).partition(": python ")[2]
    subprocess.run(f"{shlex.quote(sys.executable)} {command}", shell=True, check=True)
    assert torch.equal(read_experts(pair).rows, rows)


def test_the_page_names_tests_that_exist() -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs" / "reference" / "adapters.md").read_text()
    tests = "".join(
        (root / "tests" / "weights" / f"test_{name}.py").read_text() for name in ("adapter_forms", "experts")
    )
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) > 15
    assert {name for name in named if f"def {name}(" not in tests} == set()
