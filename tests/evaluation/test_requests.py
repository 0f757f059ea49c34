"""What an example asks until its last answer: several asks, follow-ups, batches, drops; any monotone utility."""

import math
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import helpers_search
import pytest
from helpers_evaluate import Rows, ScriptedEngine, number, utility

from modelswarms_fast.config import EngineConfig
from modelswarms_fast.engines.protocol import Request
from modelswarms_fast.engines.start import start_engine
from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation import evaluator as evaluator_module
from modelswarms_fast.evaluation.early_stopping import DecisionBounds, PartialScores
from modelswarms_fast.evaluation.evaluator import Evaluator
from modelswarms_fast.evaluation.objectives import Ask
from modelswarms_fast.evaluation.objectives.utility import mean
from modelswarms_fast.evaluation.requests import RequestTracker

tiny = helpers_search.tiny
PROMPTS = ["abc", "a", "abcd", "ab", "b", "abce"]


def held(source, particle):
    return source.row(particle).numpy().tobytes().hex()


def several(**fields):
    """Each dev example generates for its prompt and for twice its prompt, and compares two continuations."""
    asks = {
        "dev": [(Ask(one, 5), Ask(one, 1, "xy"), Ask(one * 2, 3), Ask(one + " ", 1, "z")) for one in PROMPTS],
        "test": [(Ask("a test", 5),)],
    }

    def score_examples(examples, answers):
        return [sum(float(one.text or 0) for one in (some[0], some[2])) + some[1].log_prob for some in answers]

    return utility(PROMPTS, **{"asks": asks, "score_examples": score_examples} | fields)


@pytest.mark.parametrize("at_once", [1, 3, 100])
@pytest.mark.parametrize("slots", [1, 3])
def test_several_asks_an_example(slots, at_once):
    source, engine = Rows(3, 1, 4), ScriptedEngine(slots, at_once)
    evaluator = Evaluator(engine, several())
    found = evaluator.score_population(source.some(range(3)), "dev")
    for particle, scored in found.items():
        name = held(source, particle)
        assert scored.scores == [number(name, one) + number(name, one * 2) - number(name, one, "xy") for one in PROMPTS]
    assert (evaluator.spent.prompts, evaluator.spent.evaluations) == (3 * 4 * len(PROMPTS), 3)
    assert evaluator.spent.tokens == 3 * len(PROMPTS) * (3 + 2 + 3 + 2)
    longest = [entry[2] for entry in engine.log if entry[0] == "submit"][:4]
    assert longest == ["abcd", "abcd", "abcdabcd", "abcd"], "the longest example first; its asks in order"


def test_answers_are_given_in_order_and_not_scored():
    source, engine = Rows(3), ScriptedEngine(2)
    evaluator = Evaluator(engine, several(score_examples=None))
    answers = evaluator.generate(source.row(0), "dev")
    name = held(source, 0)
    for prompt, given in zip(PROMPTS, answers, strict=True):
        first, likely, second, spaced = given
        assert first == (str(number(name, prompt)), 3, pytest.approx(math.nan, nan_ok=True), True)
        chance = number(name, prompt, "xy")
        assert likely == ("xy", 2, -chance, chance < 0.5)
        assert second.text == str(number(name, prompt * 2))
        assert (spaced.text, spaced.tokens, spaced.log_prob) == ("z", 2, -number(name, prompt, " z"))
    assert evaluator.spent.evaluations == 1


def test_white_space_before_a_continuation_belongs_to_it():
    engine = ScriptedEngine()
    asks = {"dev": [(Ask("ab \n", 1, "c"),)], "test": [(Ask("", 1, "abc"),)]}

    class Tokenizer:
        bos_token_id, eos_token_id = None, 9

        def __call__(self, texts):
            return {"input_ids": [[ord(letter) for letter in text] for text in texts]}

    engine.tokenizer = Tokenizer()
    asking = RequestTracker(engine, utility(["x"], asks=asks), ["dev", "test"])
    (dev,), (test,) = asking._first["dev"][0], asking._first["test"][0]
    assert (dev.prompt, dev.continuation) == ([97, 98], [32, 10, 99])
    assert (test.prompt, test.continuation) == ([9], [97, 98, 99]), "a text alone begins after the first token"
    Tokenizer.bos_token_id = 1
    assert RequestTracker(engine, utility(["x"], asks=asks), ["test"])._first["test"][0][0].prompt == [1]
    Tokenizer.bos_token_id = Tokenizer.eos_token_id = None
    with pytest.raises(InputError, match="no token that begins a text"):
        RequestTracker(engine, utility(["x"], asks=asks), ["test"])


