"""Serving one particle at a time by writing it into the model's own weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from modelswarms_fast.engines.vllm.weight_map import Weight, WeightMap
from modelswarms_fast.errors import InputError, short
from modelswarms_fast.weights.adapter_forms import PREFIX
from modelswarms_fast.weights.experts import Experts
from modelswarms_fast.weights.mixing import ProductRow, row_form
from modelswarms_fast.weights.weight_loader import CopyTarget, LoraMerger, MergeTarget, WeightCopier


class Loaders:
    """Several that write different tensors of one row."""

    @classmethod
    def copying(cls, targets: Sequence[CopyTarget]) -> Loaders:
        """A copier for each number type of the places: vLLM keeps some tensors in float32 whatever the model's is."""
        by_type: dict[torch.dtype, list[CopyTarget]] = {}
        for target in targets:
            by_type.setdefault(target.place.dtype, []).append(target)
        return cls([WeightCopier(own) for own in by_type.values()])

    def __init__(self, loaders: Sequence[LoraMerger | WeightCopier | Loaders]) -> None:
        self._loaders = loaders

    def load(self, row: torch.Tensor) -> None:
        """Write a row [D]."""
        for loader in self._loaders:
            loader.load(row)

    def load_mixture(self, experts: torch.Tensor, mixture: torch.Tensor) -> None:
        """Write the mixture [n] of rows [n, D]."""
        for loader in self._loaders:
            loader.load_mixture(experts, mixture)


class LiveWeights:
    """The serving mode "merged": the live weights are those of one particle. There is one slot."""

    def __init__(
        self,
        loader: LoraMerger | Loaders,
        live: Sequence[torch.Tensor],
        base: Sequence[torch.Tensor],
        experts: Experts,
    ) -> None:
        """`live` is overwritten with `base` to restore the base model."""
        self._loader, self._live, self._base, self._experts = loader, list(live), list(base), experts
        self._product = ProductRow(experts) if experts.combine == "delta" else None

    def load(self, slot: int, row: torch.Tensor) -> None:
        """Serve a row [D]."""
        self._loader.load(row)

    def load_mixture(self, slot: int, mixture: torch.Tensor) -> None:
        """Serve a mixture [n] of the experts."""
        if self._product is not None:
            self._loader.load(self._product.mixed(mixture))
        else:
            self._loader.load_mixture(self._experts.rows, mixture)

    def restore(self) -> None:
        """Put the base model's own weights back, bit for bit."""
        torch._foreach_copy_(self._live, self._base)

    def switch(self, on: bool) -> None:
        """Nothing is to be switched: without a load the weights are the base model's."""


def merged_lora(weights: WeightMap, experts: Experts) -> LiveWeights:
    """W = W0 + scaling · B A for each adapted layer, and tensors that were trained whole as they are.

    Raises InputError for experts that do not fit the model.
    """
    rows = row_form(experts)
    specs = {spec.name: spec for spec in rows.layout.specs}
    targets = []
    found = weights.linear(rows.layer_shapes)
    for module in rows.modules:
        a, b, weight = specs[module.a], specs[module.b], found[module.name]
        _check_untied(weights, weight)
        for live, start in weight.parts:
            targets.append(MergeTarget(a, b, live.clone(), live, module.scaling, start))
    places = [target.live for target in targets]
    base = [target.base for target in targets]
    if not experts.whole:
        return LiveWeights(LoraMerger(targets), places, base, experts)
    copies = []
    wholes = weights.resolve({name: specs[f"{PREFIX}{name}"].shape for name in experts.whole})
    for name, weight in wholes.items():
        _check_untied(weights, weight)
        copies += [CopyTarget(specs[f"{PREFIX}{name}"], live, start=start) for live, start in weight.parts]
    places += [copy.place for copy in copies]
    base += [copy.place.clone() for copy in copies]
    return LiveWeights(Loaders((LoraMerger(targets), Loaders.copying(copies))), places, base, experts)


def _check_untied(weights: WeightMap, weight: Weight) -> None:
    if (other := weights.tied(weight)) is not None:
        raise InputError(
            f"{weight.name} is tied to {other}, which merging would change too; use engine='transformers'."
        )


def full_weights(weights: WeightMap, experts: Experts) -> LiveWeights:
    """Whole checkpoints, tensor by tensor. Raises InputError for experts that do not fit the model."""
    specs = {spec.name: spec for spec in experts.layout.specs}
    found = weights.resolve({name: spec.shape for name, spec in specs.items()})
    # A tied head lies where the embeddings do.
    if len({weight.parts[0].live.data_ptr() for weight in found.values()}) < len(found):
        raise InputError(
            "The experts have a head of their own, but the base model's lies in its embeddings (tied); save the "
            "experts without lm_head.weight, or untie the base model."
        )
    if (name := weights.missing(found)) is not None:
        raise InputError(
            f"The experts have no tensor {short(name)}, which the base model has; use the base they share."
        )
    targets = [
        CopyTarget(specs[name], live, start=start) for name, weight in found.items() for live, start in weight.parts
    ]
    live = [target.place for target in targets]
    return LiveWeights(Loaders.copying(targets), live, [one.clone() for one in live], experts)
