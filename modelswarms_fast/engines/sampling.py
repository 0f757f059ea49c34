"""Tokens of one request, drawn from a generator of its own. vLLM has its own way; the other engines share this one."""

from __future__ import annotations

import torch

from modelswarms_fast.config import Sampling


class Draw:
    """Draws one token after the other; the same seed and logits give the same, whatever shares a batch with them."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._generator = torch.Generator().manual_seed(sampling.seed)

    def token(self, logits: torch.Tensor, seen: torch.Tensor | None = None) -> int:
        """A token by softmax(logits [V] / temperature), of the top_k likeliest, of the likeliest that reach top_p.

        `seen` [n] are the tokens before it, which the repetition penalty makes less likely.
        """
        temperature, top_p, _, top_k, penalty = self._sampling
        if penalty != 1 and seen is not None:
            logits, before = logits.clone(), torch.unique(seen)
            found = logits[before]
            logits[before] = torch.where(found > 0, found / penalty, found * penalty)
        if temperature == 0:
            return int(logits.argmax())
        uniform = float(torch.rand((), generator=self._generator, dtype=torch.float64))
        chances = torch.softmax(logits.double() / temperature, dim=-1)
        if top_p == 1 and top_k == 0:
            return _place(chances.cumsum(dim=-1), uniform)
        chances, order = chances.sort(descending=True)
        if top_k:
            chances = chances[:top_k] / chances[:top_k].sum()
        reached = chances.cumsum(dim=-1)
        count = int((reached - chances < top_p).sum())  # the token that reaches it is one of them
        return int(order[_place(reached[:count], uniform)])


def _place(reached: torch.Tensor, uniform: float) -> int:
    """Where a number from [0, 1) falls among cumulative chances [n] of any sum."""
    place = int(torch.searchsorted(reached, uniform * float(reached[-1]), right=True))
    return min(place, len(reached) - 1)
