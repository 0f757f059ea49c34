"""What combine="delta" costs beside "factors": the load of a mixture, and prompts a second, in turns on two engines.

A row's baseline `factors` is the same work with combine="factors", so its ratio says how many times as long that
takes. Besides what every row has (measure.py): serve, pool, experts, rank (of one expert), and of the rows "prompts"
also prompts, prompts/s and tokens, by how many new tokens each of the two was answered. The mixtures are those of ten
particles, and their answers differ.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import pytest
import torch

from benchmarks.engine.bench_load import empty_caches
from benchmarks.engine.engines import PARTICLES, config, experts, write_large_adapters
from benchmarks.engine.iterations import utility_of_benchmark
from benchmarks.measure import CORES, Measure
from modelswarms_fast.config import Combine
from modelswarms_fast.engines.protocol import Request, complete
from modelswarms_fast.engines.start import start_engine
from modelswarms_fast.weights.base_model import resolve_base
from modelswarms_fast.weights.experts import Experts, read_experts
from modelswarms_fast.weights.packaged import SMOLLM2

pytest.importorskip("vllm")

RANK = 16
ROUNDS, MAX_TOKENS = 3, 10
POOLS = ("examples", "all linear layers")


class Pair(NamedTuple):
    """An engine of each space with the same experts, and what they serve in turns."""

    engines: dict[Combine, Any]
    facts: dict[str, Any]
    mixtures: torch.Tensor
    """[P, n] of any sign, each of the sum 1."""


@pytest.fixture(scope="module", params=itertools.product(POOLS, ("merged", "mixture")), ids="-".join)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both engines; they end before the next two start."""
    pool, serve = request.param
    found = experts() if pool == "examples" else large_pool(tmp_path_factory)
    engines: dict[Combine, Any] = {}
    for combine in get_args(Combine):
        settings = config(serve, state="mixture", combine=combine)
        engines[combine] = start_engine(resolve_base(SMOLLM2), replace(found, combine=combine), settings)
    count = len(found.names)
    drawn = torch.randn((PARTICLES, count), generator=torch.Generator().manual_seed(0), dtype=torch.float64) / count
    rank = max(module.rank for module in found.modules)
    facts = {"serve": serve, "pool": pool, "experts": count, "rank": rank, "threads": CORES, "dtype": "bfloat16"}
    yield Pair(engines, facts, drawn + (1 - drawn.sum(1, keepdim=True)) / count)
    for engine in engines.values():
        engine.close()


def large_pool(tmp_path_factory: pytest.TempPathFactory) -> Experts:
    """Ten random adapters of rank 16 on all linear layers."""
    folder = tmp_path_factory.mktemp("pool")
    return read_experts(write_large_adapters(folder, count=PARTICLES, rank=RANK))


def name_of(what: str, pair: Pair) -> str:
    return f"{what}, {pair.facts['serve']}, rank {pair.facts['rank']}, {pair.facts['pool']}"


def test_load(measure: Measure, pair: Pair) -> None:
    """A mixture into one slot."""
    numbers = itertools.cycle(range(PARTICLES))

    def load(combine: Combine) -> None:
        pair.engines[combine].load_mixture(0, pair.mixtures[next(numbers)])

    measure.row(
        name_of("load", pair), lambda: load("delta"), baselines={"factors": lambda: load("factors")}, memory=False,
        before=empty_caches, combine="delta", **pair.facts,
    )  # fmt: skip
    for engine in pair.engines.values():
        engine.restore()


def test_prompts(measure: Measure, pair: Pair) -> None:
    """All particles once, as an iteration serves them: one after the other merged, in one batch as mixtures."""
    count, particles = (2, 3) if measure.quick else (8, PARTICLES)
    prompts = utility_of_benchmark(count).prompts["dev"]
    tokens: dict[Combine, int] = {}

    def evaluate(combine: Combine, particles: int = particles) -> None:
        server = pair.engines[combine]
        asked = [list(ids) for ids in server.tokenizer(prompts)["input_ids"]]
        tokens[combine] = 0
        for first in range(0, particles, server.slots):
            wave = range(min(server.slots, particles - first))
            for slot in wave:
                server.load_mixture(slot, pair.mixtures[first + slot])
            requests = [Request(slot, ids) for slot in wave for ids in asked]
            tokens[combine] += sum(one.tokens for one in complete(server, requests, MAX_TOKENS))

    evaluate("factors", 1)  # the first step of an engine is slow
    evaluate("delta", 1)
    total = count * particles
    info = measure.row(
        name_of("prompts", pair), lambda: evaluate("delta"), baselines={"factors": lambda: evaluate("factors")},
        rounds=1 if measure.quick else ROUNDS, warmup=False, memory=False, combine="delta", particles=particles,
        prompts=total, tokens=tokens, **pair.facts,
    )  # fmt: skip
    measure.benchmark.extra_info.update({"prompts/s": total / info["seconds"]})
    for engine in pair.engines.values():
        engine.restore()
