"""A run folder of a stranger: what its settings would import or call is given again, or nothing of it is run."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import helpers_search
import pytest
from helpers_scorers import Endpoint, endpoint

from modelswarms_fast import report, search
from modelswarms_fast.cli import main
from modelswarms_fast.cli import report as command
from modelswarms_fast.errors import InputError
from modelswarms_fast.runs.trust import check_trusted, is_sealed, seal_of, to_confirm

__all__ = ["endpoint"]  # a fixture
tiny = helpers_search.tiny
PAYLOAD = """
from pathlib import Path
Path("was_run").write_text("")
def score(example, output):
    return float(len(output))
"""
JUDGE = {"model": "m", "endpoint": "http://there", "key_env": "SECRET", "retries": "0"}


@pytest.fixture(scope="module")
def run(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "search"
    search(**tiny | {"iterations": 1, "limit_dev": 2, "limit_test": 2}, out=out)
    return out


@pytest.fixture
def strangers(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a run folder with other settings, which is the current directory and has a module in it."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "payload.py").write_text(PAYLOAD)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "payload", raising=False)

    def make(**settings: Any) -> Path:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | settings))
        return folder

    yield make
    sys.modules.pop("payload", None)


def code_of(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["modelswarms-fast", *arguments])
    with pytest.raises(SystemExit) as error:
        main.main()
    return int(error.value.code or 0)


def test_no_module_is_imported_that_the_user_has_not_named(
    strangers: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = strangers(task="payload:score")
    assert code_of(monkeypatch, "report", ".") == 0
    capsys.readouterr()
    for words in ([], ["--task", "other:score"], ["--option", "task=payload:score"]):
        assert code_of(monkeypatch, "report", ".", "--evaluate", *words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "imports code, calls a server or writes elsewhere (--task payload:score); if you trust it" in lines[0]
    assert "--task other:score is not what . has, which is 'payload:score'" in lines[1]
    assert not (folder / "was_run").exists()
    assert code_of(monkeypatch, "report", ".", "--evaluate", "--task", "payload:score") == 0
    assert (folder / "was_run").exists()


@pytest.mark.parametrize("yes", [False, True])
def test_at_a_terminal_the_user_is_asked(strangers: Any, monkeypatch: pytest.MonkeyPatch, yes: bool) -> None:
    folder, asked = strangers(task="payload:score"), []

    def ask(question: str) -> bool:
        asked.append(question)
        return yes

    monkeypatch.setattr(command, "asker", lambda: ask)
    assert code_of(monkeypatch, "report", ".", "--evaluate") == (0 if yes else 2)
    assert asked == [
        "By its own settings . imports code, calls a server or writes elsewhere (--task payload:score). "
        "Do you trust it?"
    ]
    assert (folder / "was_run").exists() == yes


def test_no_variable_is_sent_to_a_server_that_the_user_has_not_named(
    strangers: Any, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openai")
    monkeypatch.setenv("SECRET", "sesame")
    options = {"model": "m", "endpoint": endpoint.url, "key_env": "SECRET", "cache": "replies", "retries": "0"}
    folder = strangers(task="judge", options=options, max_tokens=4)
    given = ["--task", "judge", "--option", f"endpoint={endpoint.url}", "--option", "cache=replies"]
    for words in ([], given):
        assert code_of(monkeypatch, "report", ".", "--evaluate", *words) == 2
    assert not endpoint.seen
    assert "(--option key_env=SECRET)" in capsys.readouterr().err.splitlines()[1]
    assert code_of(monkeypatch, "report", ".", "--evaluate", *given, "--option", "key_env=SECRET") == 0
    assert endpoint.seen
    assert (folder / "replies").is_dir()


def test_a_run_of_tasks_that_do_neither_needs_nothing(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"task": "toxicity", "max_tokens": 4}))
    pytest.importorskip("profanity_check")
    report(tmp_path / "run", evaluate=True)
    assert (tmp_path / "run" / "test_scores.json").exists()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"task": "exact_match"}, []),
        ({"task": "reward:concise", "options": {"model": "a", "low": "0"}}, []),
        ({"task": "multitask:legal", "options": {"combine": "min"}}, []),
        ({"task": "lm_eval:arc", "options": {"metric": "acc"}}, []),
        ({"task": "lm_eval:arc", "options": {"functions": "yes"}}, [("options", "functions")]),
        ({"task": "exact_match:a"}, []),
        ({"task": "my.tasks:score"}, [("task", "")]),
        ({"task": "judge", "options": {}}, [("task", "")]),
        (
            {"task": "judge", "options": JUDGE},
            [("task", ""), ("options", "endpoint"), ("options", "key_env")],
        ),
        ({"task": "toxicity", "options": {"scorer": "a:b"}}, [("options", "scorer")]),
        ({"task": "toxicity", "options": {"scorer": "folder"}}, []),
        (
            {"task": "multitask", "options": {"tasks": "exact_match, a:b"}},
            [("task", ""), ("options", "tasks")],
        ),
        (
            {"task": "multitask", "options": {"tasks": "judge", "02.key_env": "SECRET", "1.scorer": "a:b"}},
            [("task", ""), ("options", "tasks"), ("options", "02.key_env"), ("options", "1.scorer")],
        ),
        ({"engine_options": {"max_num_seqs": 4, "seed": None, "enforce_eager": True}}, []),
        ({"engine": "vllm", "engine_options": {"worker_cls": "a.B"}}, [("engine_options", "worker_cls")]),
        ({"engine": {"engine_options": {"trust_remote_code": True}}}, [("engine_options", "trust_remote_code")]),
        ({"trace": "/home/me/file"}, [("trace", "")]),
        ({"task": ["a:b"], "options": 3, "engine_options": [1]}, [("task", "")]),
    ],
)
def test_what_has_to_be_given_again(config: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    needed = to_confirm(config)
    assert list(needed) == expected
    given: dict[str, Any] = {}
    for (kind, name), value in needed.items():
        if name:
            given.setdefault(kind, {})[name] = value
        else:
            given[kind] = value
    check_trusted(config, "run", given)
    if expected:
        with pytest.raises(InputError, match="if you trust it, give these options again"):
            check_trusted(config, "run")


def test_what_is_shown_of_a_strangers_settings_is_short_and_has_no_control_codes() -> None:
    config = {"task": "judge", "options": {"endpoint": "\x1b[2J\x1b]0;x\x07http://" + "x" * 10_000}}
    asked: list[str] = []
    with pytest.raises(InputError) as error:
        check_trusted(config, "run", ask=lambda question: bool(asked.append(question)))
    assert len(asked[0]) < 400
    assert asked[0].isprintable()
    assert str(error.value) == "run is not trusted, so nothing of it was run"


def test_who_is_not_at_a_terminal_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert command.asker() is None


def test_a_seal_holds_in_the_directory_in_which_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run folder that comes back with another module in it imports nothing."""
    monkeypatch.setenv("MODELSWARMS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    config = {"task": "payload:score", "directory": str(tmp_path)}
    config |= seal_of(config)
    assert is_sealed(config)
    (tmp_path / "back").mkdir()
    monkeypatch.chdir(tmp_path / "back")
    for directory in (str(tmp_path), str(tmp_path / "back"), None):
        assert not is_sealed(config | {"directory": directory})
