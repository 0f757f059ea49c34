"""Operators, plans and arenas with odd tensors and sizes: right as the reference, or refused; never a crash."""

import pytest
import torch
from fuzzing import fuzz, run_case
from hypothesis import given
from hypothesis import strategies as st

from modelswarms_fast.ops import _C, mix_, swarm_update_
from modelswarms_fast.ops.reference import mix_ref, swarm_update_ref

SIZES = st.integers(0, 9) | st.sampled_from([-1, 2**31, 2**32, 2**61, 2**62, 2**63 - 1, -(2**63)])
REFUSED = (TypeError, ValueError, MemoryError, OSError)
MEMORY = torch.zeros(4096)


@st.composite
def odd_tensor(draw: st.DrawFn, shape: tuple[int, ...]) -> object:
    """A tensor of this shape, or one that is odd in some way."""
    tensor = torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float32).reshape(shape) / 7
    odd = {
        "plain": lambda: tensor,
        "as it is": lambda: tensor.clone(),
        "dtype": lambda: tensor.to(
            draw(st.sampled_from([torch.float64, torch.bfloat16, torch.int32, torch.complex64]))
        ),
        "shape": lambda: torch.zeros(draw(st.lists(st.integers(0, 9), max_size=3))),
        "transposed": lambda: tensor.t().contiguous().t() if tensor.dim() == 2 else tensor,
        "negative": lambda: torch._neg_view(tensor.clone()),
        "conjugate": lambda: tensor.to(torch.complex64).conj().imag,
        "expanded": lambda: tensor[:1].expand(tensor.shape),
        "gradient": lambda: tensor.clone().requires_grad_(),
        "sparse": lambda: tensor.to_sparse(),
        "meta": lambda: tensor.to("meta"),
        "none": lambda: None,
        "list": lambda: tensor.tolist(),
        "not finite": lambda: tensor * float("nan"),
        "strided": lambda: torch.zeros(2 * tensor.numel() + 8).as_strided(tensor.shape, [1] * tensor.dim()),
    }
    return odd[draw(st.sampled_from(sorted(odd)))]()


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """The same but for rounding."""
    assert torch.allclose(ours.double(), theirs.double(), rtol=1e-2, atol=1e-2, equal_nan=True)


@fuzz(200)
@given(st.data())
def test_fuzz_updates(data):
    shapes = [(3, 8), (3, 8), (3, 8), (8,), (8,), (3, 4)]
    given_ = [torch.randn(shape, generator=torch.Generator().manual_seed(n)) for n, shape in enumerate(shapes)]
    for _ in range(data.draw(st.integers(0, 2))):
        which = data.draw(st.integers(0, 5))
        given_[which] = data.draw(odd_tensor(shapes[which]))
    step = data.draw(st.sampled_from([0.5, 1.0, 0.0, float("nan"), float("inf"), "x", None, 1, 1e308]))
    tensors = all(isinstance(one, torch.Tensor) and one.device.type == "cpu" and not one.is_sparse for one in given_)
    copies = [one.detach().clone() for one in given_] if tensors else []

    def case():
        swarm_update_(*given_, step)
        swarm_update_ref(*copies, float(step))
        close(given_[0], copies[0])
        close(given_[1], copies[1])

    run_case("updates", case, documented=REFUSED)


@fuzz(150)
@given(st.data())
def test_fuzz_mixtures(data):
    shapes = [(2, 8), (3, 8), (2, 3)]
    given_ = [torch.randn(shape, generator=torch.Generator().manual_seed(n)) for n, shape in enumerate(shapes)]
    which = data.draw(st.integers(0, 2))
    given_[which] = data.draw(odd_tensor(shapes[which]))

    def case():
        mix_(*given_)
        expected = given_[0].clone()
        mix_ref(expected, given_[1], given_[2])
        close(given_[0], expected)

    run_case("mixtures", case, documented=REFUSED)


@fuzz(200)
@given(st.data())
def test_fuzz_plans(data):
    kind = data.draw(st.sampled_from(["copy", "merge", "low rank"]))
    place, count = MEMORY.data_ptr(), {"copy": 4, "merge": 6, "low rank": 2}[kind]
    sizes = [data.draw(SIZES) for _ in range(count)]
    more = data.draw(SIZES)
    parts = {
        "copy": lambda: (*sizes, place, more, 1.0),
        "merge": lambda: (*sizes, place, place, more, 1.0),
        "low rank": lambda: (place, 1, sizes[0], place, 1, sizes[1], more, 0, 1.0),
    }
    dtype = data.draw(st.sampled_from([0, 1, 2, 3, 4, -1]))

    def case():
        if kind == "low rank":
            return _C.LowRank([parts[kind]()], data.draw(SIZES), data.draw(SIZES), dtype)
        plan = (_C.WeightCopier if kind == "copy" else _C.LoraMerger)([parts[kind]()], dtype)
        row = torch.zeros(64)
        if max(sizes, default=0) < 10 and 0 <= more < 10 and dtype == 0:
            plan.load_tensor(row)
        return plan

    run_case("plans", case, documented=REFUSED)


@fuzz(150)
@given(SIZES, SIZES, SIZES | st.sampled_from([64, 192, 320]), st.sampled_from(["host", "file", "x", "pinned"]), SIZES)
def test_fuzz_arenas(rows, used, stride, tier, spilled):
    if tier == "pinned":
        pytest.importorskip("torch")
        tier = "host"

    def case():
        arena = _C.Arena(rows, used, stride, tier, ".", spilled)
        first = arena.acquire()
        arena.retain(first)
        arena.release(first)
        for row in (rows, -1, 2**63 - 1):
            with pytest.raises(ValueError, match="does not exist"):
                arena.release(row)

    run_case("arenas", case, documented=REFUSED)
