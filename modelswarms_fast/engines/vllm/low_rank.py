"""LoRA in one call of the extension for each linear layer of a step, whatever particles its tokens belong to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from modelswarms_fast.ops.extension import _C
from modelswarms_fast.ops.validation import DTYPE_CODES


class LowRankPart(NamedTuple):
    """One of the layers that are fused in a linear layer."""

    a: torch.Tensor
    """[blocks, rank, in], the last dimension without gaps."""
    b: torch.Tensor
    """[blocks, out, rank], each block without gaps."""
    column: int
    """At which its outputs begin."""
    scaling: float


class TokenGroups(NamedTuple):
    """The tokens of a step that have weights of their own, by whose they are."""

    rows: int
    """Tokens of the step, those of the base model too."""
    tokens: int
    compiled: Any


def group_tokens(of_token: torch.Tensor, blocks_of: Callable[[int], tuple[int, Sequence[float]]]) -> TokenGroups | None:
    """Group the tokens of a step for the extension; None without it, or where all are the base model's.

    of_token [tokens]: a number for whose each token is, negative for those of the base model. blocks_of(number) gives
    the first of the blocks that make up its weights, and their coefficients.
    """
    if _C is None:
        return None
    order = torch.argsort(of_token, stable=True)
    numbers, counts = torch.unique_consecutive(of_token[order], return_counts=True)
    groups = [
        (count, *blocks_of(number))
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)
        if number >= 0
    ]
    if not groups:
        return None
    tokens = sum(count for count, _, _ in groups)
    own = order[len(order) - tokens :]
    return TokenGroups(len(order), tokens, _C.TokenGroups(own.data_ptr(), tokens, groups))


class LowRank:
    """y[t] += scaling · B A x[t] with the A and B of the particle that token t belongs to, on a CPU (csrc/low_rank.h).

    The tensors of the parts are those that are read at every call, and must stay where they are.
    """

    def __init__(self, parts: Sequence[LowRankPart]) -> None:
        blocks, _, inputs = parts[0].a.shape
        self._parts = parts
        self._dtype = parts[0].a.dtype
        self._compiled = _C.LowRank(
            [
                (a.data_ptr(), a.stride(0), a.stride(1), b.data_ptr(), b.stride(0), a.shape[1], b.shape[1], *where)
                for a, b, *where in parts
            ],
            inputs, blocks, DTYPE_CODES[self._dtype],
        )  # fmt: skip
        self._outputs = max(part.column + part.b.shape[1] for part in parts)
        self._inputs = inputs

    @classmethod
    def of(cls, parts: Sequence[LowRankPart]) -> LowRank | None:
        """None where the extension cannot do it with these tensors."""
        return cls(parts) if cls.able(parts) else None

    @staticmethod
    def able(parts: Sequence[LowRankPart]) -> bool:
        """Whether the extension can do it with these tensors."""
        first = parts[0].a
        return _C is not None and all(
            a.device.type == "cpu" and b.device.type == "cpu"
            and a.dtype == b.dtype == first.dtype and a.dtype in DTYPE_CODES and a.dtype != torch.float64
            and a.stride(2) == 1 and b[0].is_contiguous()
            and a.shape[::2] == first.shape[::2] and b.shape[::2] == a.shape[:2]
            for a, b, _, _ in parts
        )  # fmt: skip

    def add(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        groups: TokenGroups,
        add_up: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        """Add to y [tokens or more, out] what the groups of group_tokens() make of x [tokens or more, in].

        add_up sums the products A x [tokens, width] over processes, each of which sees a part of the inputs.
        """
        if not (x.dtype == y.dtype == self._dtype and x.stride(1) == y.stride(1) == 1):
            raise ValueError(f"x is {x.dtype} and y {y.dtype}, and both must be {self._dtype} without gaps")
        if x.shape[1] != self._inputs or y.shape[1] < self._outputs or min(len(x), len(y)) < groups.rows:
            raise ValueError(
                f"x {list(x.shape)} and y {list(y.shape)} must have {groups.rows} tokens or more, "
                f"{self._inputs} inputs and {self._outputs} outputs"
            )
        compiled, low = groups.compiled, torch.empty((groups.tokens, self._compiled.width))
        ours, theirs = (x.data_ptr(), x.stride(0)), (y.data_ptr(), y.stride(0))
        if add_up is None:
            self._compiled.add(compiled, *ours, low.data_ptr(), *theirs)
            return
        self._compiled.add(compiled, *ours, low.data_ptr(), 0, 0)
        low = add_up(low).contiguous()
        self._compiled.add(compiled, 0, 0, low.data_ptr(), *theirs)
