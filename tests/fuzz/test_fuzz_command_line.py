"""Command lines and files of settings with odd values: exit code 0, or 2 with one sentence; never a traceback."""

import json
import sys

import pytest
import typer
from fuzzing import JSON, ODD_TEXTS, TEXTS, check_sentence, damaged_bytes, fuzz, listing, run_case
from helpers_search import make_tiny
from hypothesis import given
from hypothesis import strategies as st

from modelswarms_fast.cli import main
from modelswarms_fast.errors import InputError

COMMANDS = typer.main.get_command(main.app).commands  # type: ignore[attr-defined]
VALUES = (
    ODD_TEXTS
    | st.sampled_from(
        ["1e20", "100000000000000000000", "1e200", "1e308", "1e100", "0.5", "0", "1", "true", "auto", "8GB"]
    )
    | st.text(max_size=8)
).filter(lambda text: "\0" not in text)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """What a search is given, and an empty folder to work in."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "work").mkdir()
    return make_tiny(folder, head_dim=32) | {"work": folder / "work"}


def encodable(text: str) -> bool:
    """Whether a system could hand this text to a program."""
    try:
        text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def command(capsys, words: list[str]) -> None:
    """Run a command in this process. Raises InputError with the last line for exit code 2."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["modelswarms-fast", *words])
        with pytest.raises(SystemExit) as ended:
            main.main()
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err + shown.out, shown.err
    assert ended.value.code in (0, None, 2), shown.err
    if ended.value.code == 2:
        for line in shown.err.splitlines():
            if line.startswith("error: "):
                check_sentence(line)
        raise InputError("refused")


def base_words(tiny, name: str) -> list[str]:
    """A command that is right but for the data, which do not exist, or that starts nothing."""
    given = ["--base", tiny["base"], "--task", tiny["task"], "--engine", "transformers", "--dtype", "float32"]
    experts = str(tiny["experts"])
    found = {
        "search": [experts, *given, "--data", str(tiny["data"]), "--out", "run", "--dry-run"],
        "evaluate": [f"{experts}/ada", *given, "--data", str(tiny["data"]), "--dry-run"],
        "sweep": [experts, *given, "--data", "nowhere.json", "--out", "run"],
        "study": ["seeds", experts, *given, "--data", "nowhere.json", "--out", "run"],
        "compare": [experts, *given, "--data", "nowhere.json", "--out", "run", "--budget", "9"],
        "token-swarm": [
            experts,
            "--base",
            tiny["base"],
            "--task",
            tiny["task"],
            "--data",
            "nowhere.json",
            "--out",
            "run",
        ],
        "report": ["nowhere"],
    }
    return [name, *found[name]]


@fuzz(80)
@given(st.data())
def test_fuzz_options_of_commands(tiny, capsys, data):
    name = data.draw(
        st.sampled_from(["search", "search", "evaluate", "sweep", "study", "compare", "token-swarm", "report"])
    )
    words = base_words(tiny, name)
    for _ in range(data.draw(st.integers(1, 2))):
        option = data.draw(st.sampled_from([one for one in COMMANDS[name].params if one.param_type_name == "option"]))
        flag = data.draw(st.sampled_from(option.opts))
        value = data.draw(VALUES.filter(encodable))
        if flag == "--dry-run":
            continue
        if option.is_flag:
            words.append(flag)
        elif flag in words:
            words[words.index(flag) + 1] = value
        else:
            words += [flag, value]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tiny["work"])
        patch.setenv("HF_HUB_OFFLINE", "1")
        run_case("options of commands", lambda: command(capsys, words), untouched=tiny["work"])
    assert not listing(tiny["work"])


@fuzz(40)
@given(st.data())
def test_fuzz_words_of_commands(tiny, capsys, data):
    name = data.draw(st.sampled_from(sorted(COMMANDS)) | VALUES.filter(encodable))
    words = data.draw(st.lists(VALUES.filter(encodable), max_size=3))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tiny["work"])
        patch.setenv("HF_HUB_OFFLINE", "1")
        run_case("words of commands", lambda: command(capsys, [name, *words]), untouched=tiny["work"])


@fuzz(50)
@given(st.data())
def test_fuzz_files_of_settings(tiny, capsys, data):
    words = base_words(tiny, "search")
    options = [one.name for one in COMMANDS["search"].params if one.name not in ("overwrite", "resume")]
    content = data.draw(st.dictionaries(st.sampled_from(options) | TEXTS, JSON, max_size=3) | JSON)
    if isinstance(content, dict):
        content.pop("dry_run", None)
    encoded = json.dumps(content).encode()
    file = tiny["work"].parent / f"settings{data.draw(st.sampled_from(['.json', '.yaml']))}"
    file.write_bytes(data.draw(damaged_bytes(encoded) | st.just(encoded)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tiny["work"])
        patch.setenv("HF_HUB_OFFLINE", "1")
        run_case("files of settings", lambda: command(capsys, [*words, "--config", str(file)]), untouched=tiny["work"])
