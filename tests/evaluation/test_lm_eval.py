"""Tasks of lm-eval on local data: asks and scores against those of lm-eval's own evaluation of a scripted model."""

import json
import logging
import math

import pytest

from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.objectives import Answer, load_utility

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


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    logging.disable(logging.WARNING)
    docs = [{"question": f"{n}+{n}?", "choices": ["one", "forty-two", str(n)], "label": n % 3} for n in range(12)]
    (tmp_path / "validation.jsonl").write_text("\n".join(map(json.dumps, docs[:5])))
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, docs[5:])))
    for name, text in (("choice", CHOICE), ("generate", GENERATE), ("likely", LIKELY)):
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


def by_lm_eval(name, folder, monkeypatch):
    """Prompts and each document's metrics, as lm-eval's own evaluator finds them with the same model."""
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
    found = simple_evaluate(Scripted(), tasks=[name], task_manager=manager, bootstrap_iters=0, log_samples=True)
    return found["samples"][name]


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
    samples = [one for one in by_lm_eval(name, folder, monkeypatch) if one["filter"] == kept]
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
        ("tiny_choice", {}, {"colour": "x"}, "no option colour; it knows metric, filter"),
        ("tiny_choice", {"test.jsonl": "absent.jsonl"}, {}, "lm-eval cannot make the task tiny_choice"),
        ("tiny_choice", {"{{question}}": "{{none.of.it}}"}, {}, "lm-eval cannot make the task tiny_choice"),
        ("tiny_choice", {"multiple_choice": "loglikelihood_rolling"}, {}, "of type loglikelihood_rolling"),
    ],
)
def test_what_is_wrong_is_one_sentence(folder, monkeypatch, name, change, options, message):
    from lm_eval.tasks import TaskManager

    text = CHOICE
    for old, new in change.items():
        text = text.replace(old, new)
    (folder / "choice.yaml").write_text(text)
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
