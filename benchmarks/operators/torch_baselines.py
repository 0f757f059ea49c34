"""The same work as people do it now: torch eager, torch._foreach, torch.compile, NumPy and pyswarms."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelswarms_fast.weights.arena import empty_rows


@dataclass
class Tensors:
    """Arguments of an update: x, v and p [P, D], g and w [D], coefficients [P, 4] float32."""

    position: Tensor
    velocity: Tensor
    personal_best: Tensor
    global_best: Tensor
    global_worst: Tensor
    coefficients: Tensor
    step_length: float = 0.5

    @property
    def rows(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """x, v, p, g, w."""
        return self.position, self.velocity, self.personal_best, self.global_best, self.global_worst

    @property
    def all(self) -> tuple[Any, ...]:
        """In the order of `swarm_update_`."""
        return (*self.rows, self.coefficients, self.step_length)


def dense(swarm: Tensors) -> Tensors:
    """The same values in rows without gaps, which others may want, in huge pages as ours."""
    rows = [matrix[None] if matrix.dim() == 1 else matrix for matrix in swarm.rows]
    count, size = sum(map(len, rows)), rows[0].shape[1]
    memory = empty_rows(1, count * size, rows[0].dtype, rows[0].device)[0].view(count, size)
    torch.cat(rows, out=memory)
    x, v, p, g, w = memory.split([len(matrix) for matrix in rows])
    return Tensors(x, v, p, g[0], w[0], swarm.coefficients, swarm.step_length)


def formula(x: Tensor, v: Tensor, p: Tensor, g: Tensor, w: Tensor, c: Tensor, step_length: float) -> None:
    """The update as one writes it down, for all particles at once; c [P, 4] in the dtype of the rows."""
    inertia, cognitive, social, repel = c[:, :, None].unbind(1)
    v.copy_(inertia * v + cognitive * (p - x) + social * (g - x) + repel * (x - w))
    x.copy_(x + step_length * v)


def formula_coordinate(
    x: Tensor, v: Tensor, p: Tensor, g: Tensor, w: Tensor, weights: Tensor, step_length: float
) -> None:
    """The update with random numbers for every coordinate; weights [P, 4] in the dtype of the rows."""
    c = weights.t()[:, :, None] * torch.rand(4, *x.shape, dtype=x.dtype, device=x.device)
    v.copy_((c[0] * v + c[1] * (p - x) + c[2] * (g - x) + c[3] * (x - w)) / c.sum(0))
    x.copy_(x + step_length * v)


def eager(swarm: Tensors, function: Callable[..., None] = formula) -> Callable[[], None]:
    """torch, operation by operation."""
    c = swarm.coefficients.to(swarm.position.dtype)
    return lambda: function(*swarm.rows, c, swarm.step_length)


def compiled(swarm: Tensors, function: Callable[..., None] = formula) -> Callable[[], None]:
    """The same function through torch.compile; the first call compiles for the threads set then."""
    torch._dynamo.reset()
    return eager(swarm, torch.compile(function, dynamic=False))


def foreach(swarm: Tensors) -> Callable[[], None]:
    """torch._foreach over the particles' rows, as optimisers do it."""
    x, v, p = (list(rows.unbind()) for rows in swarm.rows[:3])
    g, w = ([row] * len(x) for row in swarm.rows[3:])
    inertia, cognitive, social, repel = swarm.coefficients.t().tolist()

    def call() -> None:
        torch._foreach_mul_(v, inertia)
        for to, since, factors in ((p, x, cognitive), (g, x, social), (x, w, repel)):
            term = torch._foreach_sub(to, since)
            torch._foreach_mul_(term, factors)
            torch._foreach_add_(v, term)
        torch._foreach_add_(x, v, alpha=swarm.step_length)

    return call


def numpy(swarm: Tensors) -> Callable[[], None]:
    """The formula in NumPy, float32 on the CPU."""
    x, v, p, g, w = (rows.numpy() for rows in swarm.rows)
    inertia, cognitive, social, repel = swarm.coefficients.numpy().T[:, :, None]
    step_length = np.float32(swarm.step_length)

    def call() -> None:
        v[:] = inertia * v + cognitive * (p - x) + social * (g - x) + repel * (x - w)
        x[:] = x + step_length * v

    return call


def pyswarms(swarm: Tensors) -> Callable[[], None]:
    """pyswarms' operators on the same arrays, float32 on the CPU.

    They draw a random number for every coordinate, as the classic swarm does, and know neither the repel term nor a
    step length: less work than ours does. Its random numbers are float64, and so are its results.
    """
    # Both the import and the handler open a log file in the working folder.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        from pyswarms.backend.handlers import VelocityHandler
        from pyswarms.backend.operators import compute_position, compute_velocity

        handler = VelocityHandler(strategy="unmodified")
    x, v, p, g, _ = (rows.numpy() for rows in swarm.rows)
    inertia, cognitive, social, _ = swarm.coefficients[0].tolist()
    options = {"w": inertia, "c1": cognitive, "c2": social}
    state = SimpleNamespace(position=x, velocity=v, pbest_pos=p, best_pos=g, options=options)

    def call() -> None:
        state.position, state.velocity = x, v
        state.velocity = compute_velocity(state, None, handler)
        x[:] = compute_position(state, None, None)
        v[:] = state.velocity

    return call


def on_cpu(swarm: Tensors, *, numpy_too: bool = True) -> dict[str, Callable[[], None]]:
    """Every baseline of the update that takes these rows, by name."""
    calls = {"torch eager": eager(swarm), "torch._foreach": foreach(swarm), "torch.compile": compiled(swarm)}
    if numpy_too and swarm.position.dtype == torch.float32 and swarm.position.device.type == "cpu":
        calls["NumPy"] = numpy(swarm)
    return calls
