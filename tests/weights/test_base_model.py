"""The base model: a folder or a hub id, and the sentences for what cannot be used."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modelswarms_fast.errors import InputError
from modelswarms_fast.weights.base_model import resolve_base


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


@pytest.mark.parametrize(
    ("file", "field", "value", "sentence"),
    [
        ("config.json", "num_hidden_layers", 10**30, r"num_hidden_layers is 10+, more than 256"),
        ("config.json", "n_layer", 300.5, r"n_layer is 300.5, more than 256"),
        ("config.json", "text_config", {"num_layers": 1e300}, r"num_layers is 1e\+300, more than 256"),
        ("config.json", "num_labels", 10**12, r"num_labels is 10+, more than 1,000,000"),
        ("tokenizer_config.json", "model_max_length", "long", r"model_max_length is 'long'; make it a number"),
    ],
)
def test_numbers_that_would_be_counted_up_to_are_refused(
    tmp_path: Path, file: str, field: str, value: object, sentence: str
) -> None:
    folder = checkpoint(tmp_path / "base")
    (folder / file).write_text(json.dumps({field: value}))
    with pytest.raises(InputError, match=rf"{file}: {sentence}"):
        resolve_base(str(folder))


def test_pipes_and_devices_in_a_base_model_are_not_read(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "base")
    os.mkfifo(folder / "more.safetensors")
    with pytest.raises(InputError, match=r"more.safetensors is not a complete safetensors file .*not a regular file"):
        resolve_base(str(folder))
    (folder / "more.safetensors").unlink()
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(InputError, match=r"has no config.json"):
        resolve_base(str(folder))
