"""model_swarm's command: its files, its log, its numbers, and what it refuses."""

import json
import logging
import math
import os
import re
import shutil
import signal
import sys
import time
from types import SimpleNamespace

import helpers_model_swarm
import pytest
import torch
from helpers_golden import config_of, golden, injected_r
from helpers_model_swarm import HOST, NAMES, make_place, read, run_in, said, tree
from helpers_scorers import CHAT, endpoint, make_classifier, write_prompts
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM

from modelswarms_fast.compat.model_swarm.__main__ import main
from modelswarms_fast.compat.model_swarm.flags import read_flags
from modelswarms_fast.compat.model_swarm.metrics import overall_metrics
from modelswarms_fast.compat.model_swarm.scratchpad import Scratchpad
from modelswarms_fast.compat.published import PublishedSwarm
from modelswarms_fast.compat.tensors import merge_states
from modelswarms_fast.errors import InputError
from modelswarms_fast.records.report import write_report
from modelswarms_fast.records.run_folder import read_history
from modelswarms_fast.runs.resume import resume

__all__ = ["endpoint"]  # a fixture
ADAPTER = {"adapter_config.json", "adapter_model.safetensors", "README.md"}
TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


@pytest.fixture(scope="module", autouse=True)
def no_wandb():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def quiz(place):
    """A search whose start was tested, with two children."""
    words = "-e multiple_choice -d quiz --starting_test_set_eval 1 --populate_initial_experts 1 --initial_experts_num 5"
    return run_in(place, *words.split(), "--files", "every", name="quiz")


@pytest.fixture(scope="module")
def graph(place):
    """A search as the flags are by default: its start is not tested, where model_swarm ends with an error."""
    return run_in(place, "-e", "exact_match", "-d", "nlgraph", "--clean_up_on_end", "0", name="graph")


def test_the_folder_has_the_files_of_model_swarm(quiz):
    places = [f"particle_{i}/{name}" for i in range(5) for name in ("now", "personal_best")]
    expected = {f"{place}/{name}" for place in places for name in ADAPTER | {"golds.json", "preds.json"}}
    expected |= {f"{place}/{name}_test.json" for place in places for name in ("golds", "preds")}
    expected |= {f"global_best/{name}" for name in ADAPTER | {"golds_dev.json", "preds_dev.json"}}
    expected |= {"args.txt", "log.txt", "utility_scratchpad.json"}
    expected |= {"config.json", "history.jsonl", "summary.json"}  # ours
    found = tree(quiz) - {"global_best/golds.json", "global_best/preds.json"}  # there if it was found after the test
    assert found == expected
    assert not (quiz / "tmp").exists()
    assert (quiz / "args.txt").read_text().startswith(f"Namespace(name='quiz_{HOST}', eval_type='multiple_choice'")


def test_weights_are_those_of_the_swarm(quiz):
    scratchpad = read(quiz / "utility_scratchpad.json")
    best = [load_file(quiz / f"particle_{i}" / "personal_best" / "adapter_model.safetensors") for i in range(5)]
    first = next(i for i in range(5) if scratchpad[f"particle_{i}_best"] == scratchpad["g"])
    bests = [i for i in range(5) if scratchpad[f"particle_{i}_best"] == scratchpad["g"]]
    g = load_file(quiz / "global_best" / "adapter_model.safetensors")
    assert any(all(torch.equal(g[name], best[i][name]) for name in g) for i in bests), first
    experts = [load_file(quiz.parents[1] / "initial_experts" / name / "adapter_model.safetensors") for name in NAMES]
    assert g.keys() == experts[0].keys()
    assert {tensor.dtype for tensor in g.values()} == {torch.float32}


def test_children_are_merges_of_their_parents(quiz):
    """Of a particle that has found nothing better its personal best is still where it began."""
    swarm = PublishedSwarm(config_of({}, particles=5), 3)
    folder = quiz.parents[1] / "initial_experts"
    states = [load_file(folder / name / "adapter_model.safetensors") for name in NAMES]
    for first, second, share in swarm.children:
        states.append(merge_states([share, 1 - share], [states[first], states[second]]))
    scratchpad, checked = read(quiz / "utility_scratchpad.json"), 0
    for i in range(5):
        if scratchpad[f"particle_{i}_best"] == scratchpad[f"particle_{i}_history"][0]:
            best = load_file(quiz / f"particle_{i}" / "personal_best" / "adapter_model.safetensors")
            assert all(torch.equal(best[name], states[i][name]) for name in best)
            checked += 1
    assert checked


