"""Tasks of lm-eval on local data: asks and scores against lm-eval's own evaluation, of a scripted and a real model."""

import json
import logging
import math
import re
import shutil

import pytest
from helpers_models import make_base
from helpers_search import write_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelswarms_fast.config import Sampling
from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.holdout import hold_back
from modelswarms_fast.evaluation.objectives import Answer, load_utility
from modelswarms_fast.runs.evaluate import evaluate

pytest.importorskip("lm_eval")
SPLITS = """
dataset_path: json
dataset_kwargs:
  data_files:
    validation: validation.jsonl
    test: test.jsonl
validation_split: validation
test_split: test
"""
CHOICE = (
    SPLITS
    + """
task: tiny_choice
output_type: multiple_choice
num_fewshot: 2
fewshot_split: validation
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
)
GENERATE = (
    SPLITS
    + """
task: tiny_generate
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{choices[label]}}"
generation_kwargs: {until: ["\\n", "."], max_gen_toks: 7, do_sample: false}
filter_list:
  - name: plain
    filter:
      - {function: take_first}
  - name: number
    filter:
      - {function: regex, regex_pattern: "([0-9]+)"}
      - {function: take_first}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}
"""
)
LIKELY = (
    SPLITS.replace("test_split: test\n", "").replace("validation_split: validation\n", "")
    + """
task: tiny_likely
test_split: test
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
)

GROUP = """
group: tiny_group
task: [tiny_choice, {task: tiny_more, num_fewshot: 0}]
aggregate_metric_list:
  - {metric: acc, weight_by_size: true}
  - {metric: acc_norm, weight_by_size: false}
"""
MORE = """
include: choice.yaml
task: tiny_more
tag: tiny_tag
test_split: validation
validation_split: null
training_split: test
doc_to_text: !function words.ask
"""
WORDS = """
def ask(doc):
    return "Say " + doc["question"]
"""
YES = {"functions": "yes"}  # more.yaml has one
VOTE = (
    GENERATE.replace("tiny_generate", "tiny_vote")
    .replace("do_sample: false", "do_sample: true, temperature: 0.5, top_p: 0.9")
    .replace('regex_pattern: "([0-9]+)"}', 'regex_pattern: "([0-9]+)"}\n      - {function: majority_vote}')
    .replace("tag: tiny_tag", "")
    + "repeats: 3\n"
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    logging.disable(logging.WARNING)
    docs = [{"question": f"{n}+{n}?", "choices": ["one", "forty-two", str(n)], "label": n % 3} for n in range(12)]
    (tmp_path / "validation.jsonl").write_text("\n".join(map(json.dumps, docs[:5])))
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, docs[5:])))
    (tmp_path / "words.py").write_text(WORDS)
    files = {"choice": CHOICE, "generate": GENERATE, "likely": LIKELY, "group": GROUP, "more": MORE, "vote": VOTE}
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    yield tmp_path
    logging.disable(logging.NOTSET)


class Model:
    """What a text is worth or continues with, by its letters alone."""

    def likelihood(self, prompt, more):
        return -((len(prompt) * 31 + sum(map(ord, more)) * 7) % 97) / 10, (len(prompt) + len(more)) % 2 == 0

    def text(self, prompt):
        number = int(prompt.split("Question: ")[-1].split("+")[0])
        return "Forty-two" if number % 3 == 1 else f"{number} it is"


def answer(model, ask):
    if ask.continuation is None:
        return Answer(model.text(ask.prompt), 1)
    return Answer(ask.continuation, 1, *model.likelihood(ask.prompt, ask.continuation))


def by_lm_eval(name, folder, monkeypatch, shots=None):
    """What lm-eval's own evaluator finds with the same model; `samples` has prompts and each document's metrics."""
    from lm_eval import simple_evaluate
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    model = Model()

    class Scripted(LM):
        def loglikelihood(self, requests, **more):
            return [model.likelihood(*request.args) for request in requests]

        def generate_until(self, requests, **more):
            return [model.text(request.args[0]) for request in requests]

        def loglikelihood_rolling(self, requests, **more):
            raise NotImplementedError

    monkeypatch.chdir(folder)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return simple_evaluate(
        Scripted(), tasks=[name], task_manager=manager, bootstrap_iters=0, log_samples=True, num_fewshot=shots
    )


