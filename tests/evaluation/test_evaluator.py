"""Continuous evaluation on a scripted engine: what is loaded and asked when, early stopping, known positions."""

import math
from types import SimpleNamespace

import pytest
from helpers_evaluate import Rows, ScriptedEngine, number, utility

from modelswarms_fast.engines.parity_check import ParityCheck
from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.early_stopping import DecisionBounds, PartialScores
from modelswarms_fast.evaluation.evaluator import Evaluator
from modelswarms_fast.evaluation.score_cache import KEPT_BYTES, ScoreCache
from modelswarms_fast.records.progress import Interrupted

PROMPTS = ["abc", "a", "abcd", "ab", "b", "abce", "abcdef", "c"]


def mean_of(scores):
    return math.fsum(scores) / len(scores)


def expected(source, particle, prompts=PROMPTS):
    return [float(str(number(source.row(particle).numpy().tobytes().hex(), prompt))) for prompt in prompts]


@pytest.mark.parametrize("at_once", [1, 3, 100])
@pytest.mark.parametrize("slots", [1, 2, 3, 7])
def test_scores_do_not_depend_on_slots_or_steps(slots, at_once):
    source = Rows(3, 1, 4, 1.5, 9)
    engine = ScriptedEngine(slots, at_once)
    evaluator = Evaluator(engine, utility(PROMPTS))
    found = evaluator.score_population(source.some([4, 0, 2, 3]), "dev")
    assert {particle: scored.scores for particle, scored in found.items()} == {
        particle: expected(source, particle) for particle in (4, 0, 2, 3)
    }
    assert source.loaded == [4, 0, 2, 3]
    assert (evaluator.spent.evaluations, evaluator.spent.prompts, evaluator.spent.tokens) == (4, 32, 96)
    assert (evaluator.spent.reused, evaluator.spent.skipped) == (0, 0)
    assert not engine.running


def test_a_slot_is_loaded_while_the_others_go_on():
    engine = ScriptedEngine(3, at_once=1)
    Evaluator(engine, utility(PROMPTS)).score_population(Rows(*range(9)).some(range(9)), "dev")
    loads = [entry for entry in engine.log if entry[0] == "load"]
    assert len(loads) == 9
    assert all(running > 0 for _, _, running in loads[1:])
    idle = [entry for entry in engine.log if entry == ("step", 0)]
    assert not idle, "no step without work"


def test_one_slot_is_loaded_right_after_the_last_completion():
    engine = ScriptedEngine(1)
    Evaluator(engine, utility(PROMPTS)).score_population(Rows(*range(4)).some(range(4)), "dev")
    for position, entry in enumerate(engine.log):
        if entry[0] == "load":
            assert entry[2] == 0
            assert position == 0 or engine.log[position - 1][0] == "step"
    assert [entry[0] for entry in engine.log[:9]] == ["load"] + ["submit"] * 8


def test_prompts_are_tokenised_once_and_submitted_longest_first():
    engine = ScriptedEngine(2)
    evaluator = Evaluator(engine, utility(PROMPTS))
    for _ in range(3):
        evaluator.score_population(Rows(1, 2).some([0, 1]), "dev")
    assert engine.tokenized == 2, "once a split"
    order = [prompt for kind, slot, prompt in (entry for entry in engine.log if entry[0] == "submit") if slot == 0]
    assert order == ["abcdef", "abcd", "abce", "abc", "ab", "a", "b", "c"]


def test_the_next_particles_are_named_ahead():
    source = Rows(*range(5))
    Evaluator(ScriptedEngine(2, at_once=1), utility(PROMPTS)).score_population(source.some(range(5)), "dev")
    assert source.ahead == [1, 2, 2, 3, 3, 4, 4]


@pytest.mark.parametrize("slots", [1, 3])
def test_an_interrupt_drops_what_runs(slots):
    engine, calls = ScriptedEngine(slots), []

    def between(prompts):
        calls.append(prompts)
        if len(calls) == 2:
            raise Interrupted

    evaluator = Evaluator(engine, utility(PROMPTS))
    with pytest.raises(Interrupted):
        evaluator.score_population(Rows(*range(6)).some(range(6)), "dev", between)
    assert not engine.running
    assert sum(calls) == evaluator.spent.prompts
    assert evaluator.score_population(Rows(*range(7, 9)).some(range(2)), "dev")[1].complete, "the engine can go on"


