"""The gated activation of a feed-forward layer against float64, at every SIMD level."""

import pytest
import torch
from helpers_rows import Wrapper, restored_extension
from torch import Tensor
from torch.nn.functional import silu

from modelswarms_fast.ops import _C, swiglu

__all__ = ["restored_extension"]
pytestmark = pytest.mark.usefixtures("restored_extension")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SPREAD = torch.tensor([0.0, -0.0, 1e-30, -1e-6, 0.3466, -5.0, 20.0, -88.0, 88.0, -103.0, 200.0, -1e4])


def given(rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """Gates over all that exponentials can take, each beside a factor near 1."""
    generator = torch.Generator().manual_seed(width)
    gates = 12 * torch.randn(rows, width, generator=generator)
    gates.view(-1)[: len(SPREAD)] = SPREAD[: gates.numel()]
    return torch.cat([gates, 1 + 0.5 * torch.rand(rows, width, generator=generator)], 1).to(dtype)


def exact(both: Tensor) -> Tensor:
    """In float64."""
    gates, factors = both.double().chunk(2, dim=-1)
    return gates * torch.sigmoid(gates) * factors


@pytest.mark.parametrize("level", _C.simd_levels())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 31), (2, 64), (5, 77), (700, 96)])
def test_it_is_right_at_every_level(level: str, dtype: torch.dtype, rows: int, width: int) -> None:
    both = given(rows, width, dtype)
    _C.set_simd_level(level)
    found = swiglu(both)
    # What is next to nothing may be nothing: far below any sum that it enters.
    assert torch.allclose(found.double(), exact(both), rtol=max(5e-7, 0.502 * torch.finfo(dtype).eps), atol=1e-7)
    _C.set_simd_level("portable")
    assert torch.equal(found, swiglu(both))


def test_threads_change_no_bit_and_rounding_is_once() -> None:
    both = given(2000, 160, torch.bfloat16)
    _C.set_num_threads(1)
    one = swiglu(both)
    _C.set_num_threads(2)
    assert torch.equal(one, swiglu(both))
    wide = both.float()
    assert torch.equal(one, swiglu(wide).bfloat16())
    gates, factors = both.chunk(2, dim=-1)
    assert not torch.equal(one, silu(gates) * factors)  # torch rounds what silu gives


def test_what_is_no_number_stays_none() -> None:
    nan, infinite = float("nan"), float("inf")
    found = swiglu(torch.tensor([[nan, 1.0, infinite, -2.0, 2.0, nan, 1.0, infinite]]))
    assert found.isnan().tolist() == [[True, True, False, False]]
    assert found[0, 2:].tolist() == [infinite, -infinite]


@pytest.mark.parametrize("level", _C.simd_levels())
def test_gates_far_below_zero_give_zero(level: str) -> None:
    """Of exp(-gate) beyond float32, as torch; just before that what it is."""
    gates = torch.tensor([-87.5, -88.5, -88.7, -88.8, -90.0, -1e4, -1e30, -3e38, -float("inf")])
    _C.set_simd_level(level)
    found = swiglu(torch.cat([gates, torch.full_like(gates, 2.0)]))
    torch.testing.assert_close(found, silu(gates) * 2, rtol=1e-6, atol=0, equal_nan=True)
    assert (found[3:8] == 0).all()


def test_what_needs_a_gradient_or_lies_nowhere_goes_through_torch() -> None:
    both = given(3, 8, torch.float32).requires_grad_()
    swiglu(both).sum().backward()
    expected = both.detach().clone().requires_grad_()
    (silu(expected[:, :8]) * expected[:, 8:]).sum().backward()
    assert torch.equal(both.grad, expected.grad)
    with torch.no_grad():
        assert torch.equal(swiglu(both), swiglu(both.detach()))
    assert torch.allclose(swiglu(torch._neg_view(-both.detach())), swiglu(both.detach()))
    assert swiglu(both.detach().to("meta")).shape == (3, 8)
    with pytest.raises(NotImplementedError, match="slice"):
        swiglu(Wrapper(3, 8))


def test_an_odd_number_of_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="not 7 columns"):
        swiglu(torch.zeros(2, 7))


def test_shapes_as_torch_takes_them() -> None:
    both = given(6, 48, torch.float32)
    assert swiglu(both.view(2, 3, 96)).shape == (2, 3, 48)
    assert torch.equal(swiglu(both[::2]), swiglu(both)[::2])
    assert torch.equal(swiglu(both.t().contiguous().t()), swiglu(both))
    assert swiglu(both[:0]).shape == (0, 48)
    assert torch.allclose(swiglu(both.double()), exact(both))