def test_the_log_has_model_swarms_lines(quiz):
    lines = said(quiz)
    assert lines[:4] == ["populating initial experts...", "previously 3 experts", "now 5", "adding 2 experts"]
    start = lines.index("search initialized")
    assert lines[start + 1] == "expert 0: ./initial_experts/ada"
    assert lines[start + 4] == f"expert 3: search/quiz_{HOST}/tmp/child_0"
    assert lines[start + 6] == "Test set results:"
    scratchpad = read(quiz / "utility_scratchpad.json")
    iterations = len(scratchpad["g_history"]) - 1
    forms = [r"-{26}", rf"iteration 1! {TIME}", r"updating particles\.\.\."]
    assert all(re.fullmatch(*pair) for pair in zip(forms, lines[lines.index("-" * 26) :], strict=False))
    assert sum(re.fullmatch(rf"all particles evaluated! {TIME}", line) is not None for line in lines) == iterations
    final = next(line for line in lines if line.startswith("final metrics for test: {"))
    metrics = eval(final.removeprefix("final metrics for test: "))  # as parsers of the log do
    assert next(iter(metrics)) == "starting_best_validation_utility"
    assert metrics["ending_best_validation_utility"] == scratchpad["g"]
    assert re.fullmatch(rf"the end of search\.\.\. {TIME}", lines[-1])
    best = [i for i in range(5) if scratchpad[f"particle_{i}_best"] == scratchpad["g"]]
    assert f"global best particle: {best[-1]}" in lines


def test_what_is_left_are_results_on_dev(quiz, monkeypatch):
    dev = [one["answer"] for one in read(quiz.parents[1] / "data" / "eval" / "quiz.json")["dev"]]
    test = [one["answer"] for one in read(quiz.parents[1] / "data" / "eval" / "quiz.json")["test"]]
    scratchpad = read(quiz / "utility_scratchpad.json")
    for i in range(5):
        for place, utility in (
            ("personal_best", scratchpad[f"particle_{i}_best"]),
            ("now", scratchpad[f"particle_{i}_history"][0]),
        ):
            folder = quiz / f"particle_{i}" / place
            assert read(folder / "golds.json") == dev
            assert read(folder / "golds_test.json") == test
            preds = read(folder / "preds.json")
            assert sum(a == b for a, b in zip(dev, preds, strict=True)) / len(dev) == utility
    monkeypatch.chdir(quiz.parents[1])
    final = next(line for line in said(quiz) if line.startswith("final ensemble metrics for dev"))
    logged = eval(final.partition(": ")[2])
    again = overall_metrics(quiz.name, "multiple_choice")
    assert logged == {
        f"{time}_top-k_ensemble_dev_accuracy": again[f"{time}_top-k_ensemble_test_accuracy"]
        for time in ("starting", "ending")
    }


def test_a_run_without_a_tested_start_ends(graph):
    assert tree(graph) >= {f"particle_0/now/{name}" for name in ADAPTER | {"scores.json"}}
    assert not (graph / "particle_0" / "now" / "scores_test.json").exists()
    assert set(read(graph / "particle_0" / "personal_best" / "scores.json")) <= {0, 1}
    metrics = eval(next(line for line in said(graph) if line.startswith("final metrics")).partition(": ")[2])
    assert not any(name.startswith("starting") for name in metrics)


def test_a_run_that_is_not_cleaned_up_keeps_velocities_and_the_worst(graph, quiz):
    assert tree(graph) >= {"particle_2/velocity/adapter_model.safetensors", "global_worst/adapter_model.safetensors"}
    assert "p_x, g_x and x_w are not written: moves are made in memory" in said(graph)
    assert not (quiz / "global_worst").exists()


@pytest.mark.parametrize("name", ["quiz", "graph"])
def test_the_report_of_a_run_can_be_written(name, request):
    run = request.getfixturevalue(name)
    page = write_report(run).read_text()
    assert "Utility by iteration" in page
    (run / "report.html").unlink()
    (run / "analysis.json").unlink(missing_ok=True)
    summary = read(run / "summary.json")
    assert summary["ended"]
    assert summary["end"]["dev"] == read(run / "utility_scratchpad.json")["g"]
    assert len(read_history(run / "history.jsonl")) == len(read(run / "utility_scratchpad.json")["g_history"])


