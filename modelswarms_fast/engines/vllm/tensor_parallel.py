"""The workers of a tensor-parallel engine: processes of vLLM's, each with its part of the model.

They are told where rows lie in shared memory and read their part of each row there. Only numbers are sent to them:
where rows lie, coefficients, and once the table of the layout.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import wait
from typing import Any

import torch

from modelswarms_fast.engines.cores import share_cores
from modelswarms_fast.engines.protocol import working
from modelswarms_fast.engines.stopped import LIMIT, StoppedProcesses
from modelswarms_fast.errors import InputError
from modelswarms_fast.weights.experts import Experts
from modelswarms_fast.weights.shared_memory import locate

PATIENCE = 10.0  # seconds in which the end of a process is noticed
LOOK = 1.0  # seconds between two looks at whether a process is stopped


def cores_of_ranks(cores: list[int], threads: int, count: int) -> str:
    """Cores for each of `count` workers that share these cores and threads, as vLLM reads them: "0,1|2,3"."""
    each = max(1, threads // count)
    return "|".join(",".join(map(str, share_cores(cores, rank, count)[:each])) for rank in range(count))


class Ranks:
    """Called as the worker of an engine in this process is; a call goes to all ranks and returns when all are done.

    When one process ends, the others are ended as well, and what was asked of them raises EngineError. Rows must lie in
    shared memory.

    Args:
        llm: vLLM's engine, whose workers are the children of this process.
    """

    def __init__(self, llm: Any) -> None:
        self._call_all = llm.collective_rpc
        self._processes = sorted(multiprocessing.active_children(), key=lambda process: process.pid or 0)
        self._end: str | None = None
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        self._call("swarm_follow")

    def swarm_attach(self, serve: str, experts: Experts) -> None:
        """As the worker's."""
        nothing = torch.empty(0)
        self._call("swarm_attach", serve, replace(experts, rows=nothing, room=nothing), locate(experts.room))

    def swarm_serve(self, serve: str) -> Ranks:
        """As the worker's; what it returns loads on all ranks."""
        self._serve = serve
        self._call("swarm_serve", serve)
        return self

    def load(self, slot: int, row: torch.Tensor) -> None:
        """As a serving mode's. Raises ValueError for a row in memory that is not shared."""
        self._call("swarm_load", self._serve, slot, locate(row))

    def load_mixture(self, slot: int, mixture: torch.Tensor) -> None:
        """As a serving mode's."""
        self._call("swarm_load_mixture", self._serve, slot, mixture.tolist())

    def restore(self) -> None:
        """As a serving mode's."""
        self._call("swarm_restore", self._serve)

    def swarm_scrub(self) -> None:
        """As the worker's."""
        self._call("swarm_scrub")

    @contextmanager
    def working(self) -> Iterator[None]:
        """As `engines.working`, and says which process has ended where that is the reason."""
        with working("vLLM"):
            try:
                yield
            except Exception as error:
                if not all(process.is_alive() for process in self._processes):
                    self._watcher.join(PATIENCE)
                if self._end is None:
                    raise
                raise RuntimeError(self._end) from error

    def _call(self, name: str, *arguments: Any) -> None:
        with self.working():
            sentences = self._call_all("swarm_call", args=(name, arguments))
        for sentence in sentences:
            if sentence is not None:
                raise InputError(sentence)

    def _watch(self) -> None:
        sentinels, stopped = {process.sentinel: process for process in self._processes}, StoppedProcesses()
        while not (ended := wait(sentinels, LOOK)):
            if late := stopped.too_long(process.pid or 0 for process in self._processes):
                number = next(index for index, process in enumerate(self._processes) if process.pid == late[0])
                self._give_up(number, f"was stopped for {LIMIT:.0f} s and was killed")
                return
        first = ended[0]
        number = next(index for index, process in enumerate(self._processes) if process.sentinel == first)
        self._processes[number].join(1)
        if self._processes[number].exitcode is None:  # a thread of vLLM's asks as well, and only one is told at once
            time.sleep(0.1)
        code = self._processes[number].exitcode
        how = f"was killed by {signal.Signals(-code).name}" if code is not None and code < 0 else "ended"
        self._give_up(number, how)

    def _give_up(self, number: int, how: str) -> None:
        """End all processes, since one of them has ended or will not go on."""
        self._end = f"its process {number + 1} of {len(self._processes)} {how}"
        for process in self._processes:
            process.kill()
