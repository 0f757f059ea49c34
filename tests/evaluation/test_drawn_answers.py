"""Drawn answers: settings, seeds, scores of samples, pass@k; whole searches repeat, however they are batched."""

import itertools
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import helpers_search
import pytest
from helpers_evaluate import Rows, ScriptedEngine, number, utility
from helpers_search import told

from modelswarms_fast.config import Sampling, TaskConfig
from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.evaluator import Evaluator
from modelswarms_fast.evaluation.objectives import Answer, load_utility
from modelswarms_fast.evaluation.objectives.sampling import sampled
from modelswarms_fast.evaluation.objectives.utility import pass_at_k
from modelswarms_fast.evaluation.requests import seed_of
from modelswarms_fast.runs.evaluate import evaluate
from modelswarms_fast.runs.search import search

tiny = helpers_search.tiny
PROMPTS = ["abc", "a", "abcd", "ab", "b", "abce"]


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_sets_with_a_right_sample(n):
    for right in range(n + 1):
        samples = [index < right for index in range(n)]
        for k in range(1, n + 1):
            sets = list(itertools.combinations(samples, k))
            assert pass_at_k(n, right, k) == pytest.approx(sum(map(any, sets)) / len(sets), abs=1e-15)


def texts(utility, split, *samples):
    """Scores of the first example, whose samples said this."""
    return utility.score(split, [0], [[Answer(text) for text in samples]])[0]


@pytest.fixture
def file(tmp_path):
    examples = [{"question": f"{one}?", "answer": one} for one in "abc"]
    path = tmp_path / "sums.json"
    path.write_text(json.dumps({"dev": examples, "test": examples}))
    return path


def test_an_example_is_asked_for_each_sample(file):
    plain = load_utility("exact_match", file)
    four = load_utility("exact_match", file, temperature=0.8, top_p=0.9, samples=4, sample_seed=3)
    (ask,) = plain.asks["dev"][1]
    assert ask.sampling is None
    assert four.asks["dev"][1] == (ask._replace(sampling=Sampling(0.8, 0.9, 3)),) * 4
    assert texts(four, "dev", "a", "b", "x a", "") == 0.5
    assert four.report() == {"sampling": {"temperature": 0.8, "top_p": 0.9, "samples": 4, "pass_k": None}}
    assert four.digests()["asks"] != load_utility("exact_match", file, temperature=0.8, samples=4).digests()["asks"]


def test_without_settings_nothing_is_drawn(file):
    assert load_utility("exact_match", file).report() == {}
    assert (
        load_utility("exact_match", file, temperature=0, sample_seed=9).digests()
        == load_utility("exact_match", file).digests()
    )


def test_pass_at_k_counts_samples_of_score_1(file):
    two = load_utility("exact_match", file, temperature=1, samples=4, pass_k=2)
    assert texts(two, "dev", "a", "b", "c", "d") == 0.5
    assert texts(two, "dev", "a", "a", "a", "d") == 1
    assert two.score_range == (0, 1)


def test_scores_of_samples_are_checked_one_by_one():
    values = iter([0.1, 0.1, 0.1, math.nan, 0.2, 0.2, 0.1, 3, 0.1])
    one = utility(["a"], lambda example, text: next(values), score_range=(0.0, 0.1))
    three = sampled(replace(one, score_range=(0.0, 0.2)), TaskConfig(temperature=1, samples=3))
    assert texts(three, "dev", "", "", "") == 0.1, "no more than the highest sample, rounding included"
    assert math.isnan(texts(three, "dev", "", "", ""))
    with pytest.raises(InputError, match=r"returned 3; its score_range says 0 to 0\.2"):
        texts(three, "dev", "", "", "")


def test_what_most_samples_choose_is_the_choice(tmp_path):
    quiz = [{"question": "?", "choices": {"A": "tin", "B": "oak"}, "answer": "A"}]
    (tmp_path / "quiz.json").write_text(json.dumps({"dev": quiz, "test": quiz}))
    three = load_utility("multiple_choice", tmp_path / "quiz.json", temperature=1, samples=3)
    assert three.choice(quiz[0], [Answer("A"), Answer("B"), Answer("B")]) == "B"
    assert three.choice(quiz[0], [Answer("A"), Answer("B"), Answer("?")]) == "A"


