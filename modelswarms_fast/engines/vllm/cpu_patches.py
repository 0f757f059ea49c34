"""What is changed in vLLM's CPU build while it builds our model: its weights stay writable, its LoRA, norms and gated
activations are fast, and classes of transformers are left alone.

Importing this changes nothing. vLLM's classes are changed inside `patched()`, in which the engine builds its model, and
are vLLM's own again behind it: another `LLM` of the process never sees them. Layers keep the methods that they were
built with.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import vllm._custom_ops
import vllm.model_executor.layers.utils
import vllm.model_executor.models.transformers.base
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.platforms import current_platform
from vllm.v1.sample.sampler import Sampler

from modelswarms_fast.engines.vllm.low_rank import LowRank, LowRankPart, TokenGroups, group_tokens
from modelswarms_fast.ops import swiglu

try:
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
except ImportError:  # of other versions; then whole checkpoints of a mixture of experts are refused as packed
    CPUUnquantizedExperts = None

# Numbers in the widest vector of vLLM's CPU kernels.
VECTOR = 32
# Without AVX-512 these cut bfloat16 off instead of rounding it.
ROUNDS = torch.backends.cpu.get_cpu_capability() != "AVX2"


class RowPart(NamedTuple):
    """What a stacked B that vLLM was given stands for, where slots are rows: part of a row, with B unscaled."""

    scaling: float
    a: torch.Tensor
    """[R, 1, rank, in] of the rows that are served where they lie."""
    b: torch.Tensor
    """[R, 1, out, rank]"""


class _Table(NamedTuple):
    """The LoRA of a linear layer, of all rows that lie in one memory."""

    parts: list[LowRankPart]
    compiled: LowRank | None
    """None where the extension cannot do it."""


class GroupedPunicaWrapper(PunicaWrapperCPU):  # type: ignore[misc]
    """LoRA on a CPU in one call of the extension a layer, or without it as two matrix products an adapter.

    The stock one gathers a whole [out, rank] matrix for every token, which is 3 to 10 times slower, and reads
    the last slot for tokens without an adapter (their index is -1). Here those tokens are in no group.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.begin()

    def begin(self) -> None:
        """Nothing is known of the model's layers or of a step."""
        self.rows: dict[torch.Tensor, RowPart] = {}
        """By stacked B."""
        self.in_room: dict[int, int] = {}
        """Slots that serve a row where it lies → which of these rows."""
        self._layers: dict[tuple[int, float], tuple[Any, list[_Table]]] = {}
        """By the identity of a layer's stacked B: these; the slots' own memory, and that of rows that lie elsewhere."""
        self.group(torch.empty(0, dtype=torch.long))

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Group the tokens of a step by slot, once for all layers."""
        super().update_metadata(*args, **kwargs)
        self.group(self.token_lora_indices)

    def group(self, slots: torch.Tensor) -> None:
        """The slot of each token of a step [tokens], -1 for the base model."""
        self._slots = slots.clone()
        used = [slot for slot in torch.unique(slots).tolist() if slot >= 0]
        in_room = {slot: self.in_room[slot] for slot in used if slot in self.in_room}
        self._blocks = [{slot: slot for slot in used if slot not in in_room}, in_room]
        """Of each table, the slots of the step → their blocks there."""
        self._groups = [self._group_blocks(blocks, used) for blocks in self._blocks]

    def _group_blocks(self, blocks: dict[int, int], used: list[int]) -> TokenGroups | None:
        if not blocks:
            return None
        slots = self._slots
        for slot in used:
            if slot not in blocks:
                slots = torch.where(slots == slot, -1, slots)
        return group_tokens(slots, lambda slot: (blocks[slot], [1.0]))

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
        if not any(self._blocks):
            return
        x, y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        key = (id(lora_b_stacked), scale)
        given, tables = self._layers.get(key, (None, []))
        if given is not lora_b_stacked:
            tables = self._tables(lora_a_stacked, lora_b_stacked, scale, output_slices)
            self._layers[key] = lora_b_stacked, tables
        for (parts, compiled), blocks, groups in zip(tables, self._blocks, self._groups, strict=False):
            if groups is not None and compiled is not None and x.dtype == y.dtype == parts[0].a.dtype:
                compiled.add(x, y, groups)
                continue
            for slot, block in blocks.items():
                tokens = torch.nonzero(self._slots == slot).flatten()
                for a, b, column, scaling in parts:
                    y[tokens, column : column + b.shape[1]] += scaling * (x[tokens] @ a[block].t() @ b[block].t())

    def _tables(
        self, a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...], scale: float, sizes: tuple[int, ...]
    ) -> list[_Table]:
        """The slots' own memory and, where slots are rows, that of the others."""
        stacked = list(zip(a, b, itertools.accumulate(sizes, initial=0), strict=False))
        if not any(one in self.rows for one in b):
            return [_table([LowRankPart(a[:, 0], b[:, 0], column, scale) for a, b, column in stacked])]
        # A part that is not adapted is zero.
        adapted = [(a, b, column, self.rows[b]) for a, b, column in stacked if b in self.rows]
        return [
            _table([LowRankPart(a[:, 0], b[:, 0], column, scale * row.scaling) for a, b, column, row in adapted]),
            _table([LowRankPart(row.a[:, 0], row.b[:, 0], column, scale * row.scaling) for *_, column, row in adapted]),
        ]


