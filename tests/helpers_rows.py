"""Rows for the tests of the operators: any start, any stride, guards around them; and what "same" means."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from modelswarms_fast import _C, ops

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
HALF_TYPES = (torch.bfloat16, torch.float16)
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

GPU = pytest.mark.gpu
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
# "cpp" once for every SIMD level of the machine; the GPU backends run the same checks where there is a GPU.
FAST_BACKENDS = [f"cpp:{level}" for level in _C.simd_levels()]
FAST_BACKENDS += [pytest.param(name, marks=[GPU, NEEDS_GPU]) for name in ("triton", "cuda")]
SIZES = (1, 7, 63, 64, 65, 1000, 4097, 100_003)

GUARD = -77.0


@pytest.fixture
def restored_extension():
    """Give back the SIMD level and the number of threads that a test changed."""
    level, threads = _C.simd_level(), _C.num_threads()
    yield
    _C.set_simd_level(level)
    _C.set_num_threads(threads)


def select(backend: str) -> tuple[str, str]:
    """The backend's name for `ops` and the device of its tensors, after choosing the level in "cpp:level"."""
    name, _, level = backend.partition(":")
    if level:
        _C.set_simd_level(level)
    return name, "cuda" if name in ("triton", "cuda") else "cpu"


def skip_float64(backend: str, dtype: torch.dtype) -> bool:
    """The GPU backends have no float64: asked for it they raise, which the tests of the errors cover."""
    return dtype == torch.float64 and backend in ("triton", "cuda")


@dataclass
class Guarded:
    """A matrix (or one row) inside a larger block of memory, the rest of which must stay as it is."""

    rows: Tensor
    block: Tensor
    outside: Tensor

    def intact(self) -> bool:
        """Nobody wrote outside of the rows."""
        return bool((self.block[self.outside] == GUARD).all())


def guarded(values: Tensor, start: int = 0, gap: int = 0) -> Guarded:
    """Copy values [P, D] to rows that begin `start` elements into a block, `gap` guards after every row."""
    particles, size = values.shape
    length = start + particles * (size + gap) + 64
    block = torch.full((length,), GUARD, dtype=values.dtype, device=values.device)
    outside = torch.ones(length, dtype=torch.bool, device=values.device)
    shape, stride = (particles, size), (size + gap, 1)
    rows = block.as_strided(shape, stride, start)
    rows.copy_(values)
    outside.as_strided(shape, stride, start).fill_(False)
    return Guarded(rows, block, outside)


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