def test_a_run_cannot_be_resumed(graph):
    with pytest.raises(InputError, match="holds a run of model_swarm's flags, which cannot go on; start it again"):
        resume(graph)


def test_a_second_run_of_a_name_has_the_time_in_its_name(place):
    words = ["-e", "exact_match", "-d", "nlgraph", "-m", "0"]
    first = run_in(place, *words, name="twice")
    before = tree(first), (first / "args.txt").read_text()
    run_in(place, *words, "--inertia", "0.1", name="twice")
    assert (tree(first), (first / "args.txt").read_text()) == before
    (second,) = place.glob(f"search/twice_{HOST}????-??-??_??:??:??")
    assert "inertia='0.1'" in (second / "args.txt").read_text()


def test_two_tasks_have_a_harmonic_mean_and_the_files_of_the_second(place):
    run = run_in(place, "-e", "multitask", "-d", "legal", "--starting_test_set_eval", "1", name="legal")
    second = read(place / "data" / "eval" / "citation_prediction_classification.json")
    assert read(run / "particle_1" / "personal_best" / "golds.json") == [one["answer"] for one in second["dev"]]
    metrics = eval(next(line for line in said(run) if line.startswith("final metrics")).partition(": ")[2])
    names = ["hearsay", "citation_prediction_classification"]
    assert list(metrics)[-4:] == [f"ending_best_single_{split}_{name}" for split in ("test", "dev") for name in names]
    a, b = (metrics[f"ending_best_single_dev_{name}"] for name in names)
    a, b = (a, b) if a + b else (0.01, 0.01)
    assert metrics["ending_best_validation_utility"] == 2 * a * b / (a + b)
    assert metrics["ending_best_single_test_accuracy"] == metrics[f"ending_best_single_test_{names[1]}"]


def test_one_of_two_tasks_can_be_the_utility(place):
    run = run_in(place, "-e", "multitask", "-d", "legal", "--only_one_or_two", "two", "-m", "1", name="two")
    metrics = eval(next(line for line in said(run) if line.startswith("final metrics")).partition(": ")[2])
    both = [metrics[f"ending_best_single_dev_{name}"] for name in ("hearsay", "citation_prediction_classification")]
    assert metrics["ending_best_validation_utility"] == (both[1] if sum(both) else 0.01)


def test_abstentions_are_flags(place):
    run = run_in(place, "-e", "AbstainQA", "-d", "quiz", "-m", "2", name="abstain")
    scratchpad = read(run / "utility_scratchpad.json")
    for i in range(3):
        right, answered = (read(run / f"particle_{i}" / "personal_best" / f"{one}.json") for one in ("golds", "preds"))
        assert set(right) | set(answered) <= {0, 1}
        reliability = sum((1 if a else -1) * b for a, b in zip(right, answered, strict=True)) / len(right)
        assert scratchpad[f"particle_{i}_best"] == reliability


@pytest.mark.parametrize("eval_type", ["multiple_choice", "exact_match"])
def test_rights_at_the_start_of_each_iteration(place, eval_type):
    """model_swarm takes 0 for yes, and ends with an error for scores."""
    data = {"multiple_choice": "quiz", "exact_match": "nlgraph"}[eval_type]
    words = ["-e", eval_type, "-d", data, "-m", "2"]
    run = run_in(place, *words, "--correctness_emergence", "1", name=f"emergence_{eval_type}")
    found, history = read(run / "correctness_emergence.json"), read_history(run / "history.jsonl")
    for i in range(3):
        assert [[float(right) for right in one] for one in found[str(i)]] == [
            line["scores"][i] for line in history[:-1]
        ]
    start = sum(found["0"][0]) / len(found["0"][0])
    assert start == read(run / "utility_scratchpad.json")["particle_0_history"][0]
    off = run_in(place, *words, "--correctness_emergence", "0", name=f"no_emergence_{eval_type}")
    assert not (off / "correctness_emergence.json").exists()


