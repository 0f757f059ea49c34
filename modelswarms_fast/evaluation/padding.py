"""Prompts that are made as long as the longest of their batch, by tokens that the model reads like any others.

Engines mask their own padding. This is for the numbers of code that generates from padded batches without a mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Padding:
    """How the prompts of a utility's examples are padded."""

    token: int
    """That fills prompts up."""
    side: Literal["left", "right"]
    """Where it is put."""
    batches: Mapping[str, Sequence[range]]
    """By split, the examples whose prompts are as long as the longest of them; each example is in one range."""

    def padded(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        """The prompts of one batch, as token ids."""
        longest = max(map(len, prompts), default=0)
        fills = [[self.token] * (longest - len(prompt)) for prompt in prompts]
        pairs = zip(fills, prompts, strict=True)
        return [fill + prompt if self.side == "left" else prompt + fill for fill, prompt in pairs]

    def batch_of(self, split: str, example: int) -> range:
        """The batch that an example is in."""
        return next(batch for batch in self.batches[split] if example in batch)


def batches_of(count: int, size: int, first: int = 0) -> list[range]:
    """Consecutive batches of so many of `count` examples, the last perhaps smaller; the first example is `first`."""
    return [range(start, min(start + size, first + count)) for start in range(first, first + count, size)]
