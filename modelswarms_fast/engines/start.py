"""Starts the engine that the settings ask for."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from modelswarms_fast.config import EngineConfig
from modelswarms_fast.engines.protocol import Engine, Request
from modelswarms_fast.errors import InputError, quoted
from modelswarms_fast.weights.base_model import check_finite
from modelswarms_fast.weights.experts import Experts


def start_engine(
    base: Path,
    experts: Experts | None,
    config: EngineConfig,
    run: str = "run",
    keep_log: Callable[[int, str], None] | None = None,
) -> Engine:
    """Load the base model into a new engine that can serve rows of the experts' layout (None: only the base).

    Args:
        run: names the engines of a cluster.
        keep_log: is given what an engine of a cluster, by its number from 0, has printed.

    Raises:
        InputError: the engine is not installed, or the layout does not fit the base model.
    """
    if config.tensor_parallel > 1:
        _check_parts(text_config(base), config.tensor_parallel)
    if config.cluster is not None:
        from modelswarms_fast.engines.pool.pool import EnginePool
        from modelswarms_fast.engines.pool.ray_actor import Actors

        return EnginePool(base, experts, config, Actors(base, experts, config, run, keep_log))
    if config.own_processes:
        from modelswarms_fast.engines.pool.pool import EnginePool

        return EnginePool(base, experts, config)
    return start_here(base, experts, config)


def start_here(base: Path, experts: Experts | None, config: EngineConfig) -> Engine:
    """One engine in this process, whatever `config.engines` says. Raises InputError as `start_engine`."""
    dtype, longest = dtype_of(base, config), max_model_len_of(base, config)
    if config.engine == "transformers":
        from modelswarms_fast.engines.transformers import TransformersEngine

        return TransformersEngine(base, experts, dtype=dtype, max_model_len=longest)
    from modelswarms_fast.engines.vllm.engine import VllmEngine

    return VllmEngine(base, experts, config, dtype=dtype, max_model_len=longest)


def check_base_answers(engine: Engine, base: Path, prompt: list[int]) -> None:
    """Raise InputError if the base model, which the engine serves, computes NaN or infinity after this prompt."""
    if all(map(math.isfinite, engine.log_probs(Request(None, prompt), 1).values())):
        return
    check_finite(base)
    dtype = str(engine.dtype).removeprefix("torch.")
    raise InputError(
        f"the base model in {base} computes NaN in {dtype}, though all its weights are numbers; use another dtype, "
        "such as float32"
    )


def text_config(base: Path) -> dict[str, Any]:
    """The base model's config.json; of one that wraps a text model, with what its text model has of its own."""
    config: dict[str, Any] = json.loads((base / "config.json").read_text())
    inner = config.get("text_config")
    return config | inner if isinstance(inner, dict) else config


def max_model_len_of(base: Path, config: EngineConfig) -> int:
    """The most tokens of a prompt and its completion: as set, or as many as the base has positions. Raises InputError
    for positions that are no number."""
    file = base / "config.json"
    longest = text_config(base).get("max_position_embeddings", config.max_model_len)
    if type(longest) is not int or longest < 1:
        raise InputError(f"{file}: max_position_embeddings is {quoted(longest)}; make it a whole number above 0")
    return min(config.max_model_len, longest)


def dtype_of(base: Path, config: EngineConfig) -> str:
    """What an engine computes in, by its name in torch.

    With "auto" the checkpoint's own, for both engines: left to itself, vLLM makes half precision of a float32
    checkpoint. float32 on an x86 CPU without AVX-512, where torch computes the half types many times slower: see
    docs/explanation/inside-vllm.md.
    Raises InputError for what torch does not compute in.
    """
    if config.dtype != "auto":
        return config.dtype
    file = base / "config.json"
    base_config = text_config(base)
    own = base_config.get("dtype") or base_config.get("torch_dtype") or "float32"
    if own not in ("float32", "bfloat16", "float16", "float64"):
        raise InputError(f"{file}: dtype is {quoted(own)}; make it float32, bfloat16 or float16")
    if not torch.cuda.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX2":
        return "float32"
    return str(own)


def _check_parts(base_config: dict[str, Any], parts: int) -> None:
    """Raise InputError if a model cannot be split into so many parts."""

    def whole(name: str) -> int | None:
        value = base_config.get(name)
        if value is not None and (type(value) is not int or value < 1):
            raise InputError(
                f"{name} is {quoted(value)} in the base model's config.json; make it a whole number above 0"
            )
        return value

    for name, what, unit in (
        ("num_attention_heads", "attention heads", 1),
        ("intermediate_size", "inner features of its MLP", 1),
        ("vocab_size", "tokens, filled up to a multiple of 64,", 64),
    ):
        count = -(-(whole(name) or parts * unit) // unit) * unit
        if count % parts:
            raise InputError(
                f"tensor_parallel is {parts}, which does not divide the {count} {what} of the base model ({name} in "
                "its config.json); choose a divisor."
            )
    count = whole("num_key_value_heads") or parts
    if count % parts and parts % count:
        raise InputError(
            f"tensor_parallel is {parts}, which neither divides the {count} key-value heads of the base model "
            "(num_key_value_heads in its config.json) nor is a multiple of them; choose one that does."
        )
