"""The swarm update: every backend against the reference, and the reference against float64 in numpy."""

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers_rows import (
    DTYPES,
    FAST_BACKENDS,
    SIZES,
    Guarded,
    assert_close,
    assert_same,
    available,
    guarded,
    random_rows,
    restored_extension,
    select,
    skip_float64,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modelswarms_fast import _C, ops
from modelswarms_fast.ops import swarm_update_
from modelswarms_fast.reference import swarm_update_ref

__all__ = ["restored_extension"]
pytestmark = pytest.mark.usefixtures("restored_extension")

STEP_LENGTH = 0.7


def coefficients_for(particles: int, device: str = "cpu") -> Tensor:
    """Normalised as the swarm does it: positive shares of one."""
    shares = torch.rand(particles, 4, generator=torch.Generator().manual_seed(99)) + 0.05
    return (shares / shares.sum(1, keepdim=True)).to(device)


def swarm(particles: int, size: int, dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor]:
    names = ("position", "velocity", "personal_best")
    rows = {name: random_rows(particles, size, dtype, seed, device) for seed, name in enumerate(names)}
    rows["global_best"] = random_rows(1, size, dtype, 10, device)[0]
    rows["global_worst"] = random_rows(1, size, dtype, 11, device)[0]
    return rows | {"coefficients": coefficients_for(particles, device)}


def guard(rows: dict[str, Tensor], start: int, gap: int) -> dict[str, Guarded]:
    return {
        name: guarded(row if row.dim() == 2 else row[None], start, gap)
        for name, row in rows.items()
        if name != "coefficients"
    }


def unwrap(rows: dict[str, Guarded], coefficients: Tensor) -> dict[str, Tensor]:
    views = {name: row.rows[0] if name.startswith("global") else row.rows for name, row in rows.items()}
    return views | {"coefficients": coefficients}


def updated(rows: dict[str, Tensor], backend: str, step_length: float = STEP_LENGTH) -> tuple[Tensor, Tensor]:
    """Position and velocity after an update of a copy."""
    rows = {name: row.clone() for name, row in rows.items()}
    swarm_update_(**rows, step_length=step_length, backend=backend)
    return rows["position"], rows["velocity"]


def check_against_reference(rows: dict[str, Tensor], backend: str, step_length: float = STEP_LENGTH) -> None:
    position, velocity = updated(rows, backend, step_length)
    expected_position, expected_velocity = updated(rows, "reference", step_length)
    assert_same(velocity, expected_velocity)
    assert_same(position, expected_position)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("particles", "size"), [(1, 1), (10, 1000)])
def test_reference_is_the_equation(dtype: torch.dtype, particles: int, size: int) -> None:
    rows = swarm(particles, size, dtype)
    x, v, p, g, w, c = (row.double().numpy() for row in rows.values())
    new_v = c[:, :1] * v + c[:, 1:2] * (p - x) + c[:, 2:3] * (g - x) + c[:, 3:] * (x - w)
    new_x = x + (STEP_LENGTH if dtype == torch.float64 else np.float64(np.float32(STEP_LENGTH))) * new_v
    position, velocity = updated(rows, "reference")
    scale = max(float(np.abs(array).max()) for array in (x, v, p, g, w))
    assert_close(velocity, new_v, scale)
    assert_close(position, new_x, scale)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("particles", [1, 10])
@pytest.mark.parametrize("size", SIZES)
def test_equals_reference(backend: str, dtype: torch.dtype, particles: int, size: int) -> None:
    if not skip_float64(backend, dtype):
        backend, device = select(backend)
        check_against_reference(swarm(particles, size, dtype, device), backend)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("start", "gap"), [(1, 0), (0, 5), (3, 1), (16, 64)])
