"""Where the tensors of a checkpoint lie in a model of transformers, which may keep several of them as one."""

from __future__ import annotations

from typing import Any

import torch
from transformers.core_model_loading import revert_weight_conversion


def tensors_in(model: Any, name: str, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    """Views of a parameter by the names that its parts have in a checkpoint; {} where a part is no view of it.

    transformers stacks the experts of a layer, for example. How it takes its own stacks apart again is asked of it:
    what it would save of a tensor that holds its own positions says where each part lies.
    """
    positions = torch.arange(parameter.numel(), device="cpu")
    try:
        parts = revert_weight_conversion(model, {name: positions.view(parameter.shape)})
    except (ValueError, RuntimeError, KeyError, IndexError):  # parts of several parameters, for example
        return {}
    found = {}
    for part, at in parts.items():
        first = int(at.flatten()[0])
        strides = [
            int(at.select(axis, 1).flatten()[0]) - first if size > 1 else 1 for axis, size in enumerate(at.shape)
        ]
        if not torch.equal(positions.as_strided(at.shape, strides, first), at):
            return {}
        found[part] = parameter.as_strided(at.shape, strides, parameter.storage_offset() + first)
    return found
