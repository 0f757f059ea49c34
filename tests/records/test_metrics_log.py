"""Numbers of a run in TensorBoard and in Weights & Biases, written by their own libraries."""

import math
import sys
import types

import pytest

from modelswarms_fast.errors import InputError
from modelswarms_fast.records.metrics_log import metrics_of, open_log
from modelswarms_fast.records.run_folder import begin_run, clear_run, will_write


def line(iteration, utilities, best, prompts=30, seconds=2.0, idle=0.25):
    return {
        "iteration": iteration, "utilities": utilities, "global_best": {"particle": 0, "utility": best},
        "prompts": prompts, "seconds": {"total": seconds}, "engine_idle_share": idle,
    }  # fmt: skip


LINES = [line(0, [0.25, 0.5, math.nan], 0.5), line(1, [0.75, 0.125, None], 0.75, prompts=10)]
NUMBERS = {
    "utility/best": [0.5, 0.75],
    "utility/mean": [0.375, 0.4375],
    "utility/worst": [0.25, 0.125],
    "speed/prompts_per_second": [15.0, 5.0],
    "speed/engine_idle_share": [0.25, 0.25],
}


def test_numbers_of_a_line():
    assert metrics_of(LINES[0]) == {name: values[0] for name, values in NUMBERS.items()}
    assert metrics_of(line(0, [math.nan], -math.inf, seconds=0.0, idle=None)) == {}


def test_tensorboards_own_reader_finds_them(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    begin_run(tmp_path)
    will_write(tmp_path, "tensorboard/")
    log = open_log("tensorboard", tmp_path, {})
    for one in LINES:
        log.append(one)
    reader = EventAccumulator(str(tmp_path / "tensorboard")).Reload()  # each line is there at once
    assert set(reader.Tags()["tensors"]) == set(NUMBERS)
    for name, values in NUMBERS.items():
        events = reader.Tensors(name)
        assert [event.step for event in events] == [0, 1]
        assert [float(make_ndarray(event.tensor_proto)) for event in events] == values
    log.close()
    clear_run(tmp_path)  # a run that replaces this one shows none of its numbers
    assert not (tmp_path / "tensorboard").exists()
    assert not list(tmp_path.iterdir())


def test_a_run_of_weights_and_biases(tmp_path, monkeypatch):
    calls = []
    run = types.SimpleNamespace(
        log=lambda numbers, step: calls.append((step, numbers)), finish=lambda: calls.append("finish")
    )
    fake = types.SimpleNamespace(init=lambda **settings: calls.append(settings) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    log = open_log("wandb", tmp_path / "runs" / "demo", {"seed": 3})
    for one in LINES:
        log.append(one)
    log.close()
    numbers = [(step, {name: values[step] for name, values in NUMBERS.items()}) for step in (0, 1)]
    begin = {"project": "modelswarms-fast", "name": "demo", "dir": str(tmp_path / "runs" / "demo")}
    assert calls == [begin | {"config": {"seed": 3}}, *numbers, "finish"]


def test_its_own_library_writes_a_run_without_a_server(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log = open_log("wandb", tmp_path, {"seed": 3})
    for one in LINES:
        log.append(one)
    log.close()
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = file.read_bytes()
    assert content.count(b"utility/best") >= 2
    assert b"0.4375" in content
    assert b"0.1875" not in content


@pytest.mark.parametrize(("kind", "module"), [("tensorboard", "tensorboard.summary"), ("wandb", "wandb")])
def test_a_library_that_is_missing_is_named_with_the_remedy(kind, module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=f"log is '{kind}', which is not installed: pip install {kind}"):
        open_log(kind, tmp_path, {})
    assert not list(tmp_path.iterdir())


def test_a_kind_that_is_none_is_refused(tmp_path):
    with pytest.raises(InputError, match="log is 'mlflow'; choose tensorboard or wandb"):
        open_log("mlflow", tmp_path, {})
