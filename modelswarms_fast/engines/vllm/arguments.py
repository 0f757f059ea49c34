"""What vLLM's `LLM` is started with: from the settings of a search, the experts, and the user's own options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modelswarms_fast.config import EngineConfig, Serve
from modelswarms_fast.errors import InputError, quoted
from modelswarms_fast.weights.adapters import LoraModule

# Of a GPU's memory, what vLLM takes: rows and the untouched base weights want the rest.
GPU_SHARE = 0.75
CPU_KV_CACHE_BYTES = 1 << 30
LOG_PROBS = 1000  # most tokens that log_probs can be asked for
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the ranks that vLLM's slots can have
WORKER = "modelswarms_fast.engines.vllm.worker.SwarmWorker"
RANK_WORKER = "modelswarms_fast.engines.vllm.rank_worker.RankWorker"

# Options of vLLM's that are settings of ours.
_SETTINGS = {
    "model": "base",
    "dtype": "dtype",
    "max_model_len": "max_model_len",
    "max_num_seqs": "max_num_seqs",
    "tensor_parallel_size": "tensor_parallel",
    "max_loras": "slots",
}
# Options without which a load would not find the weights, or not those of every process.
_RELIED_ON = (
    "worker_cls", "worker_extension_cls", "distributed_executor_backend", "pipeline_parallel_size",
    "data_parallel_size", "enable_lora", "lora_target_modules", "fully_sharded_loras",
)  # fmt: skip
# Options by which a model's folder brings code, or weights that are unpickled, which runs code.
_CODE = ("trust_remote_code", "load_format", "ignore_patterns")
# Options that say how much memory the key-value cache takes.
_CACHE_SIZES = ("gpu_memory_utilization", "kv_cache_memory_bytes", "num_gpu_blocks_override")


def open_modes(config: EngineConfig, modules: Sequence[LoraModule]) -> tuple[Serve, ...]:
    """The serving modes that an engine is started for; several with serve="auto". Raises InputError for none."""
    if config.serve in ("slots", "mixture") and not modules:
        raise InputError(f"serve is {quoted(config.serve)} but there are no LoRA experts to serve; use serve='merged'.")
    if config.serve != "auto":
        return (config.serve,)
    if not modules:
        return ("merged",)
    if config.combine == "delta":
        return ("merged", "mixture")
    return ("merged", "slots", "mixture") if config.state == "mixture" else ("merged", "slots")


def check_options(options: Mapping[str, object], modes: Sequence[Serve], known: set[str]) -> None:
    """Raise InputError for the first option that vLLM does not know (`known`), or that must not be changed."""
    for name in options:
        if name not in known:
            raise InputError(f"engine_options has {quoted(name)}, which this vLLM does not know; correct its name.")
        if name in _SETTINGS:
            raise InputError(f"engine_options has {quoted(name)}; set {_SETTINGS[name]} instead.")
        if name in _CODE:
            raise InputError(
                f"engine_options has {quoted(name)}, by which files of a model can run code; leave it out."
            )
        if name == "hf_token":
            raise InputError("engine_options has 'hf_token', which would be recorded; set the variable HF_TOKEN.")
        if name in _RELIED_ON:
            raise InputError(f"engine_options has {quoted(name)}, on which loading particles relies; leave it out.")
    if "mixture" in modes and not options.get("enforce_eager", True):
        raise InputError(
            "engine_options turns enforce_eager off, but a compiled model does not ask whose tokens it is given, as "
            "serving mixtures needs; use serve='merged' or 'slots', or leave it out."
        )


def vllm_arguments(
    base: Path,
    modules: Sequence[LoraModule],
    modes: Sequence[Serve],
    config: EngineConfig,
    *,
    dtype: str,
    max_model_len: int,
    on_cpu: bool,
    text_only: bool = False,
) -> dict[str, Any]:
    """Arguments of vLLM's `LLM` for an engine with these serving modes; `config.engine_options` override ours.

    With `text_only` vLLM leaves out what a model has to see and to hear with.
    """
    ranks = config.tensor_parallel
    arguments: dict[str, Any] = {
        "model": str(base),
        "dtype": dtype,
        "max_model_len": max_model_len,
        # A compiled or captured model would not ask whose tokens these are.
        "enforce_eager": on_cpu or "mixture" in modes,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "max_logprobs": LOG_PROBS,
        "trust_remote_code": False,
        "use_tqdm_on_load": False,
        "seed": 0,
        "worker_extension_cls": WORKER if ranks == 1 else RANK_WORKER,
    }
    if text_only:
        arguments["language_model_only"] = True
    if config.max_num_seqs is not None:
        arguments["max_num_seqs"] = config.max_num_seqs
    if on_cpu:
        arguments["block_size"] = 32  # short prompts need small blocks to hit
    if not any(name in config.engine_options for name in _CACHE_SIZES):
        if on_cpu:  # vLLM's own estimate reads NUMA files that small machines lack
            arguments["kv_cache_memory_bytes"] = CPU_KV_CACHE_BYTES // ranks
        else:
            arguments["gpu_memory_utilization"] = GPU_SHARE
    if ranks > 1:
        arguments |= {"tensor_parallel_size": ranks, "distributed_executor_backend": "mp"}
    if "slots" in modes:
        rank = max(module.rank for module in modules)
        arguments |= {
            "enable_lora": True,
            "max_loras": config.slots,
            "max_lora_rank": next((r for r in LORA_RANKS if r >= rank), rank),
            # Without it the embeddings and the head get slots too, which every token then pays for.
            "lora_target_modules": sorted({module.name.rpartition(".")[2] for module in modules}),
        }
    return arguments | dict(config.engine_options)
