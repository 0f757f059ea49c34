"""Which particle a token belongs to, told by either of vLLM's model runners."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers_search import make_tiny

from modelswarms_fast.engines.protocol import Request, complete
from modelswarms_fast.engines.transformers import TransformersEngine
from modelswarms_fast.errors import InputError
from modelswarms_fast.weights.experts import read_experts

pytest.importorskip("vllm")
pytest.importorskip("triton")

from modelswarms_fast.engines.vllm.model_runners import watch_batches

pytestmark = pytest.mark.vllm


def params(slot=None):
    return SimpleNamespace(extra_args=None if slot is None else {"particle": slot})


def new(name, slot=None):
    return SimpleNamespace(req_id=name, sampling_params=params(slot))


class Second:
    """Lays out a step as the second runner does: new requests are told once, ended ones leave, decodes come first."""

    def __init__(self):
        self.req_states = SimpleNamespace(req_id_to_index={})

    def prepare_inputs(self, scheduled, desc, loras):
        names = sorted(scheduled.num_scheduled_tokens, key=scheduled.num_scheduled_tokens.__getitem__)
        tokens = np.array([scheduled.num_scheduled_tokens[name] for name in names])
        return SimpleNamespace(req_ids=names, num_scheduled_tokens=tokens, rest=(desc, loras))

    def step(self, tokens, new=(), ended=()):
        for name in ended:
            del self.req_states.req_id_to_index[name]
        self.req_states.req_id_to_index |= {one.req_id: 0 for one in new}
        scheduled = SimpleNamespace(scheduled_new_reqs=list(new), num_scheduled_tokens=tokens)
        return self.prepare_inputs(scheduled, "description", 3)


def told(runner):
    steps = []
    watch_batches(runner, lambda slots, tokens: steps.append(list(zip(slots, tokens.tolist(), strict=True))))
    return steps


def test_the_second_runner_tells_of_a_request_once():
    runner = Second()
    steps = told(runner)
    batch = runner.step({"a": 7, "b": 3}, [new("a", 4), new("b")])
    assert batch.rest == ("description", 3)
    runner.step({"a": 1, "b": 1, "c": 5}, [new("c", 4)])
    runner.step({"c": 1, "a": 2}, [new("a", 6)], ended=["a", "b"])  # the name comes again, for another particle
    assert steps == [[(-1, 3), (4, 7)], [(4, 1), (-1, 1), (4, 5)], [(4, 1), (6, 2)]]


def test_what_has_ended_is_forgotten():
    runner = Second()
    told(runner)
    for number in range(50):
        runner.step({str(number): 2}, [new(str(number), 1)], ended=[str(number - 1)] if number else ())
    (slots,) = [cell.cell_contents for cell in runner.prepare_inputs.__closure__ if type(cell.cell_contents) is dict]
    assert set(slots) == {"49"}


def test_the_first_runner_keeps_requests():
    runner = SimpleNamespace(
        requests={"a": SimpleNamespace(sampling_params=params(2)), "b": SimpleNamespace(sampling_params=params())},
        input_batch=SimpleNamespace(req_ids=["b", "a"]),
        _prepare_inputs=lambda scheduled, tokens: (scheduled, tokens.sum()),
    )
    steps = told(runner)
    assert runner._prepare_inputs("scheduled", np.array([3, 5])) == ("scheduled", 8)
    assert steps == [[(-1, 3), (2, 5)]]


def test_a_third_runner_is_refused():
    with pytest.raises(
        InputError, match=r"vLLM .* lays out its batches in another way \(types\).*serve='merged'.*0\.33"
    ):
        watch_batches(SimpleNamespace(), print)


@pytest.mark.slow
def test_mixtures_are_served_by_the_second_runner(tmp_path):
    """The one that vLLM takes on a GPU; its kernels are interpreted here."""
    import second_runner

    tiny = make_tiny(tmp_path, hidden_size=128)
    program = [sys.executable, second_runner.__file__, str(tmp_path)]
    environment = os.environ | second_runner.ENVIRONMENT
    run = subprocess.run(program, stdout=subprocess.PIPE, text=True, env=environment)
    assert run.returncode == 0
    module, texts = json.loads(run.stdout.splitlines()[-1])
    assert module in ("vllm.v1.worker.cpu.model_runner", "vllm.v1.worker.gpu.model_runner")
    oracle = TransformersEngine(tmp_path / "base", read_experts(tiny["experts"]), dtype="float32")
    expected = []
    for request in second_runner.REQUESTS:
        if request.slot is None:
            oracle.restore()
        else:
            oracle.load_mixture(0, torch.tensor(second_runner.MIXTURES[request.slot]))
        slot = None if request.slot is None else 0
        expected += complete(oracle, [Request(slot, request.prompt)], second_runner.TOKENS)
    assert texts == [completion.text for completion in expected]
    assert len(set(texts)) > 8, "particles that all say the same prove nothing"
