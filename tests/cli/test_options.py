"""Options: derived from the settings, described by their docstrings, read from files."""

import dataclasses
import json
import os
import subprocess
import sys
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from modelswarms_fast import __version__
from modelswarms_fast.cli import main
from modelswarms_fast.cli.options import (
    PANELS,
    Experts,
    Inputs,
    command_of,
    docstrings_of,
    first_sentence,
    read_pairs,
    settings,
    value_of,
)
from modelswarms_fast.config import EngineConfig, SwarmConfig, TaskConfig
from modelswarms_fast.errors import InputError

SEARCHES = ("search", "sweep", "study", "compare")
ALL = {one.name for kind in (TaskConfig, SwarmConfig, EngineConfig, Inputs) for one in dataclasses.fields(kind)}
MUST = ["--base", "b", "--task", "t", "--out", "o"]


def options(command):
    return typer.main.get_command(main.app).commands[command].params


def taken(*arguments, command="search"):
    """What a command's function is given for these arguments."""
    app, seen = typer.Typer(), {}
    app.callback()(lambda: None)

    @app.command(command)
    @settings(Inputs, TaskConfig, SwarmConfig, EngineConfig, particles=None)
    def noted(experts: Experts, budget: Annotated[int, typer.Option(help="Evaluations.")] = 3, **given):
        seen.update(experts=experts, budget=budget, **given)

    result = CliRunner().invoke(app, [command, *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return seen


@pytest.mark.parametrize("kind", [Inputs, TaskConfig, SwarmConfig, EngineConfig])
def test_each_setting_says_in_one_sentence_what_it_is(kind):
    for field in dataclasses.fields(kind):
        sentence = first_sentence(docstrings_of(kind)[field.name])
        assert 10 < len(sentence) < 120, field.name
        assert sentence[0].isupper(), field.name
        assert not sentence.endswith("."), field.name


@pytest.mark.parametrize("command", main.COMMANDS)
def test_each_option_has_help_and_a_group(command):
    for option in options(command):
        if option.name != "help":
            assert option.help, option.name
        if isinstance(option, typer.core.TyperOption) and command not in ("demo", "report"):
            assert option.name == "help" or option.rich_help_panel in PANELS, option.name
            engine = option.rich_help_panel == "Engine"
            assert not engine or option.name in EngineConfig.__dataclass_fields__, option.name


@pytest.mark.parametrize("command", SEARCHES)
def test_commands_that_search_take_the_same_settings_under_the_same_names(command):
    assert {option.name for option in options(command)} >= ALL


@pytest.mark.parametrize("command", ["evaluate", *SEARCHES, "token-swarm"])
def test_one_thing_has_one_name(command):
    flags = {flag for option in options(command) for flag in option.opts}
    assert flags >= {"--base", "--task", "--data", "--limit-dev", "--limit-test", "--option", "--config", "--verbose"}
    assert not flags & {"--limit", "--set", "--engine-set"}


def test_help_shows_the_groups_in_order():
    shown = CliRunner().invoke(main.app, ["search", "--help"], env={"COLUMNS": "120", "TERM": "dumb"}).output
    places = [
        shown.index(f"─ {panel} ─") for panel in ("Input", "Output", "Search", "Swarm", "Engine", "Memory", "Checks")
    ]
    assert places == sorted(places)
    assert "Weight of the pull toward the" in shown
    assert "vllm|transformers" in shown


def test_only_what_is_given_is_passed_on(tmp_path):
    given = ["ada", "bob", "--base", "b", "--task", "t", "--no-repel", "--data", "x.json", "--option", "a=1"]
    seen = taken(*given)
    assert seen.pop("data") == ["x.json"]
    assert seen == {
        "experts": ["ada", "bob"],
        "budget": 3,
        "base": "b",
        "task": "t",
        "repel": False,
        "options": {"a": "1"},
    }
    assert taken("folder", *MUST[:4])["experts"] == "folder"


def test_a_file_gives_options_and_the_command_line_overrides_them(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(
        "base: b\ntask: t\ndata: [x.json, y.json]\nexperts: folder\niterations: 5\nlimit-dev: 7\nrepel: no\n"
        "parity_check: off\nstep_length: 1e-1\nspill: null\nbudget: 9\noptions: {a: 1}\n"
    )
    seen = taken("--config", file, "--iterations", 2)
    assert seen.pop("data") == ["x.json", "y.json"]
    assert seen == {
        "experts": "folder", "base": "b", "task": "t", "iterations": 2, "limit_dev": 7, "repel": False, "budget": 9,
        "parity_check": "off", "step_length": 0.1, "options": {"a": "1"},
    }  # fmt: skip


def test_a_runs_config_is_such_a_file(tmp_path):
    file = tmp_path / "config.json"
    recorded = {
        "experts": ["ada", "bob"], "sources": ["e/ada", "e/bob"], "dataset": "words", "dev_examples": 4,
        "memory": {"kind": "memory"}, "expert_products": [[1.0]], "objective": {}, "command": ["modelswarms-fast"],
    }  # fmt: skip
    chosen = dataclasses.asdict(SwarmConfig(particles=3, inertia=0.125)) | {"base": "b", "task": "t", "confirm": 0}
    file.write_text(json.dumps(recorded | chosen | dataclasses.asdict(EngineConfig(host_memory="8GB"))))
    seen = taken("--config", file, "--seed", 5)
    assert seen["experts"] == ["e/ada", "e/bob"]
    assert SwarmConfig(**{one.name: seen[one.name] for one in dataclasses.fields(SwarmConfig)}) == SwarmConfig(
        particles=3, inertia=0.125, seed=5
    )
    engine = {one.name: seen[one.name] for one in dataclasses.fields(EngineConfig) if one.name in seen}
    assert EngineConfig(**engine) == EngineConfig(host_memory="8GB")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", "iteratoins: 5", "sets 'iteratoins', which is no option of search; see its --help"),
        ("a.yaml", "iterations: [1, 2]", "gives several values for iterations; give one"),
        ("a.yaml", "- iterations", "holds no names with values"),
        ("a.yaml", "a: [", "is not YAML"),
        ("a.json", "{", "is not JSON"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as error:
        taken("e", *MUST[:4], "--config", tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there():
    with pytest.raises(InputError, match=r"cannot read nowhere\.yaml: No such file"):
        taken("e", *MUST[:4], "--config", "nowhere.yaml")


def test_a_value_of_a_file_has_the_type_of_the_option(tmp_path):
    (tmp_path / "a.yaml").write_text("iterations: many\n")
    result = CliRunner().invoke(main.app, ["search", "e", *MUST, "--config", str(tmp_path / "a.yaml")])
    assert result.exit_code == 2
    assert "--iterations" in result.output


def test_pairs():
    assert read_pairs(None) == {}
    assert read_pairs(["a=1", "b=x=y", "c="]) == {"a": "1", "b": "x=y", "c": ""}
    for wrong in (["a"], ["=1"], ["a=1", "a=2"]):
        with pytest.raises(InputError, match=r"^--option .*key=value"):
            read_pairs(wrong)


def test_values_of_engine_options():
    texts = ["0.6", "8", "true", "False", "None", "[1, 2]", '{"level": 0}', "fp8", ""]
    assert [value_of(text) for text in texts] == [0.6, 8, True, False, None, [1, 2], {"level": 0}, "fp8", ""]


def test_the_command_of_a_call_repeats_the_call(tmp_path):
    arguments = {
        "base": "b", "task": "t", "experts": ["ada", "b b"], "iterations": 2, "repel": False, "stop_early": True,
        "data": ["x", "y"], "spill": None, "options": {"a": "1"},
    }  # fmt: skip
    program, command, *words = command_of("search", arguments)
    assert (program, command) == ("modelswarms-fast", "search")
    seen = taken(*words)
    seen["data"] = [str(path) for path in seen["data"]]
    seen.pop("budget")
    assert seen == {name: value for name, value in arguments.items() if value is not None}


def test_options_of_vllm(tmp_path):
    engine = ["--engine-option", "gpu_memory_utilization=0.6", "--engine-option", "quantization=fp8"]
    expected = {"gpu_memory_utilization": 0.6, "quantization": "fp8"}
    assert taken("e", *MUST[:4], *engine)["engine_options"] == expected
    (tmp_path / "a.yaml").write_text("engine_options: {gpu_memory_utilization: 0.6, enforce_eager: true}")
    (tmp_path / "a.json").write_text('{"engine_options": {"gpu_memory_utilization": 0.6, "enforce_eager": true}}')
    expected = {"gpu_memory_utilization": 0.6, "enforce_eager": True}
    for name in ("a.yaml", "a.json"):
        assert taken("e", *MUST[:4], "--config", tmp_path / name)["engine_options"] == expected
    given = {"n": 1, "m": [1, "x"], "f": True, "none": None, "text": "a b"}
    words = command_of("search", {"experts": ["e"], "base": "b", "task": "t", "engine_options": given})
    assert taken(*words[2:])["engine_options"] == given


def test_what_sweep_and_compare_pass_on(monkeypatch):
    from modelswarms_fast.runs import compare, sweep

    seen = []

    def noted(*arguments, **given):
        seen.append(given)
        raise InputError("seen")

    monkeypatch.setattr(sweep, "sweep", noted)
    monkeypatch.setattr(compare, "compare", noted)
    more = ["e", *MUST, "--seed", "3", "--inertia", "0.5", "--slots", "2"]
    for words in (["sweep", "--range", "inertia=0.1:0.3"], ["compare", "--budget", "9", "--methods", "a, b"]):
        result = CliRunner().invoke(main.app, [*words, *more])
        assert isinstance(result.exception, InputError), result.output
    swept, compared = seen
    assert (swept["ranges"], swept["swarm"]) == ({"inertia": (0.1, 0.3)}, {"seed": 3, "inertia": 0.5})
    assert (compared["swarm"], compared["seed"]) == ({"inertia": 0.5}, 3)
    assert compared["methods"] == ["a", "b"]
    assert swept["slots"] == compared["slots"] == 2


def test_version():
    result = CliRunner().invoke(main.app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"modelswarms-fast {__version__}\n")


def test_a_completion_script_is_made_and_completes(tmp_path):
    """In a process of its own, as a shell runs it."""
    start = "from modelswarms_fast.cli.main import main; main()"

    def shown(**environment):
        command = [sys.executable, "-c", start]
        return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False).stdout

    assert "complete" in shown(_MODELSWARMS_FAST_COMPLETE="source_bash")
    words = {"_MODELSWARMS_FAST_COMPLETE": "complete_bash", "COMP_CWORD": "2"}
    assert shown(**words, COMP_WORDS="modelswarms-fast search --iter").split() == ["--iterations"]


@pytest.mark.parametrize("command", [name for name in main.COMMANDS if name not in ("demo", "report")])
def test_verbose_shows_details(command):
    assert "--verbose" in {flag for option in options(command) for flag in option.opts}
