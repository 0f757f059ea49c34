"""Token swarms on tiny models of two architectures: a search finds what no expert has alone."""

import json
import shutil

import pytest
import torch
from helpers_ensemble import LETTERS, gpt2, llama
from helpers_models import make_adapter
from helpers_search import told
from typer.testing import CliRunner

from modelswarms_fast.cli import main
from modelswarms_fast.errors import InputError
from modelswarms_fast.records.run_folder import read_json
from modelswarms_fast.runs.final_test import evaluate_run
from modelswarms_fast.runs.token_swarm import token_swarm, unit_experts

SMALL = {"iterations": 4, "particles": 6, "seed": 3, "max_model_len": 64}


def teach(folder, build, seed, answers):
    """A tiny model that has learned to answer letters with letters."""
    build(folder, seed)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    prompts = torch.tensor([[1 + LETTERS.index(letter)] for letter in answers])
    targets = torch.tensor([1 + LETTERS.index(letter) for letter in answers.values()])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss = torch.nn.functional.cross_entropy(model(prompts).logits[:, -1], targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Two architectures, each sure of its own half of the alphabet, and a task that asks for both."""
    folder = tmp_path_factory.mktemp("taught")
    upper = {letter: letter.upper() for letter in "abcdefghijklmnopqrstuvwx"}
    first = {letter: upper[letter] for letter in list(upper)[:14]}
    second = {letter: upper[letter] for letter in list(upper)[14:]}
    experts = [teach(folder / "llama", llama, 1, first), teach(folder / "gpt2", gpt2, 2, second)]
    examples = [{"question": letter, "answer": answer} for letter, answer in upper.items()]
    data = folder / "data.json"
    data.write_text(json.dumps({"dev": examples, "test": examples[::2]}))
    return {"experts": experts, "task": "exact_match", "data": data, "max_tokens": 1}


def test_the_swarm_finds_a_mixture_that_beats_every_expert(taught, tmp_path):
    summary = token_swarm(**taught, out=tmp_path / "run", **SMALL)
    assert summary["end"]["dev"] > summary["start"]["dev"] + 0.1
    assert summary["end"]["test"] > summary["start"]["test"] + 0.1
    assert summary["architectures"] == ["LlamaForCausalLM", "GPT2LMHeadModel"]
    mixture = read_json(tmp_path / "run" / "global_best" / "mixture.json")["mixture"]
    assert mixture == summary["mixture"]
    assert list(mixture) == ["llama", "gpt2"]
    assert min(mixture.values()) > 0
    assert sum(mixture.values()) == pytest.approx(1)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "config.json", "files.jsonl", "history.jsonl", "scores.jsonl", "summary.json", "analysis.json", "report.html",
        "global_best",
    }  # fmt: skip


def test_no_mixture_of_weights_is_tested_afterwards(taught, tmp_path):
    out = tmp_path / "run"
    base = taught["experts"][0]
    adapters = [make_adapter(base, tmp_path / name, seed=seed) for seed, name in enumerate(("ada", "bob"))]
    token_swarm(**taught | {"experts": adapters, "base": str(base)}, out=out, **SMALL | {"iterations": 1})
    with pytest.raises(InputError, match="is a token swarm"):
        evaluate_run(out)


def test_a_seed_decides_the_run(taught, tmp_path):
    for name in ("a", "b"):
        token_swarm(**taught, out=tmp_path / name, **SMALL)
    token_swarm(**taught, out=tmp_path / "c", **SMALL | {"seed": 4})
    assert told(tmp_path / "a") == told(tmp_path / "b")
    assert told(tmp_path / "a") != told(tmp_path / "c")


def test_particles_share_the_experts_passes(taught, tmp_path):
    summary = token_swarm(**taught, out=tmp_path / "run", **SMALL)
    rounds = summary["iterations"] + 1
    assert summary["expert_passes"] <= 2 * 24 * rounds
    assert summary["prompts"] > 3 * summary["expert_passes"] / 2


def test_adapters_and_a_checkpoint_of_another_architecture(taught, tmp_path):
    base = taught["experts"][0]
    adapters = [make_adapter(base, tmp_path / name, seed=seed, scale=0.01) for seed, name in enumerate(("ada", "bob"))]
    experts = [*adapters, taught["experts"][1]]
    with pytest.raises(InputError, match="give the base model of the adapters"):
        token_swarm(**taught | {"experts": experts}, out=tmp_path / "run", **SMALL)
    summary = token_swarm(**taught | {"experts": experts}, base=str(base), out=tmp_path / "run", **SMALL)
    assert list(summary["mixture"]) == ["ada", "bob", "gpt2"]
    assert summary["architectures"] == ["LlamaForCausalLM"] * 2 + ["GPT2LMHeadModel"]
    assert summary["end"]["dev"] > summary["start"]["dev"]


def test_the_command(taught, tmp_path):
    words = ["token-swarm", *map(str, taught["experts"]), "--task", "exact_match", "--data", str(taught["data"])]
    words += ["--max-tokens", "1", "--iterations", "1", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(main.app, words)
    assert result.exit_code == 0, result.output
    assert "global_best/mixture.json" in result.output.replace("\n", "")


def test_bad_input_is_one_sentence(taught, tmp_path):
    one, two = taught["experts"]
    with pytest.raises(InputError, match="needs at least two"):
        token_swarm(**taught | {"experts": [one]}, out=tmp_path / "run")
    with pytest.raises(InputError, match="two experts are called llama"):
        token_swarm(**taught | {"experts": [one, one]}, out=tmp_path / "run")
    with pytest.raises(InputError, match="is no folder of experts"):
        token_swarm(**taught | {"experts": tmp_path / "none"}, out=tmp_path / "run")
    with pytest.raises(InputError, match="one coordinate an expert"):
        token_swarm(**taught, out=tmp_path / "run", randomness="coordinate")
    assert not (tmp_path / "run").exists()
    assert two.is_dir()


def test_no_expert_of_a_folder_is_left_out_in_silence(taught, tmp_path):
    """And what is hidden is none."""
    for number, expert in enumerate([*taught["experts"], taught["experts"][0]]):
        shutil.copytree(expert, tmp_path / "experts" / (".copy" if number == 2 else expert.name))
    given = taught | {"experts": tmp_path / "experts"}
    assert list(token_swarm(**given, out=tmp_path / "run", **SMALL | {"iterations": 0})["mixture"]) == ["gpt2", "llama"]
    (tmp_path / "experts" / "new").mkdir()
    (tmp_path / "experts" / "new" / "adapter_model.safetensors").touch()
    with pytest.raises(InputError, match=r"/new holds weights but no adapter_config\.json or config\.json: add it"):
        token_swarm(**given, out=tmp_path / "other", **SMALL)


def test_unit_experts_are_their_own_rows():
    experts = unit_experts(["a", "b", "c"])
    assert experts.rows[:, :3].tolist() == torch.eye(3).tolist()
    assert experts.rows[:, 3:].abs().sum() == 0
    assert experts.layout.size == experts.rows.shape[1]