def test_between_is_not_called_after_the_last_particle():
    calls = []
    Evaluator(ScriptedEngine(2), utility(PROMPTS)).score_population(Rows(*range(5)).some(range(5)), "dev", calls.append)
    assert len(calls) == 4


def test_a_failing_score_drops_what_runs():
    def score(example, output):
        raise ValueError("no")

    engine = ScriptedEngine(2)
    with pytest.raises(InputError, match="raised ValueError: no"):
        Evaluator(engine, utility(PROMPTS, score)).score_population(Rows(1, 2).some([0, 1]), "dev")
    assert not engine.running


def test_the_error_of_an_engine_that_died_is_the_one_that_is_seen():
    engine = ScriptedEngine(2)

    def dead(*arguments):
        raise RuntimeError("died")

    engine.step, engine.drop = dead, lambda keys: 1 / 0
    with pytest.raises(RuntimeError, match="died"):
        Evaluator(engine, utility(PROMPTS)).score_population(Rows(1, 2).some([0, 1]), "dev")


@pytest.mark.parametrize(("every", "checks"), [(False, 1), (True, 4)])
def test_the_parity_check_sees_an_engine_that_does_nothing_else(every, checks, monkeypatch):
    engine, seen = ScriptedEngine(3), []
    evaluator = Evaluator(engine, utility(PROMPTS))

    def check(slot, row):
        engine.log_probs(None)
        seen.append(float(row))

    parity_check = ParityCheck(engine, SimpleNamespace(close=lambda: None), every=every)
    monkeypatch.setattr(parity_check, "check", check)
    evaluator.parity_check = parity_check
    found = evaluator.score_population(Rows(*range(4)).some(range(4)), "dev")
    assert seen == [float(value) for value in range(checks)]
    assert len(found) == 4


def test_the_parity_check_is_made_on_the_first_load_of_each_engine_while_others_work(monkeypatch):
    engine, seen = ScriptedEngine(6), []
    evaluator = Evaluator(engine, utility(PROMPTS))

    def check(slot, row):
        seen.append((slot, sorted({request.slot for request in engine.running.values()})))

    evaluator.parity_check = ParityCheck(engine, SimpleNamespace(close=lambda: None), engines=3, every=False)
    monkeypatch.setattr(evaluator.parity_check, "check", check)
    assert len(evaluator.score_population(Rows(*range(8)).some(range(8)), "dev")) == 8
    assert seen == [(0, []), (1, [0]), (2, [0, 1])]


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_equal_positions_are_evaluated_once(slots):
    source, engine = Rows(5, 6, 5, 5, 7), ScriptedEngine(slots, at_once=2)
    evaluator = Evaluator(engine, utility(PROMPTS))
    found = evaluator.score_population(source.some(range(5)), "dev")
    assert sorted(source.loaded) == [0, 1, 4]
    assert {particle: scored.scores for particle, scored in found.items()} == {
        particle: expected(source, particle) for particle in range(5)
    }
    assert (evaluator.spent.evaluations, evaluator.spent.reused) == (3, 16)
    calls = []
    evaluator.score_population(source.some([1, 4]), "dev", calls.append)
    assert len(source.loaded) == 3, "a position that was visited is not evaluated again"
    assert calls == [0]
    assert len(evaluator.score_population(source.some([1]), "test")[1].scores) == 1, "splits are not mixed up"
    assert source.loaded[-1] == 1


def test_positions_without_a_key_are_all_evaluated():
    source = Rows(5, 5)
    some = source.some([0, 1])
    for one in some.values():
        one.name = lambda: None
    Evaluator(ScriptedEngine(2), utility(PROMPTS)).score_population(some, "dev")
    assert source.loaded == [0, 1]


def test_one_row_twice_is_evaluated_once():
    engine, source = ScriptedEngine(1), Rows(8)
    evaluator = Evaluator(engine, utility(PROMPTS))
    for _ in range(2):
        assert evaluator.score_model(source.row(0), "dev") == expected(source, 0)
    assert evaluator.spent.evaluations == 1


