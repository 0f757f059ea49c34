"""How long asking a model takes, by arithmetic: parameters, tokens, and the speed of two matrix products here.

A step of an engine multiplies its tokens with every weight of the model once. Products of few and of many tokens with a
weight of a layer's size say what a token costs, in the base's number type. A product of few tokens with a weight that
caches do not hold says what a step costs besides: the reading of the weights. Both are scaled to the model's size.
Attention, loads, scores, the update, and the start of the engine are left out.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from modelswarms_fast.config import EngineConfig, Serve
from modelswarms_fast.engines.start import dtype_of
from modelswarms_fast.engines.transformers import BATCH
from modelswarms_fast.weights.base_model import loading

FEW = 16  # tokens
MANY = {"cpu": 128, "cuda": 2048}  # enough to be bound by arithmetic
LAYER_BYTES = {"cpu": 8 << 20, "cuda": 64 << 20}
UNCACHED_BYTES = 64 << 20
SECONDS = 0.08  # for each product
STEP = 256  # sequences in a step of vLLM, by its default
BLOCK = 32  # tokens of a prefix that vLLM finds in its cache


@dataclass(frozen=True)
class Speed:
    """Seconds for each weight of a model: of a step without tokens, and of each token in it."""

    step: float
    token: float


@dataclass(frozen=True)
class Asked:
    """What one particle is asked on a split."""

    prompts: list[list[int]]
    """Token ids, continuations included."""
    generated: int
    """Of these, so many are completed."""
    new_tokens: int
    """At most, of each of these."""

    def read(self, prefixes: bool) -> int:
        """Tokens that are computed of the prompts; `prefixes`: a beginning that several have is computed once."""
        if not prefixes:
            return sum(map(len, self.prompts))
        seen: set[int] = set()
        count = 0
        for prompt in self.prompts:
            name = 0
            for start in range(0, len(prompt), BLOCK):
                block = tuple(prompt[start : start + BLOCK])
                name = hash((name, block))
                if name not in seen or len(block) < BLOCK:
                    seen.add(name)
                    count += len(block)
        return count


def measure(dtype: torch.dtype, width: int, device: torch.device) -> Speed:
    """The speed of this machine, in a quarter of a second and a little more."""

    def seconds(tokens: int, size: int) -> tuple[float, int]:
        """Of a product, and the numbers of its weight."""
        weight = torch.ones((max(size // (width * dtype.itemsize), 1), width), dtype=dtype, device=device)
        return _seconds(torch.ones((tokens, width), dtype=dtype, device=device), weight), weight.numel()

    most, layer = MANY[device.type], LAYER_BYTES[device.type]
    few, count = seconds(FEW, layer)
    many, _ = seconds(most, layer)
    token = max(many - few, 0.0) / (most - FEW) / count
    uncached, count = seconds(FEW, UNCACHED_BYTES)
    return Speed(max(uncached / count - FEW * token, 0.0), token)


def rough_seconds(
    asked: Asked, particles: int, speed: Speed, weights: tuple[int, int], config: EngineConfig, serve: Serve
) -> float:
    """Seconds in which an engine asks all this of so many particles.

    Args:
        weights: parameters that every token passes, and those of the head, which only new tokens pass.
        serve: how: it says how many particles are asked at once.
    """
    body, head = weights
    at_once = {"slots": config.slots, "mixture": particles}.get(serve, 1)
    width = BATCH if config.engine == "transformers" else config.max_num_seqs or STEP
    waves = math.ceil(particles / at_once)
    full = asked.generated * min(at_once, particles) / width
    steps = waves * asked.new_tokens * max(full, 1.0) if asked.generated else 0.0
    likelihoods = asked.generated < len(asked.prompts)  # look at every token, and take nothing from vLLM's cache
    read = asked.read(prefixes=config.engine == "vllm" and not likelihoods)
    new = asked.generated * asked.new_tokens
    tokens = particles * (read * (body + head * likelihoods) + new * (body + head))
    prefills = waves * max(len(asked.prompts) * min(at_once, particles) / width, 1.0)
    return (steps + prefills) * (body + head) * speed.step + tokens * speed.token


def weights_of(base: Path) -> tuple[int, int, int]:
    """Of a base model the parameters that every token passes, those of the head, and the hidden width."""
    from transformers import AutoConfig

    with loading(base):
        config: Any = AutoConfig.from_pretrained(base, trust_remote_code=False).get_text_config()
        total = 0
        for file in sorted(base.glob("*.safetensors")):
            with safe_open(file, framework="numpy") as content:
                total += sum(math.prod(content.get_slice(name).get_shape()) for name in content.keys())  # noqa: SIM118
        head = config.vocab_size * config.hidden_size
    tied = bool(getattr(config, "tie_word_embeddings", False))
    return max(total - head * (1 if tied else 2), 0), head, config.hidden_size


def speed_of(base: Path, config: EngineConfig, width: int) -> Speed:
    """The speed in which an engine for this base would compute; several on GPUs share the work."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    speed = measure(getattr(torch, dtype_of(base, config)), width, device)
    parts = config.engines * config.tensor_parallel if device.type == "cuda" else 1
    return Speed(speed.step / parts, speed.token / parts)


def _seconds(tokens: torch.Tensor, weight: torch.Tensor) -> float:
    """The fastest of some products: what else runs on the machine only makes them slower."""

    def once() -> float:
        start = time.perf_counter()
        torch.nn.functional.linear(tokens, weight)
        if weight.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once()
    times: list[float] = []
    while sum(times) < SECONDS or len(times) < 3:
        times.append(once())
    return min(times)
