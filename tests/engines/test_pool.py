"""Several engines, each in a process of its own: real processes, with the exact engine on a tiny model."""

import itertools
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import helpers_search
import pytest
import torch
from helpers_group import lives, pids
from helpers_search import told

from modelswarms_fast.config import EngineConfig
from modelswarms_fast.engines.cores import asked_threads, share_cores
from modelswarms_fast.engines.protocol import Request, complete
from modelswarms_fast.engines.start import start_engine
from modelswarms_fast.errors import InputError
from modelswarms_fast.runs.evaluate import evaluate
from modelswarms_fast.runs.search import search
from modelswarms_fast.weights import shared_memory
from modelswarms_fast.weights.arena import empty_rows
from modelswarms_fast.weights.experts import read_experts
from modelswarms_fast.weights.shared_memory import attach, place_of, shared_rows

pytestmark = pytest.mark.slow

tiny = helpers_search.tiny
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


@pytest.mark.parametrize("size", [2**30, 2**40], ids=["too much to map", "no size of a file"])
def test_shared_rows_that_find_no_memory_leave_nothing(size):
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(RuntimeError, match="no shared memory of"):
        shared_rows(2**30, size, torch.float32)
    assert set(os.listdir("/proc/self/fd")) <= before


def test_a_mapping_at_the_address_of_one_that_is_gone_keeps_its_entry(monkeypatch):
    class Mapping:
        def madvise(self, advice):
            pass

    memory, mappings = torch.zeros(4096, dtype=torch.uint8), [Mapping(), Mapping()]
    given = iter(mappings)
    monkeypatch.setattr(shared_memory, "_map", lambda descriptor, nbytes: (memory, next(given)))
    rows = [shared_rows(1, 8, torch.float32) for _ in mappings]
    mappings.pop(0)  # unmapped before, and its entry taken out only now
    assert place_of(rows[1]) is not None
    mappings.clear()
    assert place_of(rows[1]) is None


def test_one_model_by_one_engine_and_by_two(tiny):
    arguments = {name: tiny[name] for name in ("base", "task", "data", "engine", "dtype")}
    alone, together = (evaluate(str(tiny["experts"] / "bob"), **arguments, engines=count) for count in (1, 2))
    alone.pop("prompts_per_second")
    assert together.pop("prompts_per_second") > 0
    assert together == alone


@pytest.mark.parametrize("state", ["weights", "mixture"])
def test_one_engine_and_two_find_the_same(tiny, tmp_path, state):
    alone = search(**tiny, out=tmp_path / "1", particles=5, state=state)
    together = search(**tiny, out=tmp_path / "2", particles=5, state=state, engines=2)
    assert told(tmp_path / "1") == told(tmp_path / "2")
    assert alone["end"] == together["end"]
    assert (tmp_path / "1" / "global_best" / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "2" / "global_best" / "adapter_model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("state", ["weights", "mixture"])
def test_experts_in_a_file_are_copied_only_to_be_mixed(tiny, experts, prompts, right, tmp_path, state):
    apart = read_experts(tiny["experts"], place=lambda *shape: empty_rows(*shape, tier="file", folder=tmp_path))
    group = start_engine(Path(tiny["base"]), apart, replace(CONFIG, state=state))
    workers = list(group._workers)
    try:
        assert len(group._members.room) == (3 if state == "mixture" else 1)
        if state == "mixture":
            group.load_mixture(1, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
        else:
            group.load(1, apart.rows[1])
        assert complete(group, [Request(1, prompt) for prompt in prompts], 8) == right(experts.rows[1])
    finally:
        group.close()
    assert [worker.process.returncode for worker in workers] == [0, 0], "closed engines are gone"
    group.close()


@pytest.mark.parametrize(("said", "threads"), [("4", 4), ("4,2", 4), ("", 7), ("many", 7)])
def test_threads_that_the_environment_asks_for(monkeypatch, said, threads):
    """A list of them, one a level of nesting, is legal."""
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert asked_threads(7) == threads
