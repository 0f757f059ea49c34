"""Races: whom the test stops and whom it leaves, whatever order the answers come in."""

import math

import helpers_search
import numpy as np
import pytest
import torch
from helpers_evaluate import ScriptedEngine, number, utility
from helpers_resume import Cut, cut_at, found
from helpers_search import told, write_data

from modelswarms_fast.config import EngineConfig, SwarmConfig
from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.evaluator import Evaluator
from modelswarms_fast.evaluation.objectives.utility import mean
from modelswarms_fast.evaluation.racing import ALPHA, Race, RacedScores, RaceLimits, is_hopeless, looks_of
from modelswarms_fast.runs.experiment import check_race
from modelswarms_fast.runs.loop import SearchLoop
from modelswarms_fast.runs.resume import resume
from modelswarms_fast.runs.scheduler import run_alone
from modelswarms_fast.runs.search import search
from modelswarms_fast.runs.trial import Trial
from modelswarms_fast.swarm import Swarm
from modelswarms_fast.weights.experts import Experts
from modelswarms_fast.weights.population import Population

tiny = helpers_search.tiny
DRAWS = 2000


def differences_of(kind, share, examples):
    """[E] differences of a particle that is exactly as good as the best on all examples, at most 1."""
    some = round(share * examples)
    if kind == "right or wrong":
        return [1.0] * some + [-1.0] * some + [0.0] * (examples - 2 * some)
    if kind == "abstained":
        return [1.0] * some + [-0.5] * 2 * some + [0.0] * (examples - 3 * some)
    return [1.0] * some + [-some / (examples - some)] * (examples - some)  # a little worse, and seldom much better


@pytest.mark.parametrize("kind", ["right or wrong", "abstained", "seldom much better"])
@pytest.mark.parametrize(("share", "examples"), [(0.05, 100), (0.2, 100), (0.3, 400)])
def test_at_most_the_stated_share_of_the_equally_good_is_stopped(kind, share, examples):
    differences = np.array(differences_of(kind, share, examples))
    assert abs(differences.sum()) < 1e-9
    random, looks, stopped = np.random.default_rng(0), looks_of(examples), 0
    for _ in range(DRAWS):
        order = random.permutation(differences)
        stopped += any(is_hopeless(order[:look].tolist(), 1.0, len(looks)) for look in looks)
    assert stopped / DRAWS <= ALPHA


def test_nearly_all_that_are_much_worse_are_stopped():
    differences = np.array([1.0] * 15 + [-1.0] * 45 + [0.0] * 40)
    random, looks = np.random.default_rng(0), looks_of(100)
    orders = [random.permutation(differences) for _ in range(500)]
    stopped = [any(is_hopeless(order[:look].tolist(), 1.0, len(looks)) for look in looks) for order in orders]
    assert np.mean(stopped) > 0.95


def test_looks():
    assert looks_of(20) == []
    assert looks_of(100) == [20, 40, 80]
    assert looks_of(161) == [20, 40, 80, 160]


def raced(scores, reference, order=None):
    one = RacedScores(
        len(reference),
        lambda given: mean("dev", given),
        RaceLimits(reference, mean("dev", reference), 1.0, range(len(reference)) if order is None else order),
    )
    one.scores = list(scores) + [None] * (len(reference) - len(scores))
    return one


def test_the_estimate_is_the_utility_of_the_best_and_the_mean_difference():
    reference = [1.0] * 15 + [0.0] * 5 + [1.0] * 30
    one = raced([0.0] * 20, reference)
    assert one.decided
    assert not one.complete
    assert one.bounds == (pytest.approx(45 / 50 - 15 / 20),) * 2
    assert one.facts == {"estimate": one.bounds[0], "examples": 20}


def test_only_the_first_examples_of_the_order_decide_and_all_of_them():
    order = [*range(30, 50), *range(30)]
    one = raced([0.0] * 30, [1.0] * 50, order)
    assert not one.decided
    assert one.to_look == 20
    one.scores[30:50] = [0.0] * 19 + [None]
    assert not one.decided
    assert one.to_look == 1
    one.scores[49] = 0.0
    assert one.decided


