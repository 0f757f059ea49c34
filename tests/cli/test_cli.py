"""The command line as a user runs it: results, exit codes, one sentence for a mistake."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import helpers_search
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from modelswarms_fast.cli import main
from modelswarms_fast.errors import ParityError
from modelswarms_fast.records.run_folder import read_history, read_json

tiny = helpers_search.tiny
SUPPORT = Path(helpers_search.__file__).parent


def run(monkeypatch, *arguments):
    """Run the command in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["modelswarms-fast", *map(str, arguments)])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as error:
        main.main()
    return error.value.code or 0


@pytest.fixture
def arguments(tiny):
    """Options of a tiny search but --out."""
    given = {"base": tiny["base"], "task": tiny["task"], "data": tiny["data"], "engine": "transformers"}
    return [text for name, value in (given | {"dtype": "float32"}).items() for text in (f"--{name}", value)]


@pytest.mark.parametrize(
    "words", [[], ["--chat"], ["--chat", "--seed", "3"], ["--chat", "base"], ["--chat", "t.jinja"]]
)
def test_a_chat_without_a_template_is_that_of_the_base(words):
    expected = {"--chat": ["--chat", "base"], "--chat --seed 3": ["--chat", "base", "--seed", "3"]}
    assert main._with_chat(words) == expected.get(" ".join(words), words)


def test_a_word_that_the_terminal_cannot_show_is_one_sentence(monkeypatch, capsys):
    # The terminal is strict, as PYTHONIOENCODING makes it, and so is that of this test.
    assert run(monkeypatch, "demo", "\udcff") == 2
    shown = capsys.readouterr().err
    assert r"unexpected extra argument(s) (\udcff)" in shown
    assert "Traceback" not in shown


