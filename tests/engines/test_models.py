"""Families of models in vLLM: searches in each way of serving, every load checked against transformers, and exports.

`python -m benchmarks.engine.models` measures all families of docs/reference/models.md. Here are those whose names and
tensors lie in different ways: query, key and value fused in the checkpoint (Phi-3, GPT-NeoX), by heads (Falcon),
transposed (GPT-2), stacked experts of a layer (Qwen3-MoE, Mixtral), other names in vLLM (StarCoder2, GPT-NeoX), and
models that transformers cannot build in vLLM's process (OLMo 2).
"""

import itertools
import json
import multiprocessing
import os
import sys
import types
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from site import addsitedir

import pytest
import torch
from helpers_families import FAMILIES, answers, make_family, respell
from helpers_search import write_data
from safetensors.torch import load_file, save_file

from modelswarms_fast import Experiment
from modelswarms_fast.config import EngineConfig, SwarmConfig
from modelswarms_fast.engines.protocol import Request
from modelswarms_fast.engines.start import start_engine
from modelswarms_fast.errors import InputError
from modelswarms_fast.weights.experts import export, read_experts

pytest.importorskip("vllm")

from modelswarms_fast.engines.vllm.engine import VllmEngine
from modelswarms_fast.engines.vllm.launch import import_vllm, lacks_slots, wraps_text

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

TORCHVISION = Path(__file__).parents[1] / "support" / "torchvision_stand_in"
PROMPT = [5, 6, 7, 8, 9, 10]
CONFIG = {"dtype": "float32", "max_model_len": 64, "slots": 2, "serve": "auto", "state": "mixture"}
THREE = ["merged", "slots", "mixture"]


