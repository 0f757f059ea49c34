"""What is changed in vLLM's CPU build, on import, before it builds a model: weights stay writable, and LoRA, norms and
gated activations are fast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import vllm._custom_ops
import vllm.model_executor.layers.utils
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.platforms import current_platform

from modelswarms_fast.ops import swiglu

# Numbers in the widest vector of vLLM's CPU kernels.
VECTOR = 32

# Ranks of all slots together up to which every token is multiplied by the A of every slot.
ALL_SLOTS = 64


class GroupedPunicaWrapper(PunicaWrapperCPU):  # type: ignore[misc]
    """LoRA on a CPU as two matrix products an adapter, over the tokens that use it.

    The stock one gathers a whole [out, rank] matrix for every token, which is 3 to 10 times slower, and reads
    the last slot for tokens without an adapter (their index is -1). Here those tokens are in no group. Where several
    adapters of low ranks share a step, two products with all slots at once, of which each token keeps its own part,
    cost less than many small ones.
    """

    _groups: list[tuple[int, slice | torch.Tensor]]
    _slots: torch.Tensor
    _foreign: torch.Tensor | None
    """[tokens, S, 1] whether a slot is not the token's own; made when it is first asked for in a step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scalings: dict[torch.Tensor, float] = {}
        """Of each stacked B that holds it unscaled, as a row has it."""

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Group the tokens of a step by slot, once for all layers."""
        super().update_metadata(*args, **kwargs)
        self._groups, self._foreign = [], None
        slots = self._slots = self.token_lora_indices
        for slot in torch.unique(slots).tolist():
            if slot < 0:
                continue
            tokens = torch.nonzero(slots == slot).flatten()
            first, last = int(tokens[0]), int(tokens[-1])
            # Requests are submitted particle by particle, so a slot's tokens are mostly one slice: no copies.
            contiguous = last - first + 1 == tokens.numel()
            self._groups.append((slot, slice(first, last + 1) if contiguous else tokens))

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        """y += scale · scaling · (x Aᵀ) Bᵀ, slice by slice.

        x [tokens, in], y [tokens, out], A [S, 1, rank, in], B [S, 1, out, rank].
        """
        x, y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        count, _, rank, _ = lora_a_stacked[0].shape
        if len(self._groups) > 1 and count * rank <= ALL_SLOTS:
            every_b = [b[:, 0].transpose(1, 2).reshape(-1, b.shape[2]) for b in lora_b_stacked]
            # A token's part of another slot is 0, and so is its product with anything but infinity and NaN.
            if all(b.sum().isfinite() for b in every_b):
                scales = [scale * self.scalings.get(b, 1.0) for b in lora_b_stacked]
                self._add_all_slots(y, x, lora_a_stacked, every_b, scales, output_slices)
                return
        for slot, tokens in self._groups:
            inputs = x[tokens]
            start = 0
            for a, b, size in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                low = inputs @ a[slot, 0].t()
                factor = scale * self.scalings.get(b, 1.0)
                if isinstance(tokens, slice):
                    y[tokens, start : start + size].addmm_(low, b[slot, 0].t(), alpha=factor)
                else:
                    y[tokens, start : start + size] += factor * (low @ b[slot, 0].t())
                start += size

    def _add_all_slots(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        every_b: Sequence[torch.Tensor],
        scales: Sequence[float],
        output_slices: tuple[int, ...],
    ) -> None:
        """The same with B of all slots below each other [S · rank, out]."""
        tokens, start = len(self._slots), 0
        for a, b, scale, size in zip(lora_a_stacked, every_b, scales, output_slices, strict=True):
            count, _, rank, _ = a.shape
            if self._foreign is None:
                self._foreign = (self._slots[:, None] != torch.arange(count))[:, :, None]
            low = (x[:tokens] @ a.reshape(count * rank, -1).t()).view(tokens, count, rank)
            low.masked_fill_(self._foreign, 0.0)
            y[:tokens, start : start + size].addmm_(low.view(tokens, -1), b, alpha=scale)
            start += size


def rms_norm(
    self: Any, x: torch.Tensor, residual: torch.Tensor | None = None
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """RMSNorm by the kernel that vLLM has for it, which writes over x and residual as on a GPU.

    vLLM itself takes it on other processors only, and a dozen torch operators on x86.
    """
    weight = self.weight.data
    fits = self.variance_size_override is None and self.has_weight and weight.dtype == x.dtype
    if not fits or x.shape[-1] % VECTOR or not x.is_contiguous():
        return self.forward_native(x, residual)  # type: ignore[no-any-return]
    if residual is None:
        out = torch.empty_like(x)
        torch.ops._C.rms_norm(out, x, weight, self.variance_epsilon)
        return out
    if not residual.is_contiguous():
        return self.forward_native(x, residual)  # type: ignore[no-any-return]
    torch.ops._C.fused_add_rms_norm(x, residual, weight, self.variance_epsilon)
    return x, residual


if current_platform.is_cpu():
    # Packed into oneDNN or SGL handles, a linear layer's weights could not be written again in place.
    vllm._custom_ops._supports_onednn = False
    vllm.model_executor.layers.utils.check_cpu_sgl_kernel = lambda n, k, dtype: False
    type(current_platform).get_punica_wrapper = classmethod(lambda cls: f"{__name__}.{GroupedPunicaWrapper.__name__}")
    RMSNorm.forward_cpu = rms_norm
    SiluAndMul.forward_cpu = lambda self, x: swiglu(x)
