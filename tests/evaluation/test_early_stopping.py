"""Early stopping changes no decision: 1,000 random histories with and without it."""

import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers_evaluate import ScriptedEngine, number, utility

from modelswarms_fast.config import EngineConfig, SwarmConfig
from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.evaluator import Evaluator
from modelswarms_fast.runs.loop import SearchLoop
from modelswarms_fast.runs.scheduler import run_alone
from modelswarms_fast.runs.trial import Trial
from modelswarms_fast.swarm import Swarm
from modelswarms_fast.weights.experts import Experts
from modelswarms_fast.weights.population import Population

HISTORIES = 1000


class Noted(Swarm):
    """A swarm that keeps its plans and what it told."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.noted = []

    def ask(self):
        self.noted.append(super().ask())
        return self.noted[-1]

    def tell(self, utilities):
        self.noted.append(super().tell(utilities))
        return self.noted[-1]


def draw(seed):
    """Settings of a history."""
    pick = random.Random(seed)
    experts = pick.randint(2, 4)
    config = SwarmConfig(
        particles=experts + pick.randint(0, 3),
        seed=seed,
        iterations=pick.randint(1, 6),
        patience=pick.randint(1, 6),
        restart_patience=pick.choice([0.2, 0.5, 1.0]),
        repel=pick.random() < 0.7,
        drop_n=pick.choice([0.0, 0.0, 0.3]),
        drop_k=pick.choice([0.0, 0.0, 0.2]),
        randomness=pick.choice(["particle", "particle", "unit"]),
    )
    return SimpleNamespace(
        config=config,
        experts=experts,
        examples=pick.choice([1, 2, 5, 16, 30]),
        kind=pick.choice(["binary", "graded", "ties"]),
        nan=pick.choice([0.0, 0.0, 0.02]),
        span=pick.choice([(0.0, 1.0), (-2.0, 3.0)]),
        slots=pick.randint(1, 3),
        floor=pick.choice([1, 4, 16]),
    )


def play(seed, drawn, stop_early):
    """One search of mixtures; what was noted, the history, the mixtures that count at the end, and what was spent."""
    low, high = drawn.span

    def answer(held, prompt):
        if number(seed, held, prompt, "nan") < drawn.nan:
            return "nan"
        skill = number(seed, held)
        shares = {"binary": float(number(seed, held, prompt) < skill), "graded": number(seed, held, prompt) * skill}
        share = shares.get(drawn.kind, round(2 * skill + number(seed, prompt)) / 3)
        return repr(min(max(low + (high - low) * share, low), high))

    prompts = ["x" * (1 + index % 7) + chr(97 + index) for index in range(drawn.examples)]
    engine = ScriptedEngine(drawn.slots, 5, seed + stop_early, answer)
    evaluator = Evaluator(engine, utility(prompts, score_range=drawn.span))
    swarm = Noted(drawn.config, drawn.experts)
    rows = torch.zeros(drawn.experts, 1)
    pool = Experts("full", ("e",) * drawn.experts, None, rows, rows, (), {}, ())
    config = EngineConfig(engine="transformers", state="mixture")
    particles = Population(pool, swarm.initial_positions(), config, torch.device("cpu"))
    lines = []
    try:
        loop = SearchLoop(
            swarm, particles, evaluator.utility, evaluator.difficulty_order("dev") if stop_early else None
        )
        run_alone(Trial("alone", loop, evaluator, lines), evaluator)
    except InputError:  # no initial particle has a utility
        lines.append("refused")
    shard = particles._mixtures
    numbers = [*shard.table.x, *shard.table.p, *shard.table.v, shard.table.g, shard.table.w]
    return swarm.noted, lines, shard.rows[numbers], evaluator.spent


def assert_same(a, b):
    """Plans, what was told, or parts of a line of the history."""
    assert type(a) is type(b)
    for name in a if isinstance(a, dict) else vars(a):
        left, right = (value[name] if isinstance(value, dict) else getattr(value, name) for value in (a, b))
        np.testing.assert_equal(left, right, err_msg=name)


DECISIONS = ["iteration", "evaluated", "restarts", "improved", "global_best", "global_worst", "global_best_mixture"]


@pytest.mark.parametrize("part", range(10))
def test_the_trajectory_is_the_same(part, monkeypatch):
    bounded = skipped = nans = 0
    for seed in range(part, HISTORIES, 10):
        drawn = draw(seed)
        monkeypatch.setattr("modelswarms_fast.evaluation.evaluator.FLOOR", drawn.floor)
        noted, lines, rows, _ = play(seed, drawn, False)
        noted_early, lines_early, rows_early, spent = play(seed, drawn, True)
        assert len(noted) == len(noted_early)
        for a, b in zip(noted, noted_early, strict=True):
            assert_same(a, b)
        torch.testing.assert_close(rows, rows_early, rtol=0, atol=0, equal_nan=True)
        for a, b in zip(lines, lines_early, strict=True):
            if a == "refused":
                assert b == a
                continue
            assert_same({name: a[name] for name in DECISIONS}, {name: b[name] for name in DECISIONS})
            assert a["bounded"] == []
            bounds = {one["particle"]: one for one in b["bounded"]}
            for particle in np.flatnonzero(b["evaluated"]).tolist():
                true, told = a["utilities"][particle], b["utilities"][particle]
                if particle not in bounds:
                    np.testing.assert_equal(told, true)
                    continue
                one = bounds[particle]
                np.testing.assert_equal(told, one["upper"])
                assert 0 <= one["examples"] < drawn.examples
                # A score that was left out may have been NaN; one that was seen makes the bounds NaN.
                assert math.isnan(true) or one["lower"] <= true <= one["upper"]
                bounded, nans = bounded + 1, nans + math.isnan(told)
            assert b["iteration"] > 0 or not bounds, "the first evaluation sets the personal bests"
        skipped += spent.skipped
    assert bounded > 50
    assert skipped > 500
    assert nans > 5
