"""Several engines, each in a process of its own: real processes, with the exact engine on a tiny model."""

import itertools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import helpers_search
import pytest
import torch

from modelswarms_fast import cli
from modelswarms_fast.config import EngineConfig
from modelswarms_fast.engines import Request, complete, share_cores, start_engine
from modelswarms_fast.engines.group import EngineGroup
from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluate import Evaluator
from modelswarms_fast.experts import read_experts
from modelswarms_fast.journal import read_history
from modelswarms_fast.loop import search
from modelswarms_fast.shared import attach, place_of, shared_rows
from modelswarms_fast.utilities import load_utility

tiny = helpers_search.tiny
HERE = Path(__file__).parent
CONFIG = EngineConfig(engine="transformers", dtype="float32", engines=2)


@pytest.fixture(scope="module")
def experts(tiny):
    return read_experts(tiny["experts"], place=shared_rows)


@pytest.fixture(scope="module")
def group(tiny, experts):
    group = start_engine(Path(tiny["base"]), experts, CONFIG)
    yield group
    group.close()


@pytest.fixture(scope="module")
def single(tiny, experts):
    return start_engine(Path(tiny["base"]), experts, replace(CONFIG, engines=1))


@pytest.fixture(scope="module")
def prompts(single):
    return [list(ids) for ids in single.tokenizer(["ball", "be", "cell", "dim", "dot"])["input_ids"]]


@pytest.fixture
def right(single, prompts):
    """What the exact engine in this process completes for a row."""

    def completions(row):
        single.load(0, row)
        return complete(single, [Request(0, prompt) for prompt in prompts], 8)

    return completions


def of(completions, slots, slot):
    """The part of one slot of completions that were asked for slot by slot."""
    each = len(completions) // slots
    return completions[slot * each : (slot + 1) * each]


def told(run):
    """What a run found, without the seconds it took."""
    return [
        {name: value for name, value in line.items() if name not in {"seconds", "engine_idle_share"}}
        for line in read_history(Path(run) / "history.jsonl")
    ]


def pids(group):
    return [worker.process.pid for worker in group._workers]


def lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_slots_of_a_group_are_those_of_its_engines(group, experts, prompts, right):
    assert group.slots == 2
    assert len(set(pids(group)) | {os.getpid()}) == 3
    for first, second in ((0, 1), (2, 0)):
        group.load(0, experts.rows[first])
        group.load(1, experts.rows[second])
        requests = [Request(slot, prompt) for slot in (0, 1) for prompt in prompts]
        completions = complete(group, requests, 8)
        assert of(completions, 2, 0) == right(experts.rows[first])
        assert of(completions, 2, 1) == right(experts.rows[second])
    assert right(experts.rows[0]) != right(experts.rows[2])


def test_a_row_in_other_memory_is_copied(group, experts, prompts, right):
    row = experts.rows[1].clone()
    assert place_of(row) is None
    expected = right(row)
    group.load(1, row)
    row.zero_()
    assert complete(group, [Request(1, prompt) for prompt in prompts], 8) == expected


def test_a_mixture_is_made_where_it_is_served(group, experts, prompts, right):
    mixture = torch.tensor([0.5, 0.75, -0.25], dtype=torch.float64)
    group.load_mixture(0, mixture)
    assert complete(group, [Request(0, prompt) for prompt in prompts], 8) == right(
        (mixture.float() @ experts.rows.float()).to(experts.rows.dtype)
    )


def test_the_base_is_served_by_all(group, single, experts, prompts):
    group.load(0, experts.rows[0])
    group.restore()
    single.restore()
    requests = [Request(None, prompt) for prompt in prompts]
    lanes = set()
    group.watch = lambda what, lane, start, end: lanes.add((what, lane)) if start < end else None
    assert complete(group, requests, 8) == complete(single, requests, 8)
    group.watch = None
    assert lanes >= {("step", 0), ("step", 1)}


def test_log_probs_are_those_of_the_slot(group, single, experts, prompts):
    for slot in (0, 1):
        group.load(slot, experts.rows[slot])
    for slot in (0, 1):
        single.load(0, experts.rows[slot])
        assert group.log_probs(Request(slot, prompts[0]), 5) == single.log_probs(Request(0, prompts[0]), 5)


