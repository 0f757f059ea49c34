"""Which engine serves model_swarm's commands and functions: settings as texts, devices, the base's own tokenizer."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from modelswarms_fast.config import EngineConfig
from modelswarms_fast.errors import InputError, quoted

_FLAGS = {"engine": "--engine", "dtype": "--dtype", "rounding": "--rounding"}
# A particle has weights here, of which files are written, and every example is answered.
_FIXED = ("state", "combine", "export_rank", "stop_early", "race", "engine_options")


def engine_fields(engine: str, dtype: str, rounding: str, further: Mapping[str, str]) -> dict[str, Any]:
    """Fields of EngineConfig. `further`: values as texts, of its fields or of vLLM's own options.

    Raises InputError for what the engine cannot be given.
    """
    found: dict[str, Any] = {"engine": engine, "dtype": dtype, "rounding": rounding, "state": "weights"}
    own = {one.name for one in fields(EngineConfig)}
    options: dict[str, Any] = {}
    for name, text in further.items():
        if name in _FLAGS:
            raise InputError(f"--engine_set has {name}; give {_FLAGS[name]} in its place.")
        if name in _FIXED:
            raise InputError(f"--engine_set has {name}, which cannot be set here; leave it out.")
        (found if name in own else options)[name] = _value(text)
    if options:
        found["engine_options"] = options
    EngineConfig(**found)
    return found


def _value(text: str) -> Any:
    """A number, true or false where the text is one as JSON has it; else the text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) else text


def use_devices(gpus: Sequence[int]) -> None:
    """Let this process see these GPUs alone, by their places among those that it was given.

    Call it before CUDA is used. Raises InputError for a place that there is not.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not given:  # none hidden, or all: then they only count processes
        if given is None:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
        return
    names = given.split(",")
    if max(gpus) >= len(names):
        raise InputError(f"--gpus has {max(gpus)} but CUDA_VISIBLE_DEVICES is {quoted(given)}; give places in it.")
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names[one] for one in gpus)


def count_engines(gpus: Sequence[int]) -> int:
    """One engine a GPU; on a CPU one for all cores."""
    import torch

    return max(min(len(gpus), torch.cuda.device_count()), 1)


def tokenizer_of(base: Path) -> Any:
    """The tokenizer as the base model's folder has it, its side of padding included. Raises InputError."""
    from transformers import AutoTokenizer

    from modelswarms_fast.weights.base_model import loading

    with loading(base):
        return AutoTokenizer.from_pretrained(base, trust_remote_code=False)
