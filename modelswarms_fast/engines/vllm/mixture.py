"""Serves mixtures of LoRA experts without making their weights: each token has its particle's coefficients.

The experts lie beside the base model. With combine="factors" a particle with the coefficients a adds
scaling · (Σ aᵢ Bᵢ)(Σ aⱼ Aⱼ) x: A and B are mixed each by itself, as they are when a particle's weights are made. With
"delta" it adds scaling · Σ aⱼ Bⱼ Aⱼ x (update_mixture.py).

On a CPU each layer mixes A and B in every step for the particles that the step has tokens of (low_rank.py). On a GPU
the sums are taken in another order, with two products for all tokens at once: with h = x Aᵀ for the A of all experts,
scaling · (a ⊗ Σ aⱼ hⱼ) Bᵀ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from modelswarms_fast.engines.vllm.low_rank import LowRank, LowRankPart, TokenGroups, group_tokens
from modelswarms_fast.engines.vllm.update_mixture import UpdateMixer
from modelswarms_fast.errors import InputError
from modelswarms_fast.weights.experts import Experts, LoraModule
from modelswarms_fast.weights.weight_loader import CopyTarget, WeightCopier


class OutputSlice(NamedTuple):
    """The columns that a linear layer has in the output of the module that computes it."""

    module: torch.nn.Module
    """Its forward takes x [..., in] and returns y [..., out], or y and a bias."""
    start: int
    size: int
    inputs: int
    whole: tuple[int, ...] | None = None
    """[out, in] of the layer that this is a part of, if it is."""
    part: tuple[int, int] = (0, 0)
    """Row and column of that layer's weight at which the part begins."""
    sum: Callable[[torch.Tensor], torch.Tensor] | None = None
    """Adds up what all ranks have, where each sees a part of the inputs and y is the sum of all."""


