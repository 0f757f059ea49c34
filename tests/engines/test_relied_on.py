"""What is relied on inside vLLM is there, and what another version lacks is said in one sentence."""

from pathlib import Path

import helpers_search
import pytest

from modelswarms_fast.config import EngineConfig
from modelswarms_fast.engines.start import start_engine
from modelswarms_fast.engines.vllm import relied_on
from modelswarms_fast.engines.vllm.relied_on import RELIED_ON, RUNNERS, Name, check_names, lacking
from modelswarms_fast.errors import InputError

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm
tiny = helpers_search.tiny
NEEDS = ("engine", "slots", "mixture", "cpu")


def test_the_installed_vllm_has_every_name():
    assert [found for name in (*RELIED_ON, *RUNNERS) if (found := lacking(name))] == []


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        (Name("slots", "vllm.lora.elsewhere", "Manager"), r"vllm\.lora\.elsewhere"),
        (Name("slots", "vllm", "LLM.generate_all"), r"vllm\.LLM\.generate_all"),
        (Name("slots", "vllm", "LLM.collective_rpc", ("method", "means")), r"parameter 'means' of vllm\.LLM\.coll"),
        (Name("slots", "vllm.lora.model_manager", "LoRAModelManager", ("modules", "slot")), r"LoRAModelManager\.slot"),
    ],
)
def test_a_name_that_is_missing_is_one_sentence(name, missing):
    with pytest.raises(InputError, match=r"vLLM [\d.]+\S* has no .*" + missing + r".*serve='slots' relies.*0\.33"):
        check_names(NEEDS, [name])
    check_names(["engine", "mixture", "cpu"], [name])  # nobody needs it


def test_an_engine_does_not_start_without_a_name(tiny, monkeypatch):
    lost = Name("engine", "vllm.v1.engine.llm_engine", "LLMEngine.walk")
    monkeypatch.setattr(relied_on.check_names, "__defaults__", ((*RELIED_ON, lost),))
    with pytest.raises(
        InputError, match=r"has no vllm\.v1\.engine\.llm_engine\.LLMEngine\.walk, on which engine='vllm'"
    ):
        start_engine(Path(tiny["base"]), None, EngineConfig(max_model_len=64))
