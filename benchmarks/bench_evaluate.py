"""Prompts a second with particles loaded, against the plain base model on the same engine with the same prompts."""

from __future__ import annotations

from typing import Any

import pytest
from engines import DATA, engine, experts
from measure import CORES, Measure

from modelswarms_fast.engines import Request
from modelswarms_fast.utilities import load_utility

pytest.importorskip("vllm")
TOKENS = 8  # of each completion, whatever the model says: both do the same work


@pytest.mark.parametrize(("serve", "particles"), [("merged", 1), ("slots", 4)])
def test_a_full_wave(measure: Measure, serve: str, particles: int) -> None:
    measure_wave(measure, serve, particles)


@pytest.mark.usefixtures("full")
def test_one_slot_of_several(measure: Measure) -> None:
    measure_wave(measure, "slots", 1)


def measure_wave(measure: Measure, serve: str, particles: int) -> None:
    """Prefixes that were cached by an earlier round are dropped before each."""
    from vllm import SamplingParams

    server = engine(serve)
    each = 8 if measure.quick else 24
    texts = load_utility("exact_match", DATA, limit_dev=particles * each).prompts["dev"]
    # Every particle has prompts of its own, or the base model would find them in its prefix cache.
    prompts = [list(ids) for ids in server.tokenizer(texts)["input_ids"]]
    rows = experts().rows
    settings = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True, detokenize=False)

    def run(slots: list[int] | list[None]) -> Any:
        server.llm.reset_prefix_cache()
        return server._run([Request(slots[i // each], prompt) for i, prompt in enumerate(prompts)], settings)

    def evaluate() -> None:
        for slot in range(particles):
            server.load(slot, rows[slot])
        run(list(range(particles)))

    def base() -> None:
        server.restore()
        run([None] * particles)

    info = measure.row(
        f"{serve}, {particles} in a wave",
        evaluate,
        baselines={"base model": base},
        rounds=3,
        memory=False,
        serve=serve,
        particles=particles,
        prompts=len(prompts),
        prompt_tokens=sum(map(len, prompts)) / len(prompts),
        tokens=TOKENS,
        threads=CORES,
    )
    server.restore()
    measure.benchmark.extra_info["prompts/s"] = info["prompts"] / info["seconds"]