def test_dropped_requests_never_end_and_their_keys_are_free(group, experts, prompts, right):
    group.load(0, experts.rows[0])
    group.load(1, experts.rows[1])
    for key, prompt in enumerate(prompts):
        group.submit(key, Request(key % 2, prompt), 8)
    assert group.step()  # some have ended, others have not
    group.drop(range(len(prompts)))
    assert group.step() == []
    group.load(0, experts.rows[2])
    assert complete(group, [Request(0, prompt) for prompt in prompts], 8) == right(experts.rows[2])


def test_what_is_wrong_raises_here(group, experts):
    with pytest.raises(IndexError, match="slot 2 of 2"):
        group.load(2, experts.rows[0])
    with pytest.raises(IndexError, match="slot -1 of 2"):
        group.submit(0, Request(-1, [1]), 8)
    with pytest.raises(ValueError, match="vector"):
        group.load(0, experts.rows[0].double())


def test_engines_have_their_cores_and_leave_ctrl_c_to_the_driver(group, experts, prompts, right):
    cores = sorted(os.sched_getaffinity(0))
    for number, pid in enumerate(pids(group)):
        assert sorted(os.sched_getaffinity(pid)) == share_cores(cores, number, 2)
        assert b"OMP_NUM_THREADS=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        os.kill(pid, signal.SIGINT)
    before = pids(group)
    group.load(0, experts.rows[0])
    assert complete(group, [Request(0, prompt) for prompt in prompts], 8) == right(experts.rows[0])
    assert pids(group) == before
    assert all(map(lives, before))


@pytest.mark.parametrize(("cores", "count"), [(8, 2), (7, 3), (2, 2), (1, 3), (2, 5)])
def test_shares_of_cores(cores, count):
    shares = [share_cores(list(range(cores)), number, count) for number in range(count)]
    assert all(shares)
    if cores >= count:
        assert sorted(itertools.chain(*shares)) == list(range(cores))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_an_engine_that_cannot_start_says_so_here(tiny, experts, tmp_path):
    other = shutil.copytree(tiny["base"], tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1, "layer_types": None}))
    with pytest.raises(InputError) as alone:
        start_engine(other, experts, replace(CONFIG, engines=1))
    with pytest.raises(InputError) as together:
        start_engine(other, experts, CONFIG)
    assert str(together.value) == str(alone.value)


def test_a_wrong_call_raises_and_nothing_hangs(tiny, experts):
    group = start_engine(Path(tiny["base"]), experts, CONFIG)
    group.submit(0, Request(0, [1, 2]), 4)  # nothing is loaded
    with pytest.raises(RuntimeError, match="load\\(\\) a particle for slot 0"):
        group.step()
    with pytest.raises(RuntimeError, match="has failed"):
        group.step()
    group.close()


def test_closed_engines_are_gone(tiny, experts):
    group = start_engine(Path(tiny["base"]), experts, CONFIG)
    workers = list(group._workers)
    group.close()
    assert [worker.process.returncode for worker in workers] == [0, 0]
    group.close()


