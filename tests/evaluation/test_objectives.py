"""Objectives that ask more than one text: prompts by hand, scores by hand, options."""

import json
import math

import pytest
from helpers_evaluate import Rows, ScriptedEngine

from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.evaluator import Evaluator
from modelswarms_fast.evaluation.objectives import Answer, Ask, load_utility

QUESTION = {"question": "Which?", "choices": {"A": "tin", "B": "an oak"}, "answer": "B"}
PROMPT = "Please choose an option that best answers the question.\nQuestion: Which?\nA: tin\nB: an oak\nThe answer is"


def write(folder, name="quiz.json", example=QUESTION, **more):
    path = folder / name
    path.write_text(json.dumps({"dev": [example], "test": [example]} | more))
    return path


def likelihoods(*values):
    return [Answer("", 1, value, False) for value in values]


# Multiple choice by likelihood


def test_the_likeliest_key_is_the_answer(tmp_path):
    utility = load_utility("multiple_choice", write(tmp_path), scoring="loglikelihood")
    assert utility.asks["dev"] == [(Ask(PROMPT, 1, " A"), Ask(PROMPT, 1, " B"))]
    assert utility.score("dev", [0], [likelihoods(-2.0, -1.0)]) == [1.0]
    assert utility.score("dev", [0], [likelihoods(-1.0, -2.0)]) == [0.0]
    assert utility.score("dev", [0], [likelihoods(-1.0, -1.0)]) == [0.0], "the first of equals"
    assert (utility.score_range, utility.max_tokens) == ((0.0, 1.0), 1)


@pytest.mark.parametrize("values", [(math.nan, -1.0), (-1.0, math.nan)])
def test_a_likelihood_that_is_no_number_is_no_score(tmp_path, values):
    utility = load_utility("multiple_choice", write(tmp_path), scoring="loglikelihood")
    assert math.isnan(utility.score("dev", [0], [likelihoods(*values)])[0])


@pytest.mark.parametrize(("normalise", "expected"), [("none", 0.0), ("characters", 1.0)])
def test_texts_by_length(tmp_path, normalise, expected):
    """-4 for three characters and -6 for six: the second is likelier a character."""
    options = {"answer": "text", "normalise": normalise}
    utility = load_utility("multiple_choice", write(tmp_path), scoring="loglikelihood", options=options)
    assert [ask.continuation for ask in utility.asks["test"][0]] == [" tin", " an oak"]
    assert utility.score("test", [0], [likelihoods(-4.0, -6.0)]) == [expected]


def test_numbers_as_choices(tmp_path):
    example = {"question": "3 + 4?", "choices": {"1": 8, "2": 7.5}, "answer": 2}
    options = {"answer": "text"}
    path = write(tmp_path, example=example)
    utility = load_utility("multiple_choice", path, scoring="loglikelihood", options=options)
    assert [ask.continuation for ask in utility.asks["dev"][0]] == [" 8", " 7.5"]
    assert utility.score("dev", [0], [likelihoods(-2.0, -1.0)]) == [1.0]


@pytest.mark.parametrize(
    ("task", "more", "message"),
    [
        ("exact_match", {"scoring": "loglikelihood"}, "scoring is"),
        ("multiple_choice", {"scoring": "likely"}, "scoring is 'likely'; choose"),
        ("multiple_choice", {"scoring": "loglikelihood", "max_tokens": 3}, "max_tokens is given"),
        ("multiple_choice", {"scoring": "loglikelihood", "options": {"answer": "both"}}, "choose key, text"),
        ("multiple_choice", {"scoring": "loglikelihood", "options": {"colour": "x"}}, "knows answer, normalise"),
        ("multiple_choice", {"options": {"answer": "key"}}, "no option answer; it has none"),
        ("abstain", {"options": {"answer": "key"}}, "no option answer; it has none"),
    ],
)
def test_what_an_objective_does_not_have_is_refused(tmp_path, task, more, message):
    with pytest.raises(InputError, match=message):
        load_utility(task, write(tmp_path), **more)


def test_no_data_is_refused():
    with pytest.raises(InputError, match='"exact_match" needs an evaluation file'):
        load_utility("exact_match")


# Abstention

REFLECTION = "\nProposed answer: B, I think\nIs the proposed answer true or false? Directly answer with true or false."