def test_a_whole_evaluation_is_no_estimate_and_a_score_that_is_nan_is_none():
    assert raced([0.0] * 50, [1.0] * 50).bounds == (0.0, 0.0)
    one = raced([math.nan] + [1.0] * 19, [1.0] * 50)
    assert one.decided
    assert math.isnan(one.bounds[0])


def play(seed, steps, floor, monkeypatch, examples=70, race=True):
    """One search of mixtures whose answers come in some order; its history and what it has spent."""
    monkeypatch.setattr("modelswarms_fast.evaluation.evaluator.FLOOR", floor)
    prompts = ["x" * (1 + index % 7) + chr(97 + index) for index in range(examples)]

    def answer(held, prompt):
        return str(float(number(seed, held, prompt) < number(seed, held)))

    evaluator = Evaluator(ScriptedEngine(2, 5, steps, answer), utility(prompts, score_range=(0.0, 1.0)))
    swarm = Swarm(SwarmConfig(particles=6, seed=seed, iterations=5, patience=9), 3)
    rows = torch.zeros(3, 1)
    pool = Experts("full", ("e",) * 3, None, rows, rows, (), {}, ())
    config = EngineConfig(engine="transformers", state="mixture")
    particles = Population(pool, swarm.initial_positions(), config, torch.device("cpu"))
    lines = []
    made = Race(seed, examples, 1.0) if race else None
    run_alone(Trial("alone", SearchLoop(swarm, particles, evaluator.utility, race=made), evaluator, lines), evaluator)
    return lines, evaluator.spent


def test_the_order_of_answers_changes_nothing_and_prompts_are_saved(monkeypatch):
    for seed in range(5):
        lines, spent = play(seed, 1, 1, monkeypatch)
        other, again = play(seed, 2, 64, monkeypatch)
        np.testing.assert_equal(lines, other)
        assert spent.prompts == again.prompts
        stopped = [one for line in lines for one in line["bounded"]]
        assert stopped
        assert {one["examples"] for one in stopped} <= {20, 40}
        assert lines[0]["bounded"] == []
        for line in lines:
            for one in line["bounded"]:
                assert line["utilities"][one["particle"]] == one["estimate"] <= line["global_best"]["utility"]
                given = [score is not None for score in line["scores"][one["particle"]]]
                assert sum(given) == one["examples"]
        assert spent.prompts == sum(sum(counts(line)) for line in lines)


def counts(line):
    """Examples of each particle that was evaluated."""
    return [sum(score is not None for score in scores) for scores in line["scores"] if scores is not None]


def test_a_raced_search_goes_on_to_the_same_end(tiny, tmp_path, monkeypatch):
    write_data(tmp_path / "data.json", 60)
    asked = tiny | {"data": tmp_path / "data.json", "task": "helpers_search:rich", "parity_check": "off"}
    asked |= {"particles": 4, "race": True, "max_tokens": 3, "iterations": 4}
    search(**asked, out=tmp_path / "uncut")
    assert any(line["bounded"] for line in told(tmp_path / "uncut")), "nobody was stopped, which proves nothing"
    with cut_at(monkeypatch, 18), pytest.raises(Cut):
        search(**asked, out=tmp_path / "cut")
    resume(tmp_path / "cut")
    assert found(tmp_path / "cut") == found(tmp_path / "uncut")
    assert "the race had stopped" in (tmp_path / "cut" / "report.html").read_text()


def test_what_a_race_needs_is_one_sentence():
    with pytest.raises(InputError, match="race is set but stop_early"):
        EngineConfig(race=True, stop_early=True)
    with pytest.raises(InputError, match=r"race is set but the scores of .* have no known range"):
        check_race(utility(["a"]))
    one = utility(["a"], score_range=(0.0, 1.0), reduce=lambda split, scores: max(scores))
    with pytest.raises(InputError, match=r"race is set but the utility of .* is not the mean of its scores"):
        check_race(one)