@pytest.fixture(scope="module")
def apart():
    """A process without vLLM, which changes classes of transformers where it builds a model."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        yield process


def mixed(folders, coefficients, out):
    """A copy of the first of these folders whose tensors are a mixture of theirs."""
    out.mkdir()
    for file in folders[0].iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    (name,) = [file.name for file in out.glob("*.safetensors")]
    files = [load_file(folder / name) for folder in folders]
    pairs = list(zip(coefficients, files, strict=True))
    save_file({key: sum(c * one[key] for c, one in pairs) for key in files[0]}, out / name, {"format": "pt"})
    return out


@pytest.mark.parametrize(
    ("name", "kind", "ways"),
    [
        ("Gemma 3", "experts", THREE),
        ("Phi-3", "experts", THREE),
        ("OLMo 2", "experts", THREE),
        ("StarCoder2", "experts", THREE),
        ("GPT-NeoX", "experts", THREE),
        ("GPT-2", "experts", ["merged", "mixture"]),
        ("Qwen3-MoE", "experts", ["merged", "mixture"]),
        ("Mixtral", "full", ["merged"]),
        ("Falcon 40B", "experts", ["merged"]),
    ],
)
def test_a_family_is_searched_in_each_way_and_exported(tmp_path, apart, monkeypatch, name, kind, ways):
    monkeypatch.setattr(VllmEngine, "autotune", lambda *_: None)  # seconds, for a choice that is made here
    family = FAMILIES[name]
    make_family(family, tmp_path)
    write_data(tmp_path / "data.json", 4)
    experiment = Experiment(
        tmp_path / kind, base=str(tmp_path / "base"), task="helpers_search:vowels", data=tmp_path / "data.json",
        out=tmp_path / "run", max_tokens=2, parity_check="all", **CONFIG,
    )  # fmt: skip
    with experiment:
        assert list(experiment.engine._modes) == ways
        for seed, way in enumerate(ways):
            experiment.engine.set_mode(way)
            before = experiment.evaluator.spent.evaluations
            experiment.search(SwarmConfig(particles=len(experiment.names), iterations=1, seed=seed))
            assert experiment.engine.serve == way
            loads = experiment.evaluator.spent.evaluations - before
            assert loads >= len(experiment.names), "else scores came from a cache, and nothing was checked"
            experiment.check_base()
        if name == "Falcon 40B":
            assert "has no LoRA slots for FalconForCausalLM; use serve='merged'" in experiment.engine.refused["slots"]
            assert "in another order than the checkpoint; use serve='merged'" in experiment.engine.refused["mixture"]
    mixture = [0.5, 0.75, -0.25] if kind == "experts" else [0.4, 0.6]
    row = experiment.mix(torch.tensor(mixture))
    export(tmp_path / "winner", row, experiment.experts, base=tmp_path / "base", provenance={})
    expected = mixed([tmp_path / kind / one for one in experiment.names], mixture, tmp_path / "expected")

    def said(folder):
        base, adapter = (folder, None) if kind == "full" else (tmp_path / "base", folder)
        return apart.submit(answers, family, base, adapter, PROMPT).result()

    right, base = said(expected), apart.submit(answers, family, tmp_path / "base", None, PROMPT).result()
    assert max(abs(a - b) for a, b in zip(base, right, strict=True)) > 0.02
    assert said(tmp_path / "winner") == pytest.approx(right, abs=1e-4)


def architectures(folder, **config):
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_models_without_lora_slots_are_known_before_they_are_loaded(tmp_path):
    assert lacks_slots(architectures(tmp_path, architectures=["FalconForCausalLM"]), True) == "FalconForCausalLM"
    assert lacks_slots(architectures(tmp_path, architectures=["LlamaForCausalLM"]), True) is None
    assert lacks_slots(architectures(tmp_path, architectures=["GPTNeoXForCausalLM"]), True) is None
    mixture = architectures(tmp_path, architectures=["MixtralForCausalLM"], num_local_experts=4)
    assert lacks_slots(mixture, True) == "MixtralForCausalLM on a CPU"
    assert lacks_slots(mixture, False) is None
    dense = architectures(tmp_path, architectures=["Qwen3ForCausalLM"], text_config={"num_experts": None})
    assert lacks_slots(dense, True) is None


def test_slots_that_vllm_lacks_are_one_sentence(tmp_path):
    make_family(FAMILIES["Falcon 7B"], tmp_path)
    experts = read_experts(tmp_path / "experts")
    with pytest.raises(InputError, match=r"^vLLM has no LoRA slots for FalconForCausalLM; use serve='merged', or"):
        start_engine(tmp_path / "base", experts, EngineConfig(**CONFIG | {"serve": "slots", "state": "auto"}))


@pytest.fixture(scope="module")
def seeing():
    """A process that finds torchvision, or what stands in for it, as do the processes that vLLM starts there."""
    with pytest.MonkeyPatch.context() as patch:
        if find_spec("torchvision") is None:
            patch.setenv("PYTHONPATH", str(TORCHVISION), prepend=os.pathsep)
        spawn = multiprocessing.get_context("spawn")  # which is given the path of this process, hence the initializer
        with ProcessPoolExecutor(1, spawn, initializer=addsitedir, initargs=(str(TORCHVISION),)) as process:
            yield process


def differences(base, folders, right):
    """Of each way of serving: how far an engine is from what is right, of the base, the second expert, and the base."""
    experts = read_experts(folders)
    engine = start_engine(base, experts, EngineConfig(**CONFIG))
    found = {mode: [] for mode in engine._modes}
    for mode, worst in found.items():
        engine.set_mode(mode)
        for slot, wanted in zip((None, 0, None), right, strict=True):
            if slot is None:
                engine.restore()
            else:
                engine.load(slot, experts.rows[1])
            said = engine.log_probs(Request(slot, PROMPT), top=20)
            worst.append(max(abs(value - wanted[token]) for token, value in said.items()))
    engine.close()
    return found


@pytest.mark.parametrize("name", ["Gemma 3 (images)", "Qwen2.5-VL", "Mistral 3"])
def test_the_text_model_of_a_vision_language_model_is_served(tmp_path, apart, seeing, name):
    """Experts that are named as by its text model alone do what they do in PEFT on the whole model."""
    family, whole = FAMILIES[name], "model.language_model."
    make_family(family, tmp_path)
    folders = [respell(tmp_path / "experts" / str(seed), tmp_path / f"{seed}", whole, "model.") for seed in range(2)]
    adapters = (None, tmp_path / "experts" / "1")
    base, right = (apart.submit(answers, family, tmp_path / "base", one, PROMPT).result() for one in adapters)
    assert max(abs(a - b) for a, b in zip(base, right, strict=True)) > 0.05
    found = seeing.submit(differences, tmp_path / "base", folders, (base, right, base)).result()
    assert list(found) == THREE
    assert max(itertools.chain(*found.values())) < 5e-4, found


def test_a_vision_language_model_without_torchvision_is_one_sentence(tmp_path, monkeypatch):
    assert not wraps_text(architectures(tmp_path, model_type="llama"))
    family = FAMILIES["Gemma 3 (images)"]
    make_family(family, tmp_path)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(InputError, match=r"^vLLM imports torchvision for .*, which wraps a text model, and that fails"):
        start_engine(tmp_path / "base", read_experts(tmp_path / "experts"), EngineConfig(**CONFIG))


def test_a_vllm_that_cannot_be_imported_is_one_sentence(monkeypatch):
    """As where torchvision is of another torch: transformers, which vLLM imports, raises what torch does."""

    class Broken(types.ModuleType):
        def __getattr__(self, name):
            raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setitem(sys.modules, "vllm", Broken("vllm"))
    with pytest.raises(InputError, match=r"^vLLM cannot be imported \(operator torchvision::nms does not exist\); ins"):
        import_vllm()
