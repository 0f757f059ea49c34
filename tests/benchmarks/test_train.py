"""The script that trains pools for the benchmarks."""

import json
import sys

import helpers_gguf
import pytest
import torch
from peft import LoraConfig, get_peft_model

from benchmarks.quality import train
from modelswarms_fast.runs.baselines import data_merge
from modelswarms_fast.weights.experts import read_experts
from modelswarms_fast.weights.gguf import convert_gguf

PAIRS = [("The cat sat", "on the mat."), ("banana", "bandana"), ("In 1984", "birds"), ("Is it so?\n", "yes")] * 4


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    place = tmp_path_factory.mktemp("base")
    pieces = helpers_gguf.sentencepiece_model()
    helpers_gguf.write_gguf(place / "model.gguf", helpers_gguf.gemma3(pieces.get_piece_size()), pieces)
    convert_gguf(place / "model.gguf", place)
    return place


def test_files_become_experts_of_one_pool(base, tmp_path, monkeypatch, capsys):
    for name in ("one", "two"):
        lines = [json.dumps({"prompt": prompt, "completion": f"{name} {text}"}) for prompt, text in PAIRS]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    files = [str(tmp_path / f"{name}.jsonl") for name in ("one", "two")]
    monkeypatch.setattr(
        sys, "argv", ["train", "--base", str(base), "--out", str(tmp_path / "out"), "--steps", "20", *files]
    )
    train.main()
    ends = [line.split("loss ")[1].split(" to ") for line in capsys.readouterr().out.splitlines() if " s, loss" in line]
    assert len(ends) == 2
    assert all(float(last) < float(first) for first, last in ends)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one", "two"]
    experts = read_experts(tmp_path / "out")
    assert experts.names == ("one", "two")
    assert experts.config["r"] == train.RANK


def test_the_loss_is_that_of_the_baseline_which_trains():
    helper = helpers_gguf.gemma3(380)
    model = get_peft_model(helper.float(), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    batch = [([2, 40, 41, 42, 50], [60, 61, 1]), ([2, 44], [70, 1]), ([2, 300, 301], [302])]
    torch.testing.assert_close(
        train.completion_loss(model, batch), data_merge._loss(model, batch, torch.device("cpu")), rtol=1e-5, atol=1e-5
    )
