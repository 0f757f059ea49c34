"""The short way into C++: it does what is plainly right, and touches nothing that is not."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from modelswarms_fast.ops import _C, swarm_update_, swarm_update_rows_, validation
from modelswarms_fast.ops.reference import swarm_update_ref

P, D = 3, 70
NO_DRAWS = (0, False, 0, 0, 0)


def arguments(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """position, velocity, personal_best, global_best, global_worst, coefficients."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(P, D, generator=generator).to(dtype) for _ in range(3)]
    return [*rows, *(torch.randn(D, generator=generator).to(dtype) for _ in range(2)), torch.full((P, 4), 0.25)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_does_what_is_right(dtype: torch.dtype) -> None:
    given, expected = arguments(dtype), arguments(dtype)
    assert _C.swarm_update_tensors(*given, 0.5, *NO_DRAWS)
    swarm_update_ref(*expected, 0.5)
    for one, other in zip(given, expected, strict=True):
        assert torch.equal(one, other)


def strided(tensor: torch.Tensor) -> torch.Tensor:
    return torch.stack((tensor, tensor), dim=-1)[..., 0]


# Which argument becomes what.
WRONG: dict[str, tuple[int, Callable[[list[torch.Tensor]], object]]] = {
    "another dtype": (2, lambda a: a[2].double()),
    "another dtype of g": (3, lambda a: a[3].half()),
    "coefficients in float64": (5, lambda a: a[5].double()),
    "whole numbers": (0, lambda a: a[0].int()),
    "a row too few": (1, lambda a: a[1][:-1]),
    "a column too few": (2, lambda a: a[2][:, :-1]),
    "a column too few of g": (3, lambda a: a[3][:-1]),
    "coefficients of another swarm": (5, lambda a: a[5][:-1]),
    "five coefficients": (5, lambda a: torch.ones(P, 5)),
    "coefficients with gaps": (5, lambda a: torch.ones(P, 8)[:, :4]),
    "one dimension": (0, lambda a: a[0].flatten()),
    "three dimensions": (0, lambda a: a[0][None]),
    "columns with gaps": (0, lambda a: strided(a[0])),
    "g with gaps": (3, lambda a: strided(a[3])),
    "rows on each other": (0, lambda a: a[0][:1].expand(P, D)),
    "x is v": (1, lambda a: a[0]),
    "p is v": (2, lambda a: a[1]),
    "g is a row of x": (3, lambda a: a[0][1]),
    "w is a row of v": (4, lambda a: a[1][1]),
    "coefficients within x": (5, lambda a: a[0].flatten()[: 4 * P].view(P, 4)),
    "a gradient": (2, lambda a: a[2].requires_grad_()),
    "a gradient of the coefficients": (5, lambda a: a[5].requires_grad_()),
    "a parameter": (2, lambda a: torch.nn.Parameter(a[2], requires_grad=False)),
    "a negative view": (2, lambda a: torch._neg_view(a[2])),
    "negative coefficients": (5, lambda a: torch._neg_view(a[5])),
    "nothing in it": (0, lambda a: a[0][:0]),
    "sparse": (2, lambda a: a[2].to_sparse()),
    "without memory": (2, lambda a: a[2].to("meta")),
    "a list": (2, lambda a: a[2].tolist()),
}


@pytest.mark.parametrize("what", WRONG)
def test_declines_what_is_not(what: str) -> None:
    given: list[Any] = list(arguments())
    index, change = WRONG[what]
    given[index] = change(given)
    before = [rows.clone() for rows in given[:2]]
    assert not _C.swarm_update_tensors(*given, 0.5, *NO_DRAWS)
    for one, other in zip(given[:2], before, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("stride", [D, D + 3, 2**61, 2**62, 2**62 + 1])
def test_the_number_of_an_only_row_asks_for_no_stride(stride: int) -> None:
    """Bytes from one row to the next may be more than a number can say, where there is no next."""
    memory = torch.zeros(5, D)
    only = memory[1:].as_strided((1, D), (stride, 1))
    assert [_C.row_number(only, row) for row in memory] == [-1, 0, -1, -1, -1]
    assert [_C.row_number(memory, row) for row in memory] == list(range(5))


@pytest.mark.parametrize("given", [(), (torch.zeros(2, D),), (torch.zeros(2, D), torch.zeros(D), 0)])
def test_the_number_of_a_row_takes_two_arguments(given: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match="two arguments"):
        _C.row_number(*given)


def test_a_row_with_a_gradient_has_its_number() -> None:
    """Where it lies does not depend on it."""
    rows = torch.zeros(3, D)
    assert _C.row_number(rows, rows[2].requires_grad_()) == 2


@pytest.mark.parametrize("row", [None, [0.0] * D, torch.zeros(D).to_sparse(), torch.zeros(D, device="meta")])
def test_what_is_no_row_has_no_number(row: object) -> None:
    rows = torch.zeros(2, D)
    assert _C.row_number(rows, row) == _C.row_number(row, rows[0]) == -1


@pytest.mark.parametrize("step_length", [float("nan"), float("inf"), "0.5", None, 1])
def test_declines_what_is_no_step_length(step_length: object) -> None:
    assert not _C.swarm_update_tensors(*arguments(), step_length, *NO_DRAWS)


def test_declines_stochastic_rounding_of_float32() -> None:
    assert not _C.swarm_update_tensors(*arguments(), 0.5, 1, False, 0, 0, 0)
    assert _C.swarm_update_tensors(*arguments(torch.float16), 0.5, 1, False, 0, 0, 0)


def test_what_was_declined_is_still_done() -> None:
    """A step length of 1 or a Parameter is no mistake: Python's checks let it through."""
    given, expected = arguments(), arguments()
    given[2] = torch.nn.Parameter(given[2], requires_grad=False)
    swarm_update_(*given, 1)
    swarm_update_ref(*expected, 1.0)
    assert torch.equal(given[0], expected[0])


def test_tables_are_judged_as_in_python() -> None:
    """Random tables, most of them wrong in one place: both judges agree on each."""
    draw = random.Random(0)
    particles, coefficients = 3, torch.full((3, 4), 0.25)
    rows = 3 * particles + 2
    verdicts = []
    for _ in range(4000):
        numbers = draw.sample(range(rows), rows)
        lines = [[numbers[i], numbers[i], numbers[3 + i], numbers[3 + i], numbers[6 + i]] for i in range(particles)]
        best, worst = numbers[9], numbers[10]
        for _ in range(draw.choice((0, 1, 1, 2))):
            change = draw.randrange(5 * particles + 2)
            number = draw.randrange(-2, rows + 2)
            if change < 5 * particles:
                lines[change // 5][change % 5] = number
            elif change == 5 * particles:
                best = number
            else:
                worst = number
        table = torch.tensor(lines)
        try:
            validation.check_table(table, rows, best, worst)
            right = True
        except ValueError:
            right = False
        slab = torch.zeros(rows, 8)
        assert _C.swarm_update_rows(slab, table, best, worst, coefficients, 0.5, *NO_DRAWS) == right, (
            lines,
            best,
            worst,
        )
        verdicts.append(right)
    assert 500 < sum(verdicts) < 3500


@pytest.mark.parametrize(
    "table",
    [
        torch.zeros(1, 5, dtype=torch.int32),
        torch.zeros(1, 6, dtype=torch.int64),
        torch.zeros(2, 10, dtype=torch.int64)[:, ::2],
        torch.zeros(5, dtype=torch.int64),
    ],
    ids=["int32", "six numbers", "gaps", "one dimension"],
)
def test_declines_a_table_of_another_form(table: torch.Tensor) -> None:
    assert not _C.swarm_update_rows(torch.zeros(5, 8), table, 3, 4, torch.ones(len(table), 4), 0.5, *NO_DRAWS)


def test_a_torch_without_the_interface_takes_the_way_through_python(monkeypatch: pytest.MonkeyPatch) -> None:
    given, expected = arguments(), arguments()
    assert not _C.know_tensors(torch.Tensor, None)
    assert not _C.know_tensors(torch.Tensor, "no capsule")
    monkeypatch.setattr(_C, "swarm_update_tensors", lambda *_: False)
    swarm_update_(*given, 0.5)
    swarm_update_ref(*expected, 0.5)
    assert torch.equal(given[0], expected[0])
    monkeypatch.setattr(_C, "swarm_update_rows", lambda *_: False)
    rows = torch.cat((*expected[:3], expected[3][None], expected[4][None]))
    same = rows.clone()
    table = torch.tensor([[i, i, P + i, P + i, 2 * P + i] for i in range(P)])
    swarm_update_rows_(rows, table, 9, 10, expected[5], 0.5)
    monkeypatch.undo()
    swarm_update_rows_(same, table, 9, 10, expected[5], 0.5)
    assert torch.equal(rows, same)
