"""Dry runs: what is shown is what a run sends and takes; nothing starts, nothing is written, what is wrong is said."""

import contextlib
import io
import json
from pathlib import Path

import helpers_search
import pytest
import torch
from helpers_chat import write_chat_tokenizer
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from modelswarms_fast.cli import main
from modelswarms_fast.cli.dry_run import show_dry_run
from modelswarms_fast.config import EngineConfig
from modelswarms_fast.errors import InputError
from modelswarms_fast.runs import experiment as experiment_module
from modelswarms_fast.runs import rough_time
from modelswarms_fast.runs.evaluate import evaluate
from modelswarms_fast.runs.rough_time import Asked, Speed, rough_seconds
from modelswarms_fast.runs.search import search

VLLM = {"engine": "vllm", "serve": "auto", "state": "mixture", "max_model_len": 100}


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    """Arguments of a tiny search whose base has a chat template."""
    folder = tmp_path_factory.mktemp("chat")
    tiny = helpers_search.make_tiny(folder)
    write_chat_tokenizer(folder / "base")
    return tiny | {"chat": "base", "system": "be kind"}


@pytest.fixture(autouse=True)
def no_engine(monkeypatch):
    """An engine that starts fails the test."""

    def start(*arguments):
        raise AssertionError("an engine was started")

    monkeypatch.setattr(experiment_module, "start_engine", start)
    monkeypatch.setattr("modelswarms_fast.runs.evaluate.start_engine", start)
    monkeypatch.setattr(rough_time, "SECONDS", 0.001)


def test_what_a_search_would_do(chatty, tmp_path):
    facts = search(**chatty | VLLM, out=tmp_path / "run", particles=5, dry_run=True)
    assert list(tmp_path.iterdir()) == []
    first = facts["prompts"][0]
    assert first["prompt"] == "<begin><system>be kind<user>bal<answer>\n"
    assert (first["tokens"], first["new_tokens"], first["added"]) == (3 + 7 + 3 + 2, 10, [])
    assert len(facts["prompts"]) == 3
    assert facts["examples"] == {"dev": 12, "test": 12}
    assert facts["longest"]["tokens"] == 15 + 10
    assert facts["longest"]["max_model_len"] == 100
    assert (facts["engine"], facts["dtype"], facts["state"]) == ("vllm", "float32", "mixture")
    assert facts["serve"] == ["merged", "slots", "mixture"]
    assert facts["memory"]["rows"] == 3
    evaluations = 5 * 4
    plan = facts["plan"]
    assert plan["requests"] == evaluations * 12 + 2 * 12
    assert plan["prompt_tokens"] == plan["requests"] * 15
    assert plan["new_tokens"] == plan["requests"] * 10
    seconds = facts["rough_seconds"]
    assert 0 < seconds["iteration"] < seconds["least"] <= seconds["most"]
    json.dumps(facts)


def test_what_a_tokenizer_adds_and_continuations(chatty, tmp_path):
    quiz = tmp_path / "quiz.json"
    examples = [{"question": "a?", "choices": {"A": "x", "B": "y"}, "answer": "A"}]
    quiz.write_text(json.dumps({"dev": examples, "test": examples}))
    asked = {"base": chatty["base"], "task": "multiple_choice", "data": quiz, "scoring": "loglikelihood"}
    (one,) = evaluate(chatty["base"], **asked, engine="transformers", dry_run=True)["prompts"]
    assert one["added"] == ["<begin>"]
    assert one["prompt"].endswith("The answer is")
    assert one["expected"] == "A"
    assert one["new_tokens"] == 0
    assert [text.split() for text in one["continuations"]] == [["A"], ["<end>"]]  # B is no token of it


def test_what_an_evaluation_would_do(chatty):
    asked = {name: chatty[name] for name in ("base", "task", "data", "chat", "system", "engine")}
    facts = evaluate(str(chatty["experts"] / "ada"), **asked, split="dev", dry_run=True)
    assert facts["plan"] == {"requests": 12, "prompt_tokens": 12 * 15, "new_tokens": 120}
    assert facts["examples"] == {"dev": 12}
    assert facts["rough_seconds"]["evaluation"] > 0