@pytest.mark.parametrize(
    ("name", "options", "metric", "kept"),
    [
        ("tiny_choice", {}, "acc", "none"),
        ("tiny_choice", {"metric": "acc_norm"}, "acc_norm", "none"),
        ("tiny_generate", {}, "exact_match", "plain"),
        ("tiny_generate", {"filter": "number"}, "exact_match", "number"),
        ("tiny_likely", {}, "acc", "none"),
    ],
)
def test_asks_and_scores_are_those_of_lm_eval(folder, monkeypatch, name, options, metric, kept):
    utility = load_utility(f"lm_eval:{name}", folder, options=options)
    samples = [one for one in by_lm_eval(name, folder, monkeypatch)["samples"][name] if one["filter"] == kept]
    samples = sorted(samples, key=lambda one: one["doc_id"])
    first = 0
    if name == "tiny_likely":  # its only split is halved
        first = len(samples) - len(utility.asks["test"])
        assert (len(utility.asks["dev"]), len(utility.asks["test"])) == (3, 4)
    asks = utility.asks["test"]
    for sample, some in zip(samples[first:], asks, strict=True):
        theirs = sample["arguments"]
        for ask, arguments in zip(some, theirs, strict=True):
            assert ask.prompt == arguments[0]
            assert ask.continuation in (None, arguments[1])
    scores = utility.score("test", range(len(asks)), [[answer(Model(), ask) for ask in some] for some in asks])
    assert scores == [float(sample[metric]) for sample in samples[first:]]
    if name == "tiny_choice":
        examples = utility.examples["test"]
        named = [
            utility.choice(one, [answer(Model(), ask) for ask in some])
            for one, some in zip(examples, asks, strict=True)
        ]
        assert scores == [float(place == one["doc"]["label"]) for place, one in zip(named, examples, strict=True)]
    if len(asks) > 4:
        assert 0 < sum(scores) < len(scores), "a test of something"


def scored(utility, split="test"):
    """The utility of the scripted model's answers."""
    asks = utility.asks[split]
    answers = [[answer(Model(), ask) for ask in some] for some in asks]
    return utility.utility_of(split, utility.score(split, range(len(asks)), answers))


@pytest.mark.parametrize(("name", "metric"), [("tiny_group", "acc"), ("tiny_group", "acc_norm"), ("tiny_tag", "acc")])
def test_a_group_is_weighted_as_lm_eval_weighs_it(folder, monkeypatch, name, metric):
    utility = load_utility(f"lm_eval:{name}", folder, options={"metric": metric} | YES)
    found = by_lm_eval(name, folder, monkeypatch)["results"]
    expected = found.get(name, found["tiny_more"])[f"{metric},none"]
    assert scored(utility) == pytest.approx(expected, abs=1e-12)
    assert 0 < expected < 1
    if name == "tiny_group":
        assert [len(task.asks["test"]) for task in utility.parts] == [7, 5]
        parts = [found[task][f"{metric},none"] for task in ("tiny_choice", "tiny_more")]
        assert parts[0] != parts[1], "a test of something"
        more = utility.parts[1].asks["test"][0][0]
        assert more.prompt == "Say 0+0?", "included, with a function and no examples"
        assert utility.dataset == (
            f"tiny_choice (dev: validation, test: test; {metric}) + tiny_more (dev: test, test: validation; {metric})"
        )


MARK = "__import__('pathlib').Path('{marker}').touch()"
EVIL = {
    "function": ("doc_to_text: !function evil.ask", "has code of its own, !function 'evil.ask'"),
    "installed": ("doc_to_text: !function os.getcwd", "!function 'os.getcwd'"),
    "metric": (
        "metric_list: [{metric: evil.py, aggregation: mean, higher_is_better: true}]",
        "metric 'evil.py' is none",
    ),
    "evaluate": ("metric_list: [{metric: acc, hf_evaluate: true}]", "metric 'acc' is none of lm-eval's"),
    "class": ("class: !function evil.Task", "!function 'evil.Task'"),
    "python": ("process_docs: !!python/name:evil.ask", "lm-eval has no task 'evil'"),
    "template": (
        "doc_to_text: \"{{ cycler.__init__.__globals__.os.system('touch {marker}') }}\"",
        "access to attribute '__init__' of 'type' object is unsafe",
    ),
}