def test_any_start_and_stride_and_nothing_else_written(backend: str, dtype: torch.dtype, start: int, gap: int) -> None:
    if skip_float64(backend, dtype):
        return
    backend, device = select(backend)
    for size in (1, 65, 4099):
        rows = swarm(3, size, dtype, device)
        expected_position, expected_velocity = updated(rows, "reference")
        blocks = guard(rows, start, gap)
        views = unwrap(blocks, rows["coefficients"])
        swarm_update_(**views, step_length=STEP_LENGTH, backend=backend)
        assert_same(views["position"], expected_position)
        assert_same(views["velocity"], expected_velocity)
        for name, block in blocks.items():
            assert block.intact(), name
            if name not in ("position", "velocity"):
                assert_same(views[name], rows[name])


@pytest.mark.parametrize("backend", ["reference", *FAST_BACKENDS])
@pytest.mark.parametrize(("particles", "size"), [(0, 0), (0, 5), (3, 0)])
def test_nothing_to_do(backend: str, particles: int, size: int) -> None:
    backend, device = select(backend)
    swarm_update_(**swarm(particles, size, torch.float32, device), step_length=1.0, backend=backend)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_infinity_and_overflow(backend: str, dtype: torch.dtype) -> None:
    if skip_float64(backend, dtype):
        return
    backend, device = select(backend)
    rows = swarm(2, 100, dtype, device)
    largest = torch.finfo(dtype).max
    for column, name in enumerate(list(rows)[:5]):
        for block, value in enumerate((float("nan"), float("inf"), -float("inf"), largest, -largest)):
            rows[name][..., 10 * block + column] = value
    rows["position"][:, 60:70], rows["velocity"][:, 60:70] = largest, largest
    check_against_reference(rows, backend)
    check_against_reference(rows, backend, step_length=2.0)
    position, velocity = updated(rows, backend)
    assert velocity[:, :5].isnan().all()
    assert position[:, :5].isnan().all()
    assert velocity[:, 10].isnan().all()  # an infinite x is attracted and repelled at once
    assert velocity[:, 11:15].isinf().all()
    assert not velocity[:, 70:].isnan().any()


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_denormals_are_kept(backend: str, dtype: torch.dtype) -> None:
    if skip_float64(backend, dtype):
        return
    backend, device = select(backend)
    smallest = torch.finfo(dtype).smallest_normal
    rows = swarm(2, 1000, dtype, device)
    for name in list(rows)[:5]:
        rows[name] = (rows[name].double() * smallest / 8).to(dtype)
    check_against_reference(rows, backend)
    position, _ = updated(rows, backend)
    small = (position != 0) & (position.abs().double() < smallest)
    assert small.float().mean() > 0.5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_change_no_bit(dtype: torch.dtype) -> None:
    rows = swarm(10, 100_003, dtype)
    results = []
    for threads in (1, 2, 3):
        _C.set_num_threads(threads)
        results.append(updated(rows, "cpp"))
    for position, velocity in results[1:]:
        assert_same(position, results[0][0])
        assert_same(velocity, results[0][1])


def test_position_moves_by_the_unrounded_velocity() -> None:
    """x' = x + step_length v' with v' as it was before rounding: here rounding first gives another x'."""
    rows = {name: torch.zeros(1, 1, dtype=torch.bfloat16) for name in ("position", "velocity", "personal_best")}
    rows |= {name: torch.zeros(1, dtype=torch.bfloat16) for name in ("global_best", "global_worst")}
    rows["velocity"][:] = 1.0
    rows["coefficients"] = torch.tensor([[1 + 2.0**-9, 0.0, 0.0, 0.0]])
    for backend in ("reference", "cpp"):
        position, velocity = updated(rows, backend, step_length=1 + 2.0**-8 - 2.0**-9)
        assert velocity.item() == 1.0
        assert position.item() == 1 + 2.0**-7


def test_float64_uses_the_float32_coefficients_exactly() -> None:
    rows = swarm(1, 1, torch.float64)
    rows["velocity"][:] = 1.0
    rows["coefficients"] = torch.tensor([[0.1, 0.0, 0.0, 0.0]])
    for backend in ("reference", "cpp"):
        assert updated(rows, backend)[1].item() == float(np.float32(0.1))


