"""A run that a signal or an error cuts leaves its best, and ends with the command that goes on with it."""

import os
import shlex
import signal
import sys

import helpers_search
import pytest

from modelswarms_fast.cli import main
from modelswarms_fast.engines.ensemble.engine import EnsembleEngine
from modelswarms_fast.engines.transformers import TransformersEngine
from modelswarms_fast.errors import EngineError
from modelswarms_fast.records.run_folder import read_history, read_json
from modelswarms_fast.records.stopping import Stopped, stop_at_once, stop_signals
from modelswarms_fast.weights.experts import read_experts

tiny = helpers_search.tiny


def run(monkeypatch, *arguments):
    """Run the command in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["modelswarms-fast", *map(str, arguments)])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as ended:
        main.main()
    return ended.value.code or 0


@pytest.fixture
def arguments(tiny):
    """Options of a tiny run but --out."""
    return ["--base", tiny["base"], "--task", tiny["task"], "--data", tiny["data"], "--dtype", "float32"]


def at_step(monkeypatch, number, act, engine=TransformersEngine):
    """Have something happen in this step of the engine, the first being 1; the list of steps that were done."""
    step, steps = engine.step, []

    def disturbed(self):
        steps.append(1)
        if len(steps) == number:
            act()
        return step(self)

    monkeypatch.setattr(engine, "step", disturbed)
    return steps


def last_line(capsys):
    return capsys.readouterr().err.rstrip("\n").splitlines()[-1]


def go_on(folder):
    return f"Go on with: modelswarms-fast resume {shlex.quote(str(folder))}"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_keeps_what_a_search_has_found(tiny, arguments, tmp_path, monkeypatch, capsys, name):
    number = signal.Signals[name]
    steps = at_step(monkeypatch, 5, lambda: os.kill(os.getpid(), number))  # of iteration 1, the second particle
    out, before = tmp_path / "a run", signal.getsignal(number)
    options = ["--engine", "transformers", "--iterations", 50, "--patience", 50]
    code = run(monkeypatch, "search", tiny["experts"], *arguments, *options, "--out", out)
    assert code == 128 + number
    assert last_line(capsys) == go_on(out)
    assert read_json(out / "summary.json")["stopped"] == "interrupted"
    assert read_experts([out / "global_best"], minimum=1).rows.shape[0] == 1
    assert len(steps) < 20
    assert signal.getsignal(number) is before


def test_a_second_signal_aborts_at_once(tiny, arguments, tmp_path, monkeypatch, capsys):
    def twice():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    steps = at_step(monkeypatch, 5, twice)
    out = tmp_path / "run"
    code = run(monkeypatch, "search", tiny["experts"], *arguments, "--engine", "transformers", "--out", out)
    assert (code, len(steps)) == (128 + signal.SIGTERM, 5)
    assert last_line(capsys) == go_on(out)
    assert not (out / "global_best").exists()
    assert len(read_history(out / "history.jsonl")) == 1


def test_a_signal_before_there_is_a_best(tiny, arguments, tmp_path, monkeypatch, capsys):
    at_step(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGHUP))
    out = tmp_path / "run"
    code = run(monkeypatch, "search", tiny["experts"], *arguments, "--engine", "transformers", "--out", out)
    assert code == 128 + signal.SIGHUP
    assert last_line(capsys) == go_on(out)


COMMANDS = {
    "sweep": ["--searches", 2, "--iterations", 2],
    "study": ["--seeds", 1, "--iterations", 2],
    "compare": ["--budget", 9, "--methods", "best_expert,random_search"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_signal_cuts_what_then_goes_on(tiny, arguments, tmp_path, monkeypatch, capsys, command):
    at_step(monkeypatch, 6, lambda: os.kill(os.getpid(), signal.SIGTERM))
    out = tmp_path / "run"
    given = [*(["seeds"] if command == "study" else []), tiny["experts"], *arguments, *COMMANDS[command]]
    given = [command, *given, "--engine", "transformers", "--out", out]
    assert run(monkeypatch, *given) == 128 + signal.SIGTERM
    assert last_line(capsys) == go_on(out)
    assert run(monkeypatch, "resume", out) == 0


@pytest.mark.parametrize("by", ["signal", "error"])
def test_what_a_token_swarm_has_found_is_kept(tiny, arguments, tmp_path, monkeypatch, capsys, by):
    def cut():
        if by == "error":
            raise EngineError("the engine is gone")
        os.kill(os.getpid(), signal.SIGTERM)

    at_step(monkeypatch, 12, cut, EnsembleEngine)
    out = tmp_path / "run"
    code = run(
        monkeypatch, "token-swarm", tiny["experts"], *arguments, "--particles", 3, "--limit-dev", 4, "--out", out
    )
    assert code == (2 if by == "error" else 128 + signal.SIGTERM)
    assert last_line(capsys) == go_on(out)
    assert sum(read_json(out / "global_best" / "mixture.json")["mixture"].values()) == pytest.approx(1)


def test_an_error_in_an_iteration_keeps_the_best_so_far(tiny, arguments, tmp_path, monkeypatch, capsys):
    def fail():
        raise RuntimeError("the engine is gone")

    at_step(monkeypatch, 8, fail)
    out = tmp_path / "run"
    options = ["--engine", "transformers", "--particles", 3, "--out", out]
    assert run(monkeypatch, "search", tiny["experts"], *arguments, *options) == 1
    *_, sentence, kept, last = capsys.readouterr().err.rstrip("\n").splitlines()
    assert sentence == "RuntimeError: the engine is gone"
    assert last == go_on(out)
    best = read_history(out / "history.jsonl")[-1]["global_best"]["utility"]
    assert kept == f"The best so far, {best:.4f} on dev, is in {out / 'global_best'}."
    assert read_experts([out / "global_best"], minimum=1).rows.shape[0] == 1
    assert not (out / "summary.json").exists()


@pytest.mark.parametrize("kind", [SystemExit, GeneratorExit])
def test_an_objective_that_exits_is_one_sentence(tiny, arguments, tmp_path, monkeypatch, capsys, kind):
    calls = []

    def exits(example, output):
        calls.append(1)
        if len(calls) == 50:
            raise kind(0)
        return helpers_search.vowels(example, output)

    monkeypatch.setattr(helpers_search, "exits", exits, raising=False)
    arguments[arguments.index("--task") + 1] = "helpers_search:exits"
    out = tmp_path / "run"
    code = run(monkeypatch, "search", tiny["experts"], *arguments, "--engine", "transformers", "--out", out)
    assert code == 2
    error, kept, last = capsys.readouterr().err.splitlines()[-3:]
    assert error.startswith('error: "helpers_search:exits" on dev example')
    assert f"raised {kind.__name__}: 0; correct the function" in error or kind is GeneratorExit
    assert kept.startswith("The best so far")
    assert last == go_on(out)


def test_what_is_ignored_stays_ignored():
    """As nohup has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals(stop_at_once):
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(Stopped):
                os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
