"""Rows for the tests of the operators: any start, any stride, guards around them; and what "same" means."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from modelswarms_fast import ops
from modelswarms_fast.ops import _C

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
HALF_TYPES = (torch.bfloat16, torch.float16)
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

GPU = pytest.mark.gpu
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
# "cpp" once for every SIMD level of the machine; the GPU backends run the same checks where there is a GPU.
FAST_BACKENDS = [f"cpp:{level}" for level in _C.simd_levels()]
FAST_BACKENDS += [pytest.param(name, marks=[GPU, NEEDS_GPU]) for name in ("triton", "cuda")]
SIZES = (1, 7, 63, 64, 65, 1000, 4097, 100_003)

# The smallest and the largest keys, and columns whose number or number of four passes 2**32 on the way.
KEYS: tuple[dict[str, int], ...] = (
    {"seed": 0, "iteration": 1, "first_column": 0},
    {"seed": 2**32 + 5, "iteration": 7, "first_column": 2**32 - 48},
    {"seed": 2**63 - 1, "iteration": 2**31 - 1, "first_column": 2**34 - 64},
    {"seed": 2**40, "iteration": 0, "first_column": 2**61 + 4},
)

# csrc/columns.h: what writes so much stores past the caches.
STREAM_BYTES = 16 * 1024 * 1024

GUARD = -77.0


@pytest.fixture
def restored_extension():
    """Give back the SIMD level and the number of threads that a test changed."""
    level, threads = _C.simd_level(), _C.num_threads()
    yield
    _C.set_simd_level(level)
    _C.set_num_threads(threads)


class Wrapper(torch.Tensor):
    """A tensor on the CPU that has elements and no memory, as quantized and distributed ones do."""

    @staticmethod
    def __new__(cls, *shape: int) -> "Wrapper":
        return torch.Tensor._make_wrapper_subclass(cls, shape)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError(function)


def select(backend: str) -> tuple[str, str]:
    """The backend's name for `ops` and the device of its tensors, after choosing the level in "cpp:level"."""
    name, _, level = backend.partition(":")
    if level:
        _C.set_simd_level(level)
    return name, "cuda" if name in ("triton", "cuda") else "cpu"


def skip_float64(backend: str, dtype: torch.dtype) -> bool:
    """The GPU backends have no float64: asked for it they raise, which the tests of the errors cover."""
    return dtype == torch.float64 and backend in ("triton", "cuda")


def noises(dtype: torch.dtype) -> list[dict[str, Any]]:
    """The options of the update that rows of this dtype can have."""
    roundings = ("nearest", "stochastic") if dtype in HALF_TYPES else ("nearest",)
    return [{"rounding": a, "randomness": b} for b in ("particle", "coordinate") for a in roundings]


@dataclass
class Guarded:
    """Rows (or one, or slots of several parts) in a larger block of memory, the rest of which must stay as it is."""

    rows: Tensor
    block: Tensor
    outside: Tensor

    def intact(self) -> bool:
        """Nobody wrote outside of the rows."""
        return bool((self.block[self.outside] == GUARD).all())


def guarded(values: Tensor, start: int = 0, gap: int = 0) -> Guarded:
    """Copy values [P, D] to rows that begin `start` elements into a block, `gap` guards after every row."""
    return strided(values, (values.shape[1] + gap, 1), start)


def strided(values: Tensor, strides: tuple[int, ...], start: int = 0) -> Guarded:
    """Copy values of any shape to a view with these strides that begins `start` elements into a block."""
    length = start + sum(size * stride for size, stride in zip(values.shape, strides, strict=True)) + 64
    block = torch.full((length,), GUARD, dtype=values.dtype, device=values.device)
    outside = torch.ones(length, dtype=torch.bool, device=values.device)
    rows = block.as_strided(values.shape, strides, start)
    rows.copy_(values)
    outside.as_strided(values.shape, strides, start).fill_(False)
    return Guarded(rows, block, outside)