def test_a_text_is_cut_before_its_first_stop():
    engine = ScriptedEngine(answer=lambda held, prompt: " one\nQ: two. three")
    stops = [("\nQ",), (".", "\n"), ("four",), ("", "t"), (" one",)]
    asks = {"dev": [(Ask("a", 5, None, stop),) for stop in stops], "test": [(Ask("a", 5),)]}
    answers = Evaluator(engine, utility(["a"] * 5, asks=asks)).generate(Rows(1).row(0), "dev")
    texts = [given[0].text for given in answers]
    assert texts == [" one", " one", " one\nQ: two. three", " one\nQ: ", ""]


# Follow-ups


def reflect(example, answers):
    """Asks again where the first answer is large."""
    if answers[0].text and float(answers[0].text) < 0.3:
        return None
    return Ask(f"{example['prompt']}?{answers[0].text[:4]}", 4)


def reflected(name, prompt):
    first = str(number(name, prompt))
    return number(name, f"{prompt}?{first[:4]}") if float(first) >= 0.3 else float(first)


@pytest.mark.parametrize("batch", [1, 4, 100])
@pytest.mark.parametrize("slots", [1, 2, 5])
def test_follow_ups_are_asked_in_the_same_batch(slots, batch):
    source, engine = Rows(3, 1, 4), ScriptedEngine(slots, 2)
    evaluator = Evaluator(engine, utility(PROMPTS, follow_up=reflect, batch=batch))
    found = evaluator.score_population(source.some(range(3)), "dev")
    for particle, scored in found.items():
        name = held(source, particle)
        assert scored.scores == [reflected(name, prompt) for prompt in PROMPTS]
    follow_ups = [entry for entry in engine.log if entry[0] == "submit" and "?" in entry[2]]
    firsts = [number(held(source, particle), prompt) for particle in range(3) for prompt in PROMPTS]
    assert len(follow_ups) == sum(first >= 0.3 for first in firsts) > 3
    assert evaluator.spent.prompts == len(firsts) + len(follow_ups)
    assert evaluator.score_model(Rows(9).row(0), "dev") == [reflected(held(Rows(9), 0), prompt) for prompt in PROMPTS]
    assert not engine.running


def test_a_follow_up_of_a_decided_particle_is_dropped(monkeypatch):
    """The first example's answer decides while another's follow-up is under way."""
    monkeypatch.setattr("modelswarms_fast.evaluation.evaluator.FLOOR", 16)
    prompts = [f"{index:02}" for index in range(8)]
    engine = ScriptedEngine(1, 1, answer=lambda held, prompt: "0.9" if "?" in prompt else "0")
    engine._random = SimpleNamespace(sample=lambda keys, count: keys[:count], randint=lambda low, high: high)

    def follow_up(example, answers):
        return Ask(example["prompt"] + "?", 4) if example["prompt"] == "00" else None

    scripted = utility(prompts, follow_up=follow_up, score_range=(0.0, 1.0))
    evaluator = Evaluator(engine, scripted)
    source = Rows(1, 2)
    scored = evaluator.score_population(source.some([0, 1]), "dev", limits={0: DecisionBounds(0.45, 0.0, 0.0, 1.0)})
    first = scored[0]
    assert not first.complete
    assert first.scores[0] is None, "its follow-up was under way"
    submitted = [entry[2] for entry in engine.log if entry[0] == "submit"]
    assert any(entry[0] == "drop" for entry in engine.log)
    assert scored[1].scores == [0.9] + [0.0] * 7, "the next particle is asked everything, its follow-up too"
    assert submitted.count("00?") == 2
    assert not engine.running
    assert evaluator._tracker.idle