@settings(max_examples=40, deadline=None)
@given(
    particles=st.integers(0, 5),
    size=st.integers(0, 150),
    dtype=st.sampled_from(DTYPES),
    level=st.sampled_from(_C.simd_levels()),
    start=st.integers(0, 3),
    gap=st.integers(0, 3),
    step_length=st.floats(-2, 2),
)
def test_property_equals_reference(
    particles: int, size: int, dtype: torch.dtype, level: str, start: int, gap: int, step_length: float
) -> None:
    _C.set_simd_level(level)
    rows = swarm(particles, size, dtype)
    blocks = guard(rows, start, gap)
    check_against_reference(unwrap(blocks, rows["coefficients"]), "cpp", step_length)


def test_gil_is_released() -> None:
    """Another thread runs while the update does: it never would if the call held the interpreter's lock."""
    rows = swarm(10, 300_000, torch.float32)
    turns, stop = [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            turns[0] += 1
            time.sleep(0.001)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)
    other = threading.Thread(target=count)
    other.start()
    try:
        before = turns[0]
        for _ in range(300):  # a busy machine may let the other thread wait
            swarm_update_(**rows, step_length=0.1, backend="cpp")
            if turns[0] > before:
                break
        assert turns[0] > before
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        other.join()


def test_rows_of_one_slab_may_lie_between_each_other() -> None:
    slab = random_rows(4, 300, torch.float32, 0)
    rows = swarm(4, 100, torch.float32)
    rows |= {"position": slab[:, :100], "velocity": slab[:, 100:200], "personal_best": slab[:, 200:]}
    expected = updated(rows, "reference")
    swarm_update_(**rows, step_length=STEP_LENGTH)
    assert_same(slab[:, :100].contiguous(), expected[0])
    assert_same(slab[:, 100:200].contiguous(), expected[1])


def test_read_rows_may_share_memory() -> None:
    rows = swarm(3, 50, torch.float32)
    rows["global_best"] = rows["personal_best"][1]
    rows["global_worst"] = rows["personal_best"][1]
    check_against_reference(rows, "cpp")


class WrongRows:
    """One wrong argument each: the name of the test says which."""

    def position_is_a_list(rows: dict[str, Any]) -> None:
        rows["position"] = [[0.0]]

    def position_has_one_dimension(rows: dict[str, Any]) -> None:
        rows["position"] = rows["position"][0]

    def velocity_has_another_shape(rows: dict[str, Any]) -> None:
        rows["velocity"] = rows["velocity"][:2]

    def personal_best_is_too_short(rows: dict[str, Any]) -> None:
        rows["personal_best"] = rows["personal_best"][:, :-1]

    def global_best_is_a_matrix(rows: dict[str, Any]) -> None:
        rows["global_best"] = rows["global_best"][None]

    def global_worst_is_too_short(rows: dict[str, Any]) -> None:
        rows["global_worst"] = rows["global_worst"][:-1]

    def coefficients_has_three_columns(rows: dict[str, Any]) -> None:
        rows["coefficients"] = rows["coefficients"][:, :3]

    def coefficients_is_float64(rows: dict[str, Any]) -> None:
        rows["coefficients"] = rows["coefficients"].double()

    def velocity_is_bfloat16(rows: dict[str, Any]) -> None:
        rows["velocity"] = rows["velocity"].bfloat16()

    def position_is_int32(rows: dict[str, Any]) -> None:
        rows["position"] = rows["position"].int()

    def global_best_is_on_meta(rows: dict[str, Any]) -> None:
        rows["global_best"] = rows["global_best"].to("meta")

    def velocity_is_transposed(rows: dict[str, Any]) -> None:
        rows["velocity"] = rows["velocity"].t().contiguous().t()

    def global_worst_is_strided(rows: dict[str, Any]) -> None:
        rows["global_worst"] = torch.zeros(200)[::2]

    def personal_best_requires_grad(rows: dict[str, Any]) -> None:
        rows["personal_best"].requires_grad_()

    def step_length_is_nan(rows: dict[str, Any]) -> None:
        rows["step_length"] = float("nan")

    def step_length_is_infinite(rows: dict[str, Any]) -> None:
        rows["step_length"] = float("inf")

    def step_length_is_a_word(rows: dict[str, Any]) -> None:
        rows["step_length"] = "long"

    def position_rows_overlap(rows: dict[str, Any]) -> None:
        rows["position"] = torch.zeros(103).as_strided((3, 100), (1, 1))

    def velocity_is_expanded(rows: dict[str, Any]) -> None:
        rows["velocity"] = torch.zeros(100).expand(3, 100)

    def position_is_the_velocity(rows: dict[str, Any]) -> None:
        rows["position"] = rows["velocity"]

    def position_is_the_personal_best(rows: dict[str, Any]) -> None:
        rows["personal_best"] = rows["position"]

    def velocity_meets_the_personal_best(rows: dict[str, Any]) -> None:
        slab = torch.zeros(3, 199)
        rows["velocity"], rows["personal_best"] = slab[:, :100], slab[:, 99:]

    def position_holds_the_global_best(rows: dict[str, Any]) -> None:
        rows["global_best"] = rows["position"][1]

    def velocity_holds_the_coefficients(rows: dict[str, Any]) -> None:
        rows["coefficients"] = rows["velocity"].view(-1)[:12].view(3, 4)

    def backend_is_unknown(rows: dict[str, Any]) -> None:
        rows["backend"] = "fastest"


