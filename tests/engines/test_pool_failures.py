"""Engines that end, stop, wait for nothing or run in circles: a new engine or one sentence, and never a hang."""

import logging
import os
import signal
import subprocess
import sys
import time
from multiprocessing import Pipe
from pathlib import Path

import fake_engine_process
import full_engine_process
import helpers_group
import helpers_search
import pytest
import torch
from fake_engine_process import AGAIN, KILL, LOCK, RIGHT, SLOW, SPIN, STEPS, STOP
from helpers_evaluate import ScriptedEngine
from helpers_group import hurry, lives, pids
from helpers_search import told

from modelswarms_fast.cli import main
from modelswarms_fast.config import EngineConfig
from modelswarms_fast.engines import stopped as standing
from modelswarms_fast.engines.pool import supervisor, worker_process
from modelswarms_fast.engines.pool.pool import EnginePool
from modelswarms_fast.engines.protocol import Request, complete
from modelswarms_fast.errors import InputError
from modelswarms_fast.records.run_folder import read_history
from modelswarms_fast.runs.search import search

pytestmark = pytest.mark.slow

tiny = helpers_search.tiny
disturb = helpers_group.disturb
HERE = Path(__file__).parent


@pytest.fixture
def fakes(tiny, tmp_path, monkeypatch, caplog):
    """Makes groups of engines that need no model and fail as they are asked to; lines(): what was logged of them."""
    monkeypatch.setattr(supervisor, "MODULE", (fake_engine_process.__file__,))
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    hurry(monkeypatch, limit=3.0)
    made = []

    def make(count, **settings):
        made.append(EnginePool(Path(tiny["base"]), None, EngineConfig(engines=count, **settings)))
        return made[-1]

    make.lines = lambda: [record.getMessage() for record in caplog.records if "pool" in record.name]
    yield make
    for group in made:
        group.close()


def ask(group, *prompts):
    """Lengths of the prompts, as the engines answer, which take them in turn."""
    completions = complete(group, [Request(None, prompt) for prompt in prompts], 4)
    return [int(completion.text.split()[-1]) for completion in completions]


def test_an_engine_that_hangs_is_started_anew_and_a_slow_one_is_not(fakes):
    """Stopped, deadlocked, running in circles; slow, and in many steps longer than one may take; and well."""
    group = fakes(6)
    behaviours = [STOP, LOCK, SPIN, SLOW, STEPS, RIGHT]
    prompts = [[what] * length for length, what in enumerate(behaviours, 1)]
    before = pids(group)
    assert ask(group, *prompts, *prompts) == [1, 2, 3, 4, 5, 6] * 2
    assert sorted(fakes.lines()) == [
        f"Engine {number} of 6 did not answer for 3 s and was killed; it is started anew." for number in (1, 2, 3)
    ]
    assert pids(group)[3:] == before[3:]
    assert not any(map(lives, before[:3]))
    with pytest.raises(InputError, match=r"^Engine 1 of 6 did not answer for 3 s and was killed after .* than 6\.$"):
        ask(group, [STOP + AGAIN])


def test_an_engine_that_is_stopped_is_not_waited_for_as_long(fakes, monkeypatch):
    hurry(monkeypatch, limit=300.0, stopped=0.5)
    group = fakes(2)
    assert ask(group, [STOP], [RIGHT] * 2) == [1, 2]
    assert fakes.lines() == ["Engine 1 of 2 was stopped for 0 s and was killed; it is started anew."]


def test_a_stopped_process_that_goes_on_is_let_be(monkeypatch):
    monkeypatch.setattr(standing, "LIMIT", 0.2)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    found = standing.StoppedProcesses()

    def look(seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if late := found.too_long([process.pid]):
                return late
            time.sleep(0.01)
        return []

    process.send_signal(signal.SIGSTOP)
    assert look(0.1) == []
    process.send_signal(signal.SIGCONT)
    assert look(0.5) == []
    process.send_signal(signal.SIGSTOP)
    assert look(30) == [process.pid]
    process.kill()
    process.wait()
    process.stdin.close()
    assert found.too_long([process.pid]) == []


def test_the_signals_of_a_job_are_not_an_engines(tiny):
    """A job's system may send SIGTERM to all processes; the driver's answer to it needs its engines."""
    config = EngineConfig(engine="transformers", dtype="float32", engines=2)
    group = EnginePool(Path(tiny["base"]), None, config)
    for pid in pids(group):
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGHUP)
    before = pids(group)
    assert len(complete(group, [Request(None, [1, 2])] * 2, 3)) == 2
    assert pids(group) == before
    group.close()
    assert not any(map(lives, before))


