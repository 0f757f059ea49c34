"""A run that was cut anywhere goes on and ends as one that was not; nothing that it had evaluated is asked again."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import helpers_search
import pytest
from helpers_ensemble import gpt2, llama
from helpers_resume import Cut, cut_at, found, left_over
from helpers_search import arguments_of, told
from safetensors.torch import load_file, save_file

from modelswarms_fast.cli import main
from modelswarms_fast.engines.ensemble.engine import EnsembleEngine
from modelswarms_fast.engines.transformers import TransformersEngine
from modelswarms_fast.errors import InputError
from modelswarms_fast.records import run_folder
from modelswarms_fast.records.run_folder import read_history, read_json
from modelswarms_fast.runs import started
from modelswarms_fast.runs.compare import compare
from modelswarms_fast.runs.resume import resume
from modelswarms_fast.runs.search import search
from modelswarms_fast.runs.study import study
from modelswarms_fast.runs.sweep import sweep
from modelswarms_fast.runs.token_swarm import token_swarm

tiny = helpers_search.tiny


@pytest.fixture(scope="module")
def settings(tiny, tmp_path_factory):
    """A search of five particles, with all that may follow it."""
    data = tmp_path_factory.mktemp("data") / "data.json"
    helpers_search.write_data(data, 8)
    return tiny | {"data": data, "particles": 5, "iterations": 2, "confirm": 2, "parity_check": "off"}


@pytest.fixture(scope="module")
def uncut(settings, tmp_path_factory):
    """Its folder, and how often the disk was waited for."""
    out, fsync, count = tmp_path_factory.mktemp("uncut") / "run", os.fsync, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: count.append(fsync(handle)))
        search(**settings, out=out)
    return out, len(count)


def asked(monkeypatch, engine=TransformersEngine):
    """The prompts that engines are asked from now on."""
    prompts, submit = [], engine.submit

    def submitted(self, key, request, *more):
        prompts.append(tuple(request.prompt))
        return submit(self, key, request, *more)

    monkeypatch.setattr(engine, "submit", submitted)
    return prompts


@pytest.mark.parametrize(
    ("share", "torn"), [(0.0, True), (0.1, False), (0.3, True), (0.5, False), (0.7, True), (0.9, False), (1.0, True)]
)
def test_a_search_that_was_cut_at_a_write_ends_as_one_that_was_not(settings, uncut, tmp_path, monkeypatch, share, torn):
    number = 1 + round(share * (uncut[1] - 1))
    cut_search(settings, uncut, tmp_path / "run", monkeypatch, number, torn)


@pytest.mark.slow
def test_a_search_that_was_cut_at_every_write(settings, uncut, tmp_path, monkeypatch):
    for number in range(1, uncut[1] + 1):
        cut_search(settings, uncut, tmp_path / str(number), monkeypatch, number, torn=number % 2 == 0)


def cut_search(settings, uncut, out, monkeypatch, number, torn):
    with cut_at(monkeypatch, number, torn), pytest.raises(Cut):
        search(**settings, out=out)
    if read_summary(out).get("ended"):
        pass  # all of it was there
    elif (out / "config.json").exists():
        resume(out)
    else:  # nothing says yet what was asked for
        search(**settings, out=out, resume=True)
    assert found(out) == found(uncut[0])
    assert not left_over(out)


@pytest.mark.parametrize(
    "more",
    [
        {"state": "mixture"},
        {"state": "weights", "task": "helpers_search:rich", "stop_early": True},
        {"state": "weights", "final_test": True},
        {"randomness": "coordinate"},
    ],
)
def test_only_the_particle_under_evaluation_is_evaluated_again(settings, tmp_path, monkeypatch, more):
    settings = settings | more
    search(**settings, out=tmp_path / "uncut")
    prompts = asked(monkeypatch)
    append, left = started.ScoreFile.append, [8]  # in the second iteration

    def cut(file, *arguments):
        left[0] -= 1
        if not left[0]:
            raise Cut
        append(file, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(started.ScoreFile, "append", cut)
        with pytest.raises(Cut):
            search(**settings, out=tmp_path / "cut")
    before = len(prompts)
    resume(tmp_path / "cut")
    assert found(tmp_path / "cut") == found(tmp_path / "uncut")
    after = len(prompts) - before
    prompts.clear()
    search(**settings, out=tmp_path / "uncut", overwrite=True)
    assert before + after <= len(prompts) + 6, "six dev examples of one particle"


@pytest.fixture(scope="module")
def commands(tiny, tmp_path_factory):
    """Each command that writes a run folder as a function of `out` and more."""
    data = tmp_path_factory.mktemp("data") / "data.json"
    helpers_search.write_data(data, 6)
    shared = arguments_of(tiny, data=data, parity_check="off")
    folder = tmp_path_factory.mktemp("architectures")
    members = [llama(folder / "llama", 1), gpt2(folder / "gpt2", 2)]
    examples = [{"question": letter, "answer": letter} for letter in "abcdef"]
    letters = folder / "data.json"
    letters.write_text(json.dumps({"dev": examples, "test": examples}))
    swarm = {"swarm": {"iterations": 2, "seed": 5}}
    ensemble = {"task": "exact_match", "data": letters, "max_tokens": 1, "max_model_len": 64, "particles": 4}
    methods = ["best_expert", "model_swarms", "greedy_soup", "vote"]
    return {
        "token-swarm": lambda **more: token_swarm(members, **ensemble, iterations=2, seed=3, **more),
        "compare": lambda **more: compare(**shared, budget=9, seed=3, methods=methods, **more),
        "sweep": lambda **more: sweep(**shared, **swarm, searches=2, **more),
        "study": lambda **more: study("seeds", **shared, **swarm, seeds=2, **more),
    }


def results(name, out):
    """What a command has found, without what it cost in seconds."""
    if name == "token-swarm":
        return found(out)
    if name == "compare":
        content = read_json(out / "baselines.json")
        for method in content["methods"].values():
            del method["seconds"]
        return {name: value for name, value in content.items() if name != "config"}
    trials = {folder.name: found_of_trial(folder) for folder in (out / "searches").iterdir()}
    return {"trials": trials, "all": read_json(out / f"{name}.json")}


def found_of_trial(folder):
    one = found(folder)
    del one["summary"]["name"]
    return one


@pytest.mark.parametrize(
    ("name", "share"),
    [("token-swarm", 0.5), ("compare", 0.3), ("compare", 0.7), ("sweep", 0.0), ("sweep", 0.6), ("study", 0.8)],
)
def test_every_command_goes_on(commands, tmp_path, monkeypatch, name, share):
    count, fsync = [], os.fsync
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: count.append(fsync(handle)))
        commands[name](out=tmp_path / "uncut")
    with cut_at(monkeypatch, 1 + int(share * len(count)), torn=True), pytest.raises(Cut):
        commands[name](out=tmp_path / "cut")
    if share:
        with pytest.raises(InputError, match="is not empty"):
            commands[name](out=tmp_path / "cut")
        assert resume(tmp_path / "cut")[0] == name
    else:
        commands[name](out=tmp_path / "cut", resume=True)
    assert results(name, tmp_path / "cut") == results(name, tmp_path / "uncut")
    assert not left_over(tmp_path / "cut")
    if name == "token-swarm":  # what the last line had cost is lost, and paid again
        passes = [read_json(tmp_path / run / "summary.json")["expert_passes"] for run in ("uncut", "cut")]
        assert 0 < passes[0] <= passes[1] < 1.5 * passes[0]


@pytest.mark.parametrize("changed", [{"iterations": 4}, {"iterations": 6, "patience": 3}])
def test_an_ended_run_goes_on_with_more(settings, tmp_path, monkeypatch, changed):
    """Its particles restart as they did; else the iterations that it had would not repeat."""
    first = settings | {"patience": 2, "iterations": 2}
    search(**first, out=tmp_path / "run")
    with pytest.raises(InputError, match="has ended; there is nothing to resume"):
        resume(tmp_path / "run")
    with pytest.raises(InputError, match=r"iterations is 1, less than the 2 of the run"):
        resume(tmp_path / "run", iterations=1)
    before = told(tmp_path / "run")
    with cut_at(monkeypatch, 14), pytest.raises(Cut):  # again
        resume(tmp_path / "run", **changed)
    assert read_json(tmp_path / "run" / "summary.json")["ended"] is False
    resume(tmp_path / "run")
    assert told(tmp_path / "run")[: len(before)] == before
    assert len(told(tmp_path / "run")) > len(before)
    assert read_json(tmp_path / "run" / "config.json")["raised"] == {"iterations": 2, "patience": 2}
    if "patience" not in changed:  # then it is one that was started so
        search(**first | changed, out=tmp_path / "at once")
        assert found(tmp_path / "run") == found(tmp_path / "at once")


def test_a_sweep_goes_on_with_more_iterations(commands, tmp_path):
    commands["sweep"](out=tmp_path / "run")
    resume(tmp_path / "run", iterations=3)
    for folder in (tmp_path / "run" / "searches").iterdir():
        assert len(read_history(folder / "history.jsonl")) == 4
        assert read_json(folder / "summary.json")["iterations"] == 3


def change_experts(settings, folder):
    file = folder / "experts" / "bob" / "adapter_model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, file)


def change_data(settings, folder):
    content = read_json(folder / "data.json")
    content["dev"][0]["prompt"] += "a"
    (folder / "data.json").write_text(json.dumps(content))


def change_base(settings, folder):
    file = folder / "base" / "model.safetensors"
    save_file({name: 1.01 * tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change_experts, "experts with other weights"),
        (change_data, "other data"),
        (change_base, "other files of the base model"),
        (None, r"torch 0\.1 \(now "),
    ],
)
def test_what_has_changed_is_named_and_refused_but_for_force(settings, tmp_path, monkeypatch, change, words):
    for name in ("experts", "base"):
        shutil.copytree(settings[name], tmp_path / name)
    shutil.copy(settings["data"], tmp_path / "data.json")
    given = {"experts": tmp_path / "experts", "base": str(tmp_path / "base"), "data": tmp_path / "data.json"}
    out = tmp_path / "run"
    with cut_at(monkeypatch, 24), pytest.raises(Cut):
        search(**settings | given, out=out)
    if change is not None:
        change(settings, tmp_path)
    else:
        config = read_json(out / "config.json")
        config["versions"]["torch"] = "0.1"
        run_folder.write_json(out / "config.json", config)
    before = read_history(out / "history.jsonl")
    with pytest.raises(InputError, match=rf"was started with {words}.*--force"):
        resume(out)
    _, summary = resume(out, force=True)
    assert read_history(out / "history.jsonl")[: len(before)] == before
    assert len(summary["forced"]) == 1
    assert read_json(out / "config.json")["forced"] == summary["forced"]


def test_data_of_another_size_are_refused_even_with_force(settings, tmp_path, monkeypatch):
    shutil.copy(settings["data"], tmp_path / "data.json")
    with cut_at(monkeypatch, 24), pytest.raises(Cut):
        search(**settings | {"data": tmp_path / "data.json"}, out=tmp_path / "run")
    content = read_json(tmp_path / "data.json")
    (tmp_path / "data.json").write_text(json.dumps(content | {"dev": content["dev"][:-1]}))
    with pytest.raises(InputError, match="was started with 6 dev examples and there are 5 now"):
        resume(tmp_path / "run", force=True)


def test_scores_of_another_run_are_reused(settings, uncut, tmp_path, monkeypatch):
    prompts = asked(monkeypatch)
    search(**settings, out=tmp_path / "again", reuse=[uncut[0]])
    assert not prompts, "every position was evaluated there"
    again, first = found(tmp_path / "again"), found(uncut[0])
    assert [one["scores"] for one in again["history"]] == [one["scores"] for one in first["history"]]
    assert again["winner"] == first["winner"]
    shutil.move(uncut[0], tmp_path / "away")
    try:
        (tmp_path / "again" / "summary.json").unlink()
        config = read_json(tmp_path / "again" / "config.json")
        run_folder.write_json(tmp_path / "again" / "config.json", config | {"reuse": []})
        resume(tmp_path / "again")  # what was reused is its own now
    finally:
        shutil.move(tmp_path / "away", uncut[0])
    assert not prompts
    search(**settings | {"seed": 6}, out=tmp_path / "seed", reuse=[uncut[0]])
    assert prompts, "it moves elsewhere"
    starts = [read_history(folder / "history.jsonl")[0]["scores"][:3] for folder in (tmp_path / "seed", uncut[0])]
    assert starts[0] == starts[1]


@pytest.mark.parametrize(
    ("other", "words"),
    [({"task": "helpers_search:rich"}, "another task"), ({"limit_dev": 5, "confirm": 0}, "other data")],
)
def test_scores_of_something_else_are_not_reused(settings, uncut, tmp_path, other, words):
    with pytest.raises(InputError, match=re.escape(f"the scores of {uncut[0]} are of {words}")):
        search(**settings | other, out=tmp_path / "run", reuse=[uncut[0]])
    assert not (tmp_path / "run").exists()


def test_damaged_lines_of_scores_are_evaluated_again(settings, uncut, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    with cut_at(monkeypatch, 24), pytest.raises(Cut):
        search(**settings, out=out)
    lines = (out / "scores.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) > 6
    lines[1] = lines[1].replace(b"0.", b"1.", 1)
    lines[-2] = b"\0" * len(lines[-2])
    (out / "scores.jsonl").write_bytes(b"".join(lines)[:-5])
    prompts = asked(monkeypatch)
    resume(out)
    assert "line 2 of" in " ".join(capsys.readouterr().err.split())
    assert found(out)["winner"] == found(uncut[0])["winner"]
    assert [one["scores"] for one in told(out)] == [one["scores"] for one in told(uncut[0])]
    assert prompts


def test_a_damaged_history_is_written_anew(settings, uncut, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(uncut[0], out)
    (out / "summary.json").unlink()
    lines = (out / "history.jsonl").read_bytes().splitlines(keepends=True)
    for damage in (b"{}\n", b"\0\0\n", b'{"iteration": 1, "scores": 3}\n'):
        (out / "history.jsonl").write_bytes(lines[0] + damage + b"".join(lines[2:]))
        (out / "summary.json").unlink(missing_ok=True)
        resume(out)
        assert found(out) == found(uncut[0])


def test_a_second_run_on_a_folder_is_refused(settings, commands, tmp_path):
    with run_folder.locked(tmp_path / "run"):
        for more in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(InputError, match="another process is at work in"):
                search(**settings, out=tmp_path / "run", **more)
        for command in commands.values():
            with pytest.raises(InputError, match="another process is at work in"):
                command(out=tmp_path / "run")


def test_a_process_that_was_forked_does_not_keep_the_lock(tmp_path):
    with run_folder.locked(tmp_path / "run"):
        (tmp_path / "run" / "file").touch()
        begun, write = os.pipe()
        child = os.fork()
        if not child:
            os.write(write, b"x")
            time.sleep(30)
            os._exit(0)
        os.read(begun, 1)
    try:
        with run_folder.locked(tmp_path / "run"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_nothing_is_left_of_a_run_that_did_not_begin(settings, tmp_path):
    with pytest.raises(InputError):
        search(**settings | {"data": tmp_path / "none.json"}, out=tmp_path / "runs" / "mine")
    assert list(tmp_path.iterdir()) == []


def test_there_must_be_a_run(settings, tmp_path):
    with pytest.raises(InputError, match="so no run has begun there"):
        resume(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for go_on in (lambda: resume(tmp_path), lambda: search(**settings, out=tmp_path, resume=True)):
        with pytest.raises(InputError, match=r"config\.json was written by no run that can go on"):
            go_on()
    (tmp_path / "config.json").write_text('{"run": "search", "experts": ["a"], "sources": ["a"], "versions": 3}')
    with pytest.raises(InputError, match="versions is not what a run writes"):
        resume(tmp_path)


def test_what_a_run_of_somebody_else_would_import_is_given_again(uncut, tmp_path):
    shutil.copytree(uncut[0], tmp_path / "run")
    config = read_json(tmp_path / "run" / "config.json")
    for seal in (None, "0" * 64):
        run_folder.write_json(tmp_path / "run" / "config.json", config | {"seal": seal})
        with pytest.raises(InputError, match="imports code"):
            resume(tmp_path / "run")
        with pytest.raises(InputError, match="has ended"):
            resume(tmp_path / "run", given={"task": "helpers_search:vowels"})
    run_folder.write_json(tmp_path / "run" / "config.json", config | {"task": "helpers_search:rich"})
    with pytest.raises(InputError, match="imports code"):
        resume(tmp_path / "run")


def test_it_goes_on_from_the_folder_that_it_was_started_in(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with cut_at(monkeypatch, 20), pytest.raises(Cut):
        search(**settings, out="run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=re.escape(f"cd {tmp_path} && modelswarms-fast resume {tmp_path}/run")):
        resume(tmp_path / "run")


@pytest.mark.parametrize("seconds", [0.0, 0.4])
def test_a_search_that_was_killed_goes_on_by_the_command(settings, uncut, tmp_path, seconds):
    """SIGKILL so many seconds after its first score."""
    given = {name: value for name, value in settings.items() if name not in ("experts", "iterations")}
    options = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    program = "import torch; torch.set_num_threads(1); from modelswarms_fast.cli.main import main; main()"
    out = tmp_path / "run"
    command = [sys.executable, "-c", program, "search", str(settings["experts"]), *options, "--iterations", "2"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(helpers_search.__file__).parent), *sys.path])}
    running = subprocess.Popen([*command, "--out", str(out)], env=environment, stderr=subprocess.PIPE)
    try:
        while not (out / "scores.jsonl").exists() or not (out / "scores.jsonl").stat().st_size:
            assert running.poll() is None, running.communicate()
            time.sleep(0.01)
        time.sleep(seconds)
    finally:
        running.kill()
        running.wait()
    if not read_summary(out).get("ended"):
        resume(out)
    assert found(out) == found(uncut[0])
    assert not left_over(out)


def read_summary(out):
    return read_json(out / "summary.json") if (out / "summary.json").exists() else {}


def test_the_command_shows_the_end(settings, uncut, tmp_path, monkeypatch, capsys):
    shutil.copytree(uncut[0], tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    monkeypatch.setattr(sys, "argv", ["modelswarms-fast", "resume", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert not ended.value.code
    assert "winner" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 2
    assert "there is nothing to resume" in " ".join(capsys.readouterr().err.split())


def test_the_ensemble_is_not_asked_again(commands, tmp_path, monkeypatch):
    prompts = asked(monkeypatch, EnsembleEngine)
    commands["token-swarm"](out=tmp_path / "run")
    assert prompts
    (tmp_path / "run" / "summary.json").unlink()
    prompts.clear()
    resume(tmp_path / "run")
    assert not prompts


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"run": None}, "run is not what a run writes"),
        ({"run": "other"}, "run is not what a run writes"),
        ({"sources": None}, "sources is not what a run writes"),
        ({"forced": None}, "forced is not what a run writes"),
        ({"raised": {"patience": 3}}, "raised.iterations is not what a run writes"),
        ({"run": "compare", "methods": None}, "methods is not what a run writes"),
        ({"run": "compare"}, "does not say budget, methods; restore"),
        ({"run": "sweep"}, "does not say ranges; restore"),
        ({"run": "study"}, "does not say kind; restore"),
    ],
)
def test_a_config_that_no_run_wrote_is_one_sentence(tmp_path, change, sentence):
    config = {"run": "search", "sources": ["a"], "experts": ["a"], "base": "base", "task": "exact_match"} | change
    run_folder.write_json(tmp_path / "config.json", config)
    with pytest.raises(InputError, match=f"config.json.* {sentence}"):
        resume(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
