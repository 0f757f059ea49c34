"""Families of models in vLLM: each is served in the ways that docs/reference/models.md says, as transformers does.

`python -m benchmarks.engine.models` measures the families of the page. Here is one whose loader differs from
others: Falcon's takes query, key and value of each head apart.
"""

import json

import pytest
from helpers_families import FAMILIES, answers, make_family

from modelswarms_fast.config import EngineConfig
from modelswarms_fast.engines.protocol import Request
from modelswarms_fast.engines.start import start_engine
from modelswarms_fast.errors import InputError
from modelswarms_fast.weights.experts import read_experts

pytest.importorskip("vllm")

from modelswarms_fast.engines.vllm.launch import lacks_slots

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

PROMPT = [5, 6, 7, 8, 9, 10]
CONFIG = {"dtype": "float32", "max_model_len": 64, "slots": 2, "serve": "auto", "state": "mixture"}


def served(folder, kind, right, base):
    """The largest difference of each open mode, of an expert and of the base before and after it; what is refused."""
    experts = read_experts(folder / kind)
    engine = start_engine(folder / "base", experts, EngineConfig(**CONFIG))
    worst = {}
    try:
        for mode in engine._modes:
            engine.set_mode(mode)
            differences = []
            for slot in (None, 0, None):
                if slot is None:
                    engine.restore()
                else:
                    engine.load(slot, experts.rows[1])
                said = engine.log_probs(Request(slot, PROMPT), top=20)
                wanted = base if slot is None else right
                differences += [abs(value - wanted[token]) for token, value in said.items()]
            worst[mode] = max(differences)
        return worst, engine.refused
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("name", "kind", "modes"),
    [
        ("Falcon 40B", "experts", ["merged"]),
    ],
)
def test_a_family_is_served_as_transformers_does(tmp_path, name, kind, modes):
    family = FAMILIES[name]
    make_family(family, tmp_path)
    # Before vLLM starts, which changes classes of transformers that it builds models from.
    base = answers(family, tmp_path / "base", None, PROMPT)
    whole = kind == "full"
    model, adapter = (tmp_path / "full" / "1", None) if whole else (tmp_path / "base", tmp_path / "experts" / "1")
    right = answers(family, model, adapter, PROMPT)
    assert max(abs(a - b) for a, b in zip(base, right, strict=True)) > 0.05
    worst, refused = served(tmp_path, kind, right, base)
    assert list(worst) == modes
    assert max(worst.values()) < 5e-4, worst
    if name == "Falcon 40B":
        assert "has no LoRA slots for FalconForCausalLM; use serve='merged'" in refused["slots"]
        assert "in another order than the checkpoint; use serve='merged'" in refused["mixture"]


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


def test_slots_that_vllm_lacks_are_one_sentence(tmp_path):
    make_family(FAMILIES["Falcon"], tmp_path)
    experts = read_experts(tmp_path / "experts")
    with pytest.raises(InputError, match=r"^vLLM has no LoRA slots for FalconForCausalLM; use serve='merged', or"):
        start_engine(tmp_path / "base", experts, EngineConfig(**CONFIG | {"serve": "slots", "state": "auto"}))
