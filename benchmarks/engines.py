"""Engines for the benchmarks that need one: SmolLM2-135M-Instruct with the example experts, each started once."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from modelswarms_fast.base import PACKAGED, resolve_base
from modelswarms_fast.config import EngineConfig
from modelswarms_fast.engines import start_engine
from modelswarms_fast.experts import Experts, read_experts

EXAMPLES = Path(__file__).parent.parent / "examples"
DATA = EXAMPLES / "data" / "skills_mix.json"
SLOTS = 4
MAX_MODEL_LEN = 512


@functools.cache
def experts() -> Experts:
    """The example experts."""
    return read_experts(EXAMPLES / "experts")


@functools.cache
def engine(serve: str) -> Any:
    """A vLLM engine with the experts attached, serving `merged` or in `slots`."""
    config = EngineConfig(serve=serve, slots=SLOTS, max_model_len=MAX_MODEL_LEN)  # type: ignore[arg-type]
    return start_engine(resolve_base(PACKAGED), experts(), config)


@functools.cache
def plain_vllm() -> Any:
    """vLLM as its documentation shows it, LoRA adapters on, nothing of ours attached."""
    from vllm import LLM

    from modelswarms_fast.engines.vllm import CPU_KV_CACHE_BYTES, LORA_RANKS

    targets = sorted({module.name.rpartition(".")[2] for module in experts().modules})
    on_cpu = engine("merged").device.type == "cpu"
    return LLM(
        model=str(resolve_base(PACKAGED)),
        max_model_len=MAX_MODEL_LEN,
        enforce_eager=on_cpu,
        disable_log_stats=True,
        seed=0,
        enable_lora=True,
        max_loras=SLOTS,
        max_lora_rank=LORA_RANKS[0],
        lora_target_modules=targets,
        **({"kv_cache_memory_bytes": CPU_KV_CACHE_BYTES, "block_size": 32} if on_cpu else {}),
    )
