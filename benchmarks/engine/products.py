"""The matrix products of SmolLM2-135M-Instruct and nothing else of it: what no engine can do without."""

from __future__ import annotations

import functools
import time

import torch

from benchmarks.engine.engines import HIDDEN, INNER, KEY_VALUE, LAYERS

VOCABULARY = 49152
STEP = 2048  # tokens at once, more than an engine mostly has


@functools.cache
def weights() -> tuple[torch.Tensor, ...]:
    """Of one layer, with q, k, v and gate, up in one product each as vLLM has them, and of the head."""
    shapes = ((HIDDEN + 2 * KEY_VALUE, HIDDEN), (HIDDEN, HIDDEN), (2 * INNER, HIDDEN), (HIDDEN, INNER))
    layers = [torch.randn(shape, dtype=torch.bfloat16) for _ in range(LAYERS) for shape in shapes]
    return (*layers, torch.randn((VOCABULARY, HIDDEN), dtype=torch.bfloat16))


@torch.inference_mode()
def seconds_of(tokens: int, generated: int) -> float:
    """Of the products for so many tokens, `generated` of which go through the head, bfloat16, on all threads."""
    *layers, head = weights()
    wide, narrow = torch.randn((STEP, INNER), dtype=torch.bfloat16), torch.randn((STEP, HIDDEN), dtype=torch.bfloat16)

    def run(some: int) -> None:
        for weight in layers:
            torch.nn.functional.linear((wide if weight.shape[1] == INNER else narrow)[:some], weight)

    run(STEP)
    start = time.perf_counter()
    for first in range(0, tokens, STEP):
        run(min(STEP, tokens - first))
    for first in range(0, generated, STEP):
        torch.nn.functional.linear(narrow[: min(STEP, generated - first)], head)
    return time.perf_counter() - start
