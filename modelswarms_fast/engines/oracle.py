"""The transformers engine in a process of its own: what the parity check compares another engine with.

vLLM changes classes of transformers in the process in which it builds a model. Where it serves a model by its
transformers backend, transformers itself can no longer make or run that model there. This process never imports vLLM.

Run as a module with the descriptor of a pipe as its argument. A message to it is a method of `_Served` and its
arguments; it answers each with "answer" and the result, or once with "failed" and the error.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from modelswarms_fast.engines.pool.supervisor import LOOK, Supervisor
from modelswarms_fast.engines.pool.worker_process import listen, portable
from modelswarms_fast.engines.protocol import Request
from modelswarms_fast.engines.transformers import TransformersEngine
from modelswarms_fast.errors import EngineError
from modelswarms_fast.weights.experts import Experts
from modelswarms_fast.weights.mixing import row_form
from modelswarms_fast.weights.shared_memory import place_of, shared_rows

MODULE = ("-m", "modelswarms_fast.engines.oracle")
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True)
class Start:
    """The first message: what to load."""

    base: Path
    experts: Experts
    """Without their rows."""
    dtype: str


class Oracle:
    """Next-token log-probabilities of rows, by transformers on the CPU.

    It starts to load the model when it is made, and whoever asks first waits for it. It holds one copy of the base
    model, and a row while that is loaded. What it says of the base model is kept here: once a row is loaded, the base
    cannot be asked about another prompt.

    Raises:
        InputError: from any method, the model cannot be loaded, or the layout does not fit it.
        EngineError: from any method, the process has ended or does not answer.
    """

    def __init__(self, base: Path, experts: Experts, dtype: str) -> None:
        nothing = torch.empty(0)
        start = Start(base, replace(experts, rows=nothing, room=nothing), dtype)
        self._layout = row_form(experts).layout
        self._process = Supervisor("The process of the parity check", MODULE, start, environment=NO_GPU)
        self._base: dict[tuple[int, ...], dict[int, float]] = {}
        self._closed = False

    def wait(self) -> None:
        """Wait until the model is loaded, and the cores are free again."""
        if not self._process.ready:
            self._receive()
            self._process.ready = True

    def load(self, slot: int, row: torch.Tensor) -> None:
        """Look at the particle whose flat row [D] this is; there is one slot."""
        if slot != 0:
            raise IndexError(f"slot {slot} of 1")
        shared = shared_rows(1, self._layout.size, self._layout.dtype)[0]
        shared.copy_(row)
        place = place_of(shared)
        assert place is not None
        self._ask("load", f"/proc/{os.getpid()}/fd/{place[0]}")

    def restore(self) -> None:
        """Look at the base model: at what was said of it before the first load."""

    def log_probs(self, request: Request, top: int) -> dict[int, float]:
        """Natural log-probabilities of the `top` most likely next tokens by token id; slot None is the base model."""
        if request.slot is not None:
            return self._ask("log_probs", request, top)  # type: ignore[no-any-return]
        known = (top, *request.prompt)
        if known not in self._base:
            self._base[known] = self._ask("log_probs", request, top)
        return self._base[known]

    def close(self) -> None:
        """End the process; what it has said of the base model is still known."""
        if not self._closed:
            self._closed = True
            self._process.end()

    def _ask(self, name: str, *arguments: Any) -> Any:
        if self._closed:
            raise RuntimeError("close() has ended the process of the parity check")
        self.wait()
        self._process.heard()
        self._process.tell((name, arguments))
        return self._receive()

    def _receive(self) -> Any:
        """The next answer."""
        process = self._process
        while True:
            if wait([process.pipe], timeout=LOOK):
                try:
                    what, content = process.pipe.recv()
                except (EOFError, OSError):
                    break
                if what == "failed":
                    self.close()
                    raise content
                return content
            if process.process.poll() is not None:  # a child of the process may hold its pipe open
                break
            process.check(owes=True)
        self.close()
        raise EngineError(
            f"{process.name} {process.cause()}; it holds a second base model, so give the run more memory, or use "
            "parity_check='off'."
        )


class _Served:
    """What messages mean."""

    def __init__(self, start: Start) -> None:
        self._layout = row_form(start.experts).layout
        self._engine = TransformersEngine(
            start.base, start.experts, dtype=start.dtype, device=torch.device("cpu"), keep_base=False
        )

    def load(self, path: str) -> None:
        """Load the row that this memory holds, and give the memory back."""
        self._engine.load(0, torch.from_file(path, shared=True, size=self._layout.size, dtype=self._layout.dtype))

    def log_probs(self, request: Request, top: int) -> dict[int, float]:
        """As the engine's."""
        return self._engine.log_probs(request, top)


def main(arguments: Sequence[str]) -> None:
    """Answer until the pipe is closed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the other process's to answer
        signal.signal(number, signal.SIG_IGN)
    pipe = Connection(int(arguments[0]))
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=listen, args=(pipe, messages), daemon=True).start()
    try:
        served = _Served(messages.get())
        pipe.send(("answer", None))
        while True:
            name, given = messages.get()
            pipe.send(("answer", getattr(served, name)(*given)))
    except (BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        pipe.send(("failed", portable(error)))
        threading.Event().wait()  # until the pipe is closed


if __name__ == "__main__":
    # As the module that the messages name, not as __main__: there is one Start then.
    from modelswarms_fast.engines import oracle

    oracle.main(sys.argv[1:])
