"""The process of one engine of a group, seen from the group: how it starts, ends, and whether it hangs."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from modelswarms_fast.engines.pool.worker_process import Start
from modelswarms_fast.engines.protocol import asked_threads, share_cores
from modelswarms_fast.errors import InputError

MODULE = ("-m", "modelswarms_fast.engines.pool.worker_process")
LOOK = 1.0  # seconds between two looks at the processes
PATIENCE = 10.0  # seconds that a process has to end by itself
STILL = 300.0  # seconds of doing nothing after which a process that owes an answer hangs
SILENT = 3600.0  # seconds without an answer or a step after which it does, whatever it computes


class Supervisor:
    """One process, and what it has to be told."""

    def __init__(self, number: int, count: int, start: Start) -> None:
        self.name = f"Engine {number + 1} of {count}"
        self.number, self._count, self._start = number, count, start
        self.restarted = False
        self.begin()

    def begin(self) -> None:
        """Start the process; it has been told nothing yet."""
        self.ready = self.heard = False
        self.calls: list[tuple[Any, ...]] = []
        self.knows: set[int] = set()
        """Prompts."""
        self._silent = self._still = 0  # looks in a row
        self._hung = ""
        self.pipe, theirs = Pipe()
        _limit(self.pipe, STILL)
        cores = share_cores(sorted(os.sched_getaffinity(0)), self.number, self._count)
        command = [sys.executable, "-P", *MODULE, str(theirs.fileno())]
        mine = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, cores)  # of this thread alone; the process inherits it
            self.process = subprocess.Popen(
                command,
                env=_environment(self.number, self._count, len(cores), self._start.config.tensor_parallel),
                pass_fds=(theirs.fileno(), *self._start.descriptors),
                stdin=subprocess.DEVNULL,
                stdout=2,  # whatever an engine prints is not this program's output
                process_group=0,  # out of reach of a terminal's Ctrl-C from its first moment
            )
        finally:
            os.sched_setaffinity(0, mine)
            theirs.close()
        self.tell(self._start)

    def tell(self, message: Any) -> None:
        """Send; a process that has ended is noticed where its answers are waited for."""
        try:
            self.pipe.send(message)
        except BlockingIOError:
            self._give_up(f"took in nothing for {STILL:.0f} s")
        except (BrokenPipeError, ConnectionResetError):
            pass

    def flush(self) -> None:
        """Send all calls in one message."""
        if self.calls:
            calls, self.calls = self.calls, []
            self.tell(calls)

    def look(self, *, owes: bool) -> None:
        """Kill a process that owes an answer and hangs; to be called every LOOK seconds.

        One that is stopped, or waits for what never comes, uses no processor, while the slowest step does: it hangs
        if in all looks of STILL seconds nothing of it ran, was ready to or waited for a disk. One that runs in circles
        does, but neither answers nor steps: it has SILENT seconds. Looks are counted, and not seconds, so that a time
        in which this process was away is no silence of the other.
        """
        if not owes or self.heard:
            self._still = self._silent = 0
        else:
            self._still = self._still + 1 if _idle(self.process.pid) else 0
            self._silent += 1
        self.heard = False
        if self._still * LOOK >= STILL:
            self._give_up(f"stood still for {STILL:.0f} s")
        elif self._silent * LOOK >= SILENT:
            self._give_up(f"ended no step for {SILENT:.0f} s")

    def cause(self) -> str:
        """How the process ended."""
        code = self.process.poll()
        if self._hung or code is None:
            return f"{self._hung or 'does not end'} and was killed"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"

    def end(self) -> None:
        """End the process, if it lives."""
        self.pipe.close()
        for stop in (None, self.process.terminate, self._kill):
            if stop is not None:
                stop()
            try:
                self.process.wait(PATIENCE)
                return
            except subprocess.TimeoutExpired:
                continue

    def _give_up(self, why: str) -> None:
        """From here on it is a process that has ended."""
        self._hung = why
        self._kill()

    def _kill(self) -> None:
        """The process, which has not been waited for, and what it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def _environment(number: int, count: int, cores: int, ranks: int) -> dict[str, str]:
    """Of an engine's process: its threads, its GPUs, and the modules that this process can import."""
    threads = max(1, min(cores, asked_threads(0) // count or cores))
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
    }
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


def _idle(pid: int | str) -> bool:
    """Whether no thread of a process, or of those that it has started, runs, is ready to or waits for a disk."""
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            if (task / "stat").read_text().rpartition(")")[2].split()[0] in {"R", "D"}:
                return False
            children = task / "children"  # some systems do not say
            if children.exists() and not all(map(_idle, children.read_text().split())):
                return False
    except OSError:  # one has just ended
        return False
    return True
