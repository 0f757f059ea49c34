"""How much memory is free: on this machine, within the limits of its control groups, and on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class FreeMemory:
    """Bytes that can still be taken, and all that the GPU has (0 and 0 without one)."""

    host: int
    device: int = 0
    device_total: int = 0


def free_memory(device: torch.device) -> FreeMemory:
    """What is free now, on the host and on `device` if that is a GPU."""
    if device.type == "cpu":
        return FreeMemory(free_host_memory())
    return FreeMemory(free_host_memory(), *torch.cuda.mem_get_info(device))


def free_host_memory(root: Path = Path("/")) -> int:
    """Bytes that this process can still take: what the machine has, or less where a control group allows less.

    Pages of files that were read count as free, since the system drops them first. `root` is where /proc and /sys are.
    """
    available = _fields(root / "proc/meminfo")["MemAvailable:"] * 1024
    return max(0, min([available, *_left_in_groups(root)]))


def _left_in_groups(root: Path) -> Iterator[int]:
    """What each control group that this process is in leaves it: version 2, and version 1 beside it."""
    groups = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _left(groups, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _left(groups / "memory", path, *names)


def _left(groups: Path, path: str, limit: str, used: str, reclaimable: str) -> Iterator[int]:
    """Of a group and those around it. In a container only the outermost may be found: the path is that outside."""
    group = groups / path.strip("/")
    while True:
        most, now = _text(group / limit).strip(), _text(group / used).strip()
        if most.isdigit() and now.isdigit():  # "max" is no limit
            yield int(most) - int(now) + _fields(group / "memory.stat").get(reclaimable, 0)
        if group == groups:
            return
        group = group.parent


def _fields(path: Path) -> dict[str, int]:
    """The numbers of a file of lines "name number"."""
    lines = [line.split() for line in _text(path).splitlines()]
    return {words[0]: int(words[1]) for words in lines if len(words) >= 2}


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
