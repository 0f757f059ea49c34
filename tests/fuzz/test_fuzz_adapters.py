"""Adapters with a config or weights that no trainer leaves: read, loaded and exported, or refused in one sentence."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from fuzzing import JSON, damaged_bytes, fuzz, run_case
from helpers_models import make_adapter, make_base
from helpers_search import write_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from modelswarms_fast.engines.transformers import TransformersEngine
from modelswarms_fast.weights import adapters
from modelswarms_fast.weights.experts import export, read_experts

FIELDS = sorted(LoraConfig.__dataclass_fields__)
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """A base with two adapters."""
    folder = tmp_path_factory.mktemp("pool")
    base = make_base(folder / "base")
    write_tokenizer(base)
    for number in range(2):
        make_adapter(base, folder / "experts" / str(number), seed=number, target_modules=["q_proj", "down_proj"])
    return folder


def fresh(pool: Path) -> Path:
    """The second adapter, as it was, in a folder of its own."""
    folder = pool / "case" / "odd"
    shutil.rmtree(folder.parent, ignore_errors=True)
    shutil.copytree(pool / "experts" / "1", folder)
    return folder


def read(pool: Path, odd: Path, *, serve: bool) -> None:
    """What a search does with experts before its first iteration, and with the winner after the last."""
    experts = read_experts([pool / "experts" / "0", odd], base=pool / "base")
    if serve:
        engine = TransformersEngine(pool / "base", experts)
        engine.load(0, experts.rows[1])
        export(odd.parent / "winner", experts.rows[1], experts, base=pool / "base", provenance={})


@fuzz(120)
@given(st.data())
def test_fuzz_configs_of_adapters(pool, data):
    odd = fresh(pool)
    config = json.loads((odd / CONFIG).read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        name = data.draw(
            st.sampled_from(FIELDS) | st.sampled_from(["r", "rank_pattern", "alpha_pattern", "target_modules"])
        )
        value = data.draw(JSON | st.just(...))
        config.pop(name, None)
        if value is not ...:
            config[name] = value
    (odd / CONFIG).write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapters, "SECONDS", 0.5)
        run_case("configs of adapters", lambda: read(pool, odd, serve=True))


@fuzz(100)
@given(st.data())
def test_fuzz_bytes_of_adapters(pool, data):
    odd = fresh(pool)
    name = data.draw(st.sampled_from([CONFIG, WEIGHTS]))
    (odd / name).write_bytes(data.draw(damaged_bytes((odd / name).read_bytes())))
    run_case("bytes of adapters", lambda: read(pool, odd, serve=False))


@fuzz(100)
@given(st.data())
def test_fuzz_headers_of_adapters(pool, data):
    odd = fresh(pool)
    content = (odd / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
    name = data.draw(st.sampled_from(sorted(header)))
    how = data.draw(st.sampled_from(["value", "field", "name"]))
    if how == "value":
        header[name] = data.draw(JSON)
    elif how == "field":
        field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"]))
        value = data.draw(JSON | st.sampled_from(["F8_E4M3", "I64", "BOOL", "F64", [0], [4, 0], [0, 2**62], []]))
        header[name] = dict(header[name]) | {field: value}
    else:
        header[data.draw(st.text(max_size=300))] = header.pop(name)
    text = json.dumps(header).encode()
    (odd / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + rest)
    run_case("headers of adapters", lambda: read(pool, odd, serve=False))


@fuzz(60)
@given(st.data())
def test_fuzz_tensors_of_adapters(pool, data):
    odd = fresh(pool)
    tensors = load_file(odd / WEIGHTS)
    name = data.draw(st.sampled_from(sorted(tensors)))
    how = data.draw(st.sampled_from(["dtype", "shape", "value", "name", "gone"]))
    tensor = tensors.pop(name)
    dtypes = [torch.float64, torch.int8, torch.bool, torch.float8_e4m3fn, torch.float16, torch.complex64]
    changes = {
        "dtype": lambda: tensor.to(data.draw(st.sampled_from(dtypes))),
        "shape": lambda: torch.zeros(data.draw(st.lists(st.integers(0, 40), max_size=3))),
        "value": lambda: torch.full_like(
            tensor, data.draw(st.sampled_from([float("nan"), float("inf"), 1e38, -1e-40]))
        ),
    }
    if how in changes:
        tensors[name] = changes[how]()
    elif how == "name":
        parts = st.sampled_from(
            ["base_model", "model", "lora_A", "lora_B", "weight", "0", "layers", "q_proj", "default"]
        )
        tensors[".".join(data.draw(st.lists(parts | st.text(max_size=8), max_size=9)))] = tensor
    save_file(tensors, odd / WEIGHTS)
    run_case("tensors of adapters", lambda: read(pool, odd, serve=False))


@fuzz(20)
@given(st.sampled_from([CONFIG, WEIGHTS]), st.sampled_from(["pipe", "folder", "device", "loop", "gone", "unreadable"]))
def test_fuzz_kinds_of_files_of_adapters(pool, name, kind):
    odd = fresh(pool)
    (odd / name).unlink()
    makers = {
        "pipe": lambda: os.mkfifo(odd / name),
        "folder": lambda: (odd / name).mkdir(),
        "device": lambda: (odd / name).symlink_to("/dev/zero"),
        "loop": lambda: (odd / name).symlink_to(name),
        "unreadable": lambda: (odd / name).symlink_to("/proc/self/mem"),
        "gone": lambda: None,
    }
    makers[kind]()
    run_case("kinds of files of adapters", lambda: read(pool, odd, serve=False))