@pytest.mark.parametrize("kind", EVIL)
@pytest.mark.parametrize("included", [False, True])
def test_no_code_of_a_yaml_file_runs_unless_the_user_says_so(folder, monkeypatch, kind, included):
    marker = folder / "was_run"
    line, said = EVIL[kind]
    (folder / "evil.py").write_text(MARK.format(marker=marker) + "\ndef ask(doc):\n    return 'x'\nclass Task: pass\n")
    line = line.replace("{marker}", str(marker))
    key = line.partition(":")[0] + ":"
    kept = [one for one in CHOICE.replace("tiny_choice", "evil").splitlines() if not one.startswith(key)]
    kept = [one for one in kept if key != "metric_list:" or not one.startswith("  - {metric")]
    text = "\n".join([*kept, line])
    if included:
        (folder / "inner").mkdir()
        (folder / "inner" / "all.yaml").write_text(text.replace("task: evil", "").replace(" evil", " evil"))
        shutil.copy(folder / "evil.py", folder / "inner" / "evil.py")
        text = "include: inner/all.yaml\ntask: evil\n"
    (folder / "evil.yaml").write_text(text)
    with pytest.raises(InputError, match=re.escape(said)):
        load_utility("lm_eval:evil", folder, limit_dev=2, limit_test=2)
    assert not marker.exists()
    if kind == "function":
        load_utility("lm_eval:evil", folder, limit_dev=2, limit_test=2, options={"functions": "yes"})
        assert marker.exists(), "a test of something"


def test_confirm_and_samples_hold_for_each_task_of_a_group(folder):
    (folder / "group.yaml").write_text("group: tiny_group\ntask: [tiny_generate, tiny_vote]\n")
    utility = hold_back(load_utility("lm_eval:tiny_group", folder, temperature=1, samples=2), 2)
    assert {len(some) for some in utility.asks["dev"][:4]} == {2}
    assert {len(some) for some in utility.asks["confirm"][1:]} == {6}
    assert all(
        ask.sampling == Sampling(1, 1.0 if len(some) == 2 else 0.9) for some in utility.asks["dev"] for ask in some
    )


@pytest.mark.parametrize("shots", [0, 3])
def test_few_shot_examples_are_as_many_as_asked_for_and_those_of_lm_eval(folder, monkeypatch, shots):
    utility = load_utility("lm_eval:tiny_generate", folder, options={"num_fewshot": str(shots)})
    theirs = by_lm_eval("tiny_generate", folder, monkeypatch, shots)["samples"]["tiny_generate"]
    prompts = {one["doc_id"]: one["arguments"][0][0] for one in theirs}
    assert [some[0].prompt for some in utility.asks["test"]] == [prompts[index] for index in range(len(prompts))]
    assert utility.asks["test"][0][0].prompt.count("Answer:") == shots + 1


def test_answers_are_drawn_and_repeated_as_the_task_says(folder):
    utility = load_utility("lm_eval:tiny_vote", folder, sample_seed=2, options={"filter": "number"})
    assert [ask.sampling for ask in utility.asks["test"][0]] == [Sampling(0.5, 0.9, 2)] * 3
    said = [["7 it is", "5", "so 5"], ["5", "7", "7"]]
    scores = utility.score("test", [0, 0], [[Answer(text) for text in texts] for texts in said])
    assert scores == [1, 0], "the majority is right or wrong, not the first"
    greedy = load_utility("lm_eval:tiny_vote", folder, temperature=0)
    assert {ask.sampling for ask in greedy.asks["test"][0]} == {None}
    (folder / "vote.yaml").write_text(VOTE.replace("top_p: 0.9", "top_k: 5"))
    with pytest.raises(InputError, match="tiny_vote of lm-eval draws with top_k"):
        load_utility("lm_eval:tiny_vote", folder)