def aligned_rows(values: Tensor, start: int = 0, gap: int = 0) -> Tensor:
    """A copy whose rows begin at multiples of 64 bytes; or all of them `start` further, or each `gap` more."""
    count, size = values.shape
    step = 64 // values.element_size()
    stride = -(-(size + start) // step) * step + gap
    memory = torch.zeros(count * stride + step, dtype=values.dtype)
    first = -memory.data_ptr() // values.element_size() % step + start
    rows = memory.as_strided(values.shape, (stride, 1), first)
    return rows.copy_(values)


@dataclass(frozen=True)
class Lines:
    """Arguments of swarm_update_rows_: a table, the rows of g and w, and how many rows there are."""

    table: Tensor
    best: int
    worst: int
    count: int

    def read(self) -> set[int]:
        """Rows that the update reads."""
        lines = self.table.tolist()
        return {self.best, self.worst} | {row for x_in, _, v_in, _, p in lines for row in (x_in, v_in, p)} - {-1}

    def written(self) -> set[int]:
        """Rows that the update writes."""
        return set(self.table[:, 1].tolist() + self.table[:, 3].tolist())


# The kinds of a line, x and v, as some_lines mixes them.
X_KINDS = ("in place", "to another row", "p is x", "from the global best")
V_KINDS = ("in place", "to another row", "zero")


def some_lines(particles: int, seed: int) -> Lines:
    """Every kind of line in turn, on rows in any order; g and w, p and p may be one row, some rows are not named."""
    draw = random.Random(seed)
    free = draw.sample(range(6 * particles + 5), 6 * particles + 5)
    count, best = len(free), free.pop()
    worst = draw.choice([best, free.pop()])
    shared = [best, worst, free.pop()]
    kinds = [(x, v) for x in X_KINDS for v in V_KINDS]
    draw.shuffle(kinds)
    table = torch.empty((particles, 5), dtype=torch.int64)
    for particle in range(particles):
        x_kind, v_kind = kinds[particle % len(kinds)]
        x_in = best if x_kind == "from the global best" else free.pop()
        x_out = x_in if x_kind == "in place" else free.pop()
        v_out = free.pop()
        v_in = v_out if v_kind == "in place" else -1 if v_kind == "zero" else free.pop()
        p = x_in if x_kind == "p is x" else draw.choice([*shared, free.pop()])
        table[particle] = torch.tensor((x_in, x_out, v_in, v_out, p))
    return Lines(table, best, worst, count)


def random_rows(count: int, size: int, dtype: torch.dtype, seed: int, device: str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=generator, dtype=torch.float64).to(dtype).to(device)


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Equal bit for bit, except that any NaN equals any NaN."""
    nan = expected.isnan()
    assert torch.equal(actual.isnan(), nan)
    bits = BITS[expected.element_size()]
    difference = (actual.contiguous().view(bits) != expected.contiguous().view(bits)) & ~nan
    assert not difference.any(), f"{int(difference.sum())} of {difference.numel()} numbers differ"


def assert_close(actual: Tensor, exact: np.ndarray, scale: float) -> None:
    """Within the tolerance of the dtype of a float64 result whose terms are at most about `scale`.

    Half types: one unit in the last place of the exact result, plus what cancellation in float32 leaves.
    """
    values = actual.cpu().double().numpy()
    if actual.dtype in HALF_TYPES:
        kept, smallest = (8, -133) if actual.dtype == torch.bfloat16 else (11, -24)
        exponent = np.frexp(exact)[1]
        unit = np.exp2(np.maximum(exponent - kept, smallest).astype(np.float64))
        assert (np.abs(values - exact) <= unit + 1e-6 * scale).all()
    else:
        tolerance = 1e-6 if actual.dtype == torch.float32 else 1e-14
        np.testing.assert_allclose(values, exact, rtol=tolerance, atol=tolerance * scale)


def available(backend: str) -> bool:
    return backend in ops.available_backends()


def held_bytes(rows):
    """Bytes of the rows, gaps included, that lie in memory and in a file: what the system says of their addresses."""
    start = rows.data_ptr()
    end = start + len(rows) * rows.stride(0) * rows.element_size()
    found = {"memory": 0, "file": 0}
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, _, _, _, inode, *_ = line.split()
        first, last = (int(address, 16) for address in addresses.split("-"))
        found["file" if inode != "0" else "memory"] += max(0, min(last, end) - max(first, start))
    return found
