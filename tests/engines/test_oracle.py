"""The oracle of the parity check: transformers' own answers from a process of its own, which ends when it should."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import helpers_search
import pytest
import torch
import transformers
from helpers_models import SHAPE, edit_tensors, make_base
from helpers_search import SETTINGS, write_data, write_tokenizer
from peft import LoraConfig, get_peft_model

from modelswarms_fast.config import EngineConfig
from modelswarms_fast.engines.oracle import Oracle
from modelswarms_fast.engines.parity_check import start_oracle
from modelswarms_fast.engines.protocol import Request
from modelswarms_fast.engines.transformers import TransformersEngine
from modelswarms_fast.errors import EngineError, InputError
from modelswarms_fast.runs.search import search
from modelswarms_fast.weights.experts import read_experts

tiny = helpers_search.tiny
PROMPT = [5, 6, 7]
KILLED = r"parity check was killed by SIGKILL.*parity_check='off'"


def adapters(tiny):
    return Path(tiny["base"]), read_experts(tiny["experts"])


def checkpoints(tmp_path):
    for seed in range(2):
        make_base(tmp_path / f"{seed}", seed=seed)
        write_tokenizer(tmp_path / f"{seed}")
    return tmp_path / "0", read_experts([tmp_path / "0", tmp_path / "1"])


def ended(pid, seconds=20.0):
    """Whether a process is gone, or only waits to be asked how it ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def oracles():
    made = []

    def make(base, experts, dtype="float32"):
        made.append(Oracle(base, experts, dtype))
        return made[-1]

    yield make
    for oracle in made:
        oracle.close()


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_it_says_what_transformers_says_here(kind, tiny, tmp_path, oracles, monkeypatch):
    """And would say without what vLLM does to transformers here."""
    base, experts = adapters(tiny) if kind == "lora" else checkpoints(tmp_path)
    engine = TransformersEngine(base, experts, dtype="float32")
    monkeypatch.setattr(transformers.LlamaModel, "__init__", lambda *arguments, **settings: 1 / 0)
    oracle = oracles(base, experts)
    before = engine.log_probs(Request(None, PROMPT))
    assert oracle.log_probs(Request(None, PROMPT), 64) == before
    for row in (experts.rows[1], experts.rows[0], experts.rows.mean(dim=0)):
        engine.load(0, row)
        oracle.load(0, row)
        found = oracle.log_probs(Request(0, PROMPT), 64)
        assert found == engine.log_probs(Request(0, PROMPT))
    assert found != before
    if kind == "lora":
        os.kill(oracle._process.process.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match=KILLED):
            oracle.log_probs(Request(0, PROMPT), 64)
    oracle.close()
    assert ended(oracle._process.process.pid)
    oracle.restore()
    assert oracle.log_probs(Request(None, PROMPT), 64) == before, "kept"
    with pytest.raises(RuntimeError, match="has ended"):
        oracle.log_probs(Request(0, PROMPT), 64)


def test_a_base_that_cannot_be_loaded_is_the_same_sentence(tiny, tmp_path, oracles):
    make_base(tmp_path / "base")
    write_tokenizer(tmp_path / "base")
    edit_tensors(tmp_path / "base", model__norm__weight=...)
    oracle = oracles(tmp_path / "base", adapters(tiny)[1])
    with pytest.raises(InputError, match=r"has no tensor model\.norm\.weight"):
        oracle.log_probs(Request(None, PROMPT), 64)
    assert ended(oracle._process.process.pid)


def test_a_process_that_dies_while_it_starts_is_an_engine_error(tiny, oracles):
    oracle = oracles(*adapters(tiny))
    os.kill(oracle._process.process.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match=KILLED):
        oracle.wait()


def test_it_does_not_outlive_a_search_that_is_killed_and_never_imports_vllm(tiny):
    code = f"""
import os, signal, sys
from pathlib import Path
from modelswarms_fast.engines.oracle import Oracle
from modelswarms_fast.engines.protocol import Request
from modelswarms_fast.weights.experts import read_experts
oracle = Oracle(Path({tiny["base"]!r}), read_experts({str(tiny["experts"])!r}), "float32")
oracle.log_probs(Request(None, [1]), 64)
assert "vllm" not in sys.modules
print(oracle._process.process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    found = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert found.returncode == -signal.SIGKILL
    assert ended(int(found.stdout), seconds=60)


def test_it_starts_only_when_it_is_asked_for(tiny):
    base, experts = adapters(tiny)
    for settings in ({"parity_check": "off"}, {"engine": "transformers"}):
        assert start_oracle(base, experts, EngineConfig(**settings)) is None


# Of models that vLLM serves by its transformers backend, which changes classes of transformers to compile them.
MODELS = {"Olmo2": ["q_proj", "v_proj", "down_proj"], "SmolLM3": ["q_proj", "o_proj", "gate_proj"]}
WIDE = {"hidden_size": 128, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}


def make_model(name, folder):
    """A random base of this architecture and three experts of it, as arguments of `search`."""
    config = getattr(transformers, f"{name}Config")(**SHAPE | WIDE)
    torch.manual_seed(0)
    getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(folder / "base")
    write_tokenizer(folder / "base")
    for seed in range(3):
        lora = LoraConfig(r=4, lora_alpha=8, target_modules=MODELS[name], task_type="CAUSAL_LM")
        model = get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(folder / "base"), lora)
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = torch.randn(parameter.shape, generator=generator) / 2
        model.save_pretrained(folder / "experts" / f"{seed}")
    write_data(folder / "data.json", 4)
    return SETTINGS | {"experts": folder / "experts", "base": str(folder / "base"), "data": folder / "data.json"}


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_models_of_vllms_transformers_backend_pass_the_parity_check(name, tmp_path):
    """And transformers can be used beside it, as baselines and rewards do."""
    pytest.importorskip("vllm")
    settings = make_model(name, tmp_path)
    settings |= {"engine": "vllm", "iterations": 1, "parity_check": "all", "serve": "merged", "max_model_len": 128}
    summary = search(**settings, out=tmp_path / "run")
    assert summary["serve"] == "merged"
    beside = TransformersEngine(tmp_path / "base", None)
    assert len(beside.log_probs(Request(None, PROMPT))) == SHAPE["vocab_size"]