def test_shared_rows_are_seen_through_their_descriptor_and_leave_nothing():
    before = set(os.listdir("/proc/self/fd"))
    rows = shared_rows(3, 100, torch.bfloat16)
    descriptor, offset = place_of(rows[2])
    seen = attach(descriptor)[offset : offset + 200].view(torch.bfloat16)
    assert torch.equal(seen, torch.zeros(100, dtype=torch.bfloat16))
    rows[2] = 3
    assert torch.equal(seen, rows[2])
    assert place_of(torch.zeros(3)) is None
    del rows, seen
    assert set(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("state", ["weights", "mixture"])
def test_one_engine_and_two_find_the_same(tiny, tmp_path, state):
    alone = search(**tiny, out=tmp_path / "1", particles=5, state=state)
    together = search(**tiny, out=tmp_path / "2", particles=5, state=state, engines=2)
    assert told(tmp_path / "1") == told(tmp_path / "2")
    assert alone["end"] == together["end"]
    assert (tmp_path / "1" / "global_best" / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "2" / "global_best" / "adapter_model.safetensors"
    ).read_bytes()


@pytest.fixture
def killer(monkeypatch):
    """Kills an engine with requests under way, in these steps of the group; gives the groups' processes."""
    seen = []

    def plan(steps):
        real, count = EngineGroup._receive, 0

        def receive(self):
            nonlocal count
            seen.extend(worker.process for worker in self._workers if worker.process not in seen)
            if self._running:
                count += 1
                if count in steps:
                    worker = self._workers[next(iter(self._running.values())).engine]
                    os.kill(worker.process.pid, signal.SIGKILL)
            real(self)

        monkeypatch.setattr(EngineGroup, "_receive", receive)
        return seen

    return plan


def test_a_killed_engine_changes_nothing(tiny, tmp_path, killer, caplog):
    undisturbed = search(**tiny, out=tmp_path / "1", particles=5)
    processes = killer({3})
    with caplog.at_level(logging.WARNING):
        disturbed = search(**tiny, out=tmp_path / "2", particles=5, engines=2)
    assert told(tmp_path / "1") == told(tmp_path / "2")
    assert disturbed["end"] == undisturbed["end"]
    (line,) = [record.getMessage() for record in caplog.records if "group" in record.name]
    assert "of 2 was killed by SIGKILL; it is started anew" in line
    assert len(processes) == 3
    assert all(process.returncode is not None for process in processes)


def test_an_engine_killed_again_and_again_is_one_sentence(tiny, tmp_path, killer, monkeypatch, capsys, caplog):
    processes = killer(set(range(8, 1000)))
    monkeypatch.chdir(HERE)
    arguments = ["--base", tiny["base"], "--task", tiny["task"], "--data", tiny["data"], "--out", tmp_path / "run"]
    options = ["--engine", "transformers", "--dtype", "float32", "--engines", "2", "--particles", "3", "--seed", "5"]
    command = ["modelswarms-fast", "search", tiny["experts"], *arguments, *options]
    monkeypatch.setattr(sys, "argv", [str(word) for word in command])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "of 2 was killed by SIGKILL after it had been started anew" in sentence
    assert len(told(tmp_path / "run")) >= 1
    assert all(process.returncode is not None for process in processes)


def test_engines_end_with_a_driver_that_is_killed(tiny, tmp_path):
    script = tmp_path / "driver.py"  # without the guard that multiprocessing would want
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from modelswarms_fast.config import EngineConfig\n"
        "from modelswarms_fast.engines import Request, start_engine\n"
        "from modelswarms_fast.experts import read_experts\n"
        "from modelswarms_fast.shared import shared_rows\n"
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


class Rows:
    """Particles for an evaluator that are these rows."""

    def __init__(self, rows):
        self.row = rows.__getitem__

    def key(self, particle):
        return None

    def load(self, engine, slot, particle):
        engine.load(slot, self.row(particle))

    def prefetch(self, particles):
        pass


def test_two_vllm_engines_score_as_one(tmp_path):
    """Two processes of one thread each, against one such process: the same particles, the same scores."""
    pytest.importorskip("vllm")
    from modelswarms_fast.base import resolve_base

    examples = HERE.parent / "examples"
    base = resolve_base("smollm2-135m-instruct")
    experts = read_experts(examples / "experts", place=shared_rows)
    utility = load_utility("exact_match", examples / "data" / "skills_mix.json", limit_dev=8, limit_test=1)
    config = EngineConfig(engines=2, max_model_len=512, canary="off")
    group = start_engine(base, experts, config)
    try:
        tallies = Evaluator(group, utility).rows(Rows(experts.rows), range(4), "dev")
        together = {particle: tally.known for particle, tally in tallies.items()}
        probe = Request(0, list(group.tokenizer("Which is larger?")["input_ids"]))
        group.load(0, experts.rows[0])
        group.load(1, experts.rows[0])
        assert group.log_probs(probe) == group.log_probs(probe._replace(slot=1))
        # Each alone: the other slot is empty.
        alone = {}
        for particle in range(4):
            alone |= {particle: Evaluator(group, utility).one(experts.rows[particle], "dev")}
    finally:
        group.close()
    assert together == alone