def test_what_is_wrong_is_said(chatty, tmp_path):
    wrong = [
        ({"max_model_len": 16}, r"Prompt 0 of the dev split has 15 tokens"),
        ({"chat": str(tmp_path / "none.jinja")}, "cannot read the chat template"),
        ({"serve": "slots", "engine": "transformers"}, "serves one particle at a time"),
        ({"particles": 2}, "2 particles|3 experts|at least as many"),
    ]
    for settings, sentence in wrong:
        with pytest.raises(InputError, match=sentence):
            search(**chatty | VLLM | settings, out=tmp_path / "run", dry_run=True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("")
    with pytest.raises(InputError):
        search(**chatty | VLLM, out=tmp_path / "run", dry_run=True)


def test_the_commands_print_it(chatty, tmp_path):
    asked = ["--base", chatty["base"], "--task", chatty["task"], "--data", str(chatty["data"]), "--chat", "base"]
    asked += ["--engine", "transformers", "--dry-run"]
    for command in (["search", str(chatty["experts"]), "--out", str(tmp_path / "run")], ["evaluate", chatty["base"]]):
        result = CliRunner().invoke(main.app, [*command, *asked])
        assert result.exit_code == 0, result.output
        for text in (
            "<begin><user>",
            "prompt 2: ",
            "plan: ",
            "longest prompt: ",
            "rough time: ",
            "Nothing was started",
        ):
            assert text in result.output, text
    assert not (tmp_path / "run").exists()


# The arithmetic


def test_the_time_grows_with_tokens_and_steps():
    speed, weights, config = Speed(step=1e-9, token=1e-10), (1000, 100), EngineConfig(max_num_seqs=4)

    def seconds(serve="merged", particles=2, prompts=2, new=3, **more):
        asked = Asked([[number] * 10 for number in range(prompts)], prompts, new)
        return rough_seconds(asked, particles, more.get("speed", speed), weights, config, serve)

    tokens = 2 * (20 * 1000 + 6 * 1100) * 1e-10
    assert seconds() == pytest.approx(tokens + 2 * (3 + 1) * 1100 * 1e-9)
    assert seconds("mixture") == pytest.approx(tokens + (3 + 1) * 1100 * 1e-9)  # one wave, four at once
    assert seconds(particles=4) == pytest.approx(2 * seconds())
    assert seconds(prompts=8) > seconds(prompts=4) > seconds()
    free = Speed(1e-9, 0.0)
    assert seconds("mixture", prompts=4, speed=free) == pytest.approx(2 * seconds("mixture", speed=free))


def test_likelihoods_look_at_every_token():
    asked, speed = Asked([[1] * 10, [2] * 10], 0, 0), Speed(0.0, 1e-10)
    found = rough_seconds(asked, 1, speed, (1000, 100), EngineConfig(), "merged")
    assert found == pytest.approx(20 * 1100 * 1e-10)


def test_a_common_beginning_is_read_once():
    common = list(range(2 * rough_time.BLOCK))
    asked = Asked([[*common, 1], [*common, 2], [*common, 1], [3]], 4, 1)
    assert asked.read(prefixes=True) == len(common) + 4
    assert asked.read(prefixes=False) == 3 * (len(common) + 1) + 1


def test_weights_of_a_base(chatty):
    body, head, width = rough_time.weights_of(Path(chatty["base"]))
    model = AutoModelForCausalLM.from_pretrained(chatty["base"])
    assert (head, width) == (64 * 32, 32)
    assert body + head == sum(one.numel() for one in model.parameters())  # tied


def test_this_machine_has_a_speed():
    speed = rough_time.measure(torch.float32, 64, torch.device("cpu"))
    assert speed.step >= 0
    assert speed.token >= 0
    assert speed.step + speed.token > 0


def test_a_rough_time_is_written_in_plain_digits():
    plan = {"requests": 1, "prompt_tokens": 1, "new_tokens": 1}
    facts = {
        "prompts": [], "examples": {"dev": 1}, "data_read": (), "data_warnings": (), "plan": plan,
        "longest": {"tokens": 1, "max_model_len": 16, "split": "dev", "example": 0}, "follow_up": False,
        "engine": "vllm", "dtype": "bfloat16",
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()) as told:
        show_dry_run(facts | {"rough_seconds": {"iteration": 31.4, "least": 372.0, "most": 6240.0}})
    assert "rough time: 31 s an iteration, 6.2 min to 100 min in all" in told.getvalue()
