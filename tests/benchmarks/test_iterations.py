"""What the benchmarks of iterations and of early stopping count and compare, without timing anything."""

import statistics
from itertools import combinations
from types import SimpleNamespace

import pytest
from helpers_evaluate import ScriptedEngine, number, utility

from benchmarks.engine import base_model, early, iterations
from modelswarms_fast.config import EngineConfig
from modelswarms_fast.evaluation.early_stopping import PartialScores


class Requests:
    """vLLM as far as a pass goes: a step takes a second and gives each request a token."""

    def __init__(self, clock, log):
        self.llm_engine, self.clock, self.log, self.running = self, clock, log, {}

    def reset_prefix_cache(self):
        assert not self.running
        self.log.append("reset")

    def has_unfinished_requests(self):
        return bool(self.running)

    def step(self):
        self.clock.now += 1
        self.log.append("base")
        self.running = {name: [given + 1, tokens] for name, (given, tokens) in self.running.items()}
        ended = [name for name, (given, tokens) in self.running.items() if given == tokens]
        return [
            SimpleNamespace(finished=True, outputs=[SimpleNamespace(token_ids=range(self.running.pop(name)[0]))])
            for name in ended
        ]


@pytest.mark.parametrize(("pace", "first"), [(1.0, ["base"] * 2), (2.0, ["base"] * 4)])
def test_the_base_model_takes_turns_and_works_to_its_end(pace, first, monkeypatch):
    clock, log = SimpleNamespace(now=0.0), []
    monkeypatch.setattr(base_model.time, "perf_counter", lambda: clock.now)
    llm = Requests(clock, log)
    base = base_model.BaseModel(llm, [[[([1], 3)], [([2], 1)]], [[([1], 2)]]])

    def submit(prompt, tokens, number):
        llm.running[len(log), number, *prompt] = [0, tokens]

    monkeypatch.setattr(base, "_submit", submit)

    class Server:
        def step(self):
            clock.now += 2
            log.append("ours")

    server = Server()
    with base_model.beside(server, base, pace):
        server.step()
        assert log == ["ours"]  # nothing has been worked yet that it could be behind of
        server.step()
        assert [one for one in log if one != "reset"] == ["ours", *first, "ours"]
    assert "step" not in vars(server)
    assert (base.prompts, base.tokens, base.seconds) == (3, 6, 5.0)
    assert log.count("reset") == 2
    base.work()
    assert base.seconds == 5.0


@pytest.mark.parametrize(
    ("scores", "best", "worst", "least"),
    [
        ([0, 0, 0, 1, 1], 0.4, 0.0, 3),  # three wrong ones show that it is no better
        ([0, 0, 0, 1, 1], 0.4, 0.2, 4),  # and one right one that it is no worse than the worst
        ([0, 0, 0, 1, 1], 0.8, 0.0, 1),
        ([0, 0, 0, 1, 1], 1.0, 0.0, 0),
        ([0, 0, 0, 1, 1], 0.2, 0.0, 5),  # a new best needs all
        ([0, 0, 0, 0, 0], 0.2, 0.2, 5),  # and so does a new worst
        ([0.5, 0.5, 0.5, 0.5], 0.75, 0.0, 2),
    ],
)
def test_the_least_that_an_exact_order_can_ask(scores, best, worst, least):
    limits = early.DecisionBounds(best, worst, 0.0, 1.0)
    assert early.least_examples(scores, limits) == least

    def decides(shown):
        scored = PartialScores(len(scores), statistics.fmean, limits)
        for example in shown:
            scored.scores[example] = scores[example]
        return scored.decided

    numbers = range(len(scores))
    assert least == min(
        len(shown) for n in range(len(scores) + 1) for shown in combinations(numbers, n) if decides(shown)
    )


class Engine(ScriptedEngine):
    """Serves one evaluator after another, each of which counts its requests from 0."""

    def load_mixture(self, slot, mixture):
        super().load_mixture(slot, mixture)
        if not self.running:
            self.used.clear()


def test_moves_with_and_without_early_stopping(monkeypatch):
    """A search on a scripted engine: what is noted of it, and what the two have in common."""

    def answer(held, prompt):
        return str(float(number(held, prompt) < 0.3 + 0.6 * number(held)))

    server = Engine(3, 4, 0, answer)
    told = utility(["x" * (1 + index % 5) + chr(97 + index) for index in range(20)], score_range=(0.0, 1.0))
    monkeypatch.setattr(iterations, "config", lambda serve, **settings: EngineConfig(state="mixture", **settings))
    monkeypatch.setattr(early, "llm_beside", lambda serve: None)

    class Base(base_model.BaseModel):
        def _step(self):
            wave = next(self._waves, None)
            self._over = wave is None
            assert wave is None or len(wave) == 10, "the particles of a move"
            self.prompts += sum(map(len, wave or ()))
            self.tokens += sum(tokens for one in wave or () for _, tokens in one)

    monkeypatch.setattr(early, "BaseModel", Base)
    facts = early.stopped_early(server, "merged", told, 4)
    assert facts["same_moves"] == 4
    assert facts["base_tokens"] == 3 * 4 * 10 * 20  # the scripted answers have three tokens
    assert facts["least_share"] <= facts["evaluated_share"] < 1
    assert [one["prompts"] for one in facts["each_move"]] == [200] * 4
    assert sum(one["evaluated"] for one in facts["each_move"]) == facts["evaluated_prompts"]
    assert not {"load", "load_mixture", "submit", "step"} & set(vars(server))
