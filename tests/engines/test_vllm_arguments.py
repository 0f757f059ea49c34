"""What vLLM is started with."""

from pathlib import Path

import pytest

from modelswarms_fast.config import EngineConfig
from modelswarms_fast.engines.vllm.arguments import (
    CPU_KV_CACHE_BYTES,
    RANK_WORKER,
    WORKER,
    check_options,
    open_modes,
    vllm_arguments,
)
from modelswarms_fast.errors import InputError
from modelswarms_fast.weights.adapters import LoraModule

MODULES = tuple(
    LoraModule(f"model.layers.{layer}.self_attn.{name}_proj", "a", "b", rank, 1.0)
    for layer in range(2)
    for name, rank in (("v", 4), ("q", 9))
)
KNOWN = {"seed", "dtype", "enforce_eager", "worker_extension_cls", "max_loras", "gpu_memory_utilization"}
LORA = {"enable_lora": True, "max_loras": 4, "max_lora_rank": 16, "lora_target_modules": ["q_proj", "v_proj"]}
CPU = {"enforce_eager": True, "block_size": 32, "kv_cache_memory_bytes": CPU_KV_CACHE_BYTES}
GPU = {"enforce_eager": False, "gpu_memory_utilization": 0.75}


@pytest.mark.parametrize(
    ("settings", "modes", "on_cpu", "expected"),
    [
        ({}, ("merged",), True, CPU),
        ({}, ("merged",), False, GPU),
        ({}, ("merged", "slots"), False, GPU | LORA),
        ({"slots": 2}, ("slots",), True, CPU | LORA | {"max_loras": 2}),
        ({}, ("mixture",), False, GPU | {"enforce_eager": True}),
        ({"max_num_seqs": 8}, ("merged",), False, GPU | {"max_num_seqs": 8}),
        (
            {"tensor_parallel": 2}, ("merged",), True,
            CPU | {
                "kv_cache_memory_bytes": CPU_KV_CACHE_BYTES // 2, "tensor_parallel_size": 2,
                "distributed_executor_backend": "mp", "worker_extension_cls": RANK_WORKER,
            },
        ),
        ({"engine_options": {"seed": 3, "block_size": 64}}, ("merged",), True, CPU | {"seed": 3, "block_size": 64}),
        (
            {"engine_options": {"gpu_memory_utilization": 0.5}}, ("merged",), True,
            {"enforce_eager": True, "block_size": 32, "gpu_memory_utilization": 0.5},
        ),
        (
            {"engine_options": {"kv_cache_memory_bytes": 99}}, ("merged",), False,
            {"enforce_eager": False, "kv_cache_memory_bytes": 99},
        ),
    ],
)  # fmt: skip
def test_arguments(settings, modes, on_cpu, expected):
    common = {
        "model": "base", "dtype": "bfloat16", "max_model_len": 99, "enable_prefix_caching": True,
        "disable_log_stats": True, "trust_remote_code": False, "use_tqdm_on_load": False,
        "seed": 0, "worker_extension_cls": WORKER, "max_logprobs": 1000,
    }  # fmt: skip
    found = vllm_arguments(
        Path("base"), MODULES, modes, EngineConfig(**settings), dtype="bfloat16", max_model_len=99, on_cpu=on_cpu
    )
    assert found == common | expected


@pytest.mark.parametrize(
    ("settings", "modules", "expected"),
    [
        ({"serve": "slots"}, MODULES, ("slots",)),
        ({"serve": "auto"}, MODULES, ("merged", "slots")),
        ({"serve": "auto", "state": "mixture"}, MODULES, ("merged", "slots", "mixture")),
        ({"serve": "auto", "state": "mixture"}, (), ("merged",)),
    ],
)
def test_modes(settings, modules, expected):
    assert open_modes(EngineConfig(**{"state": "weights"} | settings), modules) == expected


@pytest.mark.parametrize(
    ("options", "modes", "sentence"),
    [
        ({"sed": 1}, ("merged",), "engine_options has 'sed', which this vLLM does not know; correct its name."),
        ({"seed": 1, "dtype": "half"}, ("merged",), "engine_options has 'dtype'; set dtype instead."),
        ({"max_loras": 9}, ("slots",), "engine_options has 'max_loras'; set slots instead."),
        ({"worker_extension_cls": "x"}, ("merged",), "'worker_extension_cls', on which loading particles relies"),
        ({"enforce_eager": False}, ("merged", "mixture"), "turns enforce_eager off"),
    ],
)
def test_options_that_are_refused(options, modes, sentence):
    with pytest.raises(InputError, match="engine_options") as refused:
        check_options(options, modes, KNOWN)
    assert sentence in str(refused.value)


@pytest.mark.parametrize("name", ["trust_remote_code", "load_format", "ignore_patterns", "hf_token"])
def test_options_that_run_code_or_hold_a_key_are_refused(name):
    with pytest.raises(InputError, match=f"engine_options has '{name}'"):
        check_options({name: True}, ("merged",), KNOWN | {name})


def test_options_that_are_not():
    check_options({"seed": 1, "enforce_eager": False, "gpu_memory_utilization": 0.5}, ("merged", "slots"), KNOWN)
    check_options({"enforce_eager": True}, ("mixture",), KNOWN)


def test_the_transformers_engine_takes_no_options():
    with pytest.raises(InputError, match="engine_options has 'seed' but the transformers engine takes none"):
        EngineConfig(engine="transformers", engine_options={"seed": 1})
