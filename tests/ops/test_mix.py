"""The mix of experts: every backend against the reference, and the reference against float64 in numpy."""

import functools
from typing import Any

import numpy as np
import pytest
import torch
from helpers_rows import (
    DTYPES,
    FAST_BACKENDS,
    HALF_TYPES,
    SIZES,
    STREAM_BYTES,
    Wrapper,
    aligned_rows,
    assert_close,
    assert_same,
    guarded,
    random_rows,
    restored_extension,
    select,
    skip_float64,
)
from torch import Tensor

from modelswarms_fast.ops import _C, mix_

__all__ = ["restored_extension"]
pytestmark = pytest.mark.usefixtures("restored_extension")


def mixture_for(particles: int, count: int, device: str = "cpu") -> Tensor:
    """Affine mixtures as a swarm has them: both signs, sums of one."""
    shares = torch.randn(particles, count, generator=torch.Generator().manual_seed(5))
    return (shares + (1 - shares.sum(1, keepdim=True)) / max(count, 1)).to(device)


def mixed(experts: Tensor, mixture: Tensor, backend: str) -> Tensor:
    out = torch.full((mixture.shape[0], experts.shape[1]), float("nan"), dtype=experts.dtype, device=experts.device)
    mix_(out, experts, mixture, backend=backend)
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mixture_dtype", [torch.float32, torch.float64], ids=str)
def test_reference_is_the_equation(dtype: torch.dtype, mixture_dtype: torch.dtype) -> None:
    experts, mixture = random_rows(7, 1000, dtype, 0), mixture_for(4, 7).to(mixture_dtype)
    exact = mixture.double().numpy() @ experts.double().numpy()
    scale = 7 * float(mixture.abs().max() * experts.double().abs().max())
    assert_close(mixed(experts, mixture, "reference"), exact, scale)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("particles", "count"), [(1, 1), (2, 3), (10, 10), (7, 0), (13, 5), (9, 100)])