def test_abstain_asks_whether_the_answer_is_right(tmp_path):
    utility = load_utility("abstain", write(tmp_path), max_tokens=7)
    assert utility.asks["dev"] == [(Ask(PROMPT, 7),)]
    assert utility.follow_up(QUESTION, [Answer(" B, I think\n")]) == Ask(PROMPT + REFLECTION, 7)
    assert utility.score_range == (-1.0, 1.0)
    assert load_utility("abstain", write(tmp_path)).asks["dev"] == [(Ask(PROMPT, 10),)]


@pytest.mark.parametrize(
    ("output", "reflection", "score"),
    [
        (" B", "True", 1.0),
        (" A", "true.", -1.0),
        (" B", " It is FALSE", 0.0),
        (" A", "false", 0.0),
        ("nothing", "", -1.0),
        (" B", "no idea", 1.0),
    ],
)
def test_effective_reliability(tmp_path, output, reflection, score):
    utility = load_utility("abstain", write(tmp_path))
    assert utility.score("dev", [0], [[Answer(output), Answer(reflection)]]) == [score]


def test_abstain_by_an_engine(tmp_path):
    """Four questions: right and sure, wrong and sure, right and unsure, wrong and unsure."""
    says = {"q0": ("B", "true"), "q1": ("A", "true"), "q2": ("B", "false"), "q3": ("A", "False")}
    examples = [QUESTION | {"question": question} for question in says]
    path = write(tmp_path, dev=examples)

    def answer(held, prompt):
        first, second = says[prompt.split("Question: ")[1][:2]]
        return second if prompt.endswith("Directly answer with true or false.") else f" {first}\n"

    utility = load_utility("abstain", path)
    evaluator = Evaluator(ScriptedEngine(1, answer=answer), utility)
    scores = evaluator.score_population(Rows(1).some([0]), "dev")[0].scores
    assert scores == [1.0, -1.0, 0.0, 0.0]
    assert utility.utility_of("dev", scores) == 0.0


def test_knowledge_crosswords_keeps_its_example(tmp_path):
    path = write(tmp_path, "knowledge_crosswords.json", icl_prompt="Q: 1\nThe answer is A.\n")
    for task, scoring in (("abstain", "generate"), ("multiple_choice", "loglikelihood")):
        prompt = load_utility(task, path, scoring=scoring).prompts["dev"][0]
        assert prompt == "Q: 1\nThe answer is A.\n\nQuestion: Which?\nA: tin\nB: an oak\nThe answer is"
    with pytest.raises(InputError, match="icl_prompt"):
        load_utility("abstain", write(tmp_path, "knowledge_crosswords.json"))


# Perplexity


def test_perplexity_is_the_mean_of_a_token(tmp_path):
    examples = [{"text": "all of it"}, {"prompt": "What? ", "completion": "That."}, {"completion": "alone"}]
    utility = load_utility("perplexity", write(tmp_path, dev=examples, test=examples[:1]))
    assert utility.asks["dev"] == [
        (Ask("", 1, "all of it"),), (Ask("What? ", 1, "That."),), (Ask("", 1, "alone"),),
    ]  # fmt: skip
    answers = [[Answer("", 4, -6.0)], [Answer("", 2, -1.0)], [Answer("", 1, 0.0)]]
    scores = utility.score("dev", [0, 1, 2], answers)
    assert scores == [-1.5, -0.5, 0.0]
    assert utility.utility_of("dev", scores) == pytest.approx(-2 / 3)
    assert utility.score_range is None
    assert math.exp(-scores[0]) == pytest.approx(4.4816890703)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"prompt": "p"}, 'lacks the field "text"'),
        ({"text": 3}, '"text" is int'),
        ({"completion": ""}, "empty text"),
        ({"text": ""}, "empty text"),
        ({"completion": "c", "prompt": 3}, "a prompt that is none"),
    ],
)
def test_perplexity_needs_texts(tmp_path, example, message):
    with pytest.raises(InputError, match=message):
        load_utility("perplexity", write(tmp_path, example=example))
    with pytest.raises(InputError, match="max_tokens is given"):
        load_utility("perplexity", write(tmp_path, example={"text": "t"}), max_tokens=4)
