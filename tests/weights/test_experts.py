"""Reading experts: what is read is what the files say, and what is wrong is named with file and tensor."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers_models
import huggingface_hub
import pytest
import torch
from helpers_models import edit_config, edit_tensors, make_adapter, make_base
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from modelswarms_fast.errors import InputError
from modelswarms_fast.weights import arena
from modelswarms_fast.weights import experts as experts_module
from modelswarms_fast.weights.experts import LoraModule, read_experts

tiny_base = helpers_models.tiny_base

PREFIX = "base_model.model.model.layers.0."
Q_A, Q_B = (f"{PREFIX}self_attn.q_proj.lora_{half}.weight" for half in "AB")
KEY = Q_A.replace(".", "__")  # Q_A as a keyword of edit_tensors


@pytest.fixture(scope="session")
def originals(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters, a and b; tests change copies."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate("ab"):
        make_adapter(tiny_base, folder / name, seed=seed)
    return folder


@pytest.fixture(scope="session")
def full_originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two full checkpoints, a in one file, b in shards."""
    folder = tmp_path_factory.mktemp("full")
    make_base(folder / "a", seed=1)
    make_base(folder / "b", seed=2, max_shard_size="20KB")
    return folder


@pytest.fixture
def adapters(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals, tmp_path / "experts"))


@pytest.fixture
def fulls(full_originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(full_originals, tmp_path / "experts"))


def test_rows_hold_what_the_files_say(originals: Path) -> None:
    experts = read_experts(originals)
    assert (experts.kind, experts.names) == ("lora", ("a", "b"))
    assert experts.sources == (str(originals / "a"), str(originals / "b"))
    assert experts.rows.shape == (2, experts.layout.size)
    assert experts.rows.stride() == (arena.row_stride(experts.layout.size, experts.layout.dtype), 1)
    assert experts.rows.dtype == torch.float32
    for name, row in zip(experts.names, experts.rows, strict=True):
        content = load_file(originals / name / "adapter_model.safetensors")
        views = experts.layout.views(row)
        assert list(views) == sorted(content)
        assert all(torch.equal(views[key], tensor) for key, tensor in content.items())
        assert row.count_nonzero() == sum(int(tensor.count_nonzero()) for tensor in content.values())
    assert experts.config["base_model_name_or_path"].endswith("tiny-llama")
    assert len(experts.modules) == 14
    assert LoraModule("model.layers.0.self_attn.q_proj", Q_A, Q_B, 4, 2.0, (4, 4)) in experts.modules
    assert [module.name for module in experts.modules] == sorted(module.name for module in experts.modules)


@pytest.mark.parametrize(
    "lora",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2, "layers.1.self_attn.v_proj": 3}, "alpha_pattern": {"v_proj": 5}},
        {
            "rank_pattern": {"proj": 2, r"model\.layers\.0.*": 8},
            "alpha_pattern": {"up|down_proj": 3, ".*proj": 7},
        },
        {"rank_pattern": {"q_proj": 2}, "use_rslora": True, "target_modules": r".*\.(q|k)_proj"},
    ],
    ids=["rslora", "suffixes", "expressions", "both"],
)
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match")
def test_scaling_and_rank_are_those_of_peft(tiny_base: Path, tmp_path: Path, lora: dict[str, Any]) -> None:
    for seed, name in enumerate("ab"):
        make_adapter(tiny_base, tmp_path / name, seed=seed, **lora)
    experts = read_experts(tmp_path)
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tiny_base), tmp_path / "a")
    adapted = {
        name.removeprefix("base_model.model."): (layer.r["default"], layer.scaling["default"])
        for name, layer in model.named_modules()
        if hasattr(layer, "lora_A")
    }
    assert {module.name: (module.rank, module.scaling) for module in experts.modules} == adapted


def test_a_list_keeps_its_order_and_same_names_get_their_parents(originals: Path, tmp_path: Path) -> None:
    shutil.copytree(originals / "b", tmp_path / "other" / "a")
    experts = read_experts([originals / "b", tmp_path / "other" / "a", str(originals / "a")])
    assert experts.names == ("b", "other/a", f"{originals.name}/a")
    assert torch.equal(experts.rows[0], experts.rows[1])
    assert not torch.equal(experts.rows[0], experts.rows[2])