@pytest.mark.parametrize("name", ["tiny_group", "tiny_generate"])
def test_a_real_model_scores_as_lm_eval_says(folder, tmp_path, monkeypatch, name):
    """One model, in lm-eval's own wrapper of transformers and in the exact engine."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    base = make_base(tmp_path / "base", shape={"max_position_embeddings": 512, "initializer_range": 0.4})
    write_tokenizer(base)
    (folder / "generate.yaml").write_text(GENERATE.replace("{{choices[label]}}", "[invalid]"))
    monkeypatch.chdir(folder)
    model = HFLM(pretrained=AutoModelForCausalLM.from_pretrained(base), tokenizer=AutoTokenizer.from_pretrained(base))
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = simple_evaluate(model, tasks=[name], task_manager=manager, bootstrap_iters=0)["results"][name]
    metric, options = "acc,none", YES
    if name == "tiny_generate":  # whether the answer has no number in it
        metric, options = "exact_match,number", YES | {"filter": "number"}
    ours = evaluate(
        str(base), base=str(base), task=f"lm_eval:{name}", data=folder, engine="transformers", dtype="float32",
        max_model_len=512, options=options,
    )  # fmt: skip
    assert ours["score"] == pytest.approx(found[metric], abs=1e-12)
    assert 0 < ours["score"] < 1


def test_a_likelihood_that_is_no_number_is_no_score(folder):
    utility = load_utility("lm_eval:tiny_choice", folder)
    likely = [Answer("", 1, value) for value in (-1.0, math.nan, -2.0)]
    assert math.isnan(utility.score("test", [0], [likely])[0])


def test_what_a_task_asks(folder):
    utility = load_utility("lm_eval:tiny_generate", folder / "generate.yaml", limit_dev=2)
    assert utility.dataset == "tiny_generate (dev: validation, test: test; exact_match)"
    ask = utility.asks["dev"][1][0]
    assert (ask.prompt, ask.max_tokens, ask.stop) == ("Question: 1+1?\nAnswer:", 7, ("\n", "."))
    assert (len(utility.asks["dev"]), len(utility.asks["test"]), utility.score_range) == (2, 7, (0.0, 1.0))
    assert load_utility("lm_eval:tiny_generate", folder, max_tokens=3).asks["dev"][0][0].max_tokens == 3
    json.dumps(utility.examples)
    likely = load_utility("lm_eval:tiny_likely", folder)
    assert likely.dataset == "tiny_likely (dev: first half of test, test: second half of test; acc)"


def test_no_document_is_an_example_of_its_own(folder):
    """Two of the five dev documents stand before each dev document, never itself."""
    for number, asks in enumerate(load_utility("lm_eval:tiny_choice", folder).asks["dev"]):
        *shots, own = [line for line in asks[0].prompt.splitlines() if line.startswith("Question")]
        assert own == f"Question: {number}+{number}?"
        assert len(shots) == 2
        assert own not in shots


@pytest.mark.parametrize(
    ("name", "change", "options", "message"),
    [
        ("tiny_none", {}, {}, "lm-eval has no task 'tiny_none'"),
        ("tiny_choice", {}, {"metric": "f1"}, "option metric .* choose acc, acc_norm"),
        ("tiny_choice", {}, {"filter": "x"}, "option filter .* choose none"),
        ("tiny_choice", {}, {"colour": "x"}, "no option colour; it knows metric, filter, num_fewshot"),
        ("tiny_choice", {}, {"num_fewshot": "-1"}, "option num_fewshot .* is '-1'; give a number from 0 on"),
        (
            "tiny_choice",
            {"num_fewshot: 2": "num_fewshot: 0"},
            {"num_fewshot": "1"},
            "the YAML of tiny_choice sets it to 0",
        ),
        ("tiny_choice", {}, {"num_fewshot": "40"}, "lm-eval cannot make the task tiny_choice"),
        ("tiny_group", {"acc_norm,": "acc_mutual_info,"}, YES | {"metric": "acc_norm"}, "option metric .* choose acc$"),
        ("tiny_group", {"metric: acc,": "metric: f1,", "metric: acc_norm,": "metric: f1,"}, YES, "common to its tasks"),
        ("tiny_choice", {"test.jsonl": "absent.jsonl"}, {}, "lm-eval cannot make the task tiny_choice"),
        ("tiny_choice", {"{{question}}": "{{none.of.it}}"}, {}, "lm-eval cannot make the task tiny_choice"),
        ("tiny_choice", {"multiple_choice": "loglikelihood_rolling"}, {}, "of type loglikelihood_rolling"),
    ],
)
def test_what_is_wrong_is_one_sentence(folder, monkeypatch, name, change, options, message):
    from lm_eval.tasks import TaskManager

    file, text = ("group.yaml", GROUP) if name == "tiny_group" else ("choice.yaml", CHOICE)
    for old, new in change.items():
        assert old in text
        text = text.replace(old, new)
    (folder / file).write_text(text)
    if name == "tiny_none":  # lm-eval's own need not be listed
        own = TaskManager.__init__
        monkeypatch.setattr(
            TaskManager, "__init__", lambda self, include_path=None, include_defaults=True: own(
                self, include_path=include_path, include_defaults=False)
        )  # fmt: skip
    with pytest.raises(InputError, match=message):
        load_utility(f"lm_eval:{name}", folder, options=options)


def test_a_place_that_is_none_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*give a YAML file"):
        load_utility("lm_eval:x", tmp_path / "absent")


def test_a_data_set_that_cannot_be_reached_is_named(folder, monkeypatch):
    def unreachable(*given, **more):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(
        InputError, match=r"tiny_choice of the data set json \(ConnectionError: Couldn't reach the Hub\)"
    ):
        load_utility("lm_eval:tiny_choice", folder)
