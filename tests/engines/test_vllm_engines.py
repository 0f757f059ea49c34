"""vLLM engines on tiny random models, one after the other in one process: a fused model, settings, and what is left."""

import gc
import os
import weakref
from pathlib import Path

import pytest
import torch
from helpers_delta import delta_experts, dense
from helpers_models import make_adapter, make_base
from helpers_search import make_tiny, write_tokenizer
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Phi3Config, Phi3ForCausalLM

from modelswarms_fast.config import EngineConfig
from modelswarms_fast.engines.protocol import Request, complete
from modelswarms_fast.engines.start import start_engine
from modelswarms_fast.engines.transformers import TransformersEngine
from modelswarms_fast.errors import InputError
from modelswarms_fast.weights.experts import read_experts
from modelswarms_fast.weights.mixing import mix_row

pytest.importorskip("vllm")

from modelswarms_fast.engines.vllm import cpu_patches

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

PHI3 = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 128, "original_max_position_embeddings": 128,
    "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
MODULES = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
CONFIG = EngineConfig(dtype="float32", max_model_len=64, slots=2)


@pytest.fixture(scope="module")
def phi3(tmp_path_factory):
    """Base and experts of a model whose checkpoint has query, key and value in one layer, as vLLM has."""
    folder = tmp_path_factory.mktemp("phi3")
    torch.manual_seed(0)
    Phi3ForCausalLM(Phi3Config(**PHI3)).save_pretrained(folder / "base")
    write_tokenizer(folder / "base")
    for seed in range(3):
        lora = LoraConfig(r=4, lora_alpha=8, target_modules=MODULES, task_type="CAUSAL_LM")
        model = get_peft_model(Phi3ForCausalLM.from_pretrained(folder / "base"), lora)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) / 2
        model.save_pretrained(folder / "experts" / f"{seed}")
    return folder


def difference(engine, oracle, prompt, slot=0):
    """The largest of the ten likeliest next tokens' differences."""
    served = engine.log_probs(Request(slot, prompt), top=10)
    right = oracle.log_probs(Request(None if slot is None else 0, prompt))
    return max(abs(value - right[token]) for token, value in served.items())


def started(base, experts, **settings):
    """An engine that ends with the test, so that the next can start."""
    return start_engine(base, experts, EngineConfig(**{"dtype": "float32", "max_model_len": 64, "slots": 2} | settings))


def test_a_model_that_is_fused_in_its_checkpoint_is_served_in_every_mode(phi3):
    experts = read_experts(phi3 / "experts")
    oracle = TransformersEngine(phi3 / "base", experts, dtype="float32")
    prompt, other = (list(ids) for ids in oracle.tokenizer(["ball", "be"])["input_ids"])
    engine = started(phi3 / "base", experts, serve="auto", state="mixture")
    try:
        assert engine._modes == ("merged", "slots", "mixture")
        for mode in engine._modes:
            engine.set_mode(mode)
            for row in experts.rows:  # one prompt, one slot: only the row tells one step from the next
                engine.load(0, row)
                oracle.load(0, row)
                assert difference(engine, oracle, prompt) < 1e-4, mode
            mixture = torch.tensor([0.5, 0.75, -0.25])
            engine.load_mixture(0, mixture)
            oracle.load_mixture(0, mixture)
            assert difference(engine, oracle, prompt) < 1e-4, mode
            requests = [Request(0, prompt), Request(0, other)]
            assert complete(engine, requests, 8) == complete(oracle, requests, 8)
            engine.restore()
            oracle.restore()
            assert difference(engine, oracle, prompt, None) < 1e-4, mode
    finally:
        engine.close()


def test_an_engine_that_is_dropped_leaves_the_process_groups_to_the_others(phi3):
    """All engines of a process share them; they end with the last one."""
    dropped = started(phi3 / "base", None)
    engine = started(phi3 / "base", None)
    gone = weakref.ref(dropped)
    del dropped
    try:
        gc.unfreeze()
        gc.collect()
        assert gone() is None
        assert torch.distributed.is_initialized()
        assert len(complete(engine, [Request(None, [11, 12, 13])], 2)) == 1
    finally:
        engine.close()
    assert not torch.distributed.is_initialized()


def test_experts_of_unequal_ranks_scalings_and_modules_in_every_mode(tmp_path):
    """Each answers as an oracle that was given it alone; modules that one of them lacks add nothing to its tokens."""
    base = make_base(tmp_path / "base", shape={"hidden_size": 64, "head_dim": 32, "num_attention_heads": 2})
    write_tokenizer(base)
    for seed, lora in enumerate(
        [
            {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "up_proj"]},
            {"r": 9, "lora_alpha": 9, "target_modules": ["k_proj", "v_proj", "down_proj"]},
            {"r": 4, "lora_alpha": 8, "use_rslora": True, "rank_pattern": {"o_proj": 8}},
        ]
    ):
        make_adapter(base, tmp_path / "experts" / str(seed), seed=seed, scale=0.3, **lora)
    experts = read_experts(tmp_path / "experts")
    engine = started(base, experts, serve="auto", state="mixture")
    prompt = [11, 12, 13]
    try:
        assert engine._modes == ("merged", "slots", "mixture")
        for index, row in enumerate(experts.rows):
            alone = read_experts([tmp_path / "experts" / str(index)], minimum=1)
            oracle = TransformersEngine(base, alone, dtype="float32")
            oracle.load(0, alone.rows[0])
            for mode in engine._modes:
                engine.set_mode(mode)
                engine.load(0, row)
                assert difference(engine, oracle, prompt) < 1e-4, mode
                engine.load_mixture(0, torch.eye(3)[index])
                assert difference(engine, oracle, prompt) < 1e-4, mode
                engine.restore()
        oracle = TransformersEngine(base, experts, dtype="float32")
        oracle.load_mixture(0, mixture := torch.tensor([0.5, 0.75, -0.25]))
        for mode in engine._modes:
            engine.set_mode(mode)
            engine.load_mixture(0, mixture)
            assert difference(engine, oracle, prompt) < 1e-4, mode
            engine.restore()
    finally:
        engine.close()


