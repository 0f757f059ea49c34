"""What a pool asks of its engines, wherever they run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch

Message = tuple[Any, ...]
"""A word and what belongs to it, as `worker_process` has them."""


class Member(Protocol):
    """One engine of a pool. It does what is in `calls`, in this order, and says what ended."""

    number: int
    """Which engine of the pool it is, from 0."""
    calls: list[tuple[Any, ...]]
    """Name and arguments of methods of `Served`, to be sent with the next `flush`."""
    knows: set[int]
    """Numbers of the prompts that it was told."""
    ready: bool
    """Whether its model is loaded."""
    restarts_left: int
    """How often it may be started anew."""

    @property
    def name(self) -> str:
        """Begins sentences about it."""

    def begin(self) -> None:
        """Start it, anew if it has ended; it has been told nothing yet."""

    def flush(self) -> None:
        """Send all calls in one message."""

    def heard(self) -> None:
        """It has said something, or owes nothing: its time begins anew."""

    def check(self, *, owes: bool) -> None:
        """Give it up if it owes an answer and has said nothing for too long; to be called again and again."""

    def lives(self) -> bool:
        """Whether it has not ended, as far as can be seen at once."""

    def cause(self) -> str:
        """How it ended."""

    def end(self) -> None:
        """End it, if it lives."""


class Members(Protocol):
    """The engines of a pool: how they are heard, and how rows get to them."""

    @property
    def all(self) -> Sequence[Member]:
        """Them, by their numbers."""

    def wait(self, seconds: float) -> Iterator[tuple[Member, Message | None]]:
        """What has come, or comes within so many seconds; None for an engine that has ended."""

    def place(self, slot: int, row: torch.Tensor) -> tuple[Any, ...]:
        """How an engine finds a row [D] that is to be served from a slot of the pool: arguments of `Served.load`."""

    def close(self) -> None:
        """End all engines and wait for them."""