def test_search_then_evaluate(tiny, arguments, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    code = run(monkeypatch, "search", tiny["experts"], *arguments, "--out", out, "--iterations", 2, "--particles", 4)
    assert code == 0
    shown = capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    assert f"{summary['end']['test']:.4f}" in shown
    assert summary["start"]["expert"] in shown
    assert summary["iterations"] == 2
    assert summary["particles"] == 4

    assert run(monkeypatch, "evaluate", out / "global_best", *arguments, "--split", "dev") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["score"] == pytest.approx(summary["end"]["dev"], abs=1e-12)
    assert result["standard_error"] > 0

    results = []
    for engines in (1, 2):
        assert run(monkeypatch, "evaluate", tiny["base"], *arguments, "--engines", engines) == 0
        results.append(json.loads(capsys.readouterr().out))
        results[-1].pop("prompts_per_second")
    assert results[0] == results[1]
    assert results[0]["model"] == tiny["base"]


def test_a_score_that_is_none_is_null(tiny, arguments, monkeypatch, capsys):
    """NaN is no JSON."""
    arguments[arguments.index("--task") + 1] = "helpers_search:never"
    assert run(monkeypatch, "evaluate", tiny["base"], *arguments, "--limit-test", 2) == 0
    shown = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert (shown["score"], shown["standard_error"], shown["examples"]) == (None, None, 2)


def test_experts_can_be_listed_one_by_one(tiny, arguments, tmp_path, monkeypatch):
    folders = sorted(Path(tiny["experts"]).iterdir())[:2]
    assert run(monkeypatch, "search", *folders, *arguments, "--out", tmp_path / "run", "--iterations", 0) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["experts"] == ["ada", "bob"]


def test_every_setting_has_an_option_and_reaches_the_search(tiny, arguments, tmp_path, monkeypatch):
    settings = {
        "seed": 3, "iterations": 1, "patience": 7, "inertia": 0.2, "cognitive-coeff": 0.25, "social-coeff": 0.35,
        "repel-coeff": 0.05, "randomness": "unit", "step-length": 0.8, "step-length-factor": 0.9,
        "minimum-step-length": 0.2, "restart-patience": 0.6, "start-velocity": "best", "drop-k": 0.1, "drop-n": 0.2,
        "state": "mixture", "row-dtype": "float32", "max-model-len": 100, "parity-check": "off", "particles": 4,
    }  # fmt: skip
    options = [text for name, value in settings.items() for text in (f"--{name}", value)]
    out = tmp_path / "run"
    assert (
        run(
            monkeypatch,
            "search",
            tiny["experts"],
            *arguments,
            "--out",
            out,
            "--no-repel",
            "--no-restart",
            *options,
        )
        == 0
    )
    config = json.loads((out / "config.json").read_text())
    assert {name: config[name.replace("-", "_")] for name in settings} == settings
    assert config["repel"] is False
    assert config["restart"] is False


def test_the_config_of_a_run_repeats_it(tiny, arguments, tmp_path, monkeypatch):
    first, again = tmp_path / "first", tmp_path / "again"
    more = ["--iterations", 1, "--inertia", 0.125, "--no-repel", "--limit-dev", 4, "--max-tokens", 3]
    assert run(monkeypatch, "search", tiny["experts"], *arguments, "--out", first, *more) == 0
    assert run(monkeypatch, "search", "--config", first / "config.json", "--out", again, "--seed", 5) == 0
    configs = [read_json(folder / "config.json") for folder in (first, again)]
    assert configs[1].pop("seed") == 5
    configs[0].pop("seed")
    program, *words = configs[0].pop("command")
    assert program == "modelswarms-fast"
    configs[1].pop("command")
    for config in configs:
        config.pop("state_reason")
    assert configs[0] == configs[1]
    words[words.index(str(first))] = str(tmp_path / "third")
    assert run(monkeypatch, *words) == 0
    third = read_json(tmp_path / "third" / "config.json")
    others = ("command", "seed", "state_reason")
    assert configs[0] == {name: value for name, value in third.items() if name not in others}


def test_names_with_brackets_are_no_markup(tiny, arguments, tmp_path, monkeypatch, capsys):
    """Each is shown as it is, before the search and after it; some would else be an error of the markup's parser."""
    shutil.copytree(tiny["experts"], tmp_path / "[pool]")
    (tmp_path / "[pool]" / "ada").rename(tmp_path / "[pool]" / "a[bold]")
    (tmp_path / "[pool]" / "bob").rename(tmp_path / "[pool]" / "b[x]")
    out = tmp_path / "[v1]"
    assert run(monkeypatch, "search", tmp_path / "[pool]", *arguments, "--out", out, "--iterations", 1) == 0
    shown = capsys.readouterr().out
    assert f"Open {out / 'report.html'} first" in shown
    assert run(monkeypatch, "search", tmp_path / "[pool]", *arguments, "--out", out, "--iterations", 1) == 2
    assert "[v1]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--out", "x" * 3000, "longer than a name may be"),
        ("--spill", "x" * 3000, "longer than a name may be"),
        ("--spill", "/".join(["x" * 200] * 30), "longer than a name may be"),
        ("--trace", "x" * 300, "longer than a name may be"),
        ("--base", "~nouser", "~nouser"),
        ("--particles", "100000000000000000000", "give a number from 0 to 1,000,000"),
        ("--iterations", "100000000000000000000", "give a number from 0 to 1,000,000"),
        ("--patience", "100000000000000000000", "give a number from 1 to 1,000,000"),
        ("--step-length", "1e200", "give a number from 0 to 1,000,000"),
        ("--minimum-step-length", "1e308", "give a number from 0 to 1,000,000"),
        ("--step-length-factor", "1e100", "give a number from 0 to 1"),
        ("--config", "/dev/zero", "a pipe or a device"),
        ("--engine-option", "a=" + "[" * 100_000, "engine_options has 'a'"),
    ],
)
def test_odd_values_are_one_short_sentence_before_anything_is_read(
    tiny, arguments, tmp_path, monkeypatch, capsys, option, value, sentence
):
    monkeypatch.chdir(tmp_path)
    words = [*map(str, arguments), "--out", "run"]
    words += [option, value] if option not in words else []
    words[words.index(option) + 1] = value
    assert run(monkeypatch, "search", tiny["experts"], *words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert sentence in error
    assert len(error) < 400
    assert not list(tmp_path.iterdir())


def test_a_log_of_the_iterations(tiny, arguments, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    more = ["--iterations", 2, "--log", "tensorboard", "--out", tmp_path / "run"]
    assert run(monkeypatch, "search", tiny["experts"], *arguments, *more) == 0
    reader = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in reader.Tensors("utility/best")] == [0, 1, 2]


def test_rounding_reaches_the_search(tiny, arguments, tmp_path, monkeypatch):
    """Alone, since rows that are rounded exclude state mixture."""
    options = ["--rounding", "stochastic", "--row-dtype", "bfloat16", "--iterations", "1"]
    assert run(monkeypatch, "search", tiny["experts"], *arguments, "--out", tmp_path / "run", *options) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["rounding"] == "stochastic"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--inertia", "-1"], "inertia is -1.0"),
        (["--data", "nowhere.json"], "nowhere.json"),
        (["--task", "nowhere:nothing"], "nowhere"),
        (["--base", "nowhere/at/all"], "nowhere/at/all"),
        (["--particles", "2"], "3 experts"),
        (["--base", "x" * 300], "longer than a name may be"),
        (["--base", "~nobody-at-all"], "~nobody-at-all"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(change, message, tiny, arguments, tmp_path, monkeypatch, capsys):
    option, value = change
    if option in arguments:
        arguments = [*arguments]
        arguments[arguments.index(option) + 1] = value
    else:
        arguments = [*arguments, option, value]
    assert run(monkeypatch, "search", tiny["experts"], *arguments, "--out", tmp_path / "run") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    *before, sentence = captured.err.splitlines()
    assert before in ([], ["reading the experts"])
    assert sentence.startswith("error: ")
    assert message in sentence


def test_a_failed_parity_check_is_one_sentence_and_exit_code_3(monkeypatch, capsys):
    def failing(*arguments, **settings):
        raise ParityError("The engine does not serve the weights it was given.")

    monkeypatch.setattr(main, "app", failing)
    assert run(monkeypatch, "search") == 3
    assert capsys.readouterr().err == "error: The engine does not serve the weights it was given.\n"


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("config.json", {"model_type": "lama"}, "base cannot be loaded by transformers (ValueError: "),
        ("config.json", {"dtype": "fp32"}, "base/config.json: dtype is 'fp32'; make it float32"),
        ("config.json", {"max_position_embeddings": None}, "base/config.json: max_position_embeddings is None; make"),
        ("config.json", {"max_position_embeddings": "2k"}, "base/config.json: max_position_embeddings is '2k'; make"),
        ("tokenizer.json", None, "base cannot be loaded by transformers ("),
    ],
)
def test_a_base_that_cannot_be_loaded_is_named(file, fields, message, tiny, tmp_path, monkeypatch, capsys):
    base = Path(shutil.copytree(tiny["base"], tmp_path / "base"))
    content = {} if fields is None else json.loads((base / file).read_text()) | fields
    (base / file).write_text(json.dumps(content))
    own = ["--base", base, "--task", tiny["task"], "--data", tiny["data"], "--engine", "transformers"]
    assert run(monkeypatch, "evaluate", base, *own) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert message in shown
    assert len(shown.strip().splitlines()) == 1


