"""A process that answers this one, such as an engine of a pool: how it starts, ends, and is given up."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import torch

from modelswarms_fast.engines import stopped
from modelswarms_fast.engines.cores import asked_threads, share_cores
from modelswarms_fast.engines.pool.worker_process import Start
from modelswarms_fast.engines.stopped import StoppedProcesses
from modelswarms_fast.errors import InputError

MODULE = ("-m", "modelswarms_fast.engines.pool.worker_process")
LOOK = 1.0  # seconds between two looks at the processes
PATIENCE = 10.0  # seconds that a process has to end by itself
STEP_LIMIT = 300.0  # seconds within which a process that owes an answer says something
START_LIMIT = 1800.0  # and those that it has to load its model
PIPE_LIMIT = 60.0  # seconds in which it takes in a message: a thread of its own does so, whatever its engine does


class Supervisor:
    """Starts one process, tells it what it has to know, and kills it if it does not answer in time."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        start: Any,
        *,
        number: int = 0,
        descriptors: Sequence[int] = (),
        cores: Sequence[int] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`name` begins its messages. Python is given `command` and the descriptor of a pipe, and in it first `start`.

        `number` tells processes with one purpose apart. The process inherits `descriptors`, may use `cores` (all that
        this thread may use), and has `environment` beside this process's own.
        """
        self.name, self.number, self.descriptors = name, number, tuple(descriptors)
        self._command, self._start, self._cores = command, start, cores
        self._environment = dict(environment or {})
        self.restarts_left = 1
        self.begin()

    def begin(self) -> None:
        """Start the process; it has been told nothing yet."""
        self.ready = False
        self.calls: list[tuple[Any, ...]] = []
        self.knows: set[int] = set()
        """Prompts."""
        self._why_killed = ""
        self.pipe, theirs = Pipe()
        self._stopped = StoppedProcesses()
        _limit(self.pipe, PIPE_LIMIT)
        modules = os.pathsep.join(path or os.getcwd() for path in sys.path)  # those that this process can import
        mine = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, self._cores or mine)  # of this thread alone; the process inherits it
            self.process = subprocess.Popen(
                [sys.executable, "-P", *self._command, str(theirs.fileno())],
                env=os.environ | {"PYTHONPATH": modules} | self._environment,
                pass_fds=(theirs.fileno(), *self.descriptors),
                stdin=subprocess.DEVNULL,
                stdout=2,  # whatever it prints is not this program's output
                process_group=0,  # out of reach of a terminal's Ctrl-C from its first moment
            )
        finally:
            os.sched_setaffinity(0, mine)
            theirs.close()
        self.heard()
        self.tell(self._start)

    def heard(self) -> None:
        """It has said something, or owes nothing: its time begins anew."""
        self._last = time.monotonic()

    def tell(self, message: Any) -> None:
        """Send; a process that has ended is noticed where its answers are waited for."""
        try:
            self.pipe.send(message)
        except BlockingIOError:
            self._give_up(f"took in nothing for {PIPE_LIMIT:.0f} s")
        except (BrokenPipeError, ConnectionResetError):
            pass

    def flush(self) -> None:
        """Send all calls in one message."""
        if self.calls:
            calls, self.calls = self.calls, []
            self.tell(calls)

    def check(self, *, owes: bool) -> None:
        """Kill the process if it owes an answer and has said nothing for too long; to be called again and again.

        A process that works says so after each step of its engine (`worker_process.BEAT`). One that is stopped will say
        nothing, and is not waited for as long.
        """
        limit = STEP_LIMIT if self.ready else START_LIMIT
        if self._stopped.too_long([self.process.pid] if owes else []):
            self._give_up(f"was stopped for {stopped.LIMIT:.0f} s")
        if not owes:
            self.heard()
        elif time.monotonic() - self._last > limit:
            self._give_up(f"did not answer for {limit:.0f} s")

    def lives(self) -> bool:
        """Whether the process has not ended; a child of it may hold its pipe open."""
        return self.process.poll() is None

    def cause(self) -> str:
        """How the process ended."""
        code = self.process.poll()
        if self._why_killed or code is None:
            return f"{self._why_killed or 'does not end'} and was killed"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"

    def end(self) -> None:
        """End the process, if it lives."""
        self.pipe.close()
        for stop in (None, self._kill):  # SIGTERM is for this process to answer, and means nothing to that one
            if stop is not None:
                stop()
            try:
                self.process.wait(PATIENCE)
                return
            except subprocess.TimeoutExpired:
                continue

    def _give_up(self, why: str) -> None:
        """From here on it is a process that has ended."""
        self._why_killed = self._why_killed or why  # the first reason
        self._kill()

    def _kill(self) -> None:
        """The process, which has not been waited for, and what it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def engine_process(number: int, count: int, start: Start) -> Supervisor:
    """The process of one of `count` engines, with its share of the cores and of the GPUs."""
    cores = share_cores(sorted(os.sched_getaffinity(0)), number, count)
    return Supervisor(
        f"Engine {number + 1} of {count}",
        MODULE,
        start,
        number=number,
        descriptors=start.descriptors,
        cores=cores,
        environment=_environment(number, count, len(cores), start.config.tensor_parallel),
    )


def _environment(number: int, count: int, cores: int, ranks: int) -> dict[str, str]:
    """Of an engine's process: its threads and its GPUs."""
    environment = {"OMP_NUM_THREADS": str(max(1, min(cores, asked_threads(0) // count or cores)))}
    if torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
        if count * ranks > len(devices):
            raise InputError(
                f"engines is {count} and tensor_parallel {ranks} but there are {len(devices)} GPUs; lower them until "
                "there is a GPU for each."
            )
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices[number * ranks : (number + 1) * ranks])
    return environment


def _limit(pipe: Connection, seconds: float) -> None:
    """Let no send or receive on this end wait longer: then it raises BlockingIOError."""
    whole, rest = divmod(seconds, 1)
    with socket.socket(fileno=os.dup(pipe.fileno())) as end:
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            end.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(whole), int(rest * 1e6)))
