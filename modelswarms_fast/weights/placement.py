"""Where the rows of a search lie: decided before it starts, from how many there are and what it may take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from modelswarms_fast.config import EngineConfig, parse_bytes
from modelswarms_fast.errors import InputError
from modelswarms_fast.ops.extension import _C
from modelswarms_fast.weights.arena import Tier, empty_rows, row_stride
from modelswarms_fast.weights.row_table import count_rows
from modelswarms_fast.weights.shared_memory import shared_rows

Place = Tier | Literal["shared", "device"]
Amounts = dict[Place, int]

# The least a cache works with: the global best, the row that is served, and the one that comes next.
LEAST_ROWS = 3

# Of one row in the buffers of a streamed update; stream.py has three of them.
_STREAM_BYTES = 3 * ((1 << 20) + 64)

# From the fastest to the slowest.
_WORDS: dict[Place, str] = {
    "device": "on the GPU",
    "pinned": "in page-locked host memory",
    "host": "in host memory",
    "file": "in a file",
}


@dataclass(frozen=True)
class Placement:
    """Rows, tiers and bytes. In state `weights` the rows are the swarm's, in state `mixture` the experts'."""

    rows: int
    row_bytes: int
    """From one row to the next."""
    tiers: Amounts
    """Rows on each tier, the first rows on the fastest: positions come before velocities, and low numbers are used
    first."""
    cache_rows: int
    """Rows that are copied to the fast tier to be served, 0 if all are served from where they lie."""
    bytes: Amounts
    """Held on each tier."""
    moved: dict[str, Amounts]
    """What each phase of an iteration (update, load, prefetch) reads and writes on each tier.

    Of a file the most it can be: it depends on how many bests need a row.
    """
    first: tuple[Tier | Literal["shared"], int, int]
    """Tier of the host, and rows, that the experts are read into (rows beyond them become the swarm's), and how many
    of them lie in a file."""
    folder: Path
    """Of the file."""

    @property
    def served_in_place(self) -> int:
        """So many of the first rows are served from where they lie."""
        return 0 if self.cache_rows and "device" in self.bytes else self.rows - self.tiers.get("file", 0)

    def place(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        """The rows that experts are read into, allocated. Raises InputError where a file has no room; MemoryError."""
        tier, rows, spilled = self.first
        if tier == "shared":
            return shared_rows(rows, size, dtype)
        try:
            return empty_rows(rows, size, dtype, tier=tier, folder=self.folder, spilled=spilled)
        except OSError as error:
            raise InputError(f"{error.strerror}; name another folder with spill.") from error

    def as_dict(self) -> dict[str, Any]:
        """What config.json and summary.json say of it."""
        names = ("rows", "row_bytes", "tiers", "cache_rows", "bytes", "moved")
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        lie = ", ".join(f"{count} {_WORDS[tier]}" for tier, count in self.tiers.items())
        if self.cache_rows:
            fast = _WORDS["device" if "device" in self.bytes else "host"]
            others = "the others" if self.served_in_place else "they"
            lie += f"; {others} are served from copies of {self.cache_rows} at a time {fast}"
        moved = "; ".join(f"{phase} {_amounts(amounts)}" for phase, amounts in self.moved.items())
        most = "at most " if len(self.tiers) > 1 else ""
        return (
            f"memory: {self.rows} rows of {_amount(self.row_bytes)}, {lie}\n"
            f"held: {_amounts(self.bytes)}\n"
            f"an iteration moves {most}by tier: {moved}"
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
) -> Placement:
    """As many rows as fit on the fastest tier, the next ones on the next, the last ones in a file.

    On a CPU the rows in memory are served from there, and a few copies of those in the file. On a GPU rows are served
    from its memory: all lie there, or none but copies of the rows in the host's memory and the file.

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
    positions = 2 * particles + 2  # the first rows of a swarm; velocities are never served
    extra = 0 if weights else 1  # of a mixture, the row that it is written into
    fast: Place = "device" if gpu else "host"
    budget = on_device if gpu else host
    near, far, cache, buffers = fast, 0, 0, 0  # where rows lie, and how many of them in a file instead
    if (rows + extra) * row > budget:
        buffers = rows * min(3 * row, _STREAM_BYTES) if gpu else 0
        served, everything = (LEAST_ROWS, rows) if weights else (1, experts + 1)  # through a cache, and all of them
        least, count = buffers + served * row, served
        if least > (rows + extra) * row or (gpu and not weights):  # experts are mixed where they are served
            least, count, buffers = (rows + extra) * row, everything, 0
        if budget < least:
            what = f"{count} rows of {row} bytes" + (f" and {buffers} bytes of buffers" if buffers else "")
            raise InputError(
                f"{fast}_memory is {budget} bytes, but the least that works are {least}: {what}; give {least} or more."
            )
        fit = int(budget - buffers) // row
        if gpu:
            near, cache = _slow_tier(), min(fit, positions)
            fit = rows if rows * row <= host else int(host) // row
        elif weights and fit < positions:
            cache = LEAST_ROWS
        far = rows - (fit if gpu else fit - cache - extra)
    number = size * dtype.itemsize
    held = Counter({near: (rows - far) * row, "file": far * row})
    held[fast] += (cache + extra) * row + buffers
    if weights:
        moved = _moved(particles, number, near, fast, far, cache)
    else:
        loads: Counter[Place] = Counter({near: particles * (rows - far) * number, "file": particles * far * number})
        loads[fast] += particles * number  # the mixture itself
        moved = {"update": Counter({"host": (5 * particles + 2) * experts * 8}), "load": loads}
    if near != "device":
        first: tuple[Tier | Literal["shared"], int, int] = (near, rows, far)
    else:  # they pass through the host
        first = ("host", experts, 0 if experts * row <= host else experts)
    if config.own_processes and first[0] == "host" and not first[2]:
        first = ("shared", rows, 0)
    return Placement(
        rows=rows,
        row_bytes=row,
        tiers=_by_tier({near: rows - far, "file": far}),
        cache_rows=cache,
        bytes=_by_tier(held),
        moved={phase: _by_tier(amounts) for phase, amounts in moved.items()},
        first=first,
        folder=_folder(config.spill, out),
    )


def _moved(particles: int, number: int, near: Place, fast: Place, far: int, cache: int) -> dict[str, Counter[Place]]:
    """Of a swarm in state `weights`, whose last `far` rows lie in a file: its velocities, and then positions.

    Rows of `number` bytes lie on the tier `near` or in the file and are served on `fast`.
    """
    everything = 5 * particles + 2
    velocities = min(far, particles)
    positions = far - velocities
    written = min(positions, particles)  # not more new positions than particles, and these are served
    in_file = 2 * velocities + positions + written
    update: Counter[Place] = Counter({near: everything - in_file, "file": in_file})
    if near != fast:
        update[fast] += 2 * everything  # into the buffers and out of them, and what is computed in between
    load: Counter[Place] = Counter({fast: particles})
    moved = {"update": update, "load": load}
    if cache:
        copied = particles if near != fast else written
        moved["prefetch"] = Counter({near: copied - written, "file": written})
        moved["prefetch"][fast] += copied
    return {phase: Counter({tier: rows * number for tier, rows in amounts.items()}) for phase, amounts in moved.items()}


def _by_tier(amounts: Mapping[Place, int]) -> Amounts:
    """The fastest first, and none that has nothing."""
    return {tier: amounts[tier] for tier in _WORDS if amounts.get(tier)}


def _slow_tier() -> Tier:
    return "pinned" if _C is not None and _C.has_cuda else "host"


def _folder(spill: str | None, out: Path) -> Path:
    """Where a file of rows is made. By default the run folder, or the nearest folder above that is there."""
    if spill is not None:
        if not Path(spill).is_dir():
            raise InputError(f"spill is {spill!r}, which is no folder; make it or name another one.")
        return Path(spill)
    return next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())


def _amounts(amounts: Amounts) -> str:
    return ", ".join(f"{_amount(count)} {_WORDS[tier]}" for tier, count in amounts.items())


def _amount(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