class MixtureServer:
    """Adds its particle's mixture to every token of a step.

    Beside the n experts there is room for one row that is not a mixture of them: the last column of the coefficients.

    Raises InputError for modules that the model does not compute as linear layers, or of another shape there.
    """

    def __init__(
        self, experts: Experts, slices: Mapping[str, OutputSlice], device: torch.device, dtype: torch.dtype
    ) -> None:
        shapes = experts.layer_shapes
        adapted: dict[torch.nn.Module, list[tuple[LoraModule, OutputSlice]]] = {}
        for module in experts.modules:
            if module.name not in slices:
                raise InputError(f"The base model has no linear layer {module.name} to mix in; use serve='merged'.")
            output = slices[module.name]
            shape = shapes[module.name]
            whole = output.whole or (output.size, output.inputs)
            if shape != whole:
                raise InputError(
                    f"{module.name} has shape {list(shape)} by the experts but {list(whole)} in the base model; "
                    "use the base they share."
                )
            adapted.setdefault(output.module, []).append((module, output))
        mixer = UpdateMixer if experts.combine == "delta" else FactorMixer
        self._mixer: UpdateMixer | FactorMixer = mixer(experts, adapted, device, dtype)
        self._count = len(experts.names)
        self._row_slot: int | None = None
        self._coefficients = torch.zeros((1, self._count + 1))
        """[slots + 1, n + 1]; the first for tokens without a particle."""
        self._step: Any = None
        self._handles: list[Any] = []

    def switch(self, on: bool) -> None:
        """Add to what the model computes, or leave it alone."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if on:
            for live, linear in self._mixer.linears:
                self._handles.append(live.register_forward_hook(self._hook(linear)))

    def load_mixture(self, slot: int, mixture: torch.Tensor) -> None:
        """Serve the mixture [n] from a slot. No weights move."""
        if self._row_slot == slot:
            self._row_slot = None
        self._reserve(slot)
        self._coefficients[slot + 1, : self._count] = mixture
        self._coefficients[slot + 1, self._count] = 0.0

    def load(self, slot: int, row: torch.Tensor) -> None:
        """Serve a row [D] that need not be a mixture. Raises RuntimeError while another slot serves such a row."""
        if self._row_slot not in (None, slot):
            raise RuntimeError(
                f"slot {self._row_slot} serves a row already, and only one can be served beside mixtures; "
                "load a mixture there, or restore() first"
            )
        self._row_slot = slot
        self._mixer.load_row(row)
        self._reserve(slot)
        self._coefficients[slot + 1] = 0.0
        self._coefficients[slot + 1, self._count] = 1.0

    def restore(self) -> None:
        """Forget all slots."""
        self._row_slot = None
        self._coefficients = torch.zeros((1, self._count + 1))

    def begin(self, slots: Sequence[int], tokens: np.ndarray[Any, Any]) -> None:
        """Lay out a step: of each request in turn, its slot (-1: the base model) and how many tokens it has in it."""
        if not self._handles or max(slots) < 0:
            self._step = None
            return
        of_token = torch.from_numpy(np.repeat(np.asarray(slots), tokens))
        self._step = self._mixer.step(of_token, self._coefficients, self._row_slot)

    def _reserve(self, slot: int) -> None:
        missing = slot + 2 - len(self._coefficients)
        if missing > 0:
            more = torch.zeros((max(missing, len(self._coefficients)), self._count + 1))
            self._coefficients = torch.cat((self._coefficients, more))

    def _hook(self, linear: Any) -> Any:
        def add(module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if self._step is not None:
                linear.add(inputs[0], output[0] if isinstance(output, tuple) else output, self._step)

        return add


class FactorMixer:
    """The experts as blocks of which A and B are mixed each by itself, and one block for a row that is no mixture."""

    def __init__(
        self,
        experts: Experts,
        adapted: Mapping[torch.nn.Module, Sequence[tuple[LoraModule, OutputSlice]]],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """`adapted`: of each module of the model, the layers that are fused in it."""
        count, specs = len(experts.rows), {spec.name: spec for spec in experts.layout.specs}
        targets: list[list[CopyTarget]] = [[] for _ in range(count + 1)]
        self.linears: list[tuple[torch.nn.Module, _MixedLinear]] = []
        for live, parts in adapted.items():
            linear = _MixedLinear(parts, count + 1, device, dtype)
            self.linears.append((live, linear))
            for index, (module, output) in enumerate(parts):
                row, column = output.part
                for block in range(count + 1):
                    a, b = linear.a[block, index, : module.rank], linear.b[index][:, block, : module.rank]
                    targets[block].append(CopyTarget(specs[module.a], a, start=(0, column)))
                    targets[block].append(CopyTarget(specs[module.b], b, start=(row, 0)))
        copiers = [WeightCopier(own) for own in targets]
        for copier, one in zip(copiers, experts.rows, strict=False):
            copier.load(one)
        self._count, self.load_row = count, copiers[count].load
        self._device = device
        self._grouped = all(linear.compiled is not None for _, linear in self.linears)

    def step(
        self, of_token: torch.Tensor, coefficients: torch.Tensor, row_slot: int | None
    ) -> torch.Tensor | TokenGroups | None:
        """What a step needs: of_token [tokens] slots, negative for the base model; coefficients [slots + 1, n + 1]."""
        if self._grouped:

            def blocks(slot: int) -> tuple[int, list[float]]:
                if slot == row_slot:
                    return self._count, [1.0]
                return 0, coefficients[slot + 1, : self._count].tolist()

            return group_tokens(of_token, blocks)
        width = self._count + bool((of_token == row_slot).any() if row_slot is not None else False)
        return coefficients[:, :width].index_select(0, of_token + 1).to(self._device)


class _MixedLinear:
    """All blocks of one module; the layers that are fused in it are its parts.

    a [blocks, parts, rank, in], and b of each part [out, blocks, rank], on a CPU block by block; lower ranks are padded
    with zeros.
    """

    def __init__(
        self, parts: Sequence[tuple[LoraModule, OutputSlice]], blocks: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        rank = max(module.rank for module, _ in parts)
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.a = torch.zeros((blocks, len(parts), rank, parts[0][1].inputs), **where)
        if device.type == "cpu":
            self.b = [torch.zeros((blocks, output.size, rank), **where).transpose(0, 1) for _, output in parts]
        else:
            self.b = [torch.zeros((output.size, blocks, rank), **where) for _, output in parts]
        self._columns = [(output.start, output.start + output.size, module.scaling) for module, output in parts]
        self._sum = parts[0][1].sum
        low = [
            LowRankPart(self.a[:, index], b.transpose(0, 1), output.start, module.scaling)
            for index, (b, (module, output)) in enumerate(zip(self.b, parts, strict=True))
        ]
        self.compiled = LowRank.of(low)

    def add(self, x: torch.Tensor, y: torch.Tensor, step: torch.Tensor | TokenGroups) -> None:
        """Add to y what the tokens' mixtures make of x.

        x [tokens or more, in], y [tokens or more, out]; rows behind the tokens are padding.
        """
        x, y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        if isinstance(step, TokenGroups):
            assert self.compiled is not None
            self.compiled.add(x, y, step, self._sum)
        else:
            self._add_to_all(x, y, step)

    def _add_to_all(self, x: torch.Tensor, y: torch.Tensor, coefficients: torch.Tensor) -> None:
        """y += scaling · (c ⊗ Σ cⱼ hⱼ) Bᵀ for the coefficients [tokens, m] of the first m blocks."""
        tokens, blocks = coefficients.shape
        _, parts, rank, _ = self.a.shape
        x, y = x[:tokens], y[:tokens]
        # In float32 where the model is in a half type: coefficients rounded to 8 bits would be other particles.
        high = (x @ self.a[:blocks].flatten(0, 2).t()).view(tokens, blocks, parts * rank).float()
        low = torch.bmm(coefficients[:, None], high).view(tokens, parts * rank)
        if self._sum is not None:
            low = self._sum(low)
        low = low.view(tokens, parts, 1, rank)
        spread = (coefficients[:, None, :, None] * low).to(y.dtype).flatten(2)
        for index, (start, stop, scaling) in enumerate(self._columns):
            b = self.b[index][:, :blocks].flatten(1)
            y[:, start:stop].addmm_(spread[:, index], b.t(), alpha=scaling)