def test_a_follow_up_that_does_not_fit_is_refused_at_the_door_or_named():
    engine = ScriptedEngine()
    engine.max_model_len = 12
    with pytest.raises(InputError, match=r"The follow-up of dev example 1 has 4 tokens; with 9 new"):
        Evaluator(engine, utility(["a", "abc"], follow_up=reflect))

    def longer(example, answers):
        return Ask(example["prompt"] + answers[0].text * 9, 2) if answers[0].text else None

    evaluator = Evaluator(engine, utility(["a", "abc"], follow_up=longer))
    with pytest.raises(InputError, match=r"The follow-up of dev example \d has \d+ tokens"):
        evaluator.score_population(Rows(1).some([0]), "dev")
    assert not engine.running


def test_a_continuation_must_fit_and_have_tokens():
    engine = ScriptedEngine()
    engine.max_model_len = 6
    asks = {"dev": [(Ask("abc", 1, "def"),)], "test": [(Ask("a", 1),)]}
    with pytest.raises(InputError, match=r"Prompt 0 of the dev split has 6 tokens with its continuation; .* at most 5"):
        Evaluator(engine, utility(["x"], asks=asks))
    asks["dev"] = [(Ask("abc", 1, ""),)]
    with pytest.raises(InputError, match="Prompt 0 of the dev split asks for the likelihood of no tokens"):
        Evaluator(engine, utility(["x"], asks=asks))


# Scores in batches


@pytest.mark.parametrize(("batch", "slots"), [(1, 2), (4, 1), (4, 2), (7, 3), (1000, 2)])
def test_scores_are_made_in_batches(batch, slots):
    sizes = []

    def score_examples(examples, answers):
        sizes.append(len(examples))
        return [float(given[0].text) for given in answers]

    source, engine = Rows(*range(5)), ScriptedEngine(slots, 3)
    evaluator = Evaluator(engine, utility(PROMPTS, batch=batch, score_examples=score_examples))
    found = evaluator.score_population(source.some(range(5)), "dev")
    for particle, scored in found.items():
        assert scored.scores == [number(held(source, particle), prompt) for prompt in PROMPTS]
    assert sum(sizes) == 5 * len(PROMPTS)
    assert max(sizes) <= batch
    if batch == 4:
        assert sizes.count(4) >= 4


def test_with_limits_and_batches_the_same_is_decided(monkeypatch):
    monkeypatch.setattr("modelswarms_fast.evaluation.evaluator.FLOOR", 1)
    prompts = [f"{index:02}" for index in range(30)]
    for batch in (1, 3, 8, 100):
        for slots in (1, 2, 3):
            engine = ScriptedEngine(slots, 2, answer=lambda held, prompt: str(float(number(held, prompt) < 0.5)))
            evaluator = Evaluator(engine, utility(prompts, batch=batch, score_range=(0.0, 1.0)))
            source = Rows(*range(6))
            whole = {
                particle: sum(number(held(source, particle), one) < 0.5 for one in prompts) for particle in range(6)
            }
            limits = {particle: DecisionBounds(15 / 30, 2 / 30, 0.0, 1.0) for particle in range(6)}
            found = evaluator.score_population(source.some(range(6)), "dev", limits=limits)
            for particle, scored in found.items():
                lower, upper = scored.bounds
                assert lower <= whole[particle] / 30 <= upper
                assert scored.complete == (whole[particle] > 15) or (scored.complete and upper <= 15 / 30)
            assert not engine.running