def test_whole_checkpoints_of_such_a_model(phi3):
    weights = read_experts([phi3 / "base"], minimum=1)
    changed = weights.rows[0] + 0.02 * torch.randn(weights.layout.size, generator=torch.Generator().manual_seed(3))
    oracle = TransformersEngine(phi3 / "base", weights, dtype="float32")
    (prompt,) = oracle.tokenizer(["ball"])["input_ids"]
    engine = started(phi3 / "base", weights)
    try:
        for row in (weights.rows[0], changed):
            engine.load(0, row)
            oracle.load(0, row)
            assert difference(engine, oracle, list(prompt)) < 1e-4
    finally:
        engine.close()


def test_sums_of_update_matrices_are_served_in_both_ways(tmp_path):
    """Experts of unequal ranks, coefficients beyond them, and a row, against the base with the dense update."""
    base = Path(make_tiny(tmp_path, hidden_size=128, head_dim=32)["base"])
    experts = delta_experts(base, tmp_path / "unequal", torch.float32)
    mixtures, prompt = torch.tensor([[2.5, -1.5, 0.25], [0.5, 0.75, 0.25], [-1.0, 0.0, 0.5]]), [11, 12, 13, 14]
    right = []
    for mixture in mixtures:
        model = AutoModelForCausalLM.from_pretrained(base)
        for name, update in dense(experts, mixture).items():
            model.get_submodule(name).weight.data += update.float()
        with torch.no_grad():
            right.append(torch.log_softmax(model(torch.tensor([prompt])).logits[0, -1], dim=-1))
    engine = started(base, experts, serve="auto", combine="delta")
    try:
        assert engine._modes == ("merged", "mixture")
        for mode in engine._modes:
            engine.set_mode(mode)
            for mixture, wanted in zip(mixtures, right, strict=True):
                for load, given in ((engine.load_mixture, mixture), (engine.load, mix_row(experts, mixture))):
                    load(0, given)
                    served = engine.log_probs(Request(0, prompt), top=10)
                    assert max(abs(value - float(wanted[token])) for token, value in served.items()) < 1e-4, mode
            engine.restore()
        for slot, mixture in enumerate(mixtures):
            engine.load_mixture(slot, mixture)
        together = complete(engine, [Request(slot, prompt) for slot in range(len(mixtures))], 8)
        assert together == [complete(engine, [Request(slot, prompt)], 8)[0] for slot in range(len(mixtures))]
        assert len({one.text for one in together}) > 1
    finally:
        engine.close()


def mapped():
    """Bytes of address space of this process."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def of_vllm():
    """What vLLM's own classes have where an engine changes them, and the environment that it reads."""
    changed = [vars(owner).get(name, "inherited") for owner, name, _ in cpu_patches._CHANGES]
    return changed, os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING")


def test_an_engine_that_is_closed_leaves_nothing_and_another_one_serves(tmp_path):
    """The weights, what was kept of the base model, and the key-value cache, of 1 GiB here, are given back."""
    tiny = make_tiny(tmp_path, hidden_size=128, head_dim=32)
    experts = read_experts(tiny["experts"])
    before, answers = of_vllm(), []
    for _ in range(2):
        gc.collect()
        engine = started(Path(tiny["base"]), experts, serve="auto", state="mixture")
        assert of_vllm() == before
        engine.load(0, experts.rows[1])
        answers.append(complete(engine, [Request(0, [11, 12, 13])], 8))
        (worker,) = engine.llm.collective_rpc("swarm_worker")
        runner = worker.model_runner
        kept = [weakref.ref(one) for one in (runner.get_model(), runner, *worker._swarm_modes.values())]
        while_open = mapped()
        del worker, runner
        engine.close()
        engine.close()
        assert not [one() for one in kept if one() is not None]
        assert while_open - mapped() > 1 << 29
        assert of_vllm() == before
    assert answers[0] == answers[1]


def test_vllms_own_options_are_passed_through(tmp_path):
    tiny = make_tiny(tmp_path, hidden_size=128, head_dim=32)
    options = {"block_size": 64, "seed": 7, "kv_cache_memory_bytes": 1 << 26, "enable_prefix_caching": False}
    engine = started(Path(tiny["base"]), None, engine_options=options)
    try:
        settings = engine.llm.llm_engine.vllm_config
        assert settings.cache_config.block_size == 64
        assert settings.cache_config.kv_cache_memory_bytes == 1 << 26
        assert not settings.cache_config.enable_prefix_caching
        assert settings.model_config.seed == 7
    finally:
        engine.close()


def test_an_option_that_vllm_does_not_know_is_one_sentence(tmp_path):
    tiny = make_tiny(tmp_path)
    with pytest.raises(InputError, match=r"^engine_options has 'gpu_memory', which this vLLM does not know"):
        started(Path(tiny["base"]), None, engine_options={"gpu_memory": 0.5})