TYPE_ERRORS = {
    "position_is_a_list",
    "coefficients_is_float64",
    "velocity_is_bfloat16",
    "position_is_int32",
    "step_length_is_a_word",
}
WRONG = {name: change for name, change in vars(WrongRows).items() if not name.startswith("_")}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused_by_name(name: str) -> None:
    rows: dict[str, Any] = swarm(3, 100, torch.float32) | {"step_length": 0.5}
    WRONG[name](rows)
    before = {key: row.detach().clone() for key, row in rows.items() if isinstance(row, Tensor)}
    argument = next(word for word in [*list(rows), "backend"] if name.startswith(word))
    with pytest.raises(TypeError if name in TYPE_ERRORS else ValueError, match=rf"\b{argument}\b"):
        swarm_update_(**rows)
    for key, row in before.items():
        if row.device.type != "meta":
            assert torch.equal(row, rows[key].detach())


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_gpu_backend_refuses_cpu_tensors(backend: str) -> None:
    with pytest.raises(ValueError, match=f"backend '{backend}' cannot"):
        swarm_update_(**swarm(2, 8, torch.float32), step_length=0.5, backend=backend)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_gpu_backend_refuses_float64(backend: str) -> None:
    with pytest.raises(TypeError, match="float64"):
        swarm_update_(**swarm(2, 8, torch.float64, "cuda"), step_length=0.5, backend=backend)


def test_cpp_without_the_extension_raises_and_auto_takes_the_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ops, "_C", None)
    rows = swarm(2, 8, torch.float32)
    with pytest.raises(ValueError, match="not built"):
        swarm_update_(**rows, step_length=0.5, backend="cpp")
    called = spy(monkeypatch)
    swarm_update_(**rows, step_length=0.5)
    assert called == ["reference"]


def test_auto_takes_cpp_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    called = spy(monkeypatch)
    swarm_update_(**swarm(2, 8, torch.float32), step_length=0.5)
    assert called == []
    assert available("cpp")


def spy(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note every call of the reference."""
    called: list[str] = []
    original: Callable[..., None] = swarm_update_ref

    def reference(*arguments: Any) -> None:
        called.append("reference")
        original(*arguments)

    monkeypatch.setattr(ops, "swarm_update_ref", reference)
    return called


def test_an_extension_that_does_not_load_is_no_reason_for_the_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(name: str) -> Any:
        raise ImportError(f"{name}: undefined symbol")

    monkeypatch.setattr(ops.importlib, "import_module", broken)
    with pytest.raises(ImportError, match="undefined symbol"):
        ops._load_extension()


def test_unknown_simd_level_is_refused() -> None:
    with pytest.raises(ValueError, match="sse9"):
        _C.set_simd_level("sse9")
