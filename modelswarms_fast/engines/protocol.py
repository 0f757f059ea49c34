"""Engines serve particles. Each has the methods of `Engine`; nothing else in the package knows which one runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch

from modelswarms_fast.config import Sampling, Serve
from modelswarms_fast.errors import EngineError


class Request(NamedTuple):
    """A prompt for the particle in a slot, or for the base model if slot is None."""

    slot: int | None
    prompt: list[int]
    """Token ids."""
    continuation: list[int] | None = None
    """Token ids: instead of a completion, how likely they are after the prompt."""
    sampling: Sampling | None = None
    """How its tokens are drawn; None: greedily. The same seed draws the same, whatever shares a batch with it."""
    message: str | None = None
    """What the prompt says without its chat template, if it has one."""


class Completion(NamedTuple):
    """What a request generated, or how likely its continuation is."""

    text: str
    """Without special tokens; empty for a continuation."""
    tokens: int
    """How many were generated, the end of the sequence included; or those of the continuation."""
    log_prob: float = 0.0
    """Natural, summed over the continuation's tokens, if there is one."""
    greedy: bool = True
    """Whether each of these was the likeliest token at its position."""
    finite: bool = True
    """Whether all the model's logits were numbers; else the answer says nothing."""
    ids: Sequence[int] = ()
    """The tokens that were generated, the end of the sequence included; none for a continuation."""


Watch = Callable[[str, int, float, float], None]
"""watch(what, lane, start, end): a "load" or a "step" of the engine with this number, in seconds of perf_counter."""


class Engine(Protocol):
    """What the search asks of an engine.

    A slot is loaded with one particle after another, while other slots are served. A slot with running requests must
    not be loaded. The base model is served (slot None) unless a particle is merged into it.
    """

    slots: int
    """Particles that can be served at once."""
    device: torch.device
    dtype: torch.dtype
    """What it computes in."""
    tokenizer: Any
    max_model_len: int
    serve: Serve
    """How it serves particles. With "auto", `autotune` decides."""
    auto_timings: dict[str, float]
    """Prompts a second of each mode that `autotune` has timed; empty without serve="auto"."""
    watch: Watch | None
    """Told of every load and step, if set."""

    def autotune(self, prompts: Sequence[list[int]], max_tokens: int) -> None:
        """With serve="auto", take the fastest mode; call it before the first load, with the run's prompts."""

    def set_mode(self, mode: Serve) -> None:
        """With serve="auto", serve in this mode, which an engine like this one has chosen; before the first load."""

    def load(self, slot: int, row: torch.Tensor) -> None:
        """Serve a flat row [D] from a slot; it must stay as it is until the requests to the slot have ended."""

    def load_mixture(self, slot: int, mixture: torch.Tensor) -> None:
        """Serve the mixture [n] of the experts that the engine was started with from a slot."""

    def restore(self) -> None:
        """Serve the base model again."""

    def submit(self, key: int, request: Request, max_tokens: int) -> None:
        """Begin to complete a request, or to look at its continuation; `key` names it until it has ended."""

    def step(self) -> list[tuple[int, Completion]]:
        """Work on what was submitted; the keys that ended in this step, perhaps none, and their completions.

        Raises:
            EngineError: it failed; the engine is not to be used again.
        """

    def drop(self, keys: Iterable[int]) -> None:
        """Give up requests that run; their keys never end."""

    def log_probs(self, request: Request, top: int = 20) -> dict[int, float]:
        """Natural log-probabilities of the likeliest next tokens, by token id."""

    def close(self) -> None:
        """Give back memory and processes. The engine is not to be used again; closing it twice does nothing."""


@contextmanager
def working(name: str) -> Iterator[None]:
    """Turn whatever an engine raises while it works into an EngineError, which is one sentence."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or "no reason given"
        raise EngineError(
            f"The {name} engine failed while it generated ({type(error).__name__}: {reason}) and cannot go on; "
            "every iteration that had ended is kept in the run folder's history.jsonl."
        ) from error


def complete(engine: Engine, requests: Sequence[Request], max_tokens: int) -> list[Completion]:
    """Complete every request, all in one batch; same order."""
    for key, request in enumerate(requests):
        engine.submit(key, request, max_tokens)
    done: dict[int, Completion] = {}
    while len(done) < len(requests):
        done.update(engine.step())
    return [done[key] for key in range(len(requests))]
