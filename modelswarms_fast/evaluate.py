"""Scores of particles on a split: load, generate, score, in waves of as many as the engine serves at once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from modelswarms_fast.base import resolve_base
from modelswarms_fast.canary import Canary
from modelswarms_fast.config import DType, EngineConfig, EngineName, Serve
from modelswarms_fast.engines import Engine, Request, complete, start_engine
from modelswarms_fast.errors import InputError
from modelswarms_fast.experts import read_experts
from modelswarms_fast.utilities import SPLITS, Utility, load_utility

Scores = list[float]


def utility_of(scores: Sequence[float]) -> float:
    """The utility of a particle: the mean of its scores."""
    return math.fsum(scores) / len(scores)


def standard_error(scores: Sequence[float]) -> float:
    """Of the mean: sqrt(sum (s - mean)² / (n - 1) / n); 0 for one score."""
    mean, count = utility_of(scores), len(scores)
    return math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / max(count - 1, 1) / count)


@dataclass
class Spent:
    """What evaluation has cost so far."""

    evaluations: int = 0
    prompts: int = 0
    tokens: int = 0
    """Generated, the ends of sequences included."""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("load", "generate", "score"), 0.0))

    @contextmanager
    def clock(self, phase: str) -> Iterator[None]:
        """Add the seconds of the block to a phase."""
        start = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - start

    def since(self, before: Spent) -> Spent:
        """What was spent after `before` was copied."""
        seconds = {phase: total - before.seconds[phase] for phase, total in self.seconds.items()}
        return Spent(
            self.evaluations - before.evaluations,
            self.prompts - before.prompts,
            self.tokens - before.tokens,
            seconds,
        )

    def copy(self) -> Spent:
        """The amounts as they are now."""
        return Spent(self.evaluations, self.prompts, self.tokens, dict(self.seconds))


class Evaluator:
    """Scores rows with a utility on an engine. Prompts are tokenised once, here.

    Raises:
        InputError: a prompt does not fit the engine; the message names the example.
    """

    def __init__(self, engine: Engine, utility: Utility, splits: Sequence[str] = SPLITS) -> None:
        self.engine, self.utility = engine, utility
        self.canary: Canary | None = None
        """Checks loads, as many as it is set to."""
        self.spent = Spent()
        self._prompts = {split: self._tokenize(split, utility.prompts[split]) for split in splits}

    def _tokenize(self, split: str, prompts: list[str]) -> list[list[int]]:
        tokens = [list(ids) for ids in self.engine.tokenizer(prompts)["input_ids"]]
        room = self.engine.max_model_len - self.utility.max_tokens
        for index, ids in enumerate(tokens):
            if not 0 < len(ids) <= room:
                raise InputError(
                    f"Prompt {index} of the {split} split has {len(ids)} tokens; with {self.utility.max_tokens} new "
                    f"tokens it must have from 1 to {room}: raise max_model_len or leave the example out."
                )
        return tokens

    def rows(
        self,
        row: Callable[[int], torch.Tensor],
        particles: Sequence[int],
        split: str,
        between: Callable[[int, int], None] = lambda particles, prompts: None,
    ) -> dict[int, Scores]:
        """Scores of each particle on each example of the split.

        row(particle) gives its flat row [D], valid until the next call; between(particles, prompts) is called between
        two waves with what the last one did, and may raise to stop.
        """
        scores: dict[int, Scores] = {}
        wave: Sequence[int] = ()
        for start in range(0, len(particles), self.engine.slots):
            if wave:
                between(len(wave), len(wave) * len(self._prompts[split]))
            wave = particles[start : start + self.engine.slots]
            for slot, particle in enumerate(wave):
                with self.spent.clock("load"):
                    weights = row(particle)
                    self.engine.load(slot, weights)
                if self.canary is not None:
                    self.canary.after_load(slot, weights)
            scores |= self._wave(dict(enumerate(wave)), split)
        return scores

    def one(self, row: torch.Tensor, split: str) -> Scores:
        """Scores of one row [D] on each example of the split."""
        return self.rows(lambda _: row, [0], split)[0]

    def base(self, split: str) -> Scores:
        """Scores of the base model on each example of the split."""
        self.engine.restore()
        return self._wave({None: 0}, split)[0]

    def _wave(self, wave: dict[int, int] | dict[None, int], split: str) -> dict[int, Scores]:
        """Generate and score for the particles in these slots, in one batch grouped by particle."""
        prompts = self._prompts[split]
        with self.spent.clock("generate"):
            requests = [Request(slot, prompt) for slot in wave for prompt in prompts]
            completions = complete(self.engine, requests, self.utility.max_tokens)
        with self.spent.clock("score"):
            scores = {}
            for position, particle in enumerate(wave.values()):
                own = completions[position * len(prompts) : (position + 1) * len(prompts)]
                scores[particle] = self.utility.score(split, [completion.text for completion in own])
        self.spent.evaluations += len(wave)
        self.spent.prompts += len(requests)
        self.spent.tokens += sum(completion.tokens for completion in completions)
        return scores


def evaluate(
    model: str,
    *,
    base: str,
    task: str,
    data: str | Path,
    split: str = "test",
    limit: int | None = None,
    max_tokens: int | None = None,
    engine: EngineName = EngineConfig.engine,
    serve: Serve = EngineConfig.serve,
    dtype: DType = EngineConfig.dtype,
    max_model_len: int = EngineConfig.max_model_len,
) -> dict[str, Any]:
    """Score one model on a split.

    `model` is an adapter folder, a full checkpoint, or the same string as `base` for the base model; the rest is as in
    `search`.

    Returns:
        model, base, task, dataset, split, examples, score, standard_error (of the mean), prompts_per_second.

    Raises:
        InputError: something given cannot be used; the message names it and the remedy.
    """
    if split not in SPLITS:
        raise InputError(f"split is {split!r}; choose dev or test.")
    config = EngineConfig(engine=engine, serve=serve, slots=1, dtype=dtype, max_model_len=max_model_len, canary="off")
    limits: dict[str, Any] = {f"limit_{split}": limit, "max_tokens": max_tokens}
    utility = load_utility(task, data, **limits)
    base_folder = resolve_base(base)
    loaded = None if model == base else read_experts([model], minimum=1)
    evaluator = Evaluator(start_engine(base_folder, loaded, config), utility, splits=(split,))
    scores = evaluator.base(split) if loaded is None else evaluator.one(loaded.rows[0], split)
    return {
        "model": model,
        "base": base,
        "task": task,
        "dataset": utility.dataset,
        "split": split,
        "examples": len(scores),
        "score": utility_of(scores),
        "standard_error": standard_error(scores),
        "prompts_per_second": evaluator.spent.prompts / sum(evaluator.spent.seconds.values()),
    }
