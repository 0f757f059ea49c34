"""The compiled part of the package, or None where it was never built."""

import importlib
import importlib.util
from typing import Any

import torch


def _load() -> Any:
    """modelswarms_fast.ops._C, or None where it was never built; one that was built and does not load raises."""
    if importlib.util.find_spec("modelswarms_fast.ops._C") is None:
        return None
    extension = importlib.import_module("modelswarms_fast.ops._C")
    extension.know_tensors(torch.Tensor, getattr(torch.Tensor, "__dlpack_c_exchange_api__", None))
    return extension


_C = _load()
