"""Tensor-parallel engines: real vLLM with two processes on tiny random models, checked against transformers."""

import copy
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers_models import make_base
from helpers_search import make_tiny

from modelswarms_fast.config import EngineConfig
from modelswarms_fast.engines.pool.pool import EnginePool
from modelswarms_fast.engines.pool.worker_process import portable
from modelswarms_fast.engines.protocol import Request, complete
from modelswarms_fast.engines.start import start_engine
from modelswarms_fast.engines.transformers import TransformersEngine
from modelswarms_fast.engines.vllm.tensor_parallel import cores_of_ranks
from modelswarms_fast.errors import EngineError, InputError
from modelswarms_fast.records.run_folder import read_history
from modelswarms_fast.runs.search import search
from modelswarms_fast.weights.experts import read_experts
from modelswarms_fast.weights.shared_memory import locate, shared_rows

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

# Heads of 32, which vLLM's attention on a CPU asks for; 64 tokens in the first rank's part of the vocabulary, 3 in the
# second's; biases; weights whose parts differ in shape.
SHAPE = {
    "vocab_size": 67, "hidden_size": 128, "head_dim": 32, "intermediate_size": 160, "attention_bias": True,
    "eos_token_id": 0,
}  # fmt: skip
WAYS = ("merged", "slots", "mixture")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("untied"), **SHAPE, tie_word_embeddings=False)


@pytest.fixture(scope="module")
def experts(tiny):
    return read_experts(tiny["experts"], place=shared_rows)


@pytest.fixture(scope="module")
def oracle(tiny, experts):
    return TransformersEngine(Path(tiny["base"]), experts, dtype="float32", device=torch.device("cpu"))


@pytest.fixture(scope="module")
def prompts(oracle):
    return [list(ids) for ids in oracle.tokenizer(["ball", "be", "cell", "dim", "dot"])["input_ids"]]


@pytest.fixture(scope="module")
def engine(tiny, experts):
    """One engine of two ranks in which every way is open."""
    vllm = pytest.importorskip("modelswarms_fast.engines.vllm.engine")
    pytest.importorskip("vllm")
    config = EngineConfig(serve="auto", state="mixture", slots=2, tensor_parallel=2)
    engine = vllm.VllmEngine(Path(tiny["base"]), experts, config, dtype="float32", max_model_len=64)
    assert engine._modes == WAYS
    return engine


@pytest.fixture(params=WAYS)
def way(request, engine):
    engine.set_mode(request.param)
    yield engine
    engine.restore()


@pytest.fixture
def in_shared_memory(experts):
    """Gives rows there."""

    def place(row):
        shared = shared_rows(1, experts.layout.size, experts.layout.dtype)[0]
        shared.copy_(row)
        return shared

    return place


def texts(engine, prompts, slot=0):
    return [completion.text for completion in complete(engine, [Request(slot, prompt) for prompt in prompts], 8)]


def exhaust(engine):
    for _ in range(10_000):
        engine.step()


def difference(engine, oracle, prompt, slot=0):
    """The largest of the ten likeliest next tokens' differences."""
    served = engine.log_probs(Request(slot, prompt), top=10)
    right = oracle.log_probs(Request(None if slot is None else 0, prompt))
    return max(abs(value - right[token]) for token, value in served.items())


def test_every_load_is_served_and_taken_back(way, oracle, prompts, experts, in_shared_memory):
    oracle.restore()
    before = way.log_probs(Request(None, prompts[0]))
    assert difference(way, oracle, prompts[0], None) < 1e-4
    seen = set()
    for row in (*experts.rows, in_shared_memory(1.5 * experts.rows[0] - 0.5 * experts.rows[1])):
        way.load(0, row)
        oracle.load(0, row)
        assert difference(way, oracle, prompts[0]) < 1e-4
        assert texts(way, prompts) == texts(oracle, prompts)
        seen.add(tuple(texts(way, prompts)))
    assert len(seen) > 2, "particles that all say the same prove nothing"
    mixture = torch.tensor([0.5, 0.75, -0.25])
    way.load_mixture(0, mixture)
    oracle.load_mixture(0, mixture)
    assert difference(way, oracle, prompts[0]) < 1e-4
    way.restore()
    assert way.log_probs(Request(None, prompts[0])) == before


@pytest.mark.parametrize("serve", ["slots", "mixture"])
def test_particles_and_the_base_share_a_batch(engine, oracle, prompts, experts, serve):
    engine.set_mode(serve)
    coefficients = torch.tensor([[0.9, 0.4, -0.3], [-0.2, 0.5, 0.7]])
    for slot, mixture in enumerate(coefficients):
        engine.load_mixture(slot, mixture)
    order = [slot for _ in prompts for slot in (0, None, 1)]
    mixed = complete(engine, [Request(slot, prompt) for prompt in prompts for slot in (0, None, 1)], 8)
    for slot in (0, 1, None):
        own = [completion.text for completion, of in zip(mixed, order, strict=True) if of == slot]
        if slot is None:
            oracle.restore()
        else:
            oracle.load_mixture(0, coefficients[slot])
        assert own == texts(oracle, prompts, None if slot is None else 0)
    engine.restore()