def test_trajectories_have_a_point_at_the_start_of_each_iteration(tmp_path):
    deep = make_place(tmp_path, num_hidden_layers=11)
    run = run_in(deep, "-e", "exact_match", "-d", "nlgraph", "-m", "2", "--to_visualize", "1", "--limit_dev", "2")
    found = read(run / "particle_trajectory.json")
    adapter = load_file(deep / "initial_experts" / "bob" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.{}.self_attn.k_proj.lora_{}.weight"
    assert [len(points) for points in found.values()] == [2, 2, 2]
    assert found["1"][0] == [float(adapter[name.format(*which)][0, 0]) for which in ((0, "A"), (10, "B"))]


def test_padding_of_the_reference_is_the_default_and_changes_answers(place):
    words = ["-e", "exact_match", "-d", "nlgraph", "-m", "0"]
    padded, clean = (run_in(place, *words, *more, name=f"pads{len(more)}") for more in ([], ["--padding", "clean"]))
    scores = [read_history(run / "history.jsonl")[0]["scores"] for run in (padded, clean)]
    assert scores[0] != scores[1]


def test_factors_can_be_given_and_repeat(place, tmp_path):
    draws = [[injected_r(iteration, particle) for particle in range(3)] for iteration in (1, 2)]
    (tmp_path / "draws.json").write_text(json.dumps(draws))
    words = ["-e", "exact_match", "-d", "nlgraph", "-m", "2", "--draws", str(tmp_path / "draws.json")]
    runs = [run_in(place, *words, "--seed", seed, name=f"drawn{seed}") for seed in ("1", "2")]
    assert len({(run / "utility_scratchpad.json").read_text() for run in runs}) == 1
    files = [load_file(run / "particle_1" / "now" / "adapter_model.safetensors") for run in runs]
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    assert not torch.equal(files[0][name := next(iter(files[0]))], load_file(
        place / "initial_experts" / "bob" / "adapter_model.safetensors")[name])  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_record_is_that_of_model_swarm(dtype, tmp_path):
    """Utilities as scripted in the golden files: the same scratchpad, and the same lines of new bests."""
    run = golden(f"model_swarm_{dtype}")
    swarm = PublishedSwarm(config_of(run["settings"]), 3, injected_r)
    scratchpad, events = Scratchpad(3), []
    for utilities in run["scores"]:
        swarm.tell(utilities)
        events += [
            [swarm.iteration, one] for one in scratchpad.tell(swarm.utilities, swarm.personal_best, swarm.bests())
        ]
        if swarm.stopped():
            break
        restarts = swarm.ask().restarts
        events += [[swarm.iteration, f"particle_{i} restarted!"] for i in range(3) if restarts[i]]
    events += [[swarm.iteration + 1, "patience reached!"]]
    events += [[swarm.iteration + 1, f"global best particle: {scratchpad.best_particle}"]]
    assert events == run["events"]
    scratchpad.write(tmp_path)
    assert (tmp_path / "utility_scratchpad.json").read_text() == json.dumps(run["scratchpad"], indent=4)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("-e perplexity -d quiz", "--eval_type is 'perplexity'; choose multiple_choice"),
        ("-e multiple_choice -d absent", "data/eval/absent.json does not exist"),
        ("-e multiple_choice -d quiz -i data", "data has 1 folders"),
        ("-e multiple_choice -d quiz -i wrong", "holds neither adapter_config.json nor config.json"),
        ("-e multiple_choice -d quiz -i nowhere", "cannot read nowhere"),
        ("-e multiple_choice -d quiz --starting_velocity_mode fast", "choose random, zero, best"),
        ("-e multiple_choice -d quiz --inertia much", "--inertia is 'much'; give a number"),
        ("-e multiple_choice -d quiz -p 0", "--patience is 0"),
        ("-e multiple_choice -d quiz --padding some", "--padding is 'some'; choose reference, clean"),
        ("-e multiple_choice -d quiz --rounding up", "rounding is 'up'"),
        ("-e multiple_choice -d quiz --engine_set state=mixture", "state, which cannot be set"),
        ("-e multiple_choice -d quiz --engine_set max_model_len", "give KEY=VALUE"),
        ("-e multiple_choice -d quiz --draws absent.json", "cannot read absent.json"),
        ("-e multiple_choice -d quiz --to_visualize 1", "--to_visualize needs the tensor"),
        ("-e multiple_choice -d quiz --only_one_or_two three", "choose one, two"),
        ("-e multitask -d quiz", "choose a domain for multitask: legal, medical"),
        ("-e multiple_choice", "--dataset is missing"),
        ("-e multiple_choice -d quiz --nothing 1", "unrecognized arguments: --nothing 1"),
        ("-e multiple_choice -d quiz --option x=1", "has no option x"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(place, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(place)
    shutil.copytree(place / "initial_experts", place / "wrong", dirs_exist_ok=True)
    (place / "wrong" / "aaa").mkdir(exist_ok=True)
    before = tree(place), sorted((place / "search").glob("*"))
    assert main(["-n", "bad", *helpers_model_swarm.QUICK, *words.split()]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert (tree(place), sorted((place / "search").glob("*"))) == before


def test_adapters_of_several_scalings_are_refused(place, tmp_path, monkeypatch, capsys):
    experts = tmp_path / "experts"
    shutil.copytree(place / "initial_experts", experts)
    config = read(experts / "bob" / "adapter_config.json") | {"lora_alpha": 16}
    (experts / "bob" / "adapter_config.json").write_text(json.dumps(config))
    monkeypatch.chdir(place)
    words = ["-n", "bad", *helpers_model_swarm.QUICK, "-e", "exact_match", "-d", "nlgraph", "-i", str(experts)]
    assert main(words) == 2
    assert "lora_alpha is 16, but 8 in" in capsys.readouterr().err


def test_flags_are_those_of_search_py():
    words = [
        "-n",
        "a",
        "-e",
        "exact_match",
        "-d",
        "nlgraph",
        "-g",
        "3,1,3",
        "--dropK",
        "0.5",
        "--weight_randomess",
        "0",
        "--fast_merge",
        "0",
        "-b",
        "base",
    ]
    level = logging.getLogger().level
    found = read_flags(words)
    assert found.gpus == (3, 1)
    assert (found.swarm["drop_k"], found.swarm["randomness"], found.swarm["seed"]) == (0.5, "unit", 42)
    assert (found.fast_merge, found.clean_up, found.trajectory, found.particles) == (False, True, False, None)
    assert (found.engine["dtype"], found.engine["engine"], found.padding) == ("float16", "vllm", "reference")
    assert found.arguments.startswith(f"Namespace(name='a_{HOST}', eval_type='exact_match', dataset='nlgraph', gpus=")
    assert found.arguments.endswith("dropK='0.5', dropN=0)")
    assert logging.getLogger().level == level
    assert math.isclose(found.swarm["restart_patience"], 0.5)


def test_full_checkpoints_are_searched(tmp_path):
    """model_swarm says that it can, and ends with an error."""
    place = make_place(tmp_path)
    for seed, name in enumerate(NAMES):
        folder = place / "full" / name
        shutil.copytree(place / "base", folder)
        weights, generator = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(seed)
        changed = {key: one + torch.randn(one.shape, generator=generator) / 20 for key, one in weights.items()}
        save_file(changed, folder / "model.safetensors", {"format": "pt"})
    words = ["-e", "exact_match", "-d", "nlgraph", "-i", "full", "--fast_merge", "0", "-m", "2"]
    run = run_in(place, *words)
    found = load_file(run / "global_best" / "model.safetensors")
    assert found.keys() == changed.keys()
    assert LlamaForCausalLM.from_pretrained(run / "particle_1" / "now").config.hidden_size == 32


def test_children_of_full_checkpoints_are_refused(place, monkeypatch, capsys):
    for name in NAMES:
        shutil.copytree(place / "base", place / "full" / name)
    monkeypatch.chdir(place)
    words = [
        "-n",
        "bad",
        "-e",
        "exact_match",
        "-d",
        "nlgraph",
        "-i",
        "full",
        "--populate_initial_experts",
        "1",
        "--initial_experts_num",
        "9",
    ]
    assert main([*words, *helpers_model_swarm.QUICK]) == 2
    assert "are full checkpoints, of which no children are made" in capsys.readouterr().err


def test_rewards_are_scored_as_published(place, tmp_path):
    model = make_classifier(tmp_path / "reward", max_position_embeddings=512)
    options = [f"--option=model={model}", "--option=low=-1", "--option=high=1", "--option=dtype=float32"]
    words = ["-d", "rm", "-m", "0", "--limit_dev", "2", "--limit_test", "1", *options]
    write_prompts(place / "data" / "eval" / "rm.json", "abc", "bad", "ada", "fig")
    runs = {kind: run_in(place, "-e", f"rm_{kind}", *words, name=kind) for kind in ("default", "reverse")}
    scores = {kind: read(run / "particle_1" / "personal_best" / "scores.json") for kind, run in runs.items()}
    assert scores["reverse"] == pytest.approx([-(score + 1) / 2 for score in scores["default"]])
    assert all(0 <= score <= 1 for score in scores["default"])
    best = read(runs["default"] / "utility_scratchpad.json")["particle_1_best"]
    assert best == sum(scores["default"]) / 2
    assert any("ending_top-k_ensemble_test_accuracy" in line for line in said(runs["reverse"]))


def test_toxicity_is_that_of_a_scorer(place):
    prompts = ["abc", "bad", "ada", "fig"]
    write_prompts(place / "data" / "eval" / "realtoxicityprompts.json", *prompts)
    words = ["-e", "external_api", "-d", "realtoxicityprompts", "-m", "1", "--option=scorer=helpers_toxicity:loud"]
    run = run_in(place, *words, name="toxicity")
    scratchpad = read(run / "utility_scratchpad.json")
    for i in range(3):
        scores = read(run / f"particle_{i}" / "personal_best" / "scores.json")
        assert set(scores) <= {0.25, 0.5, 1}
        assert scratchpad[f"particle_{i}_best"] == sum(scores) / len(scores)


def test_ratings_are_those_of_a_judge(tmp_path, endpoint):
    place = make_place(tmp_path, max_position_embeddings=1024)
    tokenizer = AutoTokenizer.from_pretrained(place / "base")
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(place / "base")
    write_prompts(place / "data" / "eval" / "human_cars.json", "Which?", "Why?")
    options = [f"--option={one}" for one in ("model=m", f"endpoint={endpoint.url}", f"cache={tmp_path}/cache")]
    run = run_in(place, "-e", "human", "-d", "human_cars", "-m", "0", "--limit_test", "1", *options)
    scores = read(run / "particle_0" / "personal_best" / "scores.json")
    assert read(run / "utility_scratchpad.json")["particle_0_best"] == sum(scores) / 2
    assert all(isinstance(score, int) and 1 <= score <= 10 for score in scores)
    assert "Instruction: Which?" in "".join(one["messages"][0]["content"] for one in endpoint.seen)


def test_numbers_are_shown_in_weights_and_biases(place, monkeypatch):
    shown, made = [], []
    config = SimpleNamespace(update=made.append)
    fake = SimpleNamespace(
        init=lambda **given: made.append(given) or SimpleNamespace(config=config), log=shown.append, finish=lambda: None
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE")
    run = run_in(place, "-e", "exact_match", "-d", "nlgraph", "-m", "1", "--project_name_wb", "swarms", name="shown")
    assert made[0] == {"name": run.name, "project": "swarms"}
    scratchpad = read(run / "utility_scratchpad.json")
    assert [numbers["g"] for numbers in shown[:2]] == scratchpad["g_history"]
    assert list(shown[0]) == ["g", "g_worst", "particle_0_now", "particle_1_now", "particle_2_now"]
    assert "ending_best_validation_utility" in shown[2]
    assert list(shown[3]) == ["starting_top-k_ensemble_dev_accuracy", "ending_top-k_ensemble_dev_accuracy"]


def test_a_kill_leaves_no_file_half_written(place, monkeypatch):
    """Files are written under other names and renamed, whenever a run ends."""
    monkeypatch.chdir(place)
    words = ["-e", "multiple_choice", "-d", "quiz", "--files", "every", "--correctness_emergence", "1", "-m", "30"]
    for lines in range(4):  # of the history, before it is killed
        child = os.fork()
        if child == 0:
            os._exit(main(["-n", f"killed{lines}", *helpers_model_swarm.QUICK, *words, "-p", "30"]))
        run = place / "search" / f"killed{lines}_{HOST}"
        while not (run / "history.jsonl").exists() or (run / "history.jsonl").read_bytes().count(b"\n") < lines:
            time.sleep(0.01)
        time.sleep(0.007 * lines)
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        for path in run.rglob("*"):
            if path.suffix == ".json" and not path.name.startswith("."):
                json.loads(path.read_text())
            elif path.suffix == ".safetensors" and not path.name.startswith("."):
                assert load_file(path)
    assert (run / "global_best" / "adapter_model.safetensors").exists()