@pytest.mark.parametrize("size", SIZES[:-1])
def test_equals_reference(backend: str, dtype: torch.dtype, particles: int, count: int, size: int) -> None:
    if skip_float64(backend, dtype):
        return
    backend, device = select(backend)
    experts, mixture = random_rows(count, size, dtype, 0, device), mixture_for(particles, count, device)
    assert_same(mixed(experts, mixture, backend), mixed(experts, mixture, "reference"))


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("start", "gap"), [(1, 0), (0, 5), (3, 1), (16, 64)])
def test_any_start_and_stride_and_nothing_else_written(backend: str, dtype: torch.dtype, start: int, gap: int) -> None:
    if skip_float64(backend, dtype):
        return
    backend, device = select(backend)
    for size in (1, 65, 4099):
        experts, mixture = random_rows(3, size, dtype, 0, device), mixture_for(6, 3, device)
        expected = mixed(experts, mixture, "reference")
        source = guarded(experts, start, gap)
        target = guarded(torch.zeros_like(expected), start, gap)
        mix_(target.rows, source.rows, mixture, backend=backend)
        assert_same(target.rows, expected)
        assert_same(source.rows, experts)
        assert target.intact()
        assert source.intact()


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mixture_of_any_layout_and_float64(backend: str, dtype: torch.dtype) -> None:
    if skip_float64(backend, dtype):
        return
    backend, device = select(backend)
    experts = random_rows(3, 65, dtype, 0, device)
    mixture = mixture_for(3, 4, device).double().t().contiguous().t()[:, 1:] / 3
    assert_same(mixed(experts, mixture, backend), mixed(experts, mixture, "reference"))


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
def test_every_half_number_is_read_and_rounded_as_torch_does(backend: str, dtype: torch.dtype) -> None:
    """All 65536 bit patterns times numbers that make ties, denormals, overflow and NaN."""
    backend, device = select(backend)
    experts = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)[None].to(device)
    factors = [1.0, -1.0, 0.0, 1 + 2.0**-9, 1 + 2.0**-12, 0.5, 1 / 3, 1.5, 3.0, 2.0**-11, 2.0**-15, 2.0**-24]
    factors += [2.0**20, 1e-30, 2.0**-126, 2.0**-133, 1e30, float("inf"), float("nan")]
    # A NaN of all ones becomes zero where rounding adds to its bits.
    ones = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    mixture = torch.cat((torch.tensor(factors), ones)).to(device)[:, None]
    expected = (0.0 + experts.float() * mixture).to(dtype)
    assert_same(mixed(experts, mixture, backend), expected)
    assert_same(mixed(experts, mixture, "reference"), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_change_no_bit(dtype: torch.dtype) -> None:
    experts, mixture = random_rows(5, 100_003, dtype, 0), mixture_for(6, 5)
    results = []
    for threads in (1, 2, 3):
        _C.set_num_threads(threads)
        results.append(mixed(experts, mixture, "cpp"))
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


PARTICLES = 9  # five and four that share a register


@functools.cache
def big(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Experts, a mixture, and what the reference makes of them: enough to be stored past the caches."""
    size = STREAM_BYTES // (PARTICLES * dtype.itemsize) + 77
    experts = random_rows(3, 10_007, dtype, 0).repeat(1, -(-size // 10_007))[:, :size]
    mixture = mixture_for(PARTICLES, 3)
    return experts, mixture, mixed(experts, mixture, "reference")


@pytest.mark.parametrize("backend", [name for name in FAST_BACKENDS if isinstance(name, str)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_that_are_stored_past_the_caches(backend: str, dtype: torch.dtype) -> None:
    """At multiples of 64 bytes, and elsewhere."""
    backend, _ = select(backend)
    _C.set_num_threads(2)
    experts, mixture, expected = big(dtype)
    blank = torch.zeros_like(expected)
    for out in (aligned_rows(blank), aligned_rows(blank, start=1), aligned_rows(blank, gap=1)):
        mix_(out, experts, mixture, backend=backend)
        assert torch.equal(out, expected)


@pytest.mark.parametrize("backend", [name for name in FAST_BACKENDS if isinstance(name, str)])
@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
def test_one_row_that_is_stored_past_the_caches(backend: str, dtype: torch.dtype) -> None:
    backend, _ = select(backend)
    size = STREAM_BYTES // dtype.itemsize + 77
    experts = random_rows(1, 10_007, dtype, 0).repeat(2, -(-size // 10_007))[:, :size]
    expected = (0.5 * experts[:1].float() + 0.25 * experts[1:].float()).to(dtype)
    for start in (0, 1):
        out = aligned_rows(torch.zeros_like(expected), start)
        mix_(out, experts, torch.tensor([[0.5, 0.25]]), backend=backend)
        assert torch.equal(out, expected)


@pytest.mark.parametrize("backend", ["reference", *FAST_BACKENDS])
def test_one_expert_comes_back(backend: str) -> None:
    backend, device = select(backend)
    experts = random_rows(4, 500, torch.bfloat16, 0, device)
    assert_same(mixed(experts, torch.eye(4, device=device), backend), experts)


@pytest.mark.parametrize("backend", ["reference", *FAST_BACKENDS])
@pytest.mark.parametrize(("particles", "count", "size"), [(0, 3, 5), (3, 2, 0), (0, 0, 0)])
def test_nothing_to_do(backend: str, particles: int, count: int, size: int) -> None:
    backend, device = select(backend)
    experts = random_rows(count, size, torch.float32, 0, device)
    assert mixed(experts, mixture_for(particles, count, device), backend).numel() == 0


def test_swarm_update_stays_in_the_span_of_the_experts() -> None:
    """A position is a mixture of experts; half one expert and half another is their mean."""
    experts = random_rows(2, 300, torch.float64, 0)
    mean = mixed(experts, torch.tensor([[0.5, 0.5]]), "cpp")[0]
    np.testing.assert_array_equal(mean.numpy(), (0.5 * experts[0] + 0.5 * experts[1]).numpy())


def wrong(argument: str, value: Any) -> dict[str, Any]:
    arguments = {"out": torch.zeros(3, 50), "experts": torch.zeros(4, 50), "mixture": torch.zeros(3, 4)}
    return arguments | {argument: value}


SLAB = torch.zeros(7, 50)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (wrong("out", [1.0]), TypeError, "out must be a torch.Tensor"),
        (wrong("out", torch.zeros(50)), ValueError, "out must have two dimensions"),
        (wrong("out", torch.zeros(3, 50).bfloat16()), TypeError, "experts is float32, but out is bfloat16"),
        (wrong("out", torch.zeros(50, 3).t()), ValueError, "out must be contiguous"),
        (wrong("out", torch.zeros(50).expand(3, 50)), ValueError, "out has rows that overlap"),
        (wrong("out", torch.zeros(3, 5, 10)), ValueError, "out must have two dimensions"),
        (wrong("out", torch.zeros(3, 49)), ValueError, r"experts must have shape \(4, 49\), got \(4, 50\)"),
        (wrong("out", torch.zeros(3, 100)[..., ::2]), ValueError, "out must be contiguous"),
        (wrong("out", torch.zeros(200).as_strided((3, 50), (49, 1))), ValueError, "out has rows that overlap"),
        (wrong("experts", torch.zeros(50)), ValueError, "experts must have two dimensions"),
        (wrong("experts", torch.zeros(4, 49)), ValueError, "experts must have shape"),
        (wrong("experts", torch.zeros(4, 50, requires_grad=True)), ValueError, "experts requires grad"),
        (wrong("experts", Wrapper(4, 50)), ValueError, "experts must be a dense tensor with memory"),
        (wrong("experts", torch._neg_view(torch.zeros(4, 50))), ValueError, "experts is a negative view"),
        (wrong("mixture", torch.zeros(3, 5)), ValueError, "mixture must have shape"),
        (wrong("mixture", torch.zeros(3, 4).half()), TypeError, "mixture must be float32 or float64"),
        (wrong("mixture", torch.zeros(3, 4, device="meta")), ValueError, "mixture must be a dense tensor"),
        (
            wrong("out", SLAB[:3]) | {"experts": SLAB[2:6]},
            ValueError,
            "out must not share memory with experts",
        ),
        (wrong("backend", "numpy"), ValueError, "backend must be auto or one of"),
        (wrong("backend", "cuda"), ValueError, "backend 'cuda' cannot"),
        (wrong("backend", "triton"), ValueError, "backend 'triton' cannot"),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        mix_(**arguments)
