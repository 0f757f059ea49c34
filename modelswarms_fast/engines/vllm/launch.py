"""Imports vLLM and starts it, and leaves the process's environment and vLLM's classes as they were."""

from __future__ import annotations

import gc
import importlib
import inspect
import json
import logging
import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from modelswarms_fast.engines.cores import asked_threads
from modelswarms_fast.engines.vllm.tensor_parallel import Ranks, cores_of_ranks
from modelswarms_fast.errors import EngineError, InputError, short

# How configs call the number of experts of a mixture of experts.
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def import_vllm() -> tuple[Any, set[str], bool]:
    """vLLM's `LLM`, the names of its options, and whether it computes on a CPU. Raises InputError where it is not."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # vLLM heeds its variable only once it starts, and warns of what it lacks while it is imported.
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"].upper())
    try:
        from vllm import LLM
        from vllm.engine.arg_utils import EngineArgs
        from vllm.platforms import current_platform
    except Exception as error:  # what it imports may not fit the torch that is installed, and raises what it will
        raise InputError(
            f"vLLM cannot be imported ({short(error)}); install modelswarms-fast[vllm], or use engine='transformers'."
        ) from error
    known = {*inspect.signature(LLM.__init__).parameters, *(field.name for field in fields(EngineArgs))}
    return LLM, known - {"self", "kwargs"}, bool(current_platform.is_cpu())


def lacks_slots(base: Path, on_cpu: bool) -> str | None:
    """The name of the model's class, if vLLM has no LoRA slots for it."""
    from vllm.model_executor.models.interfaces import supports_lora
    from vllm.model_executor.models.registry import ModelRegistry

    config = json.loads((base / "config.json").read_text())
    names = [str(name) for name in config.get("architectures") or []]
    # With LoRA vLLM computes experts by Triton, whichever layers are adapted, and a CPU has none.
    if on_cpu and any(part.get(name) for name in EXPERTS for part in (config, config.get("text_config") or {})):
        return f"{names[0] if names else 'a mixture of experts'} on a CPU"
    for name in names:
        if name in ModelRegistry.models:
            return None if supports_lora(ModelRegistry.models[name].load_model_cls()) else name
    return None  # built by transformers, with vLLM's own linear layers


def wraps_text(base: Path) -> bool:
    """Whether the base model is a text model with parts around it that see or hear, which vLLM is to leave out.

    Raises InputError if what vLLM imports for it all the same cannot be imported.
    """
    if not isinstance(json.loads((base / "config.json").read_text()).get("text_config"), dict):
        return False
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # a build for another torch raises what it will
        raise InputError(
            f"vLLM imports torchvision for {base}, which wraps a text model, and that fails ({short(error)});"
            " install the "
            f"build of torchvision for torch {torch.__version__}, or use engine='transformers'."
        ) from error
    return True


def environment_of(ranks: int, on_cpu: bool) -> dict[str, str]:
    """Variables that vLLM reads while it starts."""
    variables = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # rows are handed to the worker by reference
        "VLLM_COMPUTE_NANS_IN_LOGITS": "1",  # told with each output; a particle may have overflowed
    }
    if ranks > 1:
        # A fork of a process that has looked for GPUs cannot use them.
        variables["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
        # Ranks end with this process and leave their queues to Python to clear up, which it would warn of.
        warnings = [os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker"]
        variables["PYTHONWARNINGS"] = ",".join(filter(None, warnings))
        if on_cpu:  # vLLM itself would ask for a NUMA node a rank
            cores = sorted(os.sched_getaffinity(0))
            variables["VLLM_CPU_OMP_THREADS_BIND"] = cores_of_ranks(cores, asked_threads(len(cores)), ranks)
    return variables


def start_vllm(
    llm_class: Any,
    arguments: dict[str, Any],
    variables: Mapping[str, str],
    on_cpu: bool,
    *,
    folder: Path,
    whole: bool = False,
) -> Any:
    """Start vLLM, with `whole` to write whole checkpoints. Its environment and classes are as they were afterwards.

    `folder` is for what it needs on the disk.
    """
    from vllm import envs

    from modelswarms_fast.engines.vllm.nameless import meeting_in

    patches: Any = nullcontext()
    if on_cpu and arguments.get("tensor_parallel_size", 1) == 1:
        from modelswarms_fast.engines.vllm.cpu_patches import patched

        patches = patched(whole)
    gc.unfreeze()  # vLLM hides from the garbage collector what it starts with
    gc.collect()  # the memory of an engine that nobody holds
    base, processes = arguments["model"], arguments.get("tensor_parallel_size", 1)
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    if hasattr(envs, "disable_envs_cache"):
        envs.disable_envs_cache()  # an engine before this one has frozen what vLLM reads of the environment
    try:
        with patches, meeting_in(folder):
            llm = llm_class(**arguments)
        leave_errors_to_us()
        return llm
    except ValueError as error:  # vLLM's word for settings that do not fit the model or the memory
        reason, longest = " ".join(str(error).split()), arguments["max_model_len"]
        raise InputError(f"vLLM cannot serve {base} with max_model_len {longest}: {reason}") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        many = f" {processes} processes" if processes > 1 else ""
        raise EngineError(
            f"vLLM could not start{many} for {base} ({reason}); what it said is above, on standard error."
        ) from error
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def leave_errors_to_us() -> None:
    """Have vLLM say nothing of an error of a started engine: it is raised, and said once, in one sentence."""
    if os.environ["VLLM_LOGGING_LEVEL"].upper() == "ERROR":
        logging.getLogger("vllm").setLevel(logging.CRITICAL)


def start_ranks(
    llm_class: Any, arguments: dict[str, Any], variables: Mapping[str, str], on_cpu: bool, *, folder: Path
) -> tuple[Any, Ranks]:
    """As `start_vllm`, with several processes; and what calls them. What they talk through has lost its names."""
    from modelswarms_fast.engines.vllm.nameless import SOCKETS, Rings, forget_sockets

    rings = Rings()
    try:
        llm = start_vllm(llm_class, arguments, {**variables, SOCKETS: str(folder)}, on_cpu, folder=folder)
    finally:
        rings.stop()
    ranks = Ranks(llm)
    rings.forget_names()
    forget_sockets(folder)
    return llm, ranks
