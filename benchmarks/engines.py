"""Engines for the benchmarks that need one: SmolLM2-135M-Instruct with the example experts, each started once."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, get_args

from modelswarms_fast.base import PACKAGED, resolve_base
from modelswarms_fast.config import EngineConfig, Serve
from modelswarms_fast.engines import start_engine
from modelswarms_fast.experts import Experts, read_experts

EXAMPLES = Path(__file__).parent.parent / "examples"
DATA = EXAMPLES / "data" / "skills_mix.json"
DATASET = "benchmark"
PARTICLES = 10
SLOTS = 4
MAX_MODEL_LEN = 512
SERVES = tuple(serve for serve in get_args(Serve) if serve != "auto")


def config(serve: str, **settings: Any) -> EngineConfig:
    """Settings of an engine that serves in this way; a mixture is served from a mixture."""
    state = "mixture" if serve == "mixture" else "weights"
    chosen = {"serve": serve, "state": state, "slots": SLOTS, "max_model_len": MAX_MODEL_LEN, "canary": "off"}
    return EngineConfig(**(chosen | settings))


@functools.cache
def experts() -> Experts:
    """The example experts."""
    return read_experts(EXAMPLES / "experts")


@functools.cache
def engine(serve: str) -> Any:
    """A vLLM engine with the experts attached, serving in this way."""
    return start_engine(resolve_base(PACKAGED), experts(), config(serve))


@functools.cache
def full_weights() -> tuple[Any, Experts]:
    """An engine that serves whole checkpoints, and the base model as the only one."""
    only = read_experts([resolve_base(PACKAGED)], minimum=1)
    return start_engine(resolve_base(PACKAGED), only, config("merged")), only


def plain_settings(on_cpu: bool) -> dict[str, Any]:
    """Of vLLM as its documentation shows it, nothing of ours attached; on a CPU with what it needs to start at all."""
    from modelswarms_fast.engines.vllm import CPU_KV_CACHE_BYTES

    settings: dict[str, Any] = {
        "model": str(resolve_base(PACKAGED)),
        "max_model_len": MAX_MODEL_LEN,
        "enforce_eager": on_cpu,
        "disable_log_stats": True,
        "seed": 0,
    }
    return settings | ({"kv_cache_memory_bytes": CPU_KV_CACHE_BYTES, "block_size": 32} if on_cpu else {})


@functools.cache
def plain_vllm() -> Any:
    """vLLM with LoRA adapters on."""
    from vllm import LLM

    from modelswarms_fast.engines.vllm import LORA_RANKS

    return LLM(
        **plain_settings(engine("merged").device.type == "cpu"),
        enable_lora=True,
        max_loras=SLOTS,
        max_lora_rank=LORA_RANKS[0],
        lora_target_modules=sorted({module.name.rpartition(".")[2] for module in experts().modules}),
    )


def write_data(file: Path, prompts: int, domain: str | None = None) -> Path:
    """An evaluation file whose dev split has so many of the example prompts, of one skill or of all that are mixed.

    More than the examples' own dev has, of both splits together.
    """
    content = json.loads(DATA.read_text())
    found = [one for one in content["dev"] + content["test"] if domain in (None, one["domain"])]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"dataset": DATASET, "dev": found[:prompts], "test": found[-4:]}))
    return file
