"""The names inside vLLM that this package relies on, and the check that the installed version has them.

Another version may have renamed one. Found when an engine starts, that is one sentence, and no wrong answer.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from modelswarms_fast.errors import InputError

KNOWN = "0.26 to 0.33"
"""Versions in which these names were found; docs/explanation/inside-vllm.md says which were run."""

Need = Literal["engine", "slots", "mixture", "cpu"]
"""What a name is for: every engine, a serving mode, or vLLM's CPU build."""


class Name(NamedTuple):
    """A name inside vLLM."""

    need: Need
    module: str
    path: str
    """Of classes, functions and methods from the module on, with dots."""
    has: tuple[str, ...] = ()
    """Parameters of a function; fields and attributes of a class, those that its methods set on themselves included."""


_LINEAR = "vllm.model_executor.layers.linear"
_ENGINE = "vllm.v1.engine.llm_engine"
_LORA = "vllm.lora.model_manager"

RELIED_ON = (
    Name("engine", "vllm", "LLM.__init__"),
    Name("engine", "vllm", "LLM.collective_rpc", ("method", "args")),
    Name("engine", "vllm", "LLM.get_tokenizer"),
    Name(
        "engine", "vllm", "SamplingParams",
        ("temperature", "max_tokens", "logprobs", "prompt_logprobs", "detokenize", "output_kind", "extra_args",
         "top_p", "seed"),
    ),
    Name("engine", "vllm.sampling_params", "RequestOutputKind.FINAL_ONLY"),
    Name(
        "engine", "vllm.engine.arg_utils", "EngineArgs",
        (
            "model", "dtype", "max_model_len", "max_num_seqs", "enforce_eager", "enable_prefix_caching",
            "disable_log_stats", "trust_remote_code", "use_tqdm_on_load", "seed", "worker_extension_cls", "block_size",
            "kv_cache_memory_bytes", "gpu_memory_utilization", "tensor_parallel_size", "distributed_executor_backend",
        ),
    ),
    Name("engine", _ENGINE, "LLMEngine", ("model_config", "engine_core")),
    Name("engine", _ENGINE, "LLMEngine.add_request", ("request_id", "prompt", "params", "lora_request")),
    Name("engine", _ENGINE, "LLMEngine.step"),
    Name("engine", "vllm.v1.engine.core_client", "InprocClient.get_output"),
    Name("engine", "vllm.v1.engine", "EngineCoreOutputs", ("outputs",)),
    Name("engine", "vllm.v1.engine", "EngineCoreOutput", ("request_id", "num_nans_in_logits")),
    Name("engine", _ENGINE, "LLMEngine.abort_request", ("request_ids",)),
    Name("engine", _ENGINE, "LLMEngine.has_unfinished_requests"),
    Name("engine", "vllm.config", "ModelConfig", ("model", "dtype", "use_mla")),
    Name("engine", "vllm.lora.layers", "BaseLayerWithLoRA"),
    Name("engine", "vllm.outputs", "RequestOutput", ("request_id", "finished", "outputs", "prompt_logprobs")),
    Name("engine", "vllm.distributed", "tensor_model_parallel_all_reduce"),
    Name(
        "engine", "vllm.distributed.device_communicators.shm_broadcast", "ShmRingBuffer",
        ("is_creator", "shared_memory"),
    ),
    Name("engine", _LINEAR, "LinearBase", ("tp_size", "tp_rank")),
    Name("engine", _LINEAR, "ColumnParallelLinear", ("gather_output",)),
    Name("engine", _LINEAR, "RowParallelLinear", ("input_is_parallel", "reduce_results")),
    Name("slots", "vllm.lora.request", "LoRARequest", ("lora_name", "lora_int_id", "lora_path")),
    Name("slots", "vllm.engine.arg_utils", "EngineArgs",
         ("enable_lora", "max_loras", "max_lora_rank", "lora_target_modules")),
    Name("slots", "vllm.model_executor.models.interfaces", "supports_lora", ("model",)),
    Name("slots", "vllm.model_executor.models.registry", "ModelRegistry"),
    Name("slots", "vllm.lora.worker_manager", "WorkerLoRAManager", ("_adapter_manager",)),
    Name(
        "slots", _LORA, "LoRAModelManager",
        ("lora_slots", "lora_index_to_id", "modules", "_last_mapping"),
    ),
    Name("slots", _LORA, "LoRAModelManager.create_dummy_lora", ("lora_id", "rank", "embedding_modules")),
    Name("slots", _LORA, "LoRAModelManager.add_adapter"),
    Name("slots", _LORA, "LoRAModelManager.activate_adapter", ("lora_id",)),
    Name("slots", _LORA, "LoRAModelManager.pin_adapter", ("lora_id",)),
    Name(
        "slots", "vllm.lora.layers.base_linear", "BaseLinearLayerWithLoRA",
        ("lora_a_stacked", "lora_b_stacked", "base_layer"),
    ),
    Name("mixture", "vllm.v1.core.sched.output", "SchedulerOutput", ("scheduled_new_reqs",)),
    Name("mixture", "vllm.v1.core.sched.output", "NewRequestData", ("req_id", "sampling_params")),
    Name("cpu", "vllm._custom_ops", "_supports_onednn"),
    Name("cpu", "vllm.model_executor.layers.utils", "check_cpu_sgl_kernel", ("n", "k", "dtype")),
    Name("cpu", "vllm.platforms.cpu", "CpuPlatform.get_punica_wrapper"),
    Name(
        "cpu", "vllm.lora.punica_wrapper.punica_cpu", "PunicaWrapperCPU.add_lora_linear",
        ("y", "x", "lora_a_stacked", "lora_b_stacked", "scale", "output_slices"),
    ),
    Name("cpu", "vllm.lora.punica_wrapper.punica_cpu", "PunicaWrapperCPU.update_metadata"),
    Name("cpu", "vllm.lora.punica_wrapper.punica_cpu", "PunicaWrapperCPU.token_lora_indices"),
    Name("cpu", "vllm.model_executor.layers.layernorm", "RMSNorm.forward_native", ("x", "residual")),
    Name(
        "cpu", "vllm.model_executor.layers.layernorm", "RMSNorm",
        ("variance_size_override", "has_weight", "variance_epsilon", "weight"),
    ),
    Name("cpu", "vllm.model_executor.layers.activation", "SiluAndMul.forward_cpu", ("x",)),
    Name("cpu", "vllm.v1.sample.sampler", "Sampler.forward", ("logits",)),
    Name(
        "cpu", "vllm.v1.worker.gpu_model_runner", "GPUModelRunner", ("discard_request_mask", "input_batch", "requests")
    ),
    Name("cpu", "vllm.v1.worker.gpu_input_batch", "InputBatch", ("generators", "req_ids")),
    Name("cpu", "vllm.v1.worker.gpu_input_batch", "CachedRequestState", ("generator",)),
    Name("cpu", "vllm.model_executor.models.transformers.base", "Base._decorate_cls_for_torch_compile"),
)  # fmt: skip