def test_one_row_in_several_slots_is_evaluated_once_by_all():
    engine, source = ScriptedEngine(3), Rows(8)
    evaluator = Evaluator(engine, utility(PROMPTS), engines=2)
    assert evaluator.score_model(source.row(0), "dev") == expected(source, 0)
    assert [entry[:2] for entry in engine.log if entry[0] == "load"] == [("load", 0), ("load", 1)]
    asked = [entry[1:] for entry in engine.log if entry[0] == "submit"]
    assert [slot for slot, _ in asked] == [0, 1] * 4
    assert sorted(prompt for _, prompt in asked) == sorted(PROMPTS)
    assert (evaluator.spent.evaluations, evaluator.spent.prompts) == (1, 8)


def test_the_base_model_is_asked_without_a_slot():
    engine = ScriptedEngine(1)
    evaluator = Evaluator(engine, utility(PROMPTS))
    evaluator.score_model(Rows(1).row(0), "test")
    engine.used.clear()
    assert evaluator.score_base("dev") == [float(str(number(None, prompt))) for prompt in PROMPTS]


# Early stopping


def graded(score):
    """A scripted utility of 40 examples with scores in [0, 1], and its engine."""
    prompts = [f"{index:02}" for index in range(40)]
    return prompts, utility(prompts, score_range=(0.0, 1.0)), lambda held, prompt: str(score(int(prompt)))


def likeliest_low_first(evaluator, source):
    """An order of the examples, learned from a whole evaluation."""
    expected = evaluator.difficulty_order("dev")
    expected.learn({0: evaluator.score_population(source.some([0]), "dev")[0].scores})
    return expected.order(0)


def stopped(score, personal_best, global_worst=0.0, at_once=1):
    """A particle that is evaluated whole and then, elsewhere, with limits: its scores, the engine, the evaluator."""
    _, scripted, answer = graded(score)
    engine = ScriptedEngine(1, at_once, answer=answer)
    evaluator = Evaluator(engine, scripted)
    limits = DecisionBounds(personal_best, global_worst, 0.0, 1.0, likeliest_low_first(evaluator, Rows(1)))
    engine.log.clear()
    scored = evaluator.score_population(Rows(2).some([0]), "dev", limits={0: limits})[0]
    return scored, engine, evaluator


def test_a_particle_that_cannot_win_stops():
    """25 of 40 right and a best of 28: thirteen wrong answers, asked for first, leave 27 at most."""
    scored, engine, evaluator = stopped(lambda index: float(index < 25), 27 / 40)
    assert scored.known.count(0.0) == 13
    right = scored.known.count(1.0)
    assert scored.bounds == (right / 40, 27 / 40)
    assert right + evaluator.spent.skipped == 27
    assert not engine.running
    submitted = [prompt for kind, *rest in engine.log if kind == "submit" for prompt in rest[1:]]
    assert submitted[:15] == [f"{index}" for index in range(25, 40)], "likely wrong answers come first"


def test_no_more_is_asked_for_than_could_be_needed(monkeypatch):
    monkeypatch.setattr("modelswarms_fast.evaluation.evaluator.FLOOR", 1)
    scored, engine, _ = stopped(lambda index: float(index < 25), 27 / 40)
    assert sum(entry[0] == "submit" for entry in engine.log) == 13
    assert not any(entry[0] == "drop" for entry in engine.log)
    assert len(scored.known) == 13


def test_as_many_are_worth_asking_for_as_it_takes_at_the_rate_so_far():
    """A few at a time would keep batches small to the end of a particle that is a new best."""
    scored = PartialScores(40, mean_of, DecisionBounds(10 / 40, 0.0, 0.0, 1.0))
    assert scored.need == (30, 0)
    scored.scores[:4] = [0.0, 0.0, 1.0, 0.0]
    assert scored.need == (math.ceil(27 * 5 / 4), 0)
    scored.scores[:4] = [1.0] * 4
    assert scored.need == (36, 0), "no more than there are"
    scored.scores[:4] = [0.25] * 4
    assert scored.need == (math.ceil(27 * 5 / 4), 0), "four of them are three low ones"


def test_right_answers_come_next_where_the_worst_is_near(monkeypatch):
    """It cannot win after thirteen wrong answers; ten right ones show that it is not the worst."""
    monkeypatch.setattr("modelswarms_fast.evaluation.evaluator.FLOOR", 1)
    scored, _, _ = stopped(lambda index: float(index < 25), 27 / 40, 10 / 40)
    assert sorted(scored.known) == [0.0] * 13 + [1.0] * 10