def test_a_pickle_beside_other_safetensors_is_not_loaded(tiny, tmp_path, monkeypatch, capsys):
    base = Path(shutil.copytree(tiny["base"], tmp_path / "base"))
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").rename(base / "other.safetensors")
    own = ["--base", base, "--task", tiny["task"], "--data", tiny["data"], "--engine", "transformers"]
    monkeypatch.setattr(torch, "load", lambda *arguments, **settings: pytest.fail("a pickle is loaded"))
    assert run(monkeypatch, "evaluate", base, *own) == 2
    assert f"{base} cannot be loaded by transformers (OSError: " in capsys.readouterr().err


def test_a_broken_expert_is_exit_code_2_without_a_traceback(tiny, tmp_path):
    """In a process of its own, as a shell sees it."""
    (tmp_path / "experts" / "ada").mkdir(parents=True)
    (tmp_path / "experts" / "bob").mkdir()
    for name in ("ada", "bob"):
        source = Path(tiny["experts"]) / name
        (tmp_path / "experts" / name / "adapter_config.json").write_text((source / "adapter_config.json").read_text())
        weights = (source / "adapter_model.safetensors").read_bytes()
        cut = weights if name == "ada" else weights[: len(weights) // 2]
        (tmp_path / "experts" / name / "adapter_model.safetensors").write_bytes(cut)
    command = [
        *(
            sys.executable,
            "-c",
            "from modelswarms_fast.cli.main import main; main()",
            "search",
            tmp_path / "experts",
        ),
        *("--base", tiny["base"], "--task", tiny["task"], "--data", tiny["data"], "--out", tmp_path / "run"),
    ]
    result = subprocess.run(command, cwd=SUPPORT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert str(tmp_path / "experts" / "bob" / "adapter_model.safetensors") in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_the_demo_says_where_it_has_to_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "demo") == 2
    assert "clone of the repository" in capsys.readouterr().err


def test_the_demo_shows_the_search_that_it_runs(tmp_path, monkeypatch, capsys):
    import modelswarms_fast.runs.search

    def shown(**settings):
        raise main.InputError("seen")

    monkeypatch.setattr(modelswarms_fast.runs.search, "search", shown)
    (tmp_path / "my examples" / "experts").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "demo", "--examples", "my examples") == 2
    shown = capsys.readouterr().err
    assert "modelswarms-fast search 'my examples/experts' --base smollm2-135m-instruct --task exact_match" in shown
    assert "--out runs/demo --overwrite --inertia 0.2" in shown


