"""Where the rows of a search lie: in the memory of a GPU, in the host's memory, or in a file.

It is decided before the search starts, from how many rows there are and how much memory they may take.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from modelswarms_fast.config import Combine, EngineConfig, parse_bytes
from modelswarms_fast.errors import InputError, quoted
from modelswarms_fast.ops.extension import _C
from modelswarms_fast.weights.arena import Tier, empty_rows, row_stride
from modelswarms_fast.weights.free_memory import FreeMemory, free_memory
from modelswarms_fast.weights.row_table import count_rows
from modelswarms_fast.weights.shared_memory import shared_rows
from modelswarms_fast.weights.streaming import buffer_bytes

# Left free by a default budget, beside the engine's weights: for Python, the engine's cache and what a step computes.
HOST_RESERVE = 4 << 30
DEVICE_RESERVE = 1 << 30

# The fewest rows that a cache works with: the global best, the row that is served, and the next one.
LEAST_CACHED = 3

# From the fastest to the slowest.
_WORDS: dict[Tier | Literal["device"], str] = {
    "device": "on the GPU",
    "pinned": "in page-locked memory",
    "host": "in memory",
    "file": "in a file",
}

Amounts = dict[Tier | Literal["device"], int]


@dataclass(frozen=True)
class Placement:
    """Rows and bytes on each tier. In state `weights` the rows are the swarm's, in state `mixture` the experts'."""

    owners: str
    """Whose rows these are, such as "8 particles"."""
    row_bytes: int
    """From one row to the next."""
    tiers: Amounts
    """Rows on each tier, the first rows on the fastest. Positions come before velocities, and low numbers are used
    first."""
    cache_rows: int
    """Rows of the cache on the fast tier, through which rows of slower tiers are served; 0 if there is none."""
    bytes: Amounts
    """Held on each tier: rows, cache, and buffers."""
    host_tier: Tier | Literal["shared"]
    """Kind of the host's memory that the experts are read into."""
    host_rows: int
    """Rows that are allocated there: all, or only the experts if the rows lie on a GPU."""
    file_rows: int
    """So many of the last of these lie in a file."""
    folder: Path
    """Of the file."""

    @property
    def rows(self) -> int:
        """On all tiers."""
        return sum(self.tiers.values())

    @property
    def served_in_place(self) -> int:
        """So many of the first rows are served from where they lie, the others through the cache."""
        if self.cache_rows and "device" in self.bytes:
            return 0
        return self.rows - self.tiers.get("file", 0)

    def allocate(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        """Rows [host_rows, size] to read the experts into. Raises InputError if the disk has no room; MemoryError."""
        if self.host_tier == "shared":
            return shared_rows(self.host_rows, size, dtype)
        where: dict[str, Any] = {"tier": self.host_tier, "folder": self.folder, "spilled": self.file_rows}
        try:
            return empty_rows(self.host_rows, size, dtype, **where)
        except OSError as error:
            raise InputError(f"{error.strerror}; name another folder with spill.") from error

    def as_dict(self) -> dict[str, Any]:
        """What config.json and summary.json say of it."""
        return {name: getattr(self, name) for name in ("rows", "row_bytes", "tiers", "cache_rows", "bytes")}

    def __str__(self) -> str:
        total = f"{_amount(self.rows * self.row_bytes)} of weights for {self.owners}"
        if len(self.tiers) == 1:
            lie = _WORDS[next(iter(self.tiers))]
        else:
            lie = ", ".join(f"{_amount(rows * self.row_bytes)} {_WORDS[tier]}" for tier, rows in self.tiers.items())
        return f"{total}, {lie}"

    def details(self) -> str:
        """Lines that say what each tier holds, and how rows come to be served."""
        lie = ", ".join(f"{count} {_WORDS[tier]}" for tier, count in self.tiers.items())
        lines = [f"{self.rows} rows of {_amount(self.row_bytes)}: {lie}"]
        if self.cache_rows:
            fast = _WORDS["device" if "device" in self.bytes else "host"]
            lines.append(
                f"rows from {self.served_in_place} on are served through a cache of {self.cache_rows} rows {fast}"
            )
        held = ", ".join(f"{_amount(count)} {_WORDS[tier]}" for tier, count in self.bytes.items())
        return "\n".join([*lines, f"held in all: {held}"])


@dataclass(frozen=True)
class Demand:
    """The rows that want a place, of one size."""

    weights: bool
    """State `weights`: positions, bests and velocities of all particles. Otherwise the experts."""
    particles: int
    experts: int
    row: int
    """Bytes from one row to the next."""
    combine: Combine = "factors"

    @property
    def rows(self) -> int:
        """That are kept."""
        return count_rows(self.particles) if self.weights else self.experts

    @property
    def positions(self) -> int:
        """The first rows. The others are velocities, which no engine serves."""
        return 2 * self.particles + 2 if self.weights else self.experts

    @property
    def resident(self) -> int:
        """Bytes of all rows on one tier, with the row that a mixture is written into."""
        return (self.rows + self.mixed) * self.row

    @property
    def mixed(self) -> int:
        """Rows in whose memory a mixture is written: with `delta` its rank is that of all experts together."""
        return 0 if self.weights else self.experts if self.combine == "delta" else 1


@dataclass(frozen=True)
class Tiers:
    """The outcome of an arithmetic: rows on each tier, rows of the cache, bytes on each tier."""

    rows: Amounts
    cache: int
    bytes: Amounts


def on_cpu(demand: Demand, budget: int) -> Tiers | int:
    """As many rows in memory as `budget` bytes allow, the last ones in a file; or the least budget that works.

    Velocities are the last rows. Where positions too lie in the file, they are served through a cache in memory.
    """
    fit = budget // demand.row
    if demand.resident <= budget:
        near, cache, other = demand.rows, 0, demand.resident - demand.rows * demand.row
    elif not demand.weights:  # an expert in the file is mixed from there
        near, cache, other = fit - demand.mixed, 0, demand.mixed * demand.row
    elif fit >= demand.positions:
        near, cache, other = fit, 0, 0
    else:
        near, cache, other = fit - LEAST_CACHED, LEAST_CACHED, LEAST_CACHED * demand.row
    if near < 0:
        return other
    far = demand.rows - near
    return Tiers(_some(host=near, file=far), cache, _some(host=near * demand.row + other, file=far * demand.row))


def on_gpu(demand: Demand, budget: int) -> Tiers | int:
    """All rows on the GPU; or the least budget that works."""
    if demand.resident > budget:
        return demand.resident
    return Tiers(_some(device=demand.rows), 0, _some(device=demand.resident))


def streamed_to_gpu(demand: Demand, budget: int, host_budget: int, near: Tier) -> Tiers | int:
    """Rows on the host (`near`) and in a file, cache and buffers on the GPU; or the least budget that works.

    Updates pass through the buffers. Experts of state `mixture` are mixed on the GPU and so have to lie there.
    """
    buffers = demand.rows * buffer_bytes(demand.row)
    least = buffers + LEAST_CACHED * demand.row
    if not demand.weights or least >= demand.resident:
        return demand.resident
    if budget < least:
        return least
    cache = min((budget - buffers) // demand.row, demand.positions)
    in_memory = min(host_budget // demand.row, demand.rows)
    far = demand.rows - in_memory
    amounts = {"device": cache * demand.row + buffers, near: in_memory * demand.row, "file": far * demand.row}
    return Tiers(_some(**{near: in_memory, "file": far}), cache, _some(**amounts))


def plan_memory(
    config: EngineConfig,
    *,
    particles: int,
    experts: int,
    size: int,
    dtype: torch.dtype,
    device: torch.device,
    out: Path,
    gpu_memory_utilization: float = 0.0,
    engine_bytes: int = 0,
    free: FreeMemory | None = None,
) -> Placement:
    """As many rows as fit on the fastest tier, the next ones on the next, the last ones in a file.

    A budget that is not given is what is free, less a reserve and what the engine will take.

    Args:
        config: has the state and the budgets. These are for rows alone, not for the engine and its base model.
        particles, experts: P and n.
        size, dtype: of a row.
        device: the engine's.
        out: the run folder; a file lies beside it, or in `config.spill`.
        gpu_memory_utilization: the share of the GPU that an engine which is not started yet will take.
        engine_bytes: what it will take besides, on its device.
        free: what is free; asked of the system if not given.

    Raises:
        InputError: a budget is too small for the least that works, or names a GPU that is not used.
    """
    gpu = device.type != "cpu"
    if config.device_memory is not None and not gpu:
        raise InputError("device_memory is given but the engine runs on the CPU; give host_memory instead.")
    free = free or free_memory(device)
    host = _host_budget(config, free, 0 if gpu else engine_bytes)
    row = row_stride(size, dtype) * dtype.itemsize
    demand = Demand(config.state != "mixture", particles, experts, row, config.combine)
    near = host_tier_of_gpu()
    if gpu:
        taken = int(gpu_memory_utilization * free.device_total) + engine_bytes
        budget = _device_budget(config, free, taken)
        found = on_gpu(demand, budget)
        if isinstance(found, int):
            found = streamed_to_gpu(demand, budget, host, near)
    else:
        budget, near = host, "host"
        found = on_cpu(demand, budget)
    if isinstance(found, int):
        raise InputError(_too_small("device_memory" if gpu else "host_memory", config, budget, found, demand))
    host_tier: Tier | Literal["shared"] = near
    host_rows, file_rows = demand.rows, found.rows.get("file", 0)
    if "device" in found.rows:  # the experts pass through the host
        host_tier, host_rows, file_rows = "host", experts, 0 if experts * row <= host else experts
    elif config.own_processes and not file_rows:
        host_tier = "shared"
    return Placement(
        owners=f"{particles} particles" if demand.weights else f"{experts} experts",
        row_bytes=row,
        tiers=found.rows,
        cache_rows=found.cache,
        bytes=found.bytes,
        host_tier=host_tier,
        host_rows=host_rows,
        file_rows=file_rows,
        folder=_folder(config.spill, out),
    )


def host_tier_of_gpu() -> Tier:
    """Where rows lie in the host's memory that a GPU copies: page-locked, if the extension can do that."""
    return "pinned" if _C.has_cuda else "host"


def fits(
    config: EngineConfig,
    *,
    particles: int,
    experts: int,
    size: int,
    dtype: torch.dtype,
    device: torch.device,
    gpu_memory_utilization: float = 0.0,
    engine_bytes: int = 0,
    free: FreeMemory | None = None,
) -> bool:
    """Whether all 3P + 2 rows of state `weights` fit the budget where the engine runs: no file, no cache.

    The arguments are those of `plan_memory`; `config.state` is not looked at.
    """
    free = free or free_memory(device)
    demand = Demand(True, particles, experts, row_stride(size, dtype) * dtype.itemsize)
    if device.type == "cpu":
        return demand.resident <= _host_budget(config, free, engine_bytes)
    taken = int(gpu_memory_utilization * free.device_total) + engine_bytes
    return demand.resident <= _device_budget(config, free, taken)


def _host_budget(config: EngineConfig, free: FreeMemory, taken: int) -> int:
    """Bytes for rows in the host's memory. A small machine tries with a quarter of what it has."""
    if config.host_memory is not None:
        return int(parse_bytes("host_memory", config.host_memory))
    return max(free.host - HOST_RESERVE - taken, free.host // 4)


def _device_budget(config: EngineConfig, free: FreeMemory, taken: int) -> int:
    """Bytes for rows in the GPU's memory."""
    if config.device_memory is not None:
        return int(parse_bytes("device_memory", config.device_memory))
    return max(free.device - DEVICE_RESERVE - taken, 0)


def _too_small(name: str, config: EngineConfig, budget: int, least: int, demand: Demand) -> str:
    what = f"the rows of {demand.particles} particles" if demand.weights else f"{demand.experts} experts"
    if getattr(config, name) is not None:
        return f"{name} is {budget} bytes, but {what} need {least} bytes at least; give {least} or more."
    where = "the GPU" if name == "device_memory" else "memory"
    lower = "a lower gpu_memory_utilization, " if name == "device_memory" else ""
    return (
        f"{budget} bytes are free for rows in {where}, but {what} need {least} bytes at least; "
        f"use {lower}fewer particles or experts, or give {name}."
    )


def _some(**amounts: int) -> Amounts:
    """The fastest tier first, and none that has nothing."""
    return {tier: amounts[tier] for tier in _WORDS if amounts.get(tier)}


def _folder(spill: str | None, out: Path) -> Path:
    """Where a file of rows is made. By default the run folder, or the nearest folder above that is there."""
    if spill is not None:
        if not Path(spill).is_dir():
            raise InputError(f"spill is {quoted(spill)}, which is no folder; make it or name another one.")
        return Path(spill)
    return next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())


def _amount(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
