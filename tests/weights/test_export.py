"""Exported folders load elsewhere with the same result, come back bit by bit, and are never half-written."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers_models
import pytest
import torch
from helpers_models import edit_config, edit_tensors, make_adapter, make_base
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from modelswarms_fast.errors import InputError
from modelswarms_fast.weights.experts import Experts, export, read_experts, read_model

tiny_base = helpers_models.tiny_base

Q_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
TOKENS = torch.arange(12).reshape(2, 6)


@pytest.fixture(scope="module")
def experts(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Experts:
    folder = tmp_path_factory.mktemp("experts")
    for seed, name in enumerate("abc"):
        make_adapter(tiny_base, folder / name, seed=seed, rank_pattern={"v_proj": 2}, use_rslora=True)
        # Not sorted: the first pattern that matches counts, in the exported config too.
        edit_config(folder / name, alpha_pattern={"q_proj": 16, ".*proj": 4}, inference_mode=False)
    return read_experts(folder)


@pytest.fixture(scope="module")
def row(experts: Experts) -> torch.Tensor:
    """A mixture of the experts."""
    return torch.tensor([0.5, 0.75, -0.25]) @ experts.rows


def _write(folder: Path, row: torch.Tensor, experts: Experts, base: Path, **provenance: Any) -> Path:
    export(folder, row, experts, base=base, provenance=provenance)
    return folder


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_peft_loads_the_folder_with_the_same_logits(
    experts: Experts, row: torch.Tensor, tiny_base: Path, tmp_path: Path
) -> None:
    folder = _write(tmp_path / "best", row, experts, tiny_base)
    loaded = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tiny_base), folder)
    by_hand = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tiny_base), experts.sources[0])
    parameters = dict(by_hand.named_parameters())
    with torch.no_grad():
        before = by_hand(TOKENS).logits
        for name, view in experts.layout.views(row).items():
            parameters[name.replace(".weight", ".default.weight")].copy_(view)
        logits = by_hand(TOKENS).logits
        assert torch.equal(loaded(TOKENS).logits, logits)
    assert not torch.allclose(before, logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_comes_back_bit_by_bit(experts: Experts, tiny_base: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    cast = read_experts(experts.sources, dtype=dtype)
    row = (cast.rows[0].double() * 0.3 + cast.rows[1].double() * 0.7).to(dtype)
    first = _write(tmp_path / "first", row, cast, tiny_base, settings={"particles": 3})
    back = read_model(first, cast)
    assert back.dtype == dtype
    assert torch.equal(back, row)
    second = _write(tmp_path / "second", row, cast, tiny_base, settings={"particles": 3})
    assert _content(first) == _content(second)
    with safe_open(first / "adapter_model.safetensors", "pt") as handle:
        assert handle.metadata() == {"format": "pt"}


def test_the_config_is_that_of_the_experts_for_inference(
    experts: Experts, row: torch.Tensor, tiny_base: Path, tmp_path: Path
) -> None:
    folder = _write(tmp_path / "best", row, experts, tiny_base)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config == experts.config | {"inference_mode": True}
    assert list(config["alpha_pattern"]) == ["q_proj", ".*proj"]
    assert read_experts([folder, experts.sources[1]]).names == ("best", "b")
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o666 & ~_umask()}


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_full_checkpoints_are_exported_with_config_and_tokenizer(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        make_base(tmp_path / "experts" / name, seed=seed, dtype=torch.bfloat16)
    base = make_base(tmp_path / "base", seed=9)
    (base / "tokenizer.json").write_text("{}")
    (base / "chat_template.jinja").write_text("{{ messages }}")
    (base / "modeling.py").write_text("raise SystemExit")
    experts = read_experts(tmp_path / "experts", dtype=torch.float32)
    row = experts.rows.mean(0)
    folder = _write(tmp_path / "best", row, experts, base)
    assert torch.equal(read_model(folder, experts), row)
    assert sorted(_content(folder)) == [
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json",
    ]  # fmt: skip
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.dtype == torch.float32
    by_hand = LlamaForCausalLM.from_pretrained(base)
    by_hand.load_state_dict(experts.layout.views(row), strict=False)
    with torch.no_grad():
        assert torch.equal(loaded(TOKENS).logits, by_hand(TOKENS).logits)


def test_the_readme_says_where_the_model_comes_from(
    experts: Experts, row: torch.Tensor, tiny_base: Path, tmp_path: Path
) -> None:
    provenance = {
        "task": "exact_match",
        "dataset": "a|b",
        "dev": 0.625,
        "mixture": {"a": 0.5, "b": 0.75, "c": -0.25},
        "settings": {"particles": 3, "inertia": 0.2},
    }
    text = (_write(tmp_path / "best", row, experts, tiny_base, **provenance) / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert f'base_model: "{tiny_base.name}"' in front
    assert "library_name: peft" in front
    assert [line for line in body.splitlines() if line.startswith(("|", "##"))] == [
        "## Experts",
        "| expert | source | coefficient |",
        "| --- | --- | --- |",
        "| a | a | 0.5 |",
        "| b | b | 0.75 |",
        "| c | c | -0.25 |",
        "## Utility",
        "| name | value |",
        "| --- | --- |",
        "| task | exact_match |",
        "| dataset | a\\|b |",
        "| dev | 0.625 |",
        "## Settings",
        "| name | value |",
        "| --- | --- |",
        "| particles | 3 |",
        "| inertia | 0.2 |",
    ]


def test_an_existing_export_is_replaced(experts: Experts, row: torch.Tensor, tiny_base: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    folder = _write(runs / "best", experts.rows[0], experts, tiny_base)
    (runs / "link").symlink_to(folder)
    _write(runs / "link", row, experts, tiny_base)
    assert torch.equal(read_model(folder, experts), row)
    assert sorted(path.name for path in runs.iterdir()) == ["best", "link"]
    assert "half" not in _content(folder)


def _fail_save(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def save(tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str]) -> None:
        file.write_bytes(b"half")
        raise error

    monkeypatch.setattr("modelswarms_fast.weights.export.save_file", save)


def _fail_call(monkeypatch: pytest.MonkeyPatch, name: str, call: int) -> None:
    real, calls = getattr(os, name), []

    def fail(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    monkeypatch.setattr(f"modelswarms_fast.weights.export.os.{name}", fail)


FULL = "No space left on device"
FAILURES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "weights": lambda patch: _fail_save(patch, SafetensorError(f"I/O error: {FULL} (os error 28)")),
    "weights, raised by the system": lambda patch: _fail_save(patch, OSError(errno.ENOSPC, FULL)),
    "sync": lambda patch: _fail_call(patch, "fsync", 2),
    "first rename": lambda patch: _fail_call(patch, "rename", 1),
    "second rename": lambda patch: _fail_call(patch, "rename", 2),
}


@pytest.mark.parametrize(
    ("existing", "failure"),
    [(True, name) for name in FAILURES] + [(False, name) for name in FAILURES if name != "second rename"],
)
def test_a_full_disk_changes_nothing(
    experts: Experts, row: torch.Tensor, tiny_base: Path, tmp_path: Path, existing: bool, failure: str
) -> None:
    folder = tmp_path / "best"
    before = _content(_write(folder, experts.rows[0], experts, tiny_base)) if existing else None
    with pytest.MonkeyPatch.context() as patch:
        FAILURES[failure](patch)
        with pytest.raises(InputError, match=r"No space left on device.* needs \d+ bytes") as caught:
            _write(folder, row, experts, tiny_base)
    assert str(folder) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == (["best"] if existing else [])
    if before is not None:
        assert _content(folder) == before
    _write(folder, row, experts, tiny_base)
    assert torch.equal(read_model(folder, experts), row)


def test_what_cannot_be_written_is_said(experts: Experts, row: torch.Tensor, tiny_base: Path, tmp_path: Path) -> None:
    bad = row.clone()
    experts.layout.views(bad)[Q_A][0, 0] = torch.inf
    (tmp_path / "file").write_text("mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    for target, values, base, words in [
        ("best", bad, tiny_base, f"best is not written: tensor {Q_A} holds NaN or infinity"),
        ("best", row, tmp_path / "nowhere", "nowhere is not a folder"),
        ("file", row, tiny_base, "file is a file"),
        ("file/best", row, tiny_base, "file/best could not be written"),
        ("mine", row, tiny_base, "mine holds thesis.tex"),
    ]:
        with pytest.raises(InputError) as caught:
            _write(tmp_path / target, values, experts, base)
        assert words in str(caught.value)
    with pytest.raises(ValueError, match="elements"):
        _write(tmp_path / "best", row[1:], experts, tiny_base)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "mine", "thesis.tex"]
    assert (tmp_path / "file").read_text() == (tmp_path / "mine" / "thesis.tex").read_text() == "mine"


def test_a_model_is_checked_against_the_experts(
    experts: Experts, row: torch.Tensor, tiny_base: Path, tmp_path: Path
) -> None:
    key = Q_A.replace(".", "__")
    nan = torch.full((4, 32), torch.nan)
    for case, (damage, words) in {
        "values": (lambda folder: edit_tensors(folder, **{key: nan}), ["model.safetensors", Q_A, "NaN"]),
        "rank": (
            lambda folder: (
                edit_config(folder, r=8, rank_pattern={}),
                edit_tensors(
                    folder,
                    **{
                        spec.name.replace(".", "__"): torch.zeros(
                            [8 if size == min(spec.shape) else size for size in spec.shape]
                        )
                        for spec in experts.layout.specs
                    },
                ),
            ),
            ["model.safetensors", "has shape [8, ", "and the other experts"],
        ),
        "module": (
            lambda folder: edit_tensors(
                folder,
                **{
                    key.replace("__0__", "__7__"): nan,
                    key.replace("__0__", "__7__").replace("_A", "_B"): nan.T.contiguous(),
                },
            ),
            ["model.safetensors", "layers.7.self_attn.q_proj.lora_A.weight is not in"],
        ),
        "weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), ["is missing"]),
        "gone": (lambda folder: shutil.rmtree(folder), ["is not a folder"]),
    }.items():
        folder = _write(tmp_path / case, row, experts, tiny_base)
        damage(folder)
        with pytest.raises(InputError) as caught:
            read_model(folder, experts)
        assert [word for word in [str(folder), *words] if word not in str(caught.value)] == []
    with pytest.raises(InputError, match=r"of a full checkpoint, .*a/adapter_config.json of a LoRA adapter"):
        read_model(tiny_base, experts)


def test_a_model_of_another_scaling_and_name_is_read_as_it_means(
    experts: Experts, row: torch.Tensor, tiny_base: Path, tmp_path: Path
) -> None:
    folder = _write(tmp_path / "best", row, experts, tiny_base)
    edit_config(folder, alpha_pattern={"q_proj": 32, ".*proj": 4}, base_model_name_or_path="x/y")
    found, wanted = (experts.layout.views(one) for one in (read_model(folder, experts), row))
    for name, view in found.items():
        assert torch.equal(view, wanted[name] * (2 if "q_proj.lora_B" in name else 1)), name