def _table(parts: list[LowRankPart]) -> _Table:
    return _Table(parts, LowRank.of(parts))


def rms_norm(
    self: Any, x: torch.Tensor, residual: torch.Tensor | None = None
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """RMSNorm by the kernel that vLLM has for it, which writes over x and residual as on a GPU.

    vLLM itself takes it on other processors only, and a dozen torch operators on x86.
    """
    weight = self.weight.data
    fits = self.variance_size_override is None and self.has_weight and weight.dtype == x.dtype
    fits = fits and (ROUNDS or x.dtype != torch.bfloat16)
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


_GATES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": partial(torch.nn.functional.gelu, approximate="tanh"),
}


def keep_experts(self: Any, layer: torch.nn.Module) -> None:
    """Leave the experts of a mixture of experts as the checkpoint has them, and compute them expert by expert.

    vLLM packs them for its kernel, after which they could not be written again.
    """
    gate = _GATES.get(str(self.moe_config.activation.value))
    if gate is None:
        assert _PACK_EXPERTS is not None
        _PACK_EXPERTS(self, layer)
    else:
        self.apply = partial(plain_experts, self, gate)


def plain_experts(
    self: Any,
    gate: Callable[[torch.Tensor], torch.Tensor],
    output: torch.Tensor,
    hidden_states: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    *,
    apply_router_weight_on_input: bool,
    **kwargs: Any,
) -> None:
    """output [tokens, out] = Σ over a token's experts of weight · W2 (gate(W1 x) · W3 x), with W1 over W3 in w1."""
    output.zero_()
    for expert in torch.unique(topk_ids).tolist():
        tokens, choices = torch.where(topk_ids == expert)
        bias = [None if one is None else one[expert] for one in (self.w1_bias, self.w2_bias)]
        inner, up = torch.nn.functional.linear(hidden_states[tokens], w1[expert], bias[0]).chunk(2, dim=-1)
        out = torch.nn.functional.linear(gate(inner) * up, w2[expert], bias[1])
        if not apply_router_weight_on_input:
            out = out * topk_weights[tokens, choices, None].to(out.dtype)
        output.index_add_(0, tokens, out)


class FloatLogits:
    """A sampler's forward that is given logits [sequences, tokens] in float32, in the same memory in every step.

    vLLM's own converts them into new memory. Memory of this size is the system's again after each step, and new pages
    cost as much as the conversion.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward, self._memory = forward, torch.empty(0)

    def __call__(self, logits: torch.Tensor | None, *args: Any, **kwargs: Any) -> Any:
        """What the sampler's own forward makes of them."""
        if logits is None or logits.dtype == torch.float32:
            return self._forward(logits, *args, **kwargs)
        if self._memory.numel() < logits.numel():
            self._memory = torch.empty(logits.numel())
        return self._forward(self._memory[: logits.numel()].view(logits.shape).copy_(logits), *args, **kwargs)