def test_a_step_that_ends_nothing_is_told_of_now_and_then(monkeypatch):
    mine, theirs = Pipe()
    monkeypatch.setattr(worker_process, "start_here", lambda *arguments: ScriptedEngine())
    served = worker_process.Served(Path(), None, EngineConfig(), lambda: None, theirs.send)
    monkeypatch.setattr(time, "perf_counter", lambda: 1.5)
    for end in (1.5, 1.6):
        served.engine.watch("step", 0, 1.0, end)
    assert mine.recv() == ("ended", [], [("step", 1.0, 1.5)])
    assert not mine.poll()
    served.engine.watch("step", 0, 1.0, 2.6)
    assert mine.recv() == ("ended", [], [("step", 1.0, 1.6), ("step", 1.0, 2.6)])


@pytest.mark.parametrize("answered", [False, True])
def test_an_engine_that_owes_nothing_may_stand_still(fakes, answered):
    group = fakes(2)
    if answered:
        assert ask(group, [RIGHT], [RIGHT]) == [1, 1]
    os.kill(pids(group)[1], signal.SIGSTOP)
    group.submit(0, Request(None, [SLOW]), 4)
    assert [key for key, _ in group.step()] == [0]
    assert not fakes.lines()


def test_an_engine_that_takes_nothing_in_is_noticed(fakes):
    """More than a pipe holds: the group itself would wait for ever."""
    group = fakes(2)
    os.kill(pids(group)[0], signal.SIGSTOP)
    assert ask(group, [RIGHT] * 300_000) == [300_000]
    assert fakes.lines() == ["Engine 1 of 2 took in nothing for 3 s and was killed; it is started anew."]


def test_a_start_that_hangs_is_one_sentence(fakes, monkeypatch):
    monkeypatch.setattr(supervisor, "MODULE", ("-c", "import time; time.sleep(1000)"))
    monkeypatch.setattr(supervisor, "START_LIMIT", 1.0)
    with pytest.raises(InputError, match="of 2 did not answer for 1 s and was killed after it had been started anew"):
        fakes(2)


@pytest.mark.parametrize("what", [RIGHT, KILL, STOP])
def test_one_engine_chooses_for_all_and_for_those_started_anew(fakes, what):
    group = fakes(2)
    group.autotune([[what], [RIGHT] * 2], 4)
    assert (group.serve, group.slots) == ("slots", 6)
    assert group.auto_timings == {"merged": 1.0, "slots": 2.0}
    group.load_mixture(5, torch.tensor([0.25, 0.75]))
    group.submit(0, Request(5, [KILL + 0] * 3 if what == RIGHT else [RIGHT] * 3), 4)
    ((_, completion),) = group.step()
    assert completion.text == "1 slots [0.25, 0.75] 3"
    assert [completion.text for completion in complete(group, [Request(None, [RIGHT])] * 2, 4)] == [
        "1 slots None 1"
    ] * 2
    assert len(fakes.lines()) == 1
    assert (group.serve, group.slots) == ("slots", 6), "and not what one that is started anew begins with"


def test_an_engine_that_starts_anew_is_asked_once(fakes):
    """Asked twice, its second answer would be taken for that to the next question."""
    group = fakes(2)
    complete(group, [Request(None, [KILL]), Request(None, [RIGHT])], 4)
    assert not all(worker.ready for worker in group._workers)
    group.autotune([[RIGHT]], 4)
    assert (group.serve, group.slots) == ("slots", 6)