# One of the two model runners is at work, as vLLM decides; `model_runners` looks which when the model is there.
RUNNERS = (
    Name(
        "mixture", "vllm.v1.worker.gpu_model_runner", "GPUModelRunner",
        ("requests", "input_batch", "device", "model_config", "get_model", "lora_manager"),
    ),
    Name(
        "mixture", "vllm.v1.worker.gpu_model_runner", "GPUModelRunner._prepare_inputs",
        ("scheduler_output", "num_scheduled_tokens"),
    ),
    Name("mixture", "vllm.v1.worker.gpu_input_batch", "InputBatch", ("req_ids",)),
    Name(
        "mixture", "vllm.v1.worker.gpu.model_runner", "GPUModelRunner",
        ("req_states", "device", "model_config", "get_model", "lora_manager"),
    ),
    Name("mixture", "vllm.v1.worker.gpu.model_runner", "GPUModelRunner.prepare_inputs", ("scheduler_output",)),
    Name("mixture", "vllm.v1.worker.gpu.input_batch", "InputBatch", ("req_ids", "num_scheduled_tokens")),
    Name("mixture", "vllm.v1.worker.gpu.states", "RequestState", ("req_id_to_index",)),
)  # fmt: skip


def check_names(needs: Iterable[str], names: Iterable[Name] = RELIED_ON) -> None:
    """Raise InputError for the first name that the installed vLLM lacks; `needs` are those of the engine.

    The modules of these names are those that vLLM imports when it starts.
    """
    wanted = set(needs)
    for name in names:
        if name.need in wanted and (missing := lacking(name)) is not None:
            import vllm

            what = {"engine": "engine='vllm'", "cpu": "engine='vllm' on a CPU"}.get(name.need, f"serve={name.need!r}")
            raise InputError(
                f"vLLM {vllm.__version__} has no {missing}, on which {what} relies; install a version of vLLM that is "
                f"known to have it ({KNOWN}), or use engine='transformers'."
            )


def lacking(name: Name) -> str | None:
    """What the installed vLLM lacks of a name, with dots; None if it has all of it."""
    where = name.module
    try:
        found: Any = importlib.import_module(name.module)
        for part in name.path.split("."):
            where += f".{part}"
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return where
    if inspect.isclass(found):
        known = _attributes(found)
        return next((f"{where}.{one}" for one in name.has if one not in known), None)
    known = set(inspect.signature(found).parameters) if name.has else set()
    return next((f"parameter {one!r} of {where}" for one in name.has if one not in known), None)


def _attributes(found: type) -> set[str]:
    """Of objects of a class: what it and its bases define, annotate, or name in the code of their methods."""
    names = set(dir(found))
    for owner in found.__mro__:
        names |= set(inspect.get_annotations(owner))
        for member in vars(owner).values():
            function = inspect.unwrap(getattr(member, "__func__", member)) if callable(member) else None
            if inspect.isfunction(function):
                names |= set(function.__code__.co_names)
    return names