class SeededDraws:
    """A sampler's forward in which a request with a seed draws only once its whole prompt has been read.

    vLLM draws a token for every sequence of a step, even if only a part of its prompt fitted in. It sets the generator
    back then, which a CPU's generators cannot do: the step fails. A draw that is not taken back would also make an
    answer depend on what shared a step with its prompt.
    """

    def __init__(self, forward: Callable[..., Any], runner: Any) -> None:
        self._forward, self._runner = forward, runner
        self._waiting = False
        """Whether the last step left a generator out."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the sampler's own forward says."""
        batch = self._runner.input_batch
        if batch.generators or self._waiting:
            self._waiting = False
            unread = self._runner.discard_request_mask.np
            for index, name in enumerate(batch.req_ids):
                generator = self._runner.requests[name].generator
                if generator is not None and unread[index]:
                    batch.generators.pop(index, None)
                    self._waiting = True
                elif generator is not None:
                    batch.generators[index] = generator
        return self._forward(*args, **kwargs)


def keep_logits(runner: Any) -> None:
    """Let the sampler of this model runner, and no other, convert its logits in memory that it keeps, and draw as
    `SeededDraws` says."""
    sampler = getattr(runner, "sampler", None)
    if current_platform.is_cpu() and isinstance(sampler, Sampler):
        sampler.forward = SeededDraws(FloatLogits(sampler.forward), runner)


_CHANGES: list[tuple[Any, str, Any]] = [
    # Packed into oneDNN or SGL handles, a linear layer's weights could not be written again in place.
    (vllm._custom_ops, "_supports_onednn", False),
    (vllm.model_executor.layers.utils, "check_cpu_sgl_kernel", lambda n, k, dtype: False),
    (
        type(current_platform),
        "get_punica_wrapper",
        classmethod(lambda cls: f"{__name__}.{GroupedPunicaWrapper.__name__}"),
    ),
    # Here nothing is compiled, and a class of transformers that is made ready for it can serve nobody else.
    (
        vllm.model_executor.models.transformers.base.Base,
        "_decorate_cls_for_torch_compile",
        lambda self, *args, **kwargs: None,
    ),
    (RMSNorm, "forward_cpu", rms_norm),
    (SiluAndMul, "forward_cpu", lambda self, x: swiglu(x)),
]
"""Owner, attribute, value: what vLLM looks up while it builds a model."""
_PACK_EXPERTS = getattr(CPUUnquantizedExperts, "process_weights_after_loading", None)
_EXPERTS_STAY: list[tuple[Any, str, Any]] = (
    [] if _PACK_EXPERTS is None else [(CPUUnquantizedExperts, "process_weights_after_loading", keep_experts)]
)
"""Only where whole checkpoints are served: vLLM's packed experts are faster."""
_INHERITED = object()


def apply(whole: bool = False) -> Callable[[], None]:
    """Change vLLM, until what is returned is called; `whole`: for whole checkpoints."""
    changes = [*_CHANGES, *_EXPERTS_STAY] if whole else _CHANGES
    before = [(owner, name, vars(owner).get(name, _INHERITED)) for owner, name, _ in changes]
    for owner, name, value in changes:
        setattr(owner, name, value)

    def undo() -> None:
        for owner, name, value in before:
            if value is _INHERITED:
                delattr(owner, name)
            else:
                setattr(owner, name, value)

    return undo


@contextmanager
def patched(whole: bool = False) -> Iterator[None]:
    """Models that vLLM builds in here are ours, and with `whole` those whose whole checkpoints are written."""
    undo = apply(whole)
    try:
        yield
    finally:
        undo()
