"""Engines for the benchmarks that need one: SmolLM2-135M-Instruct with the example experts, each started once."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
import sys
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import save_file

from modelswarms_fast.config import EngineConfig, Serve
from modelswarms_fast.engines.start import start_engine
from modelswarms_fast.weights.base_model import resolve_base
from modelswarms_fast.weights.experts import Experts, read_experts
from modelswarms_fast.weights.packaged import SMOLLM2

EXAMPLES = Path(__file__).parents[2] / "examples"
DATA = EXAMPLES / "data" / "skills_mix.json"
DATASET = "benchmark"
PARTICLES = 10
SLOTS = 4
MAX_MODEL_LEN = 512
LAYERS, HIDDEN, KEY_VALUE, INNER = 30, 576, 192, 1536
LINEAR = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, KEY_VALUE),
    "self_attn.v_proj": (HIDDEN, KEY_VALUE),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (HIDDEN, INNER),
    "mlp.up_proj": (HIDDEN, INNER),
    "mlp.down_proj": (INNER, HIDDEN),
}
"""Inputs and outputs of the linear layers of SmolLM2-135M."""
ALL_LINEAR = tuple(sorted(name.rpartition(".")[2] for name in LINEAR))
LARGE_RANK = 32
SERVES = tuple(serve for serve in get_args(Serve) if serve != "auto")


def config(serve: str, **settings: Any) -> EngineConfig:
    """Settings of an engine that serves in this way; a mixture is served from a mixture."""
    state = "mixture" if serve == "mixture" else "weights"
    chosen = {"serve": serve, "state": state, "slots": SLOTS, "max_model_len": MAX_MODEL_LEN, "parity_check": "off"}
    chosen["dtype"] = "bfloat16"  # that of the rows and of vLLM alone, also on a CPU that is slow in it
    return EngineConfig(**(chosen | settings))


@functools.cache
def experts() -> Experts:
    """The example experts."""
    return read_experts(EXAMPLES / "experts")


@functools.cache
def engine(serve: str, **settings: Any) -> Any:
    """A vLLM engine with the experts attached, serving in this way."""
    return start_engine(resolve_base(SMOLLM2), experts(), config(serve, **settings))


@functools.cache
def full_weights() -> tuple[Any, Experts]:
    """An engine that serves whole checkpoints, and the base model as the only one."""
    only = read_experts([resolve_base(SMOLLM2)], minimum=1)
    return start_engine(resolve_base(SMOLLM2), only, config("merged")), only


@functools.cache
def slots_for(folders: tuple[str, ...]) -> tuple[Any, Experts]:
    """An engine with LoRA slots, and the experts in these folders."""
    found = read_experts(list(folders))
    return start_engine(resolve_base(SMOLLM2), found, config("slots")), found


def plain_settings(on_cpu: bool) -> dict[str, Any]:
    """Of vLLM as its documentation shows it, nothing of ours attached; on a CPU with what it needs to start at all."""
    from modelswarms_fast.engines.vllm.arguments import CPU_KV_CACHE_BYTES

    settings: dict[str, Any] = {
        "model": str(resolve_base(SMOLLM2)),
        "max_model_len": MAX_MODEL_LEN,
        "enforce_eager": on_cpu,
        "disable_log_stats": True,
        "seed": 0,
    }
    return settings | ({"kv_cache_memory_bytes": CPU_KV_CACHE_BYTES, "block_size": 32} if on_cpu else {})


@functools.cache
def plain_vllm(rank: int = 8, modules: tuple[str, ...] = ("k_proj", "o_proj", "q_proj", "v_proj")) -> Any:
    """vLLM with LoRA adapters on; those of the examples have rank 4, and 8 is the least that it takes."""
    from vllm import LLM

    return LLM(
        **plain_settings(engine("merged").device.type == "cpu"),
        enable_lora=True,
        max_loras=SLOTS,
        max_lora_rank=rank,
        lora_target_modules=list(modules),
    )


def write_large_adapters(folder: Path, count: int = 4, rank: int = LARGE_RANK) -> list[str]:
    """Random PEFT adapters of this rank on all linear layers."""
    found = json.loads(next((EXAMPLES / "experts").glob("*/adapter_config.json")).read_text())
    found |= {"r": rank, "lora_alpha": rank, "target_modules": list(ALL_LINEAR)}
    folders = []
    for number in range(count):
        to = folder / f"adapter-{number}"
        to.mkdir()
        (to / "adapter_config.json").write_text(json.dumps(found))
        tensors = {}
        for layer, (name, (inputs, outputs)) in itertools.product(range(LAYERS), LINEAR.items()):
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            for half, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
                tensors[f"{prefix}.lora_{half}.weight"] = 0.01 * torch.randn(shape).bfloat16()
        save_file(tensors, to / "adapter_model.safetensors")
        folders.append(str(to))
    return folders


def write_data(file: Path, prompts: int, skill: str | None = None) -> Path:
    """An evaluation file whose dev split has so many prompts: of one skill, or those of the examples, mixed.

    The mix has more than the examples' own dev, of both splits together.
    """
    content = json.loads(DATA.read_text())
    found = content["dev"] + content["test"]
    if skill is not None:
        found = skills().generate(skill, "dev", prompts, held_out=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"dataset": DATASET, "dev": found[:prompts], "test": content["test"][-4:]}))
    return file


@functools.cache
def skills() -> Any:
    """examples/skills.py, which draws questions of one skill."""
    spec = importlib.util.spec_from_file_location("skills", EXAMPLES / "skills.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["skills"] = module  # its dataclasses look for it there
    spec.loader.exec_module(module)
    return module
