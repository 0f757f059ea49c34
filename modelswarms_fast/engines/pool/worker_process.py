"""The process of one engine among several: does what `EnginePool` writes into a pipe, says what ended.

Run as a module with the descriptor of the pipe as its argument. A message of the pool is a list of calls (name,
arguments) to methods of `Served`; one of this process is a word and what belongs to it. Rows and prompts are named by
where they lie; weights never go through the pipe.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from modelswarms_fast.config import EngineConfig, Sampling, Serve
from modelswarms_fast.engines.protocol import Engine, Request
from modelswarms_fast.engines.start import start_here
from modelswarms_fast.errors import LONGEST, EngineError, InputError, short
from modelswarms_fast.weights.experts import Experts
from modelswarms_fast.weights.mixing import row_form
from modelswarms_fast.weights.shared_memory import attach

LEAVING: list[Callable[[], None]] = []  # what this process does before it ends
AHEAD = 32  # requests that keep an engine busy which does not say how many do
BEAT = 1.0  # seconds after which a step is told of even if no request has ended in it


@dataclass(frozen=True)
class Start:
    """The first message: what engine to start. The room of `experts` is left out; where it lies is said beside."""

    base: Path
    experts: Experts | None
    config: EngineConfig
    descriptors: tuple[int, ...]
    """Of the shared memory, inherited."""
    room: tuple[int, int, int, int]
    """Of the experts: descriptor, first byte, number of rows, elements from one to the next."""


class Served:
    """An engine, and what the pool's calls mean to it."""

    def __init__(
        self,
        base: Path,
        experts: Experts | None,
        config: EngineConfig,
        row_at: Callable[..., torch.Tensor],
        send: Callable[[tuple[Any, ...]], None],
    ) -> None:
        """`row_at`: the row [D] that the arguments of `load` name. `send` takes this engine's messages."""
        self._row_at = row_at
        self.engine: Engine = start_here(base, experts, config)
        self.engine.watch = self._watch
        self.running: set[int] = set()
        self._seen: list[tuple[str, float, float]] = []
        self._said = 0.0
        self._prompts: dict[int, list[int]] = {}
        self._send = send

    def load(self, slot: int, *place: Any) -> None:
        """Load the row that lies at this place."""
        self.engine.load(slot, self._row_at(*place).to(self.engine.device))

    def load_mixture(self, slot: int, mixture: list[float]) -> None:
        """Load a mixture of the experts."""
        self.engine.load_mixture(slot, torch.tensor(mixture, dtype=torch.float64))

    def autotune(self, prompts: list[int], max_tokens: int) -> None:
        """Answer with the fastest mode."""
        self.engine.autotune([self._prompts[prompt] for prompt in prompts], max_tokens)
        self._send(("answer", (self.engine.serve, self.engine.auto_timings)))

    def set_mode(self, mode: Serve) -> None:
        """Serve in the mode that was chosen."""
        self.engine.set_mode(mode)

    def count_slots(self) -> None:
        """Answer with the slots of the mode."""
        self._send(("answer", self.engine.slots))

    def restore(self) -> None:
        """Serve the base model again."""
        self.engine.restore()

    def prompt(self, number: int, tokens: list[int]) -> None:
        """Learn a prompt; requests name it by its number."""
        self._prompts[number] = tokens

    def forget(self, numbers: list[int]) -> None:
        """Forget prompts."""
        for number in numbers:
            del self._prompts[number]

    def submit(
        self,
        key: int,
        slot: int | None,
        prompt: int,
        max_tokens: int,
        continuation: int | None,
        sampling: Sampling | None,
    ) -> None:
        """Begin a request."""
        more = None if continuation is None else self._prompts[continuation]
        self.engine.submit(key, Request(slot, self._prompts[prompt], more, sampling), max_tokens)
        self.running.add(key)

    def drop(self, keys: list[int]) -> None:
        """Give up requests, of which some may have ended."""
        self.engine.drop([key for key in keys if key in self.running])
        self.running.difference_update(keys)

    def log_probs(self, slot: int | None, prompt: int, top: int) -> None:
        """Answer with log-probabilities."""
        self._send(("answer", self.engine.log_probs(Request(slot, self._prompts[prompt]), top)))

    def step(self) -> None:
        """Work on what runs, and say what ended."""
        ended = self.engine.step()
        if ended:
            self.running.difference_update(key for key, _ in ended)
            self._say([(key, *completion) for key, completion in ended])

    def _watch(self, what: str, lane: int, begin: float, end: float) -> None:
        self._seen.append((what, begin, end))
        if end - self._said > BEAT:  # the pool is to know that there are steps, though nothing has ended
            self._say([])

    def _say(self, ended: list[tuple[Any, ...]]) -> None:
        self._send(("ended", ended, self._seen))
        self._seen, self._said = [], time.perf_counter()


