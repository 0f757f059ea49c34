"""Engines serve particles. Each has the methods of `Engine`; nothing else in the package knows which one runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from modelswarms_fast.config import EngineConfig, Serve
from modelswarms_fast.errors import EngineError, InputError
from modelswarms_fast.weights.experts import Experts


class Request(NamedTuple):
    """A prompt for the particle in a slot, or for the base model if slot is None."""

    slot: int | None
    prompt: list[int]
    """Token ids."""
    continuation: list[int] | None = None
    """Token ids: instead of a completion, how likely they are after the prompt."""


class Completion(NamedTuple):
    """What a request generated, or how likely its continuation is."""

    text: str
    """Without special tokens; empty for a continuation."""
    tokens: int
    """How many were generated, the end of the sequence included; or those of the continuation."""
    log_prob: float = 0.0
    """Natural, summed over the continuation's tokens, if there is one."""
    greedy: bool = True
    """Whether each of these was the likeliest token at its place."""


Watch = Callable[[str, int, float, float], None]
"""watch(what, lane, start, end): a "load" or a "step" of the engine with this number, in seconds of perf_counter."""


class Engine(Protocol):
    """What the search asks of an engine.

    A slot is loaded with one particle after another while others are served. A slot with running requests must not be
    loaded; the base model can be asked for where no particle is merged into it.
    """

    slots: int
    """Population that can be served at once."""
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
    """BestUpdate of every load and step, if set."""

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
        """Begin to complete a request greedily, or to look at its continuation; `key` names it until it has ended."""

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
        """Let go of what would outlive the engine."""


@contextmanager
def working(name: str) -> Iterator[None]:
    """Whatever an engine raises in the middle of its work ends the search with one sentence: an EngineError."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or "no reason given"
        raise EngineError(
            f"The {name} engine failed while it generated ({type(error).__name__}: {reason}) and cannot go on; "
            "every iteration that had ended is kept in the run folder's history.jsonl."
        ) from error


def complete(engine: Engine, requests: Sequence[Request], max_tokens: int) -> list[Completion]:
    """Complete every request greedily, all in one batch; same order."""
    for key, request in enumerate(requests):
        engine.submit(key, request, max_tokens)
    done: dict[int, Completion] = {}
    while len(done) < len(requests):
        done.update(engine.step())
    return [done[key] for key in range(len(requests))]


def start_engine(base: Path, experts: Experts | None, config: EngineConfig) -> Engine:
    """Load the base model into a new engine that can serve rows of the experts' layout (None: only the base).

    Raises:
        InputError: the engine is not installed, or the layout does not fit the base model.
    """
    if config.tensor_parallel > 1:
        _check_parts(json.loads((base / "config.json").read_text()), config.tensor_parallel)
    if config.own_processes:
        from modelswarms_fast.engines.pool.pool import EnginePool

        return EnginePool(base, experts, config)
    return start_here(base, experts, config)


def start_here(base: Path, experts: Experts | None, config: EngineConfig) -> Engine:
    """One engine in this process, whatever `config.engines` says. Raises InputError as `start_engine`."""
    file = base / "config.json"
    base_config = json.loads(file.read_text())
    dtype: str = _dtype_of(base_config, file) if config.dtype == "auto" else config.dtype
    longest = base_config.get("max_position_embeddings", config.max_model_len)
    if type(longest) is not int or longest < 1:
        raise InputError(f"{file}: max_position_embeddings is {longest!r}; make it a whole number above 0")
    longest = min(config.max_model_len, longest)
    if config.engine == "transformers":
        from modelswarms_fast.engines.transformers import TransformersEngine

        return TransformersEngine(base, experts, dtype=dtype, max_model_len=longest)
    from modelswarms_fast.engines.vllm.engine import VllmEngine

    return VllmEngine(base, experts, config, dtype=dtype, max_model_len=longest)


def _dtype_of(base_config: dict[str, Any], file: Path) -> str:
    """The checkpoint's own, for both engines: left to itself, vLLM makes half precision of a float32 checkpoint.

    float32 on an x86 CPU without AVX-512, where torch computes the half types many times slower (docs/engine.md).
    Raises InputError for what torch does not compute in.
    """
    own = base_config.get("dtype") or base_config.get("torch_dtype") or "float32"
    if own not in ("float32", "bfloat16", "float16", "float64"):
        raise InputError(f"{file}: dtype is {own!r}; make it float32, bfloat16 or float16")
    if not torch.cuda.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX2":
        return "float32"
    return str(own)


def asked_threads(otherwise: int) -> int:
    """Threads that OMP_NUM_THREADS asks for at the outermost level: its first number, if it has one."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() else otherwise


def share_cores(cores: list[int], number: int, count: int) -> list[int]:
    """The cores of one of several: equal parts without a common one, as far as there are enough."""
    if len(cores) < count:
        return [cores[number % len(cores)]]
    return cores[number * len(cores) // count : (number + 1) * len(cores) // count]


def _check_parts(base_config: dict[str, Any], parts: int) -> None:
    """Raise InputError if a model cannot be split into so many parts."""

    def whole(name: str) -> int | None:
        value = base_config.get(name)
        if value is not None and (type(value) is not int or value < 1):
            raise InputError(f"{name} is {value!r} in the base model's config.json; make it a whole number above 0")
        return value

    for name, what, unit in (
        ("num_attention_heads", "attention heads", 1),
        ("intermediate_size", "inner features of its MLP", 1),
        ("vocab_size", "tokens, filled up to a multiple of 64,", 64),
    ):
        count = -(-(whole(name) or parts * unit) // unit) * unit
        if count % parts:
            raise InputError(
                f"tensor_parallel is {parts}, which does not divide the {count} {what} of the base model ({name} in "
                "its config.json); choose a divisor."
            )
    count = whole("num_key_value_heads") or parts
    if count % parts and parts % count:
        raise InputError(
            f"tensor_parallel is {parts}, which neither divides the {count} key-value heads of the base model "
            "(num_key_value_heads in its config.json) nor is a multiple of them; choose one that does."
        )
