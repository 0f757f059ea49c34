"""The two operators on rows, swarm update and mix of experts: checks the arguments and chooses the backend.

Backends: ``reference`` (torch), ``cpp`` (SIMD and threads), ``triton`` and ``cuda``. All four round every
operation on its own and in the same order, so they agree bit for bit. For CUDA tensors ``auto`` takes
``cuda``, or ``triton`` if the extension has no CUDA code; for CPU tensors ``cpp``, or ``reference`` where no
extension is built. A backend asked for by name works or raises.
"""

import importlib
import importlib.util
import math
import os
from collections.abc import Callable
from numbers import Real
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from modelswarms_fast.reference import mix_ref, swarm_update_ref

BACKENDS = ("reference", "cpp", "triton", "cuda")

# The codes of csrc/dtype.h and kernels/launchers.h.
_DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}


def _load_extension() -> Any:
    """modelswarms_fast._C, or None where it was never built; one that was built and does not load raises."""
    if importlib.util.find_spec("modelswarms_fast._C") is None:
        return None
    return importlib.import_module("modelswarms_fast._C")


_C = _load_extension()


def swarm_update_(
    position: Tensor,
    velocity: Tensor,
    personal_best: Tensor,
    global_best: Tensor,
    global_worst: Tensor,
    coefficients: Tensor,
    step_length: float,
    *,
    backend: str = "auto",
) -> None:
    """Move every particle: one fused pass, in place on ``position`` and ``velocity``.

    ``v' = c0 v + c1 (p - x) + c2 (g - x) + c3 (x - w)`` and ``x' = x + step_length * v'`` with the unrounded
    ``v'`` (Model Swarms, arXiv 2410.11163, section 2).

    Args:
        position: x, [P, D] in float32, bfloat16, float16 or (``reference`` and ``cpp`` only) float64. Rows
            may be strided and start anywhere; the last dimension is contiguous. So for all rows.
        velocity: v, [P, D].
        personal_best: p, [P, D].
        global_best: g, [D].
        global_worst: w, [D].
        coefficients: [P, 4] float32 whatever the rows' dtype: inertia, cognitive, social, repel, normalised.
        step_length: a finite number without unit, rounded to float32 unless the rows are float64.
        backend: ``auto`` or one of ``available_backends()``.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device or stride, rows that overlap, a tensor that requires grad, or a
            backend that does not exist or cannot take these tensors.
    """
    written = {"position": position, "velocity": velocity}
    read = {"personal_best": personal_best, "global_best": global_best, "global_worst": global_worst}
    rows = written | read
    _check_tensors(rows | {"coefficients": coefficients})
    _check_rows(rows)
    _check_matrix("position", position)
    particles, size = position.shape
    for name in ("velocity", "personal_best"):
        _check_shape(name, rows[name], (particles, size))
    for name in ("global_best", "global_worst"):
        _check_shape(name, rows[name], (size,))
    _check_shape("coefficients", coefficients, (particles, 4))
    if coefficients.dtype != torch.float32:
        raise TypeError(f"coefficients must be float32, got {_short(coefficients.dtype)}")
    if not isinstance(step_length, Real):
        raise TypeError(f"step_length must be a number, got {type(step_length).__name__}")
    step_length = float(step_length)
    if not math.isfinite(step_length):
        raise ValueError(f"step_length must be finite, got {step_length}")
    _check_overlap(written, read | {"coefficients": coefficients})
    chosen = _choose(backend, position)
    if particles == 0 or size == 0:
        return
    if chosen == "reference":
        swarm_update_ref(position, velocity, personal_best, global_best, global_worst, coefficients, step_length)
    elif chosen == "triton":
        _kernels("swarm_update").swarm_update_triton(
            position, velocity, personal_best, global_best, global_worst, coefficients, step_length
        )
    else:
        coefficients = coefficients.contiguous()
        if coefficients.data_ptr() % 16:  # CUDA reads a particle's four at once
            coefficients = coefficients.clone()
        addresses = (
            *(position.data_ptr(), position.stride(0), velocity.data_ptr(), velocity.stride(0)),
            *(personal_best.data_ptr(), personal_best.stride(0)),
            *(global_best.data_ptr(), global_worst.data_ptr(), coefficients.data_ptr()),
        )
        arguments = (*addresses, step_length, particles, size, _DTYPE_CODES[position.dtype])
        _launch(chosen, _C.swarm_update if chosen == "cpp" else _C.swarm_update_cuda, arguments, position)


