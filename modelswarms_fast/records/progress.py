"""What a person sees while a search runs, and how they stop it.

Everything goes to standard error. Details that are quiet by default (memory, the seconds of a phase) are messages of
level INFO to `log`; the command line shows them with --verbose.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from modelswarms_fast.errors import visible
from modelswarms_fast.records.stopping import stop_at_once, stop_signals

log = logging.getLogger("modelswarms_fast")
"""Details that a person sees only if they ask for them."""


@contextmanager
def phase(text: str, show: bool = True) -> Iterator[None]:
    """Show what is being done, such as "starting vLLM", until the block ends; nothing if `show` is false.

    A terminal gets a spinner, anything else one line. Phases follow one another; they do not nest.
    """
    began = time.perf_counter()
    console = Console(stderr=True, soft_wrap=True)
    if show and console.is_terminal:
        with console.status(f"{escape(text)} …"):
            yield
    else:
        if show:
            say(text)
        yield
    log.info("%s: %.1f s", text, time.perf_counter() - began)


def say(line: str, style: str | None = None) -> None:
    """Print a line on standard error as it is: brackets are no markup, and no terminal obeys what it quotes."""
    Console(stderr=True, soft_wrap=True).print(visible(line), style=style, markup=False, highlight=False)


class Interrupted(Exception):
    """The user asked the search to stop; raised between two particles, where nothing is half done."""


class Progress:
    """A bar over all evaluations (iteration, best, prompts/s, time left), and a first signal that ends the search.

    The first Ctrl-C, SIGTERM or SIGHUP lets a running particle finish, then raises `Interrupted`; the second is a
    KeyboardInterrupt.
    """

    def __init__(self, show: bool, iterations: int, particles: int) -> None:
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("best {task.fields[best]}  {task.fields[rate]} prompts/s  left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not show,
        )
        self._particles = particles
        total = (iterations + 1) * particles
        self._task = self._bar.add_task("initial particles", total=total, best="-", rate="-")
        self._iterations = iterations
        self.received: int | None = None
        """The signal that asked the search to stop."""
        self._signals = stop_signals(self._ask)
        self._started = time.perf_counter()
        self._prompts = 0

    def __enter__(self) -> Self:
        self._signals.__enter__()
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        self._signals.__exit__(None, None, None)

    @property
    def asked(self) -> bool:
        """Whether the user asked to stop."""
        return self.received is not None

    def _ask(self, number: int) -> None:
        if self.received is not None:
            stop_at_once(number)
        self.received = number
        again = "press Ctrl-C again to abort" if number == signal.SIGINT else "a second signal aborts"
        with suppress(OSError):  # nobody may be left to read it
            self._bar.console.print(f"Stopping after this particle; {again}.")

    def particle(self, prompts: int) -> None:
        """A particle has been evaluated, and more are to come in this iteration; so many prompts since the last.

        Raises:
            Interrupted: the user asked for it.
        """
        self._prompts += prompts
        if not self._bar.disable:
            rate = self._prompts / (time.perf_counter() - self._started)
            self._bar.update(self._task, advance=1, rate=f"{rate:.1f}")
        if self.asked:
            raise Interrupted

    def iteration(self, iteration: int, best: float, prompts: int) -> None:
        """An iteration is recorded; `prompts` is the number of all so far."""
        self._prompts = prompts
        self._bar.update(
            self._task,
            completed=(iteration + 1) * self._particles,
            best=f"{best:.4f}",
            rate=f"{prompts / (time.perf_counter() - self._started):.1f}",
            description=f"iteration {min(iteration + 1, self._iterations)}/{self._iterations}",
        )
