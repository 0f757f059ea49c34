"""Engines of this node, each in a process of its own; rows lie in shared memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from modelswarms_fast.config import EngineConfig
from modelswarms_fast.engines.pool.members import Message
from modelswarms_fast.engines.pool.supervisor import Supervisor, engine_process
from modelswarms_fast.engines.pool.worker_process import Start
from modelswarms_fast.weights.experts import Experts
from modelswarms_fast.weights.mixing import row_form
from modelswarms_fast.weights.shared_memory import place_of, shared_rows


class Processes:
    """`config.engines` processes. Weights never go through their pipes.

    A row in shared memory (`shared_rows`) is read there by the engine: it must not change before the requests submitted
    to its slot have ended or been dropped. Any other row is copied first.

    Raises InputError if there are too few GPUs.
    """

    def __init__(self, base: Path, experts: Experts | None, config: EngineConfig) -> None:
        descriptors: tuple[int, ...] = ()
        room = (0, 0, 0, 0)
        if experts is not None:
            layout = row_form(experts).layout
            # An engine serves as many rows as it has LoRA slots, otherwise one.
            several = config.serve in ("slots", "auto") and experts.combine == "factors"
            copies = config.engines * config.slots if several else config.engines
            self._copies = shared_rows(copies, layout.size, layout.dtype)
            self.room = experts.room
            if place_of(self.room) is None:  # such as rows in a file
                self.room = self._copies[:1]  # stands for experts of which nothing is mixed
                if config.state == "mixture" or config.serve == "auto":
                    self.room = shared_rows(len(experts.rows), experts.layout.size, experts.layout.dtype)
                    self.room.copy_(experts.rows)
            descriptor, offset = _in_shared_memory(self.room)
            descriptors = tuple({descriptor, _in_shared_memory(self._copies)[0]})
            room = (descriptor, offset, len(self.room), self.room.stride(0))
            nothing = torch.empty(0)
            experts = replace(experts, rows=nothing, room=nothing)
        self._descriptors = descriptors
        start = Start(base, experts, replace(config, engines=1), descriptors, room)
        self.all: list[Supervisor] = []
        try:
            for number in range(config.engines):
                self.all.append(engine_process(number, config.engines, start))
        except BaseException:
            self.close()
            raise

    def wait(self, seconds: float) -> Iterator[tuple[Supervisor, Message | None]]:
        """What has come through the pipes."""
        pipes = {one.pipe: one for one in self.all}
        for pipe in wait(pipes, timeout=seconds):
            assert isinstance(pipe, Connection)
            pipes[pipe].heard()
            try:
                message = pipe.recv()
            except (EOFError, OSError):
                yield pipes[pipe], None
            else:
                yield pipes[pipe], message

    def place(self, slot: int, row: torch.Tensor) -> tuple[Any, ...]:
        """Descriptor of the row's memory and its first byte there."""
        place = place_of(row) if row.stride(0) == 1 else None
        # Only memory that the processes have: rows may come from elsewhere.
        if place is None or place[0] not in self._descriptors:
            copy = self._copies[slot % len(self._copies)]
            copy.copy_(row)
            place = _in_shared_memory(copy)
        return place

    def close(self) -> None:
        """End the processes and wait for them."""
        for one in self.all:
            one.pipe.close()  # all at once: each ends when it sees this
        for one in self.all:
            one.end()
        self.all = []


def _in_shared_memory(tensor: torch.Tensor) -> tuple[int, int]:
    place = place_of(tensor)
    assert place is not None
    return place