@pytest.mark.parametrize(("best", "worst"), [(24 / 40, 0.0), (26 / 40, 26 / 40), (-math.inf, 0.0)])
def test_a_particle_that_changes_something_is_evaluated_whole(best, worst):
    scored, _, evaluator = stopped(lambda index: float(index < 25), best, worst)
    assert scored.complete
    assert scored.bounds == (25 / 40, 25 / 40)
    assert evaluator.spent.skipped == 0


def test_a_tie_with_the_best_or_the_worst_decides():
    scored, _, _ = stopped(lambda index: float(index < 25), 25 / 40, 25 / 40)
    assert scored.decided
    limits = DecisionBounds(0.5, 0.5, 0.0, 1.0)
    half = PartialScores(2, mean_of, limits)
    half.scores = [1.0, 0.0]
    assert half.decided
    half.scores = [1.0, None]
    assert not half.decided


def test_a_nan_stops_at_once(monkeypatch):
    monkeypatch.setattr("modelswarms_fast.evaluation.evaluator.FLOOR", 1)
    scored, _, evaluator = stopped(lambda index: math.nan if index == 39 else 1.0, 39 / 40)
    assert len(scored.known) == 1, "the example that was NaN before is asked for first"
    assert all(math.isnan(bound) for bound in scored.bounds)
    assert evaluator.spent.skipped == 39


def test_a_particle_that_can_only_be_second_is_not_loaded():
    scored, engine, evaluator = stopped(lambda index: 1.0, 1.0)
    assert scored.bounds == (0.0, 1.0)
    assert not engine.log
    assert evaluator.spent.skipped == 40


def test_a_partial_evaluation_is_completed_later(monkeypatch):
    monkeypatch.setattr("modelswarms_fast.evaluation.evaluator.FLOOR", 1)
    _, scripted, answer = graded(lambda index: float(index < 25))
    engine, source = ScriptedEngine(1, 1, answer=answer), Rows(1, 2)
    evaluator = Evaluator(engine, scripted)
    limits = DecisionBounds(27 / 40, 0.0, 0.0, 1.0, likeliest_low_first(evaluator, source))
    assert evaluator.score_population(source.some([1]), "dev", limits={1: limits})[1].scores.count(None) == 27
    before = evaluator.spent.prompts
    assert evaluator.score_population(source.some([1]), "dev")[1].bounds == (25 / 40, 25 / 40)
    assert (evaluator.spent.prompts - before, evaluator.spent.reused) == (27, 13)
    loads = len(source.loaded)
    assert evaluator.score_population(source.some([1]), "dev", limits={1: limits})[1].complete
    assert len(source.loaded) == loads, "what is known decides without a load"


def test_bounds_hold_the_utility_whatever_is_missing():
    scored = PartialScores(3, mean_of, DecisionBounds(0.0, 0.0, -1.0, 3.0))
    scored.scores = [None, 0.25, None]
    assert scored.bounds == ((0.25 - 2) / 3, (0.25 + 6) / 3)
    scored.scores = [math.nan, 0.25, None]
    assert all(math.isnan(bound) for bound in scored.bounds)


# The cache


def filled(values):
    scored = PartialScores(len(values), mean_of)
    scored.scores = list(values)
    return scored


def test_the_cache_forgets_the_oldest():
    cache = ScoreCache(room=2 * 9 * 4)
    for name, key in enumerate((b"a", b"b", b"a", b"c")):  # `a` is kept again, so `b` is the oldest
        cache.keep("dev", key, filled([float(name), None, math.nan, 1.0]))
    known = PartialScores(4, mean_of)
    assert [cache.fill("dev", key, PartialScores(4, mean_of)) for key in (b"a", b"b", b"c")] == [3, 0, 3]
    cache.fill("dev", b"a", known)
    assert known.scores[:2] == [2.0, None]
    assert math.isnan(known.scores[2])
    assert (
        cache.fill("test", b"a", PartialScores(4, mean_of)) == cache.fill("dev", None, PartialScores(4, mean_of)) == 0
    )
    assert KEPT_BYTES == 1 << 24
