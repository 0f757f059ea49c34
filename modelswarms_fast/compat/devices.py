"""Which engine of a fleet goes on which GPUs; on a CPU all are on one device."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from modelswarms_fast.errors import InputError

VISIBLE = "CUDA_VISIBLE_DEVICES"
CPU = ("cpu",)

Devices = tuple[str, ...]


def visible() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES gives them."""
    given = [*filter(None, os.environ.get(VISIBLE, "").split(","))]
    if torch.cuda.is_available() and not given:
        return [str(number) for number in range(torch.cuda.device_count())]
    return given


def names_of(devices: Sequence[int], gpus: Sequence[str]) -> Devices:
    """The names of GPUs that are given by their place among all. Raises InputError for one that there is not."""
    if not torch.cuda.is_available():
        return CPU
    for device in devices:
        if not 0 <= device < len(gpus):
            raise InputError(f"GPU {device} is asked for, but there are {len(gpus)}; correct gpu_ids.")
    return tuple(dict.fromkeys(gpus[device] for device in devices))


def waves(
    keys: Sequence[Hashable], running: Mapping[Hashable, Devices], names: Devices, known: Sequence[str], together: bool
) -> Iterator[dict[Hashable, Devices]]:
    """Which engines generate at once, and on which devices; one wave after the other.

    Args:
        keys: of the engines that are needed.
        running: engines that there are, those first that were not used for longest. They keep their devices.
        names: devices that were asked for. They are shared out evenly.
        known: devices that others asked for. An engine goes there rather than in the place of another: threads name a
            device each.
        together: each engine takes all of `names`, also one that runs on others.
    """
    free = names if together else (*names, *(name for name in known if name not in names))
    share = len(names) if together else max(1, len(names) // max(1, len(keys)))
    order = [name for devices in running.values() for name in devices]

    def place(name: str) -> tuple[bool, bool, int]:
        return name in order, name not in names, order.index(name) if name in order else 0

    left = sorted(keys, key=lambda key: key not in running)  # before one of them has to end for another
    while left:
        wave = dict[Hashable, Devices]()
        taken = set[str]()
        for key in left:
            if key in running and (not together or running[key] == names):
                mine = running[key]
            else:
                mine = tuple(sorted((name for name in free if name not in taken), key=place)[:share])
            if mine and not taken & set(mine):
                wave[key] = mine
                taken |= set(mine)
        left = [key for key in left if key not in wave]
        yield wave


@contextmanager
def environment(devices: Devices) -> Iterator[None]:
    """The devices that processes which start now may take."""
    before = os.environ.get(VISIBLE)
    if devices != CPU:
        os.environ[VISIBLE] = ",".join(devices)
    try:
        yield
    finally:
        if before is not None:
            os.environ[VISIBLE] = before
        elif devices != CPU:
            del os.environ[VISIBLE]
