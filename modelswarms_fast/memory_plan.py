"""Where the rows of a search lie: decided before it starts, from how many there are and what it may take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from modelswarms_fast.config import EngineConfig, parse_bytes
from modelswarms_fast.errors import InputError
from modelswarms_fast.extension import _C
from modelswarms_fast.memory import Tier, empty_rows, row_stride
from modelswarms_fast.rows import count_rows
from modelswarms_fast.shared import shared_rows

Place = Tier | Literal["device"]

# The least a cache works with: the global best, the row that is served, and the one that comes next.
LEAST_ROWS = 3

# Of one row in the buffers of a streamed update; stream.py has three of them.
_STREAM_BYTES = 3 * ((1 << 20) + 64)

_WORDS = {"host": "in host memory", "pinned": "in page-locked host memory", "file": "in a file", "device": "on the GPU"}


@dataclass(frozen=True)
class MemoryPlan:
    """Rows, tiers and bytes. In state `weights` the rows are the swarm's, in state `mixture` the experts'."""

    rows: int
    row_bytes: int
    """From one row to the next."""
    tier: Place
    """Where all rows lie: host, pinned, file or device."""
    cache_rows: int
    """Rows that are copied to a faster tier to be served, 0 if they are served from where they lie."""
    bytes: dict[str, int]
    """Held on each tier."""
    moved: dict[str, int]
    """What each phase of an iteration reads and writes of rows: update, load, prefetch."""
    first: tuple[Tier, int]
    """Tier of the host, and rows, that the experts are read into; rows beyond them become the swarm's."""
    folder: Path
    """Of the file tier."""

    def place(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        """The rows that experts are read into, allocated. Raises InputError where a file has no room; MemoryError."""
        tier, rows = self.first
        if tier == "shared":
            return shared_rows(rows, size, dtype)
        try:
            return empty_rows(rows, size, dtype, tier=tier, folder=self.folder)
        except OSError as error:
            raise InputError(f"{error.strerror}; name another folder with spill.") from error

    def as_dict(self) -> dict[str, Any]:
        """What config.json and summary.json say of it."""
        names = ("rows", "row_bytes", "tier", "cache_rows", "bytes", "moved")
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        held = ", ".join(f"{_amount(count)} {_WORDS[tier]}" for tier, count in self.bytes.items())
        moved = ", ".join(f"{phase} {_amount(count)}" for phase, count in self.moved.items())
        cached = f", {self.cache_rows} of them at a time where they are served" if self.cache_rows else ""
        return (
            f"memory: {self.rows} rows of {_amount(self.row_bytes)} {_WORDS[self.tier]}{cached}; {held}; "
            f"an iteration moves: {moved}"
        )


def plan_memory(
    config: EngineConfig,
    *,
    particles: int,
    experts: int,
    size: int,
    dtype: torch.dtype,
    device: torch.device,
    out: Path,
) -> MemoryPlan:
    """The fastest tier that has room for all rows; else a slower one, and what fits of a faster one for serving.

    Args:
        config: its budgets are for rows alone: not for the engine, its base model and what else it keeps.
        particles, experts: P and n.
        size, dtype: of a row.
        device: the engine's.
        out: the run folder; a file lies beside it, or in `config.spill`.

    Raises:
        InputError: a budget is too small for the least that works, or names a GPU that is not used.
    """
    row = row_stride(size, dtype) * dtype.itemsize
    host, on_device = parse_bytes("host_memory", config.host_memory), parse_bytes("device_memory", config.device_memory)
    gpu = device.type != "cpu"
    if config.device_memory is not None and not gpu:
        raise InputError("device_memory is given but the engine runs on the CPU; give host_memory instead.")
    weights = config.state == "weights"
    rows = count_rows(particles) if weights else experts
    most = 2 * particles + 2  # positions; velocities are never served
    extra = 0 if weights else 1  # of a mixture, the row that it is written into
    fast, budget = ("device", on_device) if gpu else ("host", host)
    setting = f"{fast}_memory"
    tier: Place = "device" if gpu else "host"
    cache, held = 0, {fast: (rows + extra) * row}
    if held[fast] > budget:
        buffers = rows * min(3 * row, _STREAM_BYTES) if gpu else 0
        served, near = (LEAST_ROWS, rows) if weights else (1, experts + 1)  # through a cache, and all of them
        least, count = buffers + served * row, served
        if least > held[fast] or (gpu and not weights):  # experts are mixed where they are served
            least, count, buffers = held[fast], near, 0
        if budget < least:
            what = f"{count} rows of {row} bytes" + (f" and {buffers} bytes of buffers" if buffers else "")
            raise InputError(
                f"{setting} is {budget} bytes, but the least that works are {least}: {what}; give {least} or more."
            )
        tier = _slow_tier() if gpu and rows * row <= host else "file"
        cache = min(int(budget - buffers) // row, most) if weights else 0
        held = {tier: rows * row, fast: cache * row + buffers if weights else row}
    number = size * dtype.itemsize
    if weights:
        moved = {"update": (5 * particles + 2) * number, "load": particles * number}
    else:
        moved = {"update": (5 * particles + 2) * experts * 8, "load": particles * (experts + 1) * number}
    if cache:
        moved["prefetch"] = 2 * particles * number
    passing: Tier = "host" if experts * row <= host else "file"  # on their way to a GPU
    first = (passing, experts) if tier == "device" else (tier, rows)
    if config.own_processes and first[0] == "host":
        first = ("shared", rows)
    return MemoryPlan(rows, row, tier, cache, held, moved, first, _folder(config.spill, out))


def _slow_tier() -> Tier:
    return "pinned" if _C is not None and _C.has_cuda else "host"


def _folder(spill: str | None, out: Path) -> Path:
    """Where a file of rows is made. By default the run folder, or the nearest folder above that is there."""
    if spill is not None:
        if not Path(spill).is_dir():
            raise InputError(f"spill is {spill!r}, which is no folder; make it or name another one.")
        return Path(spill)
    return next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())


def _amount(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
