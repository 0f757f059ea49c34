"""Loads the compiled part of the package, `_C`."""

import importlib
import importlib.util
from typing import Any

import torch


def _load() -> Any:
    """modelswarms_fast.ops._C. Raises ImportError with how to build it where that was never done."""
    if importlib.util.find_spec("modelswarms_fast.ops._C") is None:
        raise ImportError(
            "the compiled part of modelswarms_fast is missing; build it with `pip install -e .` in the clone, which "
            "needs g++."
        )
    extension = importlib.import_module("modelswarms_fast.ops._C")
    extension.know_tensors(torch.Tensor, getattr(torch.Tensor, "__dlpack_c_exchange_api__", None))
    return extension


_C = _load()
