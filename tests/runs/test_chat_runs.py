"""Whole runs with a chat template: search, resume, report, evaluate, ensembles and token swarms send the same."""

import json
import shutil

import helpers_search
import pytest
import torch
from helpers_chat import TEMPLATE, write_chat_tokenizer
from helpers_ensemble import gpt2, llama

from modelswarms_fast.engines.ensemble.engine import EnsembleEngine, Member
from modelswarms_fast.engines.protocol import Request, complete
from modelswarms_fast.engines.transformers import TransformersEngine
from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.chat import Chat
from modelswarms_fast.records.run_folder import read_json
from modelswarms_fast.runs.baselines import data_merge
from modelswarms_fast.runs.evaluate import evaluate
from modelswarms_fast.runs.final_test import evaluate_run
from modelswarms_fast.runs.search import search


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    """A tiny search whose base has a chat template, and its run."""
    folder = tmp_path_factory.mktemp("chat")
    tiny = helpers_search.make_tiny(folder)
    write_chat_tokenizer(folder / "base")
    arguments = tiny | {"chat": "base", "system": "be kind"}
    summary = search(**arguments, out=folder / "run", particles=5)
    return arguments, folder / "run", summary


def asked_of(arguments, *left_out, **more):
    names = {"base", "task", "data", "engine", "dtype", "chat", "system"} - {*left_out}
    return {name: value for name, value in arguments.items() if name in names} | more


def test_a_run_says_what_was_sent(chatty):
    _, run, _ = chatty
    config = read_json(run / "config.json")
    assert (config["chat"], config["system"]) == ("base", "be kind")
    answers = read_json(run / "answers.json")
    for shown in answers["gained"] + answers["lost"]:
        assert shown["prompt"].startswith("<begin><system>be kind<user>")
        assert shown["prompt"].endswith("<answer>\n")
    assert answers["gained"] + answers["lost"]


def test_the_winner_is_scored_in_the_same_form(chatty):
    arguments, run, summary = chatty
    winner = str(run / "global_best")
    assert evaluate(winner, **asked_of(arguments))["score"] == pytest.approx(summary["end"]["test"], abs=1e-12)
    assert evaluate(winner, **asked_of(arguments, "chat", "system"))["score"] != summary["end"]["test"]


def test_another_form_is_another_search(chatty, tmp_path):
    arguments, run, _ = chatty
    shutil.copytree(run, tmp_path / "cut")
    (tmp_path / "cut" / "summary.json").unlink()
    with pytest.raises(InputError, match=r"other settings \(system differs\)"):
        search(**arguments | {"system": "be quick"}, out=tmp_path / "cut", particles=5, resume=True)


def test_a_report_asks_in_the_form_of_its_run(chatty, tmp_path):
    _, run, _ = chatty
    shutil.copytree(run, tmp_path / "run")
    evaluate_run(tmp_path / "run", given={"task": "helpers_search:vowels"})
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert history
    found = read_json(tmp_path / "run" / "test_scores.json")["groups"]
    start = read_json(run / "summary.json")["start"]
    mean = sum(found["experts"]["scores"][start["particle"]]) / 12
    assert mean == pytest.approx(start["test"], abs=1e-12)


def test_a_base_without_a_template_is_refused_before_the_search(chatty, tmp_path):
    arguments, _, _ = chatty
    base = tmp_path / "base"
    shutil.copytree(arguments["base"], base)
    (base / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match=r"base has no chat template; give one with --chat FILE\.jinja"):
        search(**arguments | {"base": str(base)}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_each_member_of_an_ensemble_has_its_own_template(tmp_path):
    """The second model's prompt is the message in its own form, with one vocabulary or several."""
    other = TEMPLATE.replace("<answer>\n", "<end><answer>")
    folders = [llama(tmp_path / "llama", 1), gpt2(tmp_path / "gpt2", 2)]
    for folder, template in zip(folders, (TEMPLATE, other), strict=True):
        write_chat_tokenizer(folder, template)
    members = [Member(TransformersEngine(folder, None), None) for folder in folders]
    engine, chat = EnsembleEngine(members, encode=Chat().encode), Chat()
    engine.load_mixture(0, torch.tensor([0.0, 1.0]))
    alone = members[1].engine
    messages = ["abc", "what?", "kitten"]
    requests = [Request(0, chat.encode(engine.tokenizer, one), message=one) for one in messages]
    expected = complete(alone, [Request(None, chat.encode(alone.tokenizer, one)) for one in messages], 6)
    assert complete(engine, requests, 6) == expected
    plain = complete(engine, [one._replace(message=None) for one in requests], 6)
    assert plain != expected  # the first model's form


def test_data_merge_trains_on_the_form_that_is_asked(chatty):
    arguments, _, _ = chatty
    tokenizer = TransformersEngine(arguments["base"], None).tokenizer
    prompt, end = data_merge.encode(tokenizer, "ab", " cd", Chat())
    assert prompt == Chat().encode(tokenizer, "ab")
    assert end == [*tokenizer("cd", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
