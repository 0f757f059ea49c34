"""How a row is measured, and that the loops of the limit do what they are counted for."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import measure
from benchmarks.limits import limit_arithmetic, limit_mix, limit_update


def test_medians_ratios_and_turns():
    """Everything runs once a round, the limit right before ours."""
    order = []
    facts = {}

    def pedantic(target, setup, rounds):
        for _ in range(rounds):
            setup()
            target()

    fake = SimpleNamespace(group="update", extra_info=facts, pedantic=pedantic)
    measure.Measure(fake, quick=True).row(
        "one",
        lambda: order.append("ours"),
        bytes_moved=100,
        limit={"loop": (200, lambda: order.append("limit"))},
        baselines={"other": lambda: order.append("baseline")},
        memory=False,
        warmup=False,
        particles=4,
    )
    assert order == ["baseline", "limit", "ours"] * 5
    assert facts["particles"] == 4
    assert facts["GB/s"] == pytest.approx(100 / facts["seconds"] / 1e9)
    assert 0 < facts["share_of_limit"] < 100
    other = facts["baselines"]["other"]
    assert other["ratio"] == pytest.approx(other["seconds"] / facts["seconds"])


def test_the_share_of_the_limit(monkeypatch):
    """Of each pair of neighbours, whatever the machine does from one round to the next."""
    seconds = iter([second for mood in (1, 5, 2) for second in (10 * mood, 2 * mood, 4 * mood)])
    monkeypatch.setattr(measure, "clock", lambda *arguments: next(seconds))
    facts = {}

    def pedantic(target, setup, rounds):
        for _ in range(rounds):
            setup()
            target()

    fake = SimpleNamespace(group="update", extra_info=facts, pedantic=pedantic)
    loops = {"loop": (100, lambda: None)}
    baselines = {"other": lambda: None}
    measure.Measure(fake, quick=True).row(
        "one", lambda: None, bytes_moved=100, limit=loops, baselines=baselines, memory=False, warmup=False, rounds=3
    )
    assert facts["share_of_limit"] == 0.5
    assert facts["limit"]["loop"] == pytest.approx(100 / 4 / 1e9)
    assert facts["baselines"]["other"]["ratio"] == 2.5


def test_memory_that_a_call_takes():
    held = 50_000_000
    taken = measure.added_bytes(lambda: torch.ones(held, dtype=torch.uint8))
    assert held <= taken < 1.2 * held


@pytest.mark.parametrize("words", [1, 7, 8, 4099])
@pytest.mark.parametrize(
    ("elsewhere", "streams"), [(False, (False, False)), (True, (True, False)), (False, (True, True))]
)
def test_the_limit_of_the_update_reads_and_writes_everything(words, elsewhere, streams):
    x, v, p, other = torch.randint(0, 2**60, (4, words)).unbind()
    moved = v + (p - x)
    expected = x + moved
    out = other if elsewhere else x
    limit_update(x.data_ptr(), v.data_ptr(), p.data_ptr(), out.data_ptr(), v.data_ptr(), words, *streams)
    assert torch.equal(out, expected)
    assert torch.equal(v, moved)


@pytest.mark.parametrize("words", [1, 7, 8, 4099])
@pytest.mark.parametrize("stream", [False, True])
def test_the_limit_of_the_mix_reads_and_writes_everything(words, stream):
    read, out = torch.randint(0, 2**50, (5, words)), torch.full((3, words + 1), -1)
    limit_mix(out.data_ptr(), words + 1, read.data_ptr(), words, 3, 5, words, stream)
    assert torch.equal(out[:, :words], read.sum(0) + torch.arange(3)[:, None])
    assert (out[:, words] == -1).all()


def test_the_limit_of_arithmetic_counts_all_threads():
    one = limit_arithmetic(1000)
    assert one > 0
    assert limit_arithmetic(3000) == 3 * one


def test_random_rows_do_not_change():
    """Two runs measure the same numbers."""
    one, two = (measure.random_rows(2, 64, torch.bfloat16) for _ in range(2))
    assert torch.equal(one, two)
    assert np.isclose(float(measure.shares(3).sum()), 3)