def test_an_engine_that_fails_is_one_sentence_and_the_journal_stays(tiny, arguments, tmp_path, monkeypatch, capsys):
    """The engine fails in the second iteration; the first is on the disk."""
    generate, calls = LlamaForCausalLM.generate, []

    def failing(self, *positional, **named):
        calls.append(named)
        if len(calls) > 4:
            raise MemoryError("no room for\nkeys and values")
        return generate(self, *positional, **named)

    monkeypatch.setattr(LlamaForCausalLM, "generate", failing)
    assert run(monkeypatch, "search", tiny["experts"], *arguments, "--out", tmp_path / "run", "--iterations", 3) == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert next(line for line in shown.splitlines() if line.startswith("error")).startswith("error: The ")
    assert shown.count("transformers engine failed") == 1
    assert "MemoryError: no room for keys and values" in shown
    assert len(read_history(tmp_path / "run" / "history.jsonl")) == 1


def test_scoring_and_options_reach_every_command(tmp_path, monkeypatch):
    import modelswarms_fast.runs.evaluate
    import modelswarms_fast.runs.search

    seen = []

    def noted(*arguments, **settings):
        seen.append(settings)
        return {}

    def shown(*arguments, **settings):
        noted(**settings)
        raise main.InputError("seen")

    monkeypatch.setattr(modelswarms_fast.runs.evaluate, "evaluate", noted)
    monkeypatch.setattr(modelswarms_fast.runs.search, "search", shown)
    own = ["--base", "b", "--task", "lm_eval:t", "--scoring", "loglikelihood", "--option", "a=1", "--option", "b=x=y"]
    assert run(monkeypatch, "evaluate", "m", *own) == 0
    assert run(monkeypatch, "search", "m", *own, "--out", tmp_path) == 2
    for settings in seen:
        assert settings["scoring"] == "loglikelihood"
        assert settings["options"] == {"a": "1", "b": "x=y"}
        assert settings.get("data") is None
    assert run(monkeypatch, "evaluate", "m", *own, "--option", "a=2") == 2
    assert len(seen) == 2


@pytest.mark.parametrize("command", [["sweep"], ["study", "seeds"], ["token-swarm"]])
def test_a_task_that_brings_its_data_needs_none(command, tmp_path, monkeypatch):
    import modelswarms_fast.runs.experiment
    import modelswarms_fast.runs.token_swarm

    def shown(task, data, **settings):
        raise main.InputError(f"{task} {data}")

    monkeypatch.setattr(modelswarms_fast.runs.experiment, "load_utility", shown)
    monkeypatch.setattr(modelswarms_fast.runs.token_swarm, "load_utility", shown)
    with pytest.raises(main.InputError, match=r"^lm_eval:t None$"):
        main.app([*command, "a", "b", "--base", "c", "--task", "lm_eval:t", "--out", str(tmp_path / "run")])


def test_files_and_folders_whose_names_are_no_utf8(tiny, arguments, tmp_path, monkeypatch, capsys):
    folder = Path(os.fsdecode(bytes(tmp_path) + b"/\xff"))
    folder.mkdir()
    data = Path(shutil.copy(tiny["data"], folder / os.fsdecode(b"words\xfe.json")))
    arguments[arguments.index("--data") + 1] = data
    own = ["--seeds", 1, "--iterations", 1]
    study = [*arguments, *own, "--out", tmp_path / "study"]
    assert run(monkeypatch, "study", "seeds", tiny["experts"], *study) == 0
    content = read_json(tmp_path / "study" / "study.json")
    assert (content["data"], content["dataset"]) == (str(data), r"words\udcfe")
    search = tmp_path / "study" / "searches" / "all-0"
    assert run(monkeypatch, "report", search, "--plots", folder / "plots") == 0
    assert r"\udcff/plots/trajectory.svg" in capsys.readouterr().out