def test_a_killed_engine_changes_nothing(tiny, tmp_path, disturb, caplog):
    undisturbed = search(**tiny, out=tmp_path / "1", particles=5)
    processes = disturb({3})
    with caplog.at_level(logging.WARNING):
        disturbed = search(**tiny, out=tmp_path / "2", particles=5, engines=2)
    assert told(tmp_path / "1") == told(tmp_path / "2")
    assert disturbed["end"] == undisturbed["end"]
    (line,) = [record.getMessage() for record in caplog.records if "pool" in record.name]
    assert "of 2 was killed by SIGKILL; it is started anew" in line
    assert len(processes) == 3
    assert all(process.returncode is not None for process in processes)
    lost = [line.get("engines_lost") for line in read_history(tmp_path / "2" / "history.jsonl")]
    assert [sentences for sentences in lost if sentences] == [[line]]


@pytest.fixture
def failing(tiny, tmp_path, monkeypatch, capsys):
    """Runs the command of a search on two engines, and gives the sentence with which it ends."""
    monkeypatch.chdir(HERE)
    arguments = ["--base", tiny["base"], "--task", tiny["task"], "--data", tiny["data"], "--out", tmp_path / "run"]
    options = ["--engine", "transformers", "--dtype", "float32", "--engines", "2", "--particles", "3", "--seed", "5"]
    command = ["modelswarms-fast", "search", tiny["experts"], *arguments, *options]

    def run():
        monkeypatch.setattr(sys, "argv", [str(word) for word in command])
        with pytest.raises(SystemExit) as ended:
            main.main()
        assert ended.value.code == 2
        (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        return sentence

    return run


def test_an_engine_killed_again_and_again_is_one_sentence(failing, tmp_path, disturb, caplog):
    processes = disturb(set(range(8, 1000)))
    assert "of 2 was killed by SIGKILL after it had been started anew" in failing()
    assert len(told(tmp_path / "run")) >= 1
    assert all(process.returncode is not None for process in processes)


def test_an_engine_without_memory_is_one_sentence(failing, tmp_path, monkeypatch):
    """Its address space has a limit, which an allocation in a step meets."""
    monkeypatch.setattr(supervisor, "MODULE", (full_engine_process.__file__,))
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    real, processes = EnginePool._receive, []

    def receive(self):
        if (tmp_path / "run" / "history.jsonl").exists() and told(tmp_path / "run"):
            (tmp_path / "full").touch()
        processes.extend(worker.process for worker in self._workers if worker.process not in processes)
        real(self)

    monkeypatch.setattr(EnginePool, "_receive", receive)
    sentence = failing()
    assert "The transformers engine failed while it generated" in sentence
    assert "can't allocate memory" in sentence
    assert told(tmp_path / "run")
    assert len(processes) == 2
    assert all(process.returncode is not None for process in processes)


def test_engines_end_with_a_driver_that_is_killed(tiny, tmp_path):
    script = tmp_path / "driver.py"  # without the guard that multiprocessing would want
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from modelswarms_fast.config import EngineConfig\n"
        "from modelswarms_fast.engines.protocol import Request\n"
        "from modelswarms_fast.engines.start import start_engine\n"
        "from modelswarms_fast.weights.experts import read_experts\n"
        "from modelswarms_fast.weights.shared_memory import shared_rows\n"
        f"experts = read_experts({str(tiny['experts'])!r}, place=shared_rows)\n"
        "config = EngineConfig(engine='transformers', dtype='float32', engines=2)\n"
        f"group = start_engine(Path({tiny['base']!r}), experts, config)\n"
        "group.load(0, experts.rows[0])\n"
        "for key in range(1000):\n"
        "    group.submit(key, Request(0, [key % 60 + 1] * 20), 40)\n"
        "group._flush()\n"
        "print(*[worker.process.pid for worker in group._workers], flush=True)\n"
        "time.sleep(600)\n"
    )
    driver = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    workers = [int(pid) for pid in driver.stdout.readline().split()]
    assert len(workers) == 2
    assert all(map(lives, workers))
    driver.kill()
    driver.wait()
    driver.stdout.close()
    end = time.monotonic() + 30
    while any(map(lives, workers)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(lives, workers))