def mix_(out: Tensor, experts: Tensor, mixture: Tensor, *, backend: str = "auto") -> None:
    """Write ``out [P, D] = mixture [P, n] . experts [n, D]`` in one pass, summed from the first expert on.

    Args:
        out: [P, D] in float32, bfloat16, float16 or (``reference`` and ``cpp`` only) float64. Rows may be
            strided and start anywhere; the last dimension is contiguous. So for ``experts``.
        experts: [n, D], same dtype. No expert at all gives zeros.
        mixture: [P, n] float32 or float64, rounded to float32 unless the rows are float64.
        backend: ``auto`` or one of ``available_backends()``.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device or stride, rows that overlap, a tensor that requires grad, or a
            backend that does not exist or cannot take these tensors.
    """
    rows = {"out": out, "experts": experts}
    _check_tensors(rows | {"mixture": mixture})
    _check_rows(rows)
    _check_matrix("out", out)
    _check_matrix("experts", experts)
    particles, size = out.shape
    count = experts.shape[0]
    _check_shape("experts", experts, (count, size))
    _check_shape("mixture", mixture, (particles, count))
    if mixture.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"mixture must be float32 or float64, got {_short(mixture.dtype)}")
    _check_overlap({"out": out}, {"experts": experts, "mixture": mixture})
    chosen = _choose(backend, out)
    if particles == 0 or size == 0:
        return
    if chosen == "reference":
        mix_ref(out, experts, mixture)
        return
    mixture = mixture.to(torch.float64 if out.dtype == torch.float64 else torch.float32).contiguous()
    if chosen == "triton":
        _kernels("mix").mix_triton(out, experts, mixture)
    else:
        addresses = (out.data_ptr(), out.stride(0), experts.data_ptr(), experts.stride(0), mixture.data_ptr())
        arguments = (*addresses, particles, count, size, _DTYPE_CODES[out.dtype])
        _launch(chosen, _C.mix if chosen == "cpp" else _C.mix_cuda, arguments, out)


def available_backends() -> list[str]:
    """Names of the backends that can run on this machine, now."""
    return [name for name in BACKENDS if _missing(name) is None]