def test_full_weights_are_written_in_parts(engine, tiny, experts, prompts):
    """Every weight and bias of the model, the head and both parts of the vocabulary among them."""
    weights = read_experts([tiny["base"]], minimum=1, place=lambda n, size, dtype: shared_rows(n + 1, size, dtype))
    changed = weights.room[1]
    changed.copy_(weights.rows[0])
    changed += 0.02 * torch.randn(changed.shape, generator=torch.Generator().manual_seed(3))
    oracle = TransformersEngine(Path(tiny["base"]), weights, dtype="float32", device=torch.device("cpu"))
    engine.set_mode("merged")
    engine._worker.swarm_attach("merged", weights)
    try:
        before = engine.log_probs(Request(None, prompts[0]))
        for row in (weights.rows[0], changed):
            engine.load(0, row)
            oracle.load(0, row)
            assert difference(engine, oracle, prompts[0]) < 1e-4
            assert texts(engine, prompts) == texts(oracle, prompts)
        assert engine.log_probs(Request(0, prompts[0])) != before
        engine.restore()
        assert engine.log_probs(Request(None, prompts[0])) == before
    finally:
        engine._worker.swarm_attach("merged", experts)


def test_experts_of_another_base_are_refused_in_the_words_of_one_process(engine, experts):
    modules = tuple(replace(module, name=module.name.replace("layers.0", "layers.99")) for module in experts.modules)
    for serve in WAYS:
        with pytest.raises(InputError, match=r"layers\.99"):
            engine._worker.swarm_attach(serve, replace(experts, modules=modules))
    halved = experts.layout.specs[0]
    halved = replace(halved, shape=(halved.shape[0], halved.shape[1] // 2))
    other = copy.copy(experts.layout)
    object.__setattr__(other, "specs", (halved, *experts.layout.specs[1:]))
    for serve in WAYS:
        with pytest.raises(InputError, match="use the base they share"):
            engine._worker.swarm_attach(serve, replace(experts, layout=other))
    for serve in WAYS:
        engine._worker.swarm_attach(serve, experts)


def test_a_row_in_other_memory_is_refused(engine, experts):
    engine.set_mode("merged")
    with pytest.raises(ValueError, match="shared memory"):
        engine.load(0, experts.rows[0].clone())


# The last of the engine.
def test_a_killed_rank_is_one_sentence(engine, experts, prompts):
    ranks = engine._worker._processes
    assert len(ranks) == 2
    maps = [Path(f"/proc/{pid}/maps").read_text().splitlines() for pid in (ranks[1].pid, os.getpid())]
    segments = [line for lines in maps for line in lines if "cpushm" in line]
    assert segments or not hasattr(torch.ops._C, "init_shm_manager"), "vLLM's build without AVX-512 has none"
    rings = [line for lines in maps for line in lines if "/psm_" in line]
    assert rings
    assert all(line.endswith("(deleted)") for line in segments + rings), "nothing may be left of what is killed"
    engine.set_mode("merged")
    engine.load(0, experts.rows[0])
    for key, prompt in enumerate(prompts):
        engine.submit(key, Request(0, prompt), 50)
    engine.step()
    os.kill(ranks[1].pid, signal.SIGKILL)
    with pytest.raises(EngineError, match=r"its process 2 of 2 was killed by SIGKILL.*history\.jsonl"):
        exhaust(engine)
    with pytest.raises(EngineError, match="its process 2 of 2"):
        engine.load(0, experts.rows[1])
    assert not any(process.is_alive() for process in ranks)


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """One key-value head, which both ranks hold; the output head is the embedding."""
    pytest.importorskip("vllm")
    found = make_tiny(tmp_path_factory.mktemp("tied"), **SHAPE | {"num_key_value_heads": 1})
    return found | {"engine": "vllm", "iterations": 1, "max_model_len": 64, "particles": 4, "limit_dev": 6}


def told(run):
    """What a run found, without the seconds it took."""
    return [
        {name: value for name, value in line.items() if name not in {"seconds", "engine_idle_share"}}
        for line in read_history(Path(run) / "history.jsonl")
    ]


def descendants(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children] + [below for child in children for below in descendants(child)]


def gone(pids):
    """Whether these processes end within half a minute."""
    end = time.monotonic() + 30
    while any(map(lives, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(lives, pids))


def test_a_search_on_two_ranks_finds_what_one_finds(tied, tmp_path, monkeypatch):
    """Every load proved by the parity check, the base too at the end; then nothing of the engine is left."""
    real, ranks = EnginePool.close, []

    def close(self):
        ranks.extend(pid for worker in self._workers for pid in descendants(worker.process.pid))
        real(self)

    monkeypatch.setattr(EnginePool, "close", close)
    alone = search(**tied, out=tmp_path / "1")
    together = search(**tied, out=tmp_path / "2", tensor_parallel=2, serve="auto", parity_check="all")
    assert told(tmp_path / "1") == told(tmp_path / "2")
    assert alone["end"] == together["end"]
    assert len(ranks) >= 2
    assert gone(ranks)


def test_a_rank_killed_in_a_search_is_one_sentence(tied, tmp_path, monkeypatch):
    real, ranks, run = EnginePool._receive, [], tmp_path / "run"

    def receive(self):
        if self._running and not ranks and told(run):
            found = descendants(self._workers[0].process.pid)
            ranks.extend(pid for pid in found if b"VLLM" in Path(f"/proc/{pid}/cmdline").read_bytes())
            os.kill(ranks[0], signal.SIGKILL)
        real(self)

    monkeypatch.setattr(EnginePool, "_receive", receive)
    with pytest.raises(EngineError, match=r"its process 1 of 2 was killed by SIGKILL"):
        search(**tied, out=run, tensor_parallel=2, serve="mixture", state="mixture", parity_check="off")
    assert len(ranks) == 2
    assert told(run), "what had ended is kept"
    assert gone(ranks)


def lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# Without vLLM.


@pytest.mark.parametrize(
    ("shape", "parts", "message"),
    [
        ({}, 3, "tensor_parallel is 3, which does not divide the 4 attention heads"),
        ({"intermediate_size": 50}, 4, "does not divide the 50 inner features"),
        ({"num_attention_heads": 12, "num_key_value_heads": 4, "vocab_size": 192}, 6, "the 4 key-value heads"),
        ({"num_attention_heads": 3, "num_key_value_heads": 3}, 3, "does not divide the 64 tokens"),
    ],
)
def test_models_that_cannot_be_split_are_refused(tmp_path, shape, parts, message):
    base = make_base(tmp_path / "base", shape={"hidden_size": 48, "head_dim": 8} | shape)
    with pytest.raises(InputError, match=message):
        start_engine(base, None, EngineConfig(tensor_parallel=parts))


@pytest.mark.parametrize(("name", "value"), [("intermediate_size", "64"), ("num_key_value_heads", 0)])
def test_sizes_that_are_no_sizes_are_refused(tmp_path, name, value):
    file = make_base(tmp_path / "base") / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    with pytest.raises(InputError, match=f"{name} is {value!r} in the base model's config.json; make it a whole"):
        start_engine(file.parent, None, EngineConfig(tensor_parallel=2))


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(InputError, match="tensor_parallel is 0"):
        EngineConfig(tensor_parallel=0)
    with pytest.raises(InputError, match="transformers engine is one process"):
        EngineConfig(tensor_parallel=2, engine="transformers")


@pytest.mark.parametrize(
    ("cores", "threads", "count", "expected"),
    [
        ([0, 1], 2, 2, "0|1"),
        ([0, 1], 1, 2, "0|1"),
        ([4, 5, 6, 7], 4, 2, "4,5|6,7"),
        ([4, 5, 6, 7], 2, 2, "4|6"),
        ([0, 1], 2, 3, "0|1|0"),
    ],
)
def test_cores_of_ranks(cores, threads, count, expected):
    assert cores_of_ranks(cores, threads, count) == expected


def test_another_process_finds_a_tensor_by_numbers():
    rows = shared_rows(3, 100, torch.bfloat16)
    rows[1] = torch.arange(100)
    place = locate(rows[1:, 10:20])
    assert torch.equal(place.view(), rows[1:, 10:20])
    arguments = json.dumps([*place[:-1], str(place.dtype).removeprefix("torch.")])
    code = (
        "import json, sys, torch\n"
        "from modelswarms_fast.weights.shared_memory import SharedTensor\n"
        "*place, dtype = json.loads(sys.argv[1])\n"
        "seen = SharedTensor(*place, getattr(torch, dtype)).view()\n"
        "print(seen[0].tolist())\n"
        "seen[1] = 7\n"
    )
    found = subprocess.run([sys.executable, "-c", code, arguments], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == list(range(10, 20))
    assert (rows[2, 10:20] == 7).all()
    assert (rows[2, :10] == 0).all()
    with pytest.raises(ValueError, match="shared memory"):
        locate(torch.zeros(3))


def test_a_descriptor_that_now_names_other_memory_is_refused():
    rows = shared_rows(3, 100, torch.bfloat16)
    place = locate(rows)._replace(inode=1)  # of memory that was given back
    with pytest.raises(OSError, match=f"descriptor {place.descriptor} of process {os.getpid()} is no longer that"):
        place.view()


def test_what_an_engine_says_in_one_sentence_comes_as_it_is():
    assert str(portable(EngineError("One."))) == "One."
    assert type(portable(EngineError("One."))) is EngineError
    try:
        raise ValueError("One\nand two.")
    except ValueError as error:
        failure = portable(error)
    assert type(failure) is EngineError
    assert str(failure) == "an engine failed (ValueError: One and two.) and cannot go on."
    assert "test_tensor_parallel.py" in pickle.loads(pickle.dumps(failure)).trace
