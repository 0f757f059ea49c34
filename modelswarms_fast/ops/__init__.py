"""The operators on rows, swarm update and mix of experts: checks the arguments and chooses the backend.

Backends: ``reference`` (torch), ``cpp`` (SIMD and threads), ``triton`` and ``cuda``. All four round every
operation on its own and in the same order, so they agree bit for bit. For CUDA tensors ``auto`` takes
``cuda``, or ``triton`` if the extension has no CUDA code; for CPU tensors ``cpp``. A backend asked for by name works
or raises.

`reference` says in plain torch what each operator computes, `validation` checks their arguments, `extension` loads the
compiled part `_C` (csrc/), and the folder `kernels` has the Triton kernels and the CUDA source.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from modelswarms_fast.ops import validation
from modelswarms_fast.ops.extension import _C
from modelswarms_fast.ops.reference import mix_ref, swarm_update_ref, swarm_update_rows_ref

BACKENDS = ("reference", "cpp", "triton", "cuda")

Rounding = Literal["nearest", "stochastic", "published"]
RowRandomness = Literal["particle", "coordinate"]


def swarm_update_(
    position: Tensor,
    velocity: Tensor,
    personal_best: Tensor,
    global_best: Tensor,
    global_worst: Tensor,
    coefficients: Tensor,
    step_length: float,
    *,
    rounding: Rounding = "nearest",
    randomness: RowRandomness = "particle",
    seed: int = 0,
    iteration: int = 0,
    first_column: int = 0,
    backend: str = "auto",
) -> None:
    """Move every particle: one fused pass, in place on ``position`` and ``velocity``.

    ``v' = c0 v + c1 (p - x) + c2 (g - x) + c3 (x - w)`` and ``x' = x + step_length * v'`` with the unrounded
    ``v'`` (Model Swarms, arXiv 2410.11163, section 2). Autograd does not see it: what was saved for a backward pass
    before is changed without an error.

    Args:
        position: x, [P, D] in float32, bfloat16, float16 or (``reference`` and ``cpp`` only) float64. Rows
            may be strided and start anywhere; the last dimension is contiguous. So for all rows.
        velocity: v, [P, D].
        personal_best: p, [P, D].
        global_best: g, [D].
        global_worst: w, [D].
        coefficients: [P, 4] float32 whatever the rows' dtype: inertia, cognitive, social, repel, normalised.
        step_length: a finite number without unit, rounded to float32 unless the rows are float64.
        rounding: of x' and v' to half types. ``stochastic``: up or down with the probability that keeps the
            mean, so that steps too small for the dtype are not lost, only rarer. ``published``: each difference,
            product and sum is rounded, and x' takes the rounded v', as in a program that keeps every step in half
            tensors; by ``reference`` or ``cpp``, which ``auto`` takes, and with randomness ``particle``.
        randomness: ``coordinate``: every coordinate draws its own four r ~ U(0, 1) inside the kernel and
            c = r * coefficients / sum(r * coefficients); then ``coefficients`` are the bare weights.
        seed, iteration: key of what is drawn, by Philox4x32-10 from column and particle. Give each call of a
            run its own iteration. The same numbers on every backend, thread count and cut into shards.
        first_column: where these columns begin in the whole rows, a multiple of 4; for shards.
        backend: ``auto`` or one of ``available_backends()``.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device or stride, rows that overlap, a tensor that requires grad, or a
            backend that does not exist or cannot take these tensors.
    """
    rows = (position, velocity, personal_best, global_best, global_worst)
    noise = validation.check_draws(rounding, randomness, seed, iteration, first_column)
    if _takes_plain(backend) and _C.swarm_update_tensors(*rows, coefficients, step_length, *noise):
        return
    step_length = _check_update(*rows, coefficients, step_length)
    validation.check_rounding(rounding, position.dtype)
    chosen = _choose(backend, position, rounding)
    if position.numel() == 0:
        return
    if chosen == "reference":
        swarm_update_ref(*rows, coefficients, step_length, *noise)
        return
    _update(chosen, *rows, None, coefficients, step_length, noise)


def swarm_update_rows_(
    rows: Tensor,
    table: Tensor,
    global_best: int,
    global_worst: int,
    coefficients: Tensor,
    step_length: float,
    *,
    rounding: Rounding = "nearest",
    randomness: RowRandomness = "particle",
    seed: int = 0,
    iteration: int = 0,
    first_column: int = 0,
    backend: str = "auto",
) -> None:
    """The same update on numbered rows, so that bests are row numbers and no promotion copies a row.

    Autograd does not see it either.

    Args:
        rows: [R, D], as ``position`` in ``swarm_update_``.
        table: [P, 5] int64 on the CPU, one line a particle: x_in, x_out, v_in, v_out, p. x' goes to row x_out,
            which may be x_in; v' to v_out, which may be v_in. v_in = -1 says that v is 0: nothing is read. Nor is
            p where it is x_in.
        global_best, global_worst: rows of g and w.
        coefficients, step_length, rounding, randomness, seed, iteration, first_column, backend: as in
            ``swarm_update_``.

    Raises:
        TypeError, ValueError: as ``swarm_update_``; also a table that names a row that is not there, or writes one
            that anything but its own particle in place reads or writes.
    """
    noise = validation.check_draws(rounding, randomness, seed, iteration, first_column)
    tensors = (rows, table, global_best, global_worst, coefficients, step_length)
    if _takes_plain(backend) and _C.swarm_update_rows(*tensors, *noise):
        return
    validation.check_rows({"rows": rows})
    validation.check_matrix("rows", rows)
    particles = len(table) if isinstance(table, Tensor) and table.dim() else 0
    validation.check_scalars("table", table, (particles, 5), (torch.int64,))
    if table.device.type != "cpu":
        raise ValueError(f"table must be on the CPU, got {table.device}")
    validation.check_scalars("coefficients", coefficients, (particles, 4), (torch.float32,))
    validation.check_device("coefficients", coefficients, "rows", rows)
    step_length = validation.check_step_length(step_length)
    validation.check_rounding(rounding, rows.dtype)
    chosen = _choose(backend, rows, rounding)
    if particles == 0 or rows.shape[1] == 0:
        return
    validation.check_table(table, len(rows), global_best, global_worst)
    validation.check_overlap({"rows": rows}, {"coefficients": coefficients, "table": table})
    if chosen == "reference":
        swarm_update_rows_ref(rows, table, global_best, global_worst, coefficients, step_length, *noise)
        return
    best, worst = rows[global_best], rows[global_worst]
    _update(chosen, rows, rows, rows, best, worst, table, coefficients, step_length, noise)


def _check_update(
    position: Tensor,
    velocity: Tensor,
    personal_best: Tensor,
    global_best: Tensor,
    global_worst: Tensor,
    coefficients: Tensor,
    step_length: float,
) -> float:
    """What is wrong with the arguments of an update, if anything is. Returns the step length as a float."""
    written = {"position": position, "velocity": velocity}
    read = {"personal_best": personal_best, "global_best": global_best, "global_worst": global_worst}
    validation.check_rows(written | read)
    validation.check_matrix("position", position)
    particles, size = shape = position.shape
    validation.check_shape("velocity", velocity, shape)
    validation.check_shape("personal_best", personal_best, shape)
    validation.check_shape("global_best", global_best, (size,))
    validation.check_shape("global_worst", global_worst, (size,))
    validation.check_scalars("coefficients", coefficients, (particles, 4), (torch.float32,))
    validation.check_device("coefficients", coefficients, "position", position)
    step_length = validation.check_step_length(step_length)
    validation.check_overlap(written, read | {"coefficients": coefficients})
    return step_length


def _update(
    backend: str,
    position: Tensor,
    velocity: Tensor,
    personal_best: Tensor,
    global_best: Tensor,
    global_worst: Tensor,
    table: Tensor | None,
    coefficients: Tensor,
    step_length: float,
    noise: tuple[int, bool, int, int, int],
) -> None:
    particles, size = len(coefficients), position.shape[1]
    if table is not None:
        table = table.contiguous()
        if backend != "cpp":
            table = table.to(position.device, non_blocking=True)
    if backend != "cpp":
        noise = (bool(noise[0]), *noise[1:])  # these know two roundings
    if backend == "triton":
        _kernels("swarm_update").swarm_update_triton(
            position, velocity, personal_best, global_best, global_worst, table, coefficients, step_length, *noise
        )
        return
    coefficients = coefficients.contiguous()
    if coefficients.data_ptr() % 16:  # CUDA reads a particle's four at once
        coefficients = coefficients.clone()
    arguments = (
        *(position.data_ptr(), position.stride(0), velocity.data_ptr(), velocity.stride(0)),
        *(personal_best.data_ptr(), personal_best.stride(0)),
        *(global_best.data_ptr(), global_worst.data_ptr(), 0 if table is None else table.data_ptr()),
        *(coefficients.data_ptr(), step_length, particles, size, validation.DTYPE_CODES[position.dtype]),
        *noise,
    )
    if backend == "cpp":
        _C.swarm_update(*arguments)
    else:
        launch(_C.swarm_update_cuda, arguments, position)


def mix_(out: Tensor, experts: Tensor, mixture: Tensor, *, backend: str = "auto") -> None:
    """Write ``out [P, D] = mixture [P, n] . experts [n, D]`` in one pass, summed from the first expert on.

    Autograd does not see it: what was saved for a backward pass before is changed without an error.

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
    validation.check_rows({"out": out, "experts": experts})
    validation.check_matrix("out", out)
    validation.check_matrix("experts", experts)
    (particles, size), count = out.shape, experts.shape[0]
    validation.check_shape("experts", experts, (count, size))
    validation.check_scalars("mixture", mixture, (particles, count), (torch.float32, torch.float64))
    validation.check_device("mixture", mixture, "out", out)
    validation.check_overlap({"out": out}, {"experts": experts, "mixture": mixture})
    chosen = _choose(backend, out)
    if particles == 0 or size == 0:
        return
    if chosen == "reference":
        mix_ref(out, experts, mixture)
        return
    mixture = mixture.to(torch.float64 if out.dtype == torch.float64 else torch.float32).contiguous()
    if chosen == "triton":
        _kernels("mix").mix_triton(out, experts, mixture)
        return
    addresses = (out.data_ptr(), out.stride(0), experts.data_ptr(), experts.stride(0), mixture.data_ptr())
    arguments = (*addresses, particles, count, size, validation.DTYPE_CODES[out.dtype])
    if chosen == "cpp":
        _C.mix(*arguments)
    else:
        launch(_C.mix_cuda, arguments, out)