def test_the_tasks_of_several_are_sampled_each(file):
    both = load_utility(
        "multitask", [file, file], temperature=0.5, samples=2, options={"tasks": "exact_match", "combine": "mean"}
    )
    assert [len(some) for some in both.asks["dev"]] == [2] * 6
    answers = [[Answer("a"), Answer("b")]] * 6
    assert both.score("dev", range(6), answers) == [0.5, 0.5, 0, 0.5, 0.5, 0]


def task(**attributes):
    def score(example, output):
        return float("a" in output)

    vars(score).update(attributes)
    return score


def test_a_function_says_how_it_wants_answers(monkeypatch, tmp_path):
    (tmp_path / "data.json").write_text(json.dumps({"dev": [{"prompt": "p"}], "test": [{"prompt": "p"}]}))
    load = lambda **settings: load_utility("own:score", tmp_path / "data.json", **settings)  # noqa: E731
    module = SimpleNamespace(score=task(temperature=0.7, top_p=0.5, samples=3, pass_k=2))
    monkeypatch.setitem(__import__("sys").modules, "own", module)
    own = load()
    assert own.asks["dev"][0] == (own.asks["dev"][0][0],) * 3
    assert own.asks["dev"][0][0].sampling == Sampling(0.7, 0.5, 0)
    assert texts(own, "dev", "a", "b", "b") == pytest.approx(2 / 3)
    other = load(temperature=0.2, samples=5, pass_k=1, sample_seed=4)
    assert [one.sampling for one in other.asks["dev"][0]] == [Sampling(0.2, 0.5, 4)] * 5
    assert texts(other, "dev", "a", "b", "b", "b", "b") == pytest.approx(0.2)
    module.score = task(samples="many")
    with pytest.raises(InputError, match="the attribute samples is 'many'; make it a number"):
        load()
    module.score = task(top_p=2)
    with pytest.raises(InputError, match="of the attributes of the function top_p is 2; give a number above 0"):
        load()
    module.score = task(score_range=(-1, 1))
    with pytest.raises(InputError, match=r"pass_k is 1, but .* has scores from -1 to 1"):
        load(pass_k=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 2}, "samples is 2, but at temperature 0 they are all the same; give temperature"),
        ({"samples": 2, "temperature": 0}, "samples is 2, but at temperature 0"),
        ({"top_p": 0.5}, "top_p is 0.5, but at temperature 0 nothing is drawn; give temperature"),
        ({"pass_k": 2}, "pass_k is 2, but an example has 1 samples; give samples"),
        ({"temperature": -1}, "temperature is -1; give 0, or a number from 0.01 to 100"),
        ({"temperature": 0.001}, "temperature is 0.001; give 0"),
        ({"temperature": math.nan}, "temperature is nan; give 0"),
        ({"top_p": 0}, "top_p is 0; give a number above 0, at most 1"),
        ({"samples": 0}, "samples is 0; give a number from 1 to 1,000,000"),
        ({"samples": 1.5}, "samples is 1.5; give a whole number"),
        ({"sample_seed": -1}, "sample_seed is -1; give a number from 0"),
    ],
)
def test_settings_that_do_not_do_are_one_sentence(file, settings, message):
    with pytest.raises(InputError, match=message):
        load_utility("exact_match", file, **settings)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("perplexity", {"temperature": 0.5}, "temperature is 0.5, but .*perplexity.* generates nothing"),
        ("multiple_choice", {"samples": 3, "scoring": "loglikelihood"}, "samples is 3, but .* generates nothing"),
        ("abstain", {"samples": 3, "temperature": 0.5}, "samples is 3, but .*abstain.* leave samples out"),
    ],
)
def test_tasks_without_drawn_answers_refuse_them(tmp_path, name, settings, message):
    one = {"question": "?", "choices": {"A": "tin", "B": "oak"}, "answer": "A", "text": "long"}
    (tmp_path / "data.json").write_text(json.dumps({"dev": [one], "test": [one]}))
    with pytest.raises(InputError, match=message):
        load_utility(name, tmp_path / "data.json", **settings)


