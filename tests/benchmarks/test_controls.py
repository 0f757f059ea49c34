"""The controls of the study: random experts keep shapes and norms and nothing else; dev becomes training data."""

import json

import torch
from safetensors.torch import load_file, save_file

from benchmarks.quality.controls import random_expert, training_file


def test_a_random_expert_has_the_norms_and_nothing_of_the_weights(tmp_path):
    source = tmp_path / "one"
    source.mkdir()
    (source / "adapter_config.json").write_text("{}")
    real = {"a": torch.randn(8, 64, dtype=torch.bfloat16), "b": torch.zeros(4, 8)}
    save_file(real, source / "adapter_model.safetensors")
    random_expert(source, tmp_path / "out")
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert found["a"].dtype == torch.bfloat16
    torch.testing.assert_close(found["a"].float().norm(), real["a"].float().norm(), rtol=0.01, atol=0)
    cosine = torch.nn.functional.cosine_similarity(found["a"].float().flatten(), real["a"].float().flatten(), dim=0)
    assert abs(cosine) < 0.2
    assert (found["b"] == 0).all()
    random_expert(source, tmp_path / "again")
    torch.testing.assert_close(load_file(tmp_path / "again" / "adapter_model.safetensors"), found)


def test_the_first_dev_examples_become_training_data(tmp_path):
    data = {
        "dev": [{"question": f"{n}?", "answer": str(n)} for n in range(5)],
        "test": [{"question": "t", "answer": "t"}],
    }
    (tmp_path / "task.json").write_text(json.dumps(data))
    training_file(tmp_path / "task.json", 2, tmp_path / "out")
    lines = (tmp_path / "out" / "dev.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"prompt": f"{n}?", "completion": str(n)} for n in range(2)]