class Memory:
    """The shared memory that a process was given, in which rows lie."""

    def __init__(self, start: Start) -> None:
        self._all = {descriptor: attach(descriptor) for descriptor in start.descriptors}
        self.experts = start.experts
        if self.experts is not None:
            self._layout, layout = row_form(self.experts).layout, self.experts.layout
            descriptor, offset, count, stride = start.room
            memory = self._all[descriptor][offset:].view(layout.dtype)
            room = memory.as_strided((count, layout.size), (stride, 1))
            self.experts = replace(self.experts, rows=room[: len(self.experts.names)], room=room)

    def row_at(self, descriptor: int, offset: int) -> torch.Tensor:
        """The row [D] that begins at this byte."""
        return self._all[descriptor][offset : offset + self._layout.nbytes].view(self._layout.dtype)


def listen(pipe: Connection, messages: queue.SimpleQueue[Any]) -> None:
    """Take messages as they come, so that the sender never waits for a step; the end of the sender is our end."""
    try:
        while True:
            messages.put(pipe.recv())
    except (EOFError, OSError):
        for leave in LEAVING:
            with suppress(Exception):
                leave()
        os._exit(0)  # whatever the main thread does: nobody will read it


def ready(engine: Engine) -> tuple[Any, ...]:
    """The message that the engine is there, with what the pool has to know of it."""
    ahead = getattr(engine, "ahead", AHEAD)
    return ("ready", engine.serve, engine.slots, engine.dtype, engine.max_model_len, ahead)


def serve(served: Served, calls: queue.SimpleQueue[list[tuple[Any, ...]]]) -> None:
    """Do what comes, for ever."""
    while True:
        waiting = [] if served.running else calls.get()
        while not calls.empty():
            waiting += calls.get()
        for name, *arguments in waiting:
            getattr(served, name)(*arguments)
        if served.running:
            served.step()


def main(descriptor: int) -> None:
    """Serve until the pipe is closed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the pool's to answer; its end is seen in the pipe
        signal.signal(number, signal.SIG_IGN)
    pipe = Connection(descriptor)
    try:
        start = pipe.recv()
    except (EOFError, OSError):
        return
    calls: queue.SimpleQueue[list[tuple[Any, ...]]] = queue.SimpleQueue()
    threading.Thread(target=listen, args=(pipe, calls), daemon=True).start()
    try:
        memory = Memory(start)
        served = Served(start.base, memory.experts, start.config, memory.row_at, pipe.send)
        engine = served.engine
        if (leave := getattr(engine, "leave", None)) is not None:
            LEAVING.append(leave)
        pipe.send(ready(engine))
        serve(served, calls)
    except (BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        pipe.send(("failed", portable(error)))
        threading.Event().wait()  # until the pool closes the pipe


def portable(error: Exception) -> Exception:
    """What can be raised on the other side: what is one sentence as it is; the rest as one, its trace beside it."""
    if isinstance(error, InputError | EngineError):
        return error
    failure = EngineError(f"an engine failed ({type(error).__name__}: {short(error, LONGEST // 2)}) and cannot go on.")
    failure.trace = "".join(traceback.format_exception(error))
    return failure


if __name__ == "__main__":
    # As the module that the pool's pickles name, not as __main__: there is one Start then.
    from modelswarms_fast.engines.pool import worker_process

    worker_process.main(int(sys.argv[1]))
