"""How a run is asked to stop by a signal, and what is said of a run that was cut.

The signals are Ctrl-C, SIGTERM (of Slurm, systemd, docker) and SIGHUP (a terminal that is gone).
"""

from __future__ import annotations

import errno
import os
import shlex
import signal
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_RECEIVED: list[int] = []


class Stopped(KeyboardInterrupt):
    """A signal that asks the process to end; `number` is its number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def exit_status() -> int:
    """Of a process that a signal has asked to end: 128 and the number of the signal, as shells have it."""
    return 128 + (_RECEIVED[-1] if _RECEIVED else signal.SIGINT)


def stop_at_once(number: int) -> NoReturn:
    """Raises Stopped."""
    raise Stopped(number)


@contextmanager
def stop_signals(asked: Callable[[int], None]) -> Iterator[None]:
    """Call asked(number) for each of SIGNALS that comes until the block ends.

    A signal that is ignored stays so, as nohup wants it. Does nothing in any thread but the main one, which alone may
    set what happens at a signal.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        _RECEIVED.append(number)
        if number == signal.SIGHUP:
            _leave_terminal()
        asked(number)

    before: dict[signal.Signals, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for one in SIGNALS:
                if signal.getsignal(one) not in (signal.SIG_IGN, None):
                    before[one] = signal.signal(one, handle)
        yield
    finally:
        for one, old in before.items():
            signal.signal(one, old)


def _leave_terminal() -> None:
    """Print to nowhere if the terminal is gone: what is printed to it would be an error."""
    for descriptor in (1, 2):
        try:
            termios.tcgetattr(descriptor)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


def how_to_go_on(folder: str | os.PathLike[str]) -> str:
    """The sentence with the command that goes on with the run in this folder."""
    return f"Go on with: modelswarms-fast resume {shlex.quote(os.fspath(folder))}"