def swiglu(given: Tensor) -> Tensor:
    """``silu(g) * u`` for ``given [..., 2 · width] = [g, u]``, with silu(g) = g / (1 + exp(-g)).

    In the extension in one pass, rounded once, for float32, bfloat16 and float16 on a CPU; by torch elsewhere, and
    where a gradient is wanted. Raises ValueError for an odd last dimension.
    """
    width, odd = divmod(given.shape[-1], 2)
    if odd:
        raise ValueError(f"swiglu takes gates and as many factors, not {given.shape[-1]} columns")
    # No address: no elements, or a subclass that wraps other tensors.
    plain = given.is_cpu and given.data_ptr() and not given.is_neg()
    known = given.dtype in validation.DTYPE_CODES and given.dtype != torch.float64
    if not (plain and known) or (given.requires_grad and torch.is_grad_enabled()):
        return torch.nn.functional.silu(given[..., :width]) * given[..., width:]
    given = given.contiguous()
    out = torch.empty((*given.shape[:-1], width), dtype=given.dtype)
    _C.swiglu(out.data_ptr(), given.data_ptr(), out.numel() // width, width, validation.DTYPE_CODES[given.dtype])
    return out


def _takes_plain(backend: str) -> bool:
    """Whether the extension may be asked to do it at once: it does where nothing can be wrong, and says so."""
    return backend in ("auto", "cpp")


def available_backends() -> list[str]:
    """Names of the backends that can run on this machine, now."""
    return [name for name in BACKENDS if _missing(name) is None]


def _interpreted() -> bool:
    """Triton's own switch, read when a kernel is defined: run kernels in Python, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _missing(backend: str) -> str | None:
    """Why a backend cannot run on this machine, or None."""
    if backend == "cuda" and not _C.has_cuda:
        return "the extension modelswarms_fast.ops._C was built without CUDA, or with a newer one than the driver has"
    if backend == "triton" and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if backend in ("triton", "cuda") and not torch.cuda.is_available() and not (backend == "triton" and _interpreted()):
        return "this machine has no CUDA GPU"
    return None


def _choose(backend: str, rows: Tensor, rounding: Rounding = "nearest") -> str:
    """The backend to run, after checking that it can take these rows."""
    device = rows.device.type
    if backend == "auto":
        on_gpu = "reference" if rounding == "published" else "cuda" if _C.has_cuda else "triton"
        backend = on_gpu if device == "cuda" else "cpp"
    if backend == "cpp" and device == "cpu":
        return backend
    if backend not in BACKENDS:
        raise ValueError(f"backend must be auto or one of {', '.join(BACKENDS)}, got {backend!r}")
    if rounding == "published" and backend in ("triton", "cuda"):
        raise ValueError(f"backend {backend!r} has no rounding 'published'; use backend 'reference'")
    missing = _missing(backend)
    if missing is not None:
        raise ValueError(f"backend {backend!r} cannot run: {missing}")
    wanted = {"cpp": ("cpu",), "cuda": ("cuda",), "triton": ("cpu",) if _interpreted() else ("cuda",)}
    if device not in wanted.get(backend, ("cpu", "cuda")):
        raise ValueError(f"backend {backend!r} cannot take tensors on {device!r}")
    if rows.dtype == torch.float64 and backend in ("triton", "cuda"):
        raise TypeError(f"backend {backend!r} has no float64; use backend 'reference' or 'cpp'")
    return backend


def _kernels(name: str) -> ModuleType:
    return importlib.import_module(f"modelswarms_fast.ops.kernels.{name}")


def launch(function: Any, arguments: tuple[Any, ...], rows: Tensor) -> None:
    """Call a launcher with device and stream behind its other arguments: those on which torch works on these rows."""
    with torch.cuda.device(rows.device):
        stream = torch.cuda.current_stream(rows.device).cuda_stream
        function(*arguments, rows.device.index, stream)
