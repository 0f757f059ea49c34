"""One layout for adapters that differ in ranks, scalings, modules and dtypes: the union of what each of them has.

A module of the union has the largest rank of the pool; an expert of a smaller rank is padded with zeros, and one that
lacks the module is zero there. So each expert adds the update that it adds alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from modelswarms_fast.errors import InputError, short
from modelswarms_fast.weights.adapter_forms import PREFIX
from modelswarms_fast.weights.adapters import LoraModule, plain_config, ranks_and_alphas
from modelswarms_fast.weights.checkpoint import Checkpoint


@dataclass(frozen=True)
class Union:
    """What the rows of a pool of adapters hold."""

    modules: tuple[LoraModule, ...]
    """Sorted by name; `ranks` is in the order of the experts."""
    shapes: dict[str, tuple[int, ...]]
    """Of each tensor of a row."""
    config: dict[str, Any]
    """An adapter_config.json that describes the rows."""
    whole: tuple[str, ...]
    """Tensors of the base model that an expert has trained whole, by its names; in a row behind PEFT's prefix."""


def unite(experts: Sequence[Checkpoint]) -> Union:
    """The union of these adapters. Raises InputError for modules of different sizes: they are of different bases."""
    own = [{module.name: module for module in expert.modules} for expert in experts]
    modules: list[LoraModule] = []
    shapes: dict[str, tuple[int, ...]] = {}
    for name in sorted(set[str]().union(*own)):
        having = [(expert, of[name]) for expert, of in zip(experts, own, strict=True) if name in of]
        first, module = having[0]
        for expert, _ in having:
            for tensor, axis in ((module.a, 1), (module.b, 0)):
                _check_size(expert, tensor, axis, first)
        ranks = tuple(of[name].rank if name in of else 0 for of in own)
        scaling = next((one.scaling for _, one in having if one.scaling), 0.0)
        modules.append(replace(module, rank=max(ranks), scaling=scaling, ranks=ranks))
        shapes[module.a] = (max(ranks), first.tensors[module.a].shape[1])
        shapes[module.b] = (first.tensors[module.b].shape[0], max(ranks))
    config = plain_config(experts[0].config, experts[0].modules)
    if not config.get("base_model_name_or_path"):
        config["base_model_name_or_path"] = next(
            (base for expert in experts if (base := expert.config.get("base_model_name_or_path"))), None
        )
    whole = {name: expert.tensors[f"{PREFIX}{name}"].shape for expert in experts for name in expert.whole}
    shapes |= {f"{PREFIX}{name}": shape for name, shape in whole.items()}
    # Whatever else these named are copies of the base's tensors, which are left out.
    saved = sorted({name.rpartition(".")[0] for name in whole}) or None
    config["modules_to_save"] = saved
    if list(map(_meaning, modules)) != list(map(_meaning, experts[0].modules)):
        config |= ranks_and_alphas(modules)
        modules = [replace(module, scaling=module.alpha / module.rank) for module in modules]
        if any(len(of) < len(modules) for of in own):
            # Full names, as no pattern of one expert has to fit the modules of the others.
            config |= {"target_modules": [module.name for module in modules]}
    return Union(tuple(modules), shapes, config, tuple(sorted(whole)))


def factors(expert: Checkpoint, modules: Iterable[LoraModule]) -> dict[str, float]:
    """Tensor name -> what B is multiplied by when it is read: the expert's scaling by that of the rows.

    Raises InputError if that is 0 and the expert's is not.
    """
    of_rows = {module.name: module.scaling for module in modules}
    found = {}
    for module in expert.modules:
        scaling = of_rows[module.name]
        if not scaling and module.scaling:
            raise InputError(
                f"{expert.config_file}: {module.name} is scaled by {module.scaling:g}, but by 0 in all experts of the"
                " pool: give their lora_alpha"
            )
        if scaling != module.scaling:
            found[module.b] = module.scaling / scaling
    return found


def widest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The smallest dtype that holds all values of these: float32 where float16 and bfloat16 meet."""
    some = set(dtypes)
    return some.pop() if len(some) == 1 else max(some | {torch.float32}, key=lambda dtype: dtype.itemsize)


def _meaning(module: LoraModule) -> tuple[str, int, float]:
    return module.name, module.rank, module.scaling


def _check_size(expert: Checkpoint, name: str, axis: int, first: Checkpoint) -> None:
    stored, wanted = expert.tensors[name], first.tensors[name].shape[axis]
    if stored.shape[axis] != wanted:
        raise InputError(
            f"{stored.file}: tensor {short(name)} has shape {list(stored.shape)}, but"
            f" {list(first.tensors[name].shape)} in"
            f" {first.config_file.parent}: give experts of the same base model"
        )
