"""Prompts by number, so that each engine is sent the tokens of a prompt once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from modelswarms_fast.engines.pool.members import Member

MOST = 1 << 16  # prompts that the engines keep in mind


class Prompts:
    """Numbers of prompts, and which engine knows which."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, ...], int] = {}
        self._tokens: dict[int, list[int]] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._tokens)

    def number(self, tokens: Sequence[int]) -> int:
        """The number of a prompt."""
        number = self._numbers.setdefault(tuple(tokens), self._next)
        if number == self._next:
            self._tokens[number] = list(tokens)
            self._next += 1
        return number

    def teach(self, worker: Member, number: int) -> None:
        """Tell an engine of a prompt, unless it knows it."""
        if number not in worker.knows:
            worker.knows.add(number)
            worker.calls.append(("prompt", number, self._tokens[number]))

    def forget(self, workers: Iterable[Member], needed: set[int | None]) -> None:
        """Forget prompts that are not needed now, in all engines: a follow-up rarely comes again."""
        self._numbers = {tokens: number for tokens, number in self._numbers.items() if number in needed}
        self._tokens = {number: tokens for number, tokens in self._tokens.items() if number in needed}
        for worker in workers:
            worker.calls.append(("forget", sorted(worker.knows - needed)))
            worker.knows &= needed
