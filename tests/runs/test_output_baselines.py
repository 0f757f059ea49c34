"""Methods that combine what experts say: votes, Pack of LLMs, cBTM; and one expert trained on all data."""

import json
import math

import helpers_search
import numpy as np
import pytest
import torch
from helpers_search import NAMES, arguments_of, write_training
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from modelswarms_fast.engines.protocol import Request
from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.objectives import Answer, Ask, Utility, load_utility
from modelswarms_fast.evaluation.objectives.multitask import join
from modelswarms_fast.runs.baselines import cbtm, data_merge, pack, vote
from modelswarms_fast.runs.baselines.ensembles import Ensemble
from modelswarms_fast.runs.experiment import Experiment
from modelswarms_fast.runs.final_test import _label
from modelswarms_fast.runs.training_data import read_training_data

tiny = helpers_search.tiny


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    return write_training(tmp_path_factory.mktemp("data") / "train")


@pytest.fixture(scope="module")
def experiment(tiny, train, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    with Experiment(**arguments_of(tiny, train=train, out=out)) as opened:
        yield opened


# votes


def utility_of_words(task="words", answers=("yes", "no")):
    examples = [{"question": str(index), "choices": {"A": "x", "B": "y"}} for index in range(len(answers))]
    return Utility(
        task,
        task,
        {"dev": examples, "test": examples},
        {split: [(Ask(example["question"], 5),) for example in examples] for split in ("dev", "test")},
        lambda some, given: [
            float(answer[0].text == answers[int(one["question"])]) for one, answer in zip(some, given, strict=True)
        ],
    )


def said(*texts):
    return [[Answer(text)] for text in texts]


def test_a_majority_wins_and_a_tie_goes_to_the_better_expert():
    utility = utility_of_words(answers=("", "", ""))
    best, second, third = said("yes", "a", "x"), said("No!", "b", "y"), said(" no ", "b", "z")
    assert [answer[0].text for answer in vote.vote(utility, "dev", [best, second, third])] == ["No!", "b", "x"]
    assert [answer[0].text for answer in vote.vote(utility, "dev", [third, best])] == [" no ", "b", "z"]


@pytest.fixture
def choices(tmp_path):
    """A file of one question with choices."""
    examples = [{"question": "Made of?", "choices": {"A": "tin", "B": "an oak tree"}, "answer": "B"}]
    file = tmp_path / "choices.json"
    file.write_text(json.dumps({"dev": examples, "test": examples}))
    return file


def test_what_counts_as_one_answer():
    def same(one, other):
        return vote.meaning(utility, {}, [Answer(one)]) == vote.meaning(utility, {}, [Answer(other)])

    utility = utility_of_words()
    assert same(' "The  Answer".\n', "the answer")
    assert not same("the answer", "an answer")
    assert vote.meaning(utility, {}, [Answer("A", 1, -3.0), Answer("B", 1, -1.0)]) == 1


@pytest.mark.parametrize("several", [False, True])
def test_choices_are_compared_alone_and_among_several_tasks(choices, several):
    utility = load_utility("multiple_choice", choices)
    if several:
        utility = join("multitask", [utility_of_words(), utility], [1, 1], "mean")
    number = len(utility.examples["test"]) - 1
    example = utility.examples["test"][number]

    def same(one, other):
        return vote.meaning(utility, example, [Answer(one)]) == vote.meaning(utility, example, [Answer(other)])

    assert same("B. of course", "B, for sure")
    assert not same("A. of course", "B. of course")
    assert _label(utility, number, [Answer("B. of course")], 1.0) == "B"
    if several:  # the other task has no choices
        assert vote.meaning(utility, utility.examples["dev"][0], [Answer("Yes!")]) == ("yes",)
        assert _label(utility, 0, [Answer("Yes!")], 0.5) == 0.5


@pytest.mark.parametrize(("normalise", "named"), [("none", "A"), ("characters", "B")])
def test_the_likeliest_choice_is_that_of_the_score(choices, normalise, named):
    options = {"answer": "text", "normalise": normalise}
    utility = load_utility("multiple_choice", choices, scoring="loglikelihood", options=options)
    likely = [Answer(" tin", 1, -3.0), Answer(" an oak tree", 1, -4.0)]
    assert vote.meaning(utility, utility.examples["dev"][0], likely) == named
    assert utility.score("dev", [0], [likely]) == [float(named == "B")]


def test_dev_chooses_how_many_vote(experiment):
    choice = vote.run(experiment, 9, 0)
    answers = [experiment.evaluator.generate(row, "dev") for row in experiment.experts.rows]
    order = np.argsort(-experiment.initial, kind="stable")
    merged = vote.vote(experiment.utility, "dev", [answers[index] for index in order])
    assert choice.dev == pytest.approx(np.mean(experiment.utility.score("dev", range(12), merged)))
    assert choice.recipe["voters"] == [NAMES[index] for index in order]
    assert list(choice.recipe["dev_alone"].values()) == experiment.initial.tolist()
    assert (choice.evaluations, choice.looks_at_experts) == (3, False)
    assert len(choice.test()) == 12


# Pack of LLMs


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(20, (15,), generator=generator)
    return [2 * torch.randn((15, 20), generator=generator) for _ in range(4)], tokens


def test_the_simple_rule_is_a_softmax_of_log_perplexities(logits):
    given, tokens = logits
    losses = [-float(torch.log_softmax(one, -1)[range(15), tokens].mean()) for one in given]
    weights = [math.exp(-loss) for loss in losses]
    assert pack.softmax(given, tokens) == pytest.approx([weight / sum(weights) for weight in weights], rel=1e-4)


def test_the_greedy_rule_finds_what_trying_the_whole_grid_finds(logits):
    given, tokens = logits
    order = sorted(range(4), key=lambda expert: pack.surprise(given[expert], tokens))
    weights, mixed = np.zeros(4), given[order[0]]
    weights[order[0]] = 1.0
    for expert in order[1:]:
        losses = [pack.surprise(torch.lerp(mixed, given[expert], step / 20), tokens) for step in range(21)]
        share = int(np.argmin(losses)) / 20
        mixed, weights = torch.lerp(mixed, given[expert], share), weights * (1 - share)
        weights[expert] += share
    found = pack.greedy(given, tokens)
    assert found == pytest.approx(weights)
    assert (found > 0).sum() > 1
    total = sum(weight * one for weight, one in zip(found, given, strict=True))
    assert pack.surprise(total, tokens) < pack.surprise(given[order[0]], tokens)


def test_pack_weighs_each_prompt_by_itself(experiment):
    ensemble = Ensemble(experiment, "logits")
    by_rule = pack.routes(ensemble.engine, {"softmax": pack.softmax, "greedy": pack.greedy}, 3)
    route = by_rule["softmax"]
    prompts = [Request(0, prompt) for prompt in experiment.evaluator.prompts("dev")]
    before = ensemble.engine.passes
    first, second = route(prompts[0]), route(prompts[1])
    assert first.sum() == pytest.approx(1)
    assert not np.allclose(first, second, atol=1e-6)
    assert route(prompts[0]) is first
    assert not np.allclose(by_rule["greedy"](prompts[0]), first, atol=1e-6)
    assert ensemble.engine.passes == before + 6  # of two prompts through three experts, for both rules
    assert route(Request(0, prompts[0].prompt[:1])).tolist() == [1 / 3] * 3


def test_pack_takes_both_rules_if_the_budget_allows(experiment):
    before = experiment.evaluator.spent.prompts
    choice = pack.run(experiment, 6, 0)
    assert (choice.evaluations, choice.looks_at_experts) == (6, False)
    assert set(choice.recipe["dev_by_rule"]) == {"greedy", "softmax"}
    assert choice.dev == max(choice.recipe["dev_by_rule"].values())
    assert experiment.evaluator.spent.prompts > before
    assert len(choice.test()) == 12
    assert pack.run(experiment, 5, 0).evaluations == 3
    with pytest.raises(InputError, match="less than the 3 experts take"):
        pack.run(experiment, 2, 0)


def test_an_ensemble_of_one_is_the_expert(experiment):
    ensemble = Ensemble(experiment, "probabilities")
    for index, unit in enumerate(np.eye(3)):
        assert ensemble.dev(lambda prompt, unit=unit: unit) == experiment.initial[index]


# cBTM

FISH = ["the cod swims in the sea", "a trout swims in the river", "cod and trout swim", "the sea has cod"]
SUMS = ["add 3 and 4", "what is 3 plus 4", "the sum of 4 and 3 is what", "add 4 plus 3"]


def test_clusters_are_found_and_have_their_experts():
    clusters = cbtm.Clusters.of(FISH + SUMS, 2, seed=2**32)
    assert len({*clusters.numbers[:4]}) == len({*clusters.numbers[4:]}) == 1
    scores = np.array([[1, 0, 0.4]] * 4 + [[0, 1, 0.4]] * 4)
    experts = cbtm.best_by_cluster(clusters.numbers, scores, 2, prior=1)
    assert experts[clusters.numbers[0]] == 0
    assert experts[clusters.numbers[4]] == 1
    router = cbtm.Router(None, clusters, experts, 3, top=2)
    fish, sums = router.weights("cod in a river"), router.weights("add 4 and 4")
    assert fish[0] > 0.9
    assert sums[1] > 0.9
    assert fish.sum() == pytest.approx(1)
    assert fish[2] == 0
    assert np.count_nonzero(cbtm.Router(None, clusters, experts, 3, top=1).weights(FISH[0])) == 1
    in_chat = Request(0, [1, 2], message="cod in a river")  # the words of a template are no part of a cluster
    assert router(in_chat).tolist() == fish.tolist()


def test_few_examples_in_a_cluster_decide_little():
    numbers = np.array([0] * 20 + [1])
    scores = np.array([[1.0, 0.5]] * 20 + [[0.0, 1.0]])
    assert cbtm.best_by_cluster(numbers, scores, 2, prior=0) == [0, 1]
    assert cbtm.best_by_cluster(numbers, scores, 2, prior=4) == [0, 0]


def test_cbtm_by_data_and_by_dev(experiment, tiny, tmp_path):
    by_data = cbtm.run(experiment, 5, 0)
    assert by_data.recipe["chosen_by"] == "training data"
    assert (by_data.evaluations, by_data.looks_at_experts) == (5, False)
    assert by_data.recipe == cbtm.run(experiment, 5, 0).recipe
    assert sum(by_data.recipe["sizes_of_clusters"]) == 120
    assert by_data.dev == by_data.recipe["dev_by_top"][str(by_data.recipe["top"])]
    assert len(by_data.test()) == 12
    with Experiment(**arguments_of(tiny, out=tmp_path)) as other:
        by_dev = cbtm.run(other, 7, 0)
        assert by_dev.recipe["chosen_by"] == "dev scores"
        assert (by_dev.evaluations, by_dev.looks_at_experts) == (5, True)
        with pytest.raises(InputError, match="of which cBTM needs 5"):
            cbtm.run(other, 4, 0)


# data merge


def test_the_merged_expert_is_an_adapter_that_has_learned(experiment, tiny):
    choice = data_merge.run(experiment, 3, 0, steps=60)
    assert choice.evaluations == 1
    assert choice.recipe["examples"] == 120
    first, last = choice.recipe["loss"]
    assert last < first - 0.1
    folder = experiment.out / "data_merge"
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny["base"]), folder)
    assert model.peft_config["default"].r == 4
    again = load_file(folder / "adapter_model.safetensors")
    data_merge.run(experiment, 3, 0, steps=60)
    same = load_file(folder / "adapter_model.safetensors")
    assert all(torch.equal(again[name], same[name]) for name in again)
    assert len(choice.test()) == 12


def test_data_merge_says_what_it_needs(experiment, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "train", None)
    with pytest.raises(InputError, match="--train"):
        data_merge.run(experiment, 3, 0)


def test_training_data_is_checked(tmp_path):
    folder = write_training(tmp_path / "train", count=2)
    assert read_training_data(folder, NAMES)["bob"] == [("baa", "eee"), ("bba", "eee")]
    with pytest.raises(InputError, match=r"cannot read .*dan\.jsonl"):
        read_training_data(folder, ["dan"])
    (folder / "ada.jsonl").write_text('{"prompt": "a\u2028b", "completion": "c"}\n')
    assert read_training_data(folder, ["ada"]) == {"ada": [("a\u2028b", "c")]}
    (folder / "ada.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(InputError, match="line 1 is no"):
        read_training_data(folder, NAMES)
    (folder / "ada.jsonl").write_text("\n")
    with pytest.raises(InputError, match="is empty"):
        read_training_data(folder, NAMES)