def _interpreted() -> bool:
    """Triton's own switch, read when a kernel is defined: run kernels in Python, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _missing(backend: str) -> str | None:
    """Why a backend cannot run on this machine, or None."""
    if backend == "cpp" and _C is None:
        return "the extension modelswarms_fast._C is not built"
    if backend == "cuda" and not (_C is not None and _C.has_cuda):
        return "the extension modelswarms_fast._C was built without CUDA"
    if backend == "triton" and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if backend in ("triton", "cuda") and not torch.cuda.is_available() and not (backend == "triton" and _interpreted()):
        return "this machine has no CUDA GPU"
    return None


def _choose(backend: str, rows: Tensor) -> str:
    """The backend to run, after checking that it can take these rows."""
    if backend == "auto":
        if rows.device.type == "cuda":
            backend = "cuda" if _C is not None and _C.has_cuda else "triton"
        else:
            backend = "cpp" if _C is not None else "reference"
    if backend not in BACKENDS:
        raise ValueError(f"backend must be auto or one of {', '.join(BACKENDS)}, got {backend!r}")
    missing = _missing(backend)
    if missing is not None:
        raise ValueError(f"backend {backend!r} cannot run: {missing}")
    device = rows.device.type
    wanted = {"cpp": ("cpu",), "cuda": ("cuda",), "triton": ("cpu",) if _interpreted() else ("cuda",)}
    if device not in wanted.get(backend, ("cpu", "cuda")):
        raise ValueError(f"backend {backend!r} cannot take tensors on {device!r}")
    if rows.dtype == torch.float64 and backend in ("triton", "cuda"):
        raise TypeError(f"backend {backend!r} has no float64; use backend 'reference' or 'cpp'")
    return backend


def _kernels(name: str) -> ModuleType:
    return importlib.import_module(f"modelswarms_fast.kernels.{name}")


def _launch(backend: str, function: Callable[..., None], arguments: tuple[Any, ...], rows: Tensor) -> None:
    if backend == "cpp":
        function(*arguments)
        return
    with torch.cuda.device(rows.device):
        stream = torch.cuda.current_stream(rows.device).cuda_stream
        function(*arguments, rows.device.index, stream)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_tensors(tensors: dict[str, Tensor]) -> None:
    first = next(iter(tensors))
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.layout != torch.strided or tensor.device.type == "meta":
            raise ValueError(f"{name} must be a dense tensor with memory, got one without")
        if tensor.requires_grad:
            raise ValueError(f"{name} requires grad, and this operator has no gradient; pass {name}.detach()")
        if tensor.device != tensors[first].device:
            raise ValueError(f"{name} is on {tensor.device}, but {first} is on {tensors[first].device}")


def _check_rows(rows: dict[str, Tensor]) -> None:
    first = next(iter(rows))
    for name, tensor in rows.items():
        if tensor.dtype not in _DTYPE_CODES:
            choices = ", ".join(_short(dtype) for dtype in _DTYPE_CODES)
            raise TypeError(f"{name} must be one of {choices}, got {_short(tensor.dtype)}")
        if tensor.dtype != rows[first].dtype:
            raise TypeError(f"{name} is {_short(tensor.dtype)}, but {first} is {_short(rows[first].dtype)}")
        if tensor.dim() > 0 and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ValueError(f"{name} must be contiguous in its last dimension, got stride {tensor.stride(-1)}")


def _check_matrix(name: str, tensor: Tensor) -> None:
    if tensor.dim() != 2:
        raise ValueError(f"{name} must have two dimensions, got shape {tuple(tensor.shape)}")


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")


def _extent(tensor: Tensor) -> tuple[int, int]:
    """Addresses of the first byte and of the one after the last."""
    last = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return start, start + (last + 1) * tensor.element_size()


def _row_extents(tensor: Tensor) -> list[tuple[int, int]]:
    return [_extent(row) for row in tensor.unbind(0)] if tensor.dim() == 2 else [_extent(tensor)]


def _check_overlap(written: dict[str, Tensor], read: dict[str, Tensor]) -> None:
    """No written row shares a byte with another written row or with anything that is read."""
    everything = [(name, tensor, _extent(tensor)) for name, tensor in (written | read).items() if tensor.numel() > 0]
    for number, (name, tensor, (start, end)) in enumerate(everything):
        if name not in written:
            break
        if tensor.shape[0] > 1 and tensor.stride(0) < tensor.shape[1]:
            raise ValueError(f"{name} has rows that overlap each other")
        for other_name, other, (other_start, other_end) in everything[number + 1 :]:
            # Rows of two tensors may lie between each other in one slab: only then look at them one by one.
            if start < other_end and other_start < end and _rows_meet(tensor, other):
                raise ValueError(f"{name} must not share memory with {other_name}")


def _rows_meet(one: Tensor, two: Tensor) -> bool:
    tagged = [(*extent, tag) for tag, rows in enumerate((one, two)) for extent in _row_extents(rows)]
    reach = [0, 0]
    for start, end, tag in sorted(tagged):
        if start < reach[1 - tag]:
            return True
        reach[tag] = max(reach[tag], end)
    return False
