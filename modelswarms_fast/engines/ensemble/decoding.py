"""What an ensemble decodes: the requests, and what each expert has read of their texts."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from modelswarms_fast.engines.sampling import Draw

Floats = npt.NDArray[np.float64]


def without_adapters(model: Any) -> Any:
    """The base model inside a model with adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@dataclass
class PendingSequence:
    """A request that runs. Tokens have their number in the common vocabulary."""

    key: int
    sequence: int
    """Which of the distinct texts so far is its own."""
    weights: Floats
    limit: int
    forced: list[int] | None
    tokens: list[int] = field(default_factory=list)
    log_prob: float = 0.0
    greedy: bool = True
    ended: bool = False
    draw: Draw | None = None
    """Draws its tokens; None: the likeliest are taken."""

    @property
    def room(self) -> int:
        """Tokens it may take."""
        return self.limit if self.forced is None else len(self.forced)

    def take(self, likeliest: int, probabilities: torch.Tensor, ends: frozenset[int]) -> None:
        """Add the next token."""
        token = likeliest if self.draw is None else self.draw.token(probabilities.log())
        if self.forced is not None:
            token = self.forced[len(self.tokens)]
            self.greedy &= token == likeliest
            self.log_prob += math.log(max(float(probabilities[token]), math.ulp(0.0)))
        self.tokens.append(token)
        self.ended = len(self.tokens) == self.room or (self.forced is None and token in ends)


class Stream:
    """One expert's state on some sequences: keys and values of what it has read, logits of the next token."""

    def __init__(self, model: Any, prompts: list[list[int]], rows: list[int], device: torch.device) -> None:
        """`rows` are the numbers of the sequences whose prompts these are."""
        self.rows = rows
        width = max(map(len, prompts))
        tokens = torch.zeros((len(prompts), width), dtype=torch.long)
        self._mask = torch.zeros_like(tokens)
        for row, prompt in enumerate(prompts):  # padded on the left, so that all go on from one place
            tokens[row, width - len(prompt) :] = torch.tensor(prompt)
            self._mask[row, width - len(prompt) :] = 1
        self._mask = self._mask.to(device)
        self._cache: Any = None
        self._takes = inspect.signature(without_adapters(model).forward).parameters
        self.logits = self._forward(model, tokens.to(device))

    def advance(self, model: Callable[[], Any], rows: list[int], parents: list[int], tokens: torch.Tensor) -> None:
        """Go on with sequences `rows`, each its parent and one more token; the others are left behind."""
        if not rows:
            self.rows = rows
            return
        at = {row: index for index, row in enumerate(self.rows)}
        kept = [at[parent] for parent in parents]
        if kept != list(range(len(self.rows))):
            index = torch.tensor(kept, device=self._mask.device)
            self._cache.batch_select_indices(index)
            self._mask = self._mask[index]
        self.rows = rows
        self._mask = torch.cat([self._mask, self._mask.new_ones((len(rows), 1))], dim=1)
        self.logits = self._forward(model(), tokens.to(self._mask.device)[:, None])

    def _forward(self, model: Any, tokens: torch.Tensor) -> torch.Tensor:
        more: dict[str, Any] = {}
        if "position_ids" in self._takes:
            more["position_ids"] = (self._mask.cumsum(dim=1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        if "logits_to_keep" in self._takes:
            more["logits_to_keep"] = 1
        output = model(input_ids=tokens, attention_mask=self._mask, past_key_values=self._cache, use_cache=True, **more)
        self._cache = output.past_key_values
        logits: torch.Tensor = output.logits[:, -1]
        return logits