@pytest.mark.parametrize(
    ("floor", "personal_best", "asked"), [(8, 0.5, 10), (8, 0.2, 20), (8, 0.25, 15), (12, 0.5, 12), (16, 0.5, 20)]
)
def test_the_last_few_examples_are_asked_for_with_the_others(floor, personal_best, asked):
    """As many as could be needed and at least the floor; all if no more than half of that would be left."""
    scored = PartialScores(20, lambda scores: sum(scores) / 20, DecisionBounds(personal_best, 0.0, 0.0, 1.0))
    running = evaluator_module._Running(0, None, None, scored, deque(range(20)))
    assert list(running.next_examples(floor)) == list(range(asked))


# Any monotone utility


def smallest(split, scores):
    return min(scores[:3]) + max(scores[3:])


def test_bounds_of_any_utility_fill_in_what_is_missing():
    scored = PartialScores(5, lambda scores: smallest("dev", scores), DecisionBounds(0.9, 0.1, 0.0, 1.0))
    assert scored.bounds == (0.0, 2.0)
    scored.scores = [0.5, None, None, None, 0.25]
    assert scored.bounds == (0.25, 1.5)
    assert not scored.decided
    scored.scores = [0.5, 0.25, None, 0.5, 0.25]
    assert scored.bounds == (0.5, 0.75)
    scored.scores = [0.5, 0.25, None, 0.5, None]
    assert not scored.decided
    scored.limits = DecisionBounds(1.25, 0.5, 0.0, 1.0)
    assert scored.decided
    assert scored.need == (0, 0)


def test_a_utility_that_no_score_can_raise_needs_an_estimate_too():
    scored = PartialScores(4, lambda scores: min(scores), DecisionBounds(-1.0, 0.0, 0.0, 1.0))
    scored.scores = [0.0, None, None, None]
    assert scored.bounds == (0.0, 0.0)
    assert not scored.decided
    assert scored.need == (3, 0)


def test_a_nan_makes_any_utility_nan():
    least = utility(PROMPTS, reduce=lambda split, scores: min(scores, default=0.0))
    assert math.isnan(least.utility_of("dev", [0.5, math.nan, 1.0]))
    assert math.isnan(least.error_of("dev", [0.5, math.nan, 1.0]))
    assert least.utility_of("dev", [0.5, 0.25]) == 0.25


def test_the_utility_of_rows_is_the_reduction():
    prompts = [f"{index:02}" for index in range(6)]
    scripted = utility(prompts, reduce=smallest, standard_error=lambda split, scores: 7.0, score_range=(0.0, 1.0))
    engine, source = ScriptedEngine(1), Rows(1, 2)
    evaluator = Evaluator(engine, scripted)
    for particle, scored in evaluator.score_population(source.some([0, 1]), "dev").items():
        scores = [number(held(source, particle), prompt) for prompt in prompts]
        assert scored.bounds == (smallest("dev", scores),) * 2
    assert scripted.error_of("dev", [0.0]) == 7.0


def test_defaults_are_mean_and_its_error():
    scripted = utility(PROMPTS)
    scores = [1.0, 0.0, 0.0, 1.0, 1.0]
    assert scripted.utility_of("dev", scores) == mean("dev", scores) == 0.6
    assert scripted.error_of("dev", scores) == pytest.approx(math.sqrt(0.06))


# A real model


def test_continuations_of_a_real_tokenizer(tiny):
    """One-letter tokens: the score is the log-probability that the exact engine gives by itself."""
    engine = start_engine(Path(tiny["base"]), None, EngineConfig(engine="transformers", dtype="float32"))
    asks = {"dev": [(Ask("ba", 1, "ll"), Ask("ba", 1, "e"))], "test": [(Ask("a", 1),)]}
    scripted = utility(["x"], asks=asks, score_examples=lambda some, answers: [answers[0][0].log_prob])
    evaluator = Evaluator(engine, scripted)
    ids = {letter: engine.tokenizer(letter)["input_ids"][0] for letter in "bal"}
    chances = [
        engine.log_probs(Request(None, [ids["b"], ids["a"]])),
        engine.log_probs(Request(None, [ids["b"], ids["a"], ids["l"]])),
    ]
    expected = sum(chance[ids["l"]] for chance in chances)
    assert evaluator.score_base("dev") == [pytest.approx(expected, abs=1e-5)]