def drawn(**settings):
    return sampled(utility(PROMPTS), TaskConfig(**{"temperature": 1, "samples": 3} | settings))


@pytest.mark.parametrize(("slots", "at_once"), [(1, 1), (3, 4), (2, 100)])
def test_an_answer_is_its_own_whatever_is_asked_beside_it(slots, at_once):
    """Its seed is made of the run's seed, the example, the sample and the position."""
    source, engine = Rows(3, 1, 3), ScriptedEngine(slots, at_once)
    evaluator = Evaluator(engine, drawn(sample_seed=5))
    found = evaluator.score_population(source.some(range(3)), "dev")
    for particle, scored in found.items():
        name = source.row(particle).numpy().tobytes()
        for example, score in enumerate(scored.scores):
            seeds = [seed_of(5, "dev", example, sample, name) for sample in range(3)]
            expected = [number(name.hex(), PROMPTS[example], seed) for seed in seeds]
            assert score == pytest.approx(math.fsum(expected) / 3, abs=1e-15)
    assert found[0].scores == found[2].scores, "a position that comes back"
    assert evaluator.spent.prompts == 2 * 3 * len(PROMPTS)


def test_no_two_answers_have_one_seed():
    parts = itertools.product([0, 1, 12], ["dev", "test"], [0, 1, 12], [0, 1, 2], [None, b"", b"0", b"1 0"])
    seeds = [seed_of(*one) for one in parts]
    assert len(set(seeds)) == len(seeds) * 3 // 4, "no name is as an empty one"
    assert all(0 <= seed < 2**63 for seed in seeds)


RICH = {"task": "helpers_search:rich", "max_tokens": 6, "temperature": 0.8, "samples": 3, "iterations": 4}


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("sampled") / "run"
    return search(**tiny | RICH, out=out), told(out), out


def test_a_search_repeats_and_other_seeds_draw_others(tiny, run, tmp_path):
    found, lines, _ = run
    assert {score for line in lines for score in line["utilities"]} - {0, 1}, "a test of something"
    again = search(**tiny | RICH, out=tmp_path / "again")
    assert told(tmp_path / "again") == lines
    assert again["end"] == found["end"]
    assert (found["temperature"], found["samples"], found["sample_seed"]) == (0.8, 3, 0)
    assert found["objective"]["sampling"]["samples"] == 3
    search(**tiny | RICH, sample_seed=1, out=tmp_path / "other")
    assert told(tmp_path / "other")[0]["utilities"] != lines[0]["utilities"]


def test_a_search_that_was_cut_goes_on_as_it_would_have(tiny, run, tmp_path):
    _, lines, _ = run
    cut = tmp_path / "cut"
    search(**tiny | RICH, out=cut)
    history = (cut / "history.jsonl").read_text().splitlines(keepends=True)
    (cut / "history.jsonl").write_text("".join(history[:3]))
    (cut / "summary.json").unlink()
    search(**tiny | RICH, out=cut, resume=True)
    assert told(cut) == lines


def test_a_search_that_skips_examples_finds_the_same(tiny, run, tmp_path):
    found, _, _ = run
    early = search(**tiny | RICH, out=tmp_path / "early", stop_early=True)
    assert early["end"] == found["end"]
    assert early["mixture"] == found["mixture"]


@pytest.mark.slow
def test_engines_side_by_side_draw_the_same(tiny, run, tmp_path):
    search(**tiny | RICH, out=tmp_path / "two", engines=2)
    assert told(tmp_path / "two") == run[1]


def test_the_winner_alone_answers_as_in_the_search(tiny, run):
    found, _, out = run
    given = {name: tiny[name] for name in ("base", "data", "engine", "dtype")} | RICH
    del given["iterations"]
    alone = evaluate(str(out / "global_best"), **given)
    assert alone["score"] == found["end"]["test"]
