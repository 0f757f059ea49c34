"""What a run would send, what it would take, and how long about: everything is read and checked, nothing starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from modelswarms_fast.config import EngineConfig, Serve, SwarmConfig
from modelswarms_fast.engines.protocol import Engine
from modelswarms_fast.engines.start import dtype_of, max_model_len_of
from modelswarms_fast.engines.vllm.arguments import open_modes
from modelswarms_fast.evaluation.objectives import Utility
from modelswarms_fast.evaluation.requests import EncodedAsk, RequestTracker
from modelswarms_fast.runs.experiment import Experiment
from modelswarms_fast.runs.rough_time import Asked, rough_seconds, speed_of, weights_of
from modelswarms_fast.weights.adapters import LoraModule
from modelswarms_fast.weights.base_model import loading

SHOWN = 3
"""Examples whose prompts are shown."""


@dataclass(frozen=True)
class _NoEngine:
    """What prompts are made with: of an engine, what is known before it starts."""

    tokenizer: Any
    max_model_len: int


class Preview:
    """The prompts of a utility as an engine for this base would get them.

    Raises:
        InputError: a prompt does not fit, or its chat template cannot be used.
    """

    def __init__(self, base: Path, utility: Utility, config: EngineConfig, splits: Sequence[str]) -> None:
        from transformers import AutoTokenizer

        with loading(base):
            self._tokenizer: Any = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
        self._longest = max_model_len_of(base, config)
        engine = cast("Engine", _NoEngine(self._tokenizer, self._longest))
        self._base, self._utility, self._config = base, utility, config
        self._tracker, self._splits = RequestTracker(engine, utility, splits), splits

    def prompts(self, split: str) -> list[dict[str, Any]]:
        """The first prompts of a split: `prompt` as it is sent, `tokens`, `new_tokens` at most, `expected`, tokens that
        the tokenizer itself adds before it (`added`), and the `continuations` whose likelihood is asked for."""
        found = []
        for number, asks in enumerate(self._tracker.asked(split)[:SHOWN]):
            text, first = self._tracker.sent(split, number), asks[0]
            bare = len(self._tokenizer(text, add_special_tokens=False)["input_ids"])
            beyond = max(len(first.prompt) - bare, 0) if self._utility.chat is None else 0
            example = self._utility.examples[split][number]
            expected = example.get("answer", example.get("completion"))
            found.append(
                {
                    "prompt": text,
                    "tokens": len(first.prompt),
                    "new_tokens": 0 if first.continuation is not None else first.ask.max_tokens,
                    "expected": None if expected is None else str(expected),
                    "added": self._tokenizer.convert_ids_to_tokens(first.prompt[:beyond]),
                    "continuations": [
                        self._tokenizer.decode(one.continuation) for one in asks if one.continuation is not None
                    ],
                }
            )
        return found

    def longest(self) -> dict[str, Any]:
        """The longest prompt with its new tokens or continuation: `tokens`, `split`, `example`, `max_model_len`."""
        tokens, split, example = max(
            (_room(one), split, -number)
            for split in self._splits
            for number, asks in enumerate(self._tracker.asked(split))
            for one in asks
        )
        return {"tokens": tokens, "split": split, "example": -example, "max_model_len": self._longest}

    def asked(self, split: str) -> Asked:
        """What one particle is asked on a split."""
        every = [one for asks in self._tracker.asked(split) for one in asks]
        generated = [one for one in every if one.continuation is None]
        return Asked(
            [one.tokens for one in every], len(generated), max([one.ask.max_tokens for one in generated] or [0])
        )

    def facts(self) -> dict[str, Any]:
        """What holds for every run: examples, how they were read, the longest prompt, the number type."""
        return {
            "examples": {split: len(self._utility.examples[split]) for split in self._splits},
            **self._utility.data_facts(),
            "longest": self.longest(),
            "follow_up": self._utility.follow_up is not None,
            "engine": self._config.engine,
            "dtype": dtype_of(self._base, self._config),
        }


def dry_search(experiment: Experiment, config: SwarmConfig) -> dict[str, Any]:
    """What `search` returns for a dry run.

    Returns:
        `prompts` of dev (see Preview.prompts), `examples` by split, `longest`, `data_read`, `data_warnings`, `engine`,
        `dtype`, `serve` (the ways that will be tried), `state` and `state_reason`, `memory` (see Placement.as_dict) and
        `memory_lines`, `plan`: `policy`, `space`, `particles`, `iterations` at most, `patience`, and at most
        `requests`, `prompt_tokens` and `new_tokens`; and `rough_seconds`: of one `iteration`, and of a `search` that
        ends by patience (`least`) or goes on to the last iteration (`most`), tests included.

    Raises:
        InputError: a prompt is too long, or its chat template cannot be used.
    """
    engine, utility, base = experiment.engine_config, experiment.utility, experiment.base_folder
    preview = Preview(base, utility, engine, tuple(utility.asks))
    dev, test = preview.asked("dev"), preview.asked("test")
    serve = _ways(engine, experiment.experts.modules)
    *weights, width = weights_of(base)
    speed, sizes = speed_of(base, engine, width), (weights[0], weights[1])
    particles, placement = config.particles, experiment.placement
    assert placement is not None
    before = len(experiment.names) if utility.calibrate is not None else 0
    iteration = min(rough_seconds(dev, particles, speed, sizes, engine, mode) for mode in serve)
    tests = rough_seconds(test, 2, speed, sizes, engine, "merged") + rough_seconds(
        dev, before, speed, sizes, engine, "merged"
    )
    evaluations = particles * (config.iterations + 1) + before
    return {
        "prompts": preview.prompts("dev"),
        **preview.facts(),
        "serve": list(serve),
        "state": engine.state,
        "state_reason": experiment.why_state,
        "memory": placement.as_dict(),
        "memory_lines": [str(placement), *placement.details().splitlines()],
        "plan": {
            "policy": config.policy,
            "space": config.space,
            "particles": particles,
            "iterations": config.iterations,
            "patience": config.patience,
            "requests": evaluations * len(dev.prompts) + 2 * len(test.prompts),
            "prompt_tokens": evaluations * dev.read(prefixes=False) + 2 * test.read(prefixes=False),
            "new_tokens": evaluations * dev.generated * dev.new_tokens + 2 * test.generated * test.new_tokens,
        },
        "rough_seconds": {
            "iteration": iteration,
            "least": iteration * (min(config.iterations, config.patience) + 1) + tests,
            "most": iteration * (config.iterations + 1) + tests,
        },
    }


def dry_evaluation(base: Path, utility: Utility, config: EngineConfig, split: str) -> dict[str, Any]:
    """What `evaluate` returns for a dry run: as `dry_search`, of one model on one split.

    Raises:
        InputError: as `dry_search`.
    """
    preview = Preview(base, utility, config, (split,))
    asked = preview.asked(split)
    body, head, width = weights_of(base)
    seconds = rough_seconds(asked, 1, speed_of(base, config, width), (body, head), config, "merged")
    return {
        "prompts": preview.prompts(split),
        **preview.facts(),
        "plan": {
            "requests": len(asked.prompts),
            "prompt_tokens": asked.read(prefixes=False),
            "new_tokens": asked.generated * asked.new_tokens,
        },
        "rough_seconds": {"evaluation": seconds},
    }


def _ways(config: EngineConfig, modules: Sequence[LoraModule]) -> tuple[Serve, ...]:
    return ("merged",) if config.engine == "transformers" else open_modes(config, modules)


def _room(one: EncodedAsk) -> int:
    """Tokens that the engine needs room for."""
    return len(one.tokens) + (1 if one.continuation is not None else one.ask.max_tokens)