def test_other_subfolders_are_left_out(adapters: Path) -> None:
    (adapters / "logs").mkdir()
    shutil.copytree(adapters / "b", adapters / ".b.new-7")
    assert read_experts(adapters).names == ("a", "b")


def test_local_copies_of_one_base_are_one_base(adapters: Path) -> None:
    shutil.copytree(adapters / "a", adapters / "c")
    edit_config(adapters / "a", base_model_name_or_path="owner/Tiny-Llama", revision="main")
    edit_config(adapters / "b", base_model_name_or_path="/models/tiny-llama/")
    edit_config(adapters / "c", base_model_name_or_path="/hub/models--owner--tiny-llama/snapshots/0a1b")
    experts = read_experts(adapters)
    assert experts.config["base_model_name_or_path"] == "owner/Tiny-Llama"
    assert experts.notes == ()


@pytest.mark.parametrize(
    ("other", "shown"),
    [
        ({"base_model_name_or_path": "unsloth/llama-3-8b-bnb-4bit"}, "unsloth/llama-3-8b-bnb-4bit (b)"),
        ({"base_model_name_or_path": "meta/llama-3-8b", "revision": "v2"}, "meta/llama-3-8b@v2 (b)"),
        ({"base_model_name_or_path": ""}, "none (b)"),
        ({"base_model_name_or_path": None}, "none (b)"),
        ({"base_model_name_or_path": ...}, "none (b)"),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_other_names_of_the_base_are_a_note(
    adapters: Path, originals: Path, other: dict[str, Any], shown: str, turned: bool
) -> None:
    edit_config(adapters / "a", base_model_name_or_path="meta/llama-3-8b")
    edit_config(adapters / "b", **other)
    experts = read_experts([adapters / name for name in ("ba" if turned else "ab")])
    (note,) = experts.notes
    assert shown in note
    assert "meta/llama-3-8b (a)" in note
    if not other.get("base_model_name_or_path"):
        assert experts.config["base_model_name_or_path"] == "meta/llama-3-8b"
    rows = read_experts([originals / name for name in experts.names]).rows
    assert torch.equal(experts.rows, rows)


F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


@pytest.mark.parametrize(
    ("first", "second", "wanted"), [(F32, F16, F32), (BF16, F32, F32), (F16, BF16, F32), (F16, F16, F16)]
)
def test_dtypes_are_cast_to_the_widest_or_to_what_is_asked_for(
    adapters: Path, originals: Path, first: torch.dtype, second: torch.dtype, wanted: torch.dtype
) -> None:
    for name, dtype in zip("ab", (first, second), strict=True):
        file = adapters / name / "adapter_model.safetensors"
        save_file({key: tensor.to(dtype) for key, tensor in load_file(file).items()}, file)
    experts = read_experts(adapters)
    assert experts.rows.dtype == experts.layout.dtype == wanted
    for name, dtype, row in zip("ab", (first, second), experts.rows, strict=True):
        value = load_file(originals / name / "adapter_model.safetensors")[Q_A].to(dtype).to(wanted)
        assert torch.equal(experts.layout.views(row)[Q_A], value)
    if first == second:
        assert experts.notes == ()
    else:
        assert "several dtypes" in experts.notes[0]
        assert f"cast to {str(wanted)[6:]}" in experts.notes[0]
    assert read_experts(adapters, dtype=BF16).rows.dtype == BF16
    assert read_experts(adapters, dtype=BF16).notes == ()


def test_dtypes_may_differ_within_a_file(adapters: Path) -> None:
    edit_tensors(adapters / "b", **{KEY: torch.full((4, 32), 0.3).half()})
    experts = read_experts(adapters)
    assert experts.rows.dtype == F32
    assert torch.equal(experts.layout.views(experts.rows[1])[Q_A], torch.full((4, 32), 0.3).half().float())
    assert "F16 in " in experts.notes[0]
    with pytest.raises(InputError, match="int8"):
        read_experts(adapters, dtype=torch.int8)


def test_a_cast_that_overflows_is_named(adapters: Path) -> None:
    edit_tensors(adapters / "b", **{KEY: torch.full((4, 32), 1e6)})
    assert read_experts(adapters).rows.max() == 1e6
    with pytest.raises(InputError, match=f"b/adapter_model.safetensors: tensor {Q_A} .*float16"):
        read_experts(adapters, dtype=torch.float16)


def test_double_precision_needs_a_dtype(adapters: Path) -> None:
    for name in "ab":
        file = adapters / name / "adapter_model.safetensors"
        save_file({key: tensor.double() for key, tensor in load_file(file).items()}, file)
    with pytest.raises(InputError, match=r"a/adapter_model.safetensors: tensor .* is F64: set row_dtype"):
        read_experts(adapters)
    assert read_experts(adapters, dtype=torch.float32).rows.dtype == torch.float32


def test_too_many_rows_for_the_memory(originals: Path) -> None:
    with pytest.raises(InputError, match=r"^\d+ rows of \d+ bytes, \d+ bytes in all, do not fit into memory: give"):
        read_experts(originals, place=lambda count, *shape: arena.empty_rows(count << 40, *shape))


def test_padding_is_zero_whatever_the_memory_held(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate("ab"):
        make_adapter(tiny_base, tmp_path / name, seed=seed, r=1)  # 48 numbers, which do not fill 64 bytes
    monkeypatch.setattr(experts_module, "empty_rows", lambda *a: arena.empty_rows(*a).fill_(float("nan")))
    experts = read_experts(tmp_path, dtype=torch.bfloat16)
    assert sum(math.prod(spec.shape) for spec in experts.layout.specs) < experts.layout.size
    assert not experts.rows.isnan().any()


def test_room_holds_the_experts_and_as_much_more_as_asked_for(originals: Path) -> None:
    plain = read_experts(originals)
    assert plain.room.shape == plain.rows.shape
    assert plain.room.data_ptr() == plain.rows.data_ptr()
    asked: list[int] = []
    experts = read_experts(originals, place=lambda n, *shape: asked.append(n) or arena.empty_rows(8, *shape))
    assert asked == [2]
    assert experts.room.shape == (8, experts.layout.size)
    assert experts.rows.shape == (2, experts.layout.size)
    assert experts.rows.data_ptr() == experts.room.data_ptr()
    assert all(row.data_ptr() % 64 == 0 for row in experts.room)
    assert torch.equal(experts.rows, plain.rows)


def test_full_checkpoints_in_one_file_and_in_shards(full_originals: Path) -> None:
    experts = read_experts(full_originals)
    assert (experts.kind, experts.modules) == ("full", ())
    assert len(list((full_originals / "b").glob("*.safetensors"))) > 1
    for name, row in zip(experts.names, experts.rows, strict=True):
        state = LlamaForCausalLM.from_pretrained(full_originals / name).state_dict()
        views = experts.layout.views(row)
        assert set(state) - set(views) == {"lm_head.weight"}
        assert all(torch.equal(view, state[key]) for key, view in views.items())


def test_a_hub_that_does_not_answer_is_one_sentence(originals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot(*args: Any, **options: Any) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(InputError, match=r"owner/none .*\(ConnectionError: no route\).*download it first") as caught:
        read_experts([originals / "a", "owner/none"])
    assert "\n" not in str(caught.value)


def _weights(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        file.write_bytes(change(file.read_bytes()))

    return damage


def _as_folder(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.safetensors").mkdir()


def _as_pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def _text(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "adapter_config.json").write_text(text) and None


def _config(**fields: Any) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, **fields)


def _tensors(**tensors: Any) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder, **tensors)


def _only_full(folder: Path) -> None:
    shutil.rmtree(folder)
    make_base(folder)


NAN = torch.zeros(4, 32).index_put((torch.tensor(3), torch.tensor(31)), torch.tensor(float("nan")))
WEIGHTS, CONFIG = "b/adapter_model.safetensors", "b/adapter_config.json"
DAMAGED: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "missing weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), [WEIGHTS, "missing"]),
    "missing config": (lambda folder: (folder / "adapter_config.json").unlink(), ["b holds weights but no"]),
    "truncated": (_weights(lambda content: content[:-100]), [WEIGHTS, "not a complete safetensors"]),
    "truncated header": (_weights(lambda content: content[:50]), [WEIGHTS, "not a complete safetensors"]),
    "empty": (_weights(lambda content: b""), [WEIGHTS, "not a complete safetensors"]),
    "wrong magic": (_weights(lambda content: b"PK\3\4" + content), [WEIGHTS, "not a complete safetensors"]),
    "no tensors": (_weights(lambda content: b"\2\0\0\0\0\0\0\0{}"), [WEIGHTS, "no tensors"]),
    "folder for a file": (_as_folder, [WEIGHTS, "not a file"]),
    "pickle": (_as_pickle, ["b/adapter_model.bin", "pickle", "convert", "weights_only=True"]),
    "config is no JSON": (_text("{'r': 4}"), [CONFIG, "JSON"]),
    "config is no object": (_text("[1]"), [CONFIG, "not a JSON object"]),
    "config without end": (_text('{"a":' * 100_000), [CONFIG, "JSON"]),
    "NaN": (_tensors(**{KEY: NAN}), [WEIGHTS, Q_A, "NaN"]),
    "infinity": (_tensors(**{KEY: -NAN.nan_to_num(float("inf"))}), [WEIGHTS, Q_A, "infinity"]),
    "integers": (_tensors(**{KEY: torch.zeros(4, 32, dtype=torch.int8)}), [WEIGHTS, Q_A, "I8"]),
    "no values": (_tensors(**{KEY: torch.zeros(0, 32)}), [WEIGHTS, Q_A, "empty"]),
    "shape": (_tensors(**{KEY: torch.zeros(4, 16)}), [WEIGHTS, Q_A, "[4, 16]", "[4, 32]"]),
    "rank": (_tensors(**{KEY: torch.zeros(3, 32)}), [WEIGHTS, Q_A, "[3, 32]", "rank 4"]),
    "three dimensions": (_tensors(**{KEY: torch.zeros(4, 32, 1)}), [WEIGHTS, Q_A, "[4, 32, 1]", "rank 4"]),
    "A without B": (_tensors(**{KEY: ...}), [WEIGHTS, Q_B, "other half"]),
    "other tensor": (_tensors(lm_head__weight=torch.zeros(4, 4)), [WEIGHTS, "lm_head.weight", "name the base model"]),
    "embedding": (
        _tensors(base_model__model__model__embed_tokens__lora_embedding_A=torch.zeros(4, 4)),
        [WEIGHTS, "embed_tokens.lora_embedding_A", "merge_and_unload"],
    ),
    "r": (_config(r="4"), [CONFIG, "r is '4'"]),
    "r is 0": (_config(r=0), [CONFIG, "r is 0"]),
    "alpha is NaN": (_config(lora_alpha=float("nan")), [CONFIG, "lora_alpha is nan"]),
    "alpha is no float": (_config(lora_alpha=10**400), [CONFIG, "lora_alpha is 1000", "not a finite number"]),
    "alpha is absent": (_config(lora_alpha=...), [CONFIG, "lora_alpha is None"]),
    "pattern": (_config(rank_pattern={"(": 4}), [CONFIG, "rank_pattern '('", "regular expression"]),
    "pattern with flags": (_config(rank_pattern={"(?i)Q": 4}), [CONFIG, "rank_pattern '(?i)Q'", "regular expression"]),
    "pattern too large": (_config(alpha_pattern={"q{99999999999}": 8}), [CONFIG, "alpha_pattern 'q{", "too large"]),
    "pattern value": (_config(rank_pattern={"q_proj": 1.5}), [CONFIG, "rank_pattern['q_proj'] is 1.5"]),
    "patterns": (_config(alpha_pattern=[8]), [CONFIG, "alpha_pattern"]),
    "target modules": (_config(target_modules=["k_proj"]), [WEIGHTS, "down_proj.lora_A", "target_modules"]),
    "target expression": (_config(target_modules="("), [CONFIG, "target_modules '('"]),
    "type": (_config(peft_type="LOHA"), [CONFIG, "peft_type 'LOHA'"]),
    "PiSSA": (_config(init_lora_weights="pissa_niter_4"), [CONFIG, "init_lora_weights 'pissa_niter_4'"]),
    "mixed kinds": (_only_full, ["b/config.json", "a/adapter_config.json", "one kind"]),
} | {
    field: (_config(**{field: value}), [CONFIG, f"{field} is not supported"])
    for field, value in {
        "use_dora": True, "lora_bias": True, "use_qalora": True, "use_bdlora": {"k": 1},
        "target_parameters": ["w"], "trainable_token_indices": [1],
        "layer_replication": [[0, 2]], "alora_invocation_tokens": [5], "arrow_config": {"top_k": 1},
        "kasa_config": {"beta": 1.0}, "monteclora_config": {"k": 1}, "velora_config": {"k": 1},
        "megatron_config": {"k": 1},
    }.items()
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_adapter_is_named(adapters: Path, case: str) -> None:
    damage, words = DAMAGED[case]
    damage(adapters / "b")
    with pytest.raises(InputError) as caught:
        read_experts(adapters)
    message = str(caught.value)
    assert [word for word in words if word not in message] == []
    assert "\n" not in message
    assert ": " in message


def _index(change: Callable[[dict[str, str]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / "model.safetensors.index.json"
        content = json.loads(file.read_text())
        change(content["weight_map"])
        file.write_text(json.dumps(content))

    return damage


def _one_shard_fewer(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[0].unlink()


def _twice(folder: Path) -> None:
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    save_file(load_file(first) | load_file(second), second, {"format": "pt"})


NORM = "model.norm.weight"
INDEX = "b/model.safetensors.index.json"
DAMAGED_FULL: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "parent folder": (_index(lambda m: m.update({NORM: "../a/model.safetensors"})), [INDEX, NORM, "trust"]),
    "absolute path": (_index(lambda m: m.update({NORM: "/tmp/model.safetensors"})), [INDEX, NORM, "trust"]),
    "windows path": (_index(lambda m: m.update({NORM: "c:\\model.safetensors"})), [INDEX, NORM, "trust"]),
    "pickle in the index": (_index(lambda m: m.update({NORM: "model.bin"})), [INDEX, NORM, "model.bin"]),
    "no name": (_index(lambda m: m.update({NORM: 3})), [INDEX, NORM]),
    "no map": (_index(lambda m: m.clear()), [INDEX, "weight_map"]),
    "absent shard": (_index(lambda m: m.update({NORM: "x.safetensors"})), ["b/x.safetensors", "missing"]),
    "listed, not there": (_index(lambda m: m.update({"extra": m[NORM]})), ["b/model-0", "tensor extra"]),
    "there, not listed": (_index(lambda m: m.pop(NORM)), ["b/model-0", f"tensor {NORM}"]),
    "lost shard": (_one_shard_fewer, ["b/model-00001-of", "missing"]),
    "tensor in two shards": (_twice, ["b/model-00002-of", "is also in", "model-00001-of"]),
    "no config": (lambda folder: (folder / "config.json").unlink(), ["experts/b", "config.json"]),
    "no model type": (_config(model_type=...), ["b/config.json", "model_type"]),
    "model type": (_config(model_type="mistral"), ["b/config.json", "'mistral'", "a/config.json"]),
    "heads": (_config(num_attention_heads=8), ["b/config.json", "num_attention_heads", "a/config.json"]),
    "quantised": (_config(quantization_config={"bits": 4}), ["b/config.json", "quantization_config"]),
}


@pytest.mark.parametrize("case", DAMAGED_FULL)
def test_a_damaged_checkpoint_is_named(fulls: Path, case: str) -> None:
    damage, words = DAMAGED_FULL[case]
    damage(fulls / "b")
    with pytest.raises(InputError) as caught:
        read_experts(fulls)
    assert [word for word in words if word not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


def test_a_pickled_checkpoint_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        folder = make_base(tmp_path / name)
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"a/pytorch_model.bin is a pickle.*convert it to model.safetensors"):
        read_experts(tmp_path)


def test_a_pickle_without_config_is_not_left_out(adapters: Path) -> None:
    (adapters / "c").mkdir()
    (adapters / "c" / "pytorch_model.bin").touch()
    with pytest.raises(InputError, match=r"/c holds weights but no adapter_config\.json or config\.json: add it"):
        read_experts(adapters)


def test_a_list_of_experts_is_checked(originals: Path, tmp_path: Path) -> None:
    a, file = originals / "a", originals / "a" / "adapter_config.json"
    (tmp_path / "link").symlink_to(a)
    for source, words in [
        (tmp_path / "nowhere", ["nowhere does not exist"]),
        (file, ["adapter_config.json is a file"]),
        ([a, file], ["adapter_config.json is a file"]),
        (a, [str(a), "gives 1", "at least two sub-folders"]),
        ([], ["an empty list gives 0", "at least two"]),
        (tmp_path / ("x" * 300), ["xxx", "File name too long"]),
        ([a], [str(a), "gives 1", "at least two"]),
        ([a, a], [str(a), "one expert"]),
        ([a, tmp_path / "link"], [str(a), "link", "one expert"]),
        ([a, tmp_path], [str(tmp_path), "neither adapter_config.json nor config.json"]),
    ]:
        with pytest.raises(InputError) as caught:
            read_experts(source)
        assert [word for word in words if word not in str(caught.value)] == []
