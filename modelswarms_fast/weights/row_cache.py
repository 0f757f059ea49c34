"""Rows of slower tiers (a file, or host and file beside a GPU) in the memory of a fast one, as many as fit."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from modelswarms_fast.ops.extension import _C
from modelswarms_fast.weights.arena import empty_rows
from modelswarms_fast.weights.streaming import CopyStream, Wait


@dataclass(eq=False)
class _Entry:
    """A row of the slow tier that is, or is about to be, in a place of the fast one."""

    place: int
    ready: Wait = lambda: None
    """Waits until it is there; raises what the copy raised."""


class RowCache:
    """Copies of rows on a fast tier: loaded when they are asked for or before, the least recently used make room.

    A place on the fast tier is held by the cache while it shows a row, and by everyone whom `get` has given it. What
    only the cache holds, and is not pinned, may make room. May be used from several threads.
    """

    def __init__(self, slow: Tensor, capacity: int, device: torch.device | str = "cpu") -> None:
        """slow [R, D]; `capacity` rows are allocated on `device`. Copies that run ahead do so on a `CopyStream`.

        Raises MemoryError or RuntimeError where there is not enough memory.
        """
        self._slow, self._device = slow, torch.device(device)
        self._fast = empty_rows(capacity, slow.shape[1], slow.dtype, self._device)
        apart, used = (size * slow.element_size() for size in (self._fast.stride(0), slow.shape[1]))
        where = (1, 0) if self._device.type == "cpu" else (2, self._fast.device.index)
        self._arena = _C.Arena.given(self._fast.data_ptr(), capacity * apart, capacity, used, apart, where, self._fast)
        self._apart = apart
        self._lock = threading.Lock()
        self._entries: dict[int, _Entry] = {}  # by row; the least recently used first
        self._pinned: frozenset[int] = frozenset()
        self._copies = CopyStream(self._device)

    def get(self, row: int) -> Tensor:
        """[D] a row on the fast tier, the caller's until `release`; loaded if it is not there.

        Raises:
            MemoryError: every place is pinned or in use.
            Exception: what the copy raised; the next `get` tries again.
        """
        loaded: Future[torch.cuda.Event | None] | None = None
        with self._lock:
            entry = self._entries.pop(row, None)
            if entry is None:
                entry, loaded = self._admit(row), Future()
                entry.ready = partial(_wait, self._device, loaded)
            self._entries[row] = entry  # the most recently used is the last
            self._arena.retain(entry.place)
        try:
            if loaded is not None:  # here, as whatever runs ahead can wait and this cannot
                try:
                    self._copy(entry.place, row)
                except BaseException as error:
                    loaded.set_exception(error)  # for others who wait for it
                else:
                    loaded.set_result(_event(self._device))
            entry.ready()
        except BaseException:
            with self._lock:
                self._arena.release(entry.place)
                if self._entries.get(row) is entry:
                    self._forget(row)
            raise
        return self._fast[entry.place]

    def release(self, view: Tensor) -> None:
        """Give back what `get` returned. Raises ValueError if it is nobody's."""
        place = (view.data_ptr() - self._fast.data_ptr()) // self._apart
        with self._lock:
            shown = any(entry.place == place for entry in self._entries.values())
            if shown and self._arena.count(place) == 1:
                raise ValueError(f"Place {place} was released more often than it was given.")
            self._arena.release(place)

    def prefetch(self, rows: Sequence[int]) -> None:
        """Begin to load these rows, in this order, and return. Stops where there is no more room for them."""
        wanted = frozenset(rows)
        with self._lock:
            for row in rows:
                entry = self._entries.pop(row, None)
                if entry is None:
                    if not self._make_room(wanted):
                        return
                    entry = _Entry(self._arena.acquire())
                    try:
                        entry.ready = self._copies.start(partial(self._copy, entry.place, row))
                    except BaseException:  # the cache is closed
                        self._arena.release(entry.place)
                        raise
                self._entries[row] = entry

    def pin(self, rows: Iterable[int]) -> None:
        """From now on these rows, and no others, stay once they are there, whoever needs room."""
        with self._lock:
            self._pinned = frozenset(rows)

    def invalidate(self, rows: Iterable[int]) -> None:
        """These rows have been written on the slow tier. Views of them that are still held keep the old values."""
        with self._lock:
            for row in rows:
                if row in self._entries:
                    self._forget(row)

    def close(self) -> None:
        """Drop what has not begun to load, and end the thread."""
        self._copies.close()

    def _copy(self, place: int, row: int) -> None:
        self._fast[place].copy_(self._slow[row], non_blocking=True)

    # The lock is held in all below; the thread that copies never takes it.

    def _admit(self, row: int) -> _Entry:
        if not self._make_room(frozenset()):
            size = self._slow.shape[1] * self._slow.element_size()
            raise MemoryError(
                f"Row {row} of {size} bytes finds no room: all {len(self._fast)} rows of the fast tier are pinned "
                "or in use; allow more memory."
            )
        return _Entry(self._arena.acquire())

    def _make_room(self, spared: frozenset[int]) -> bool:
        """Whether a place is free, if need be that of the row that was used the longest ago."""
        if self._arena.free:
            return True
        for row, entry in self._entries.items():
            if row not in spared and row not in self._pinned and self._arena.count(entry.place) == 1:
                self._forget(row)
                return True
        return False

    def _forget(self, row: int) -> None:
        entry = self._entries.pop(row)
        try:
            with suppress(Exception):  # a copy that failed and that nobody asked for
                if self._arena.count(entry.place) == 1:  # else who holds it has waited, and nobody writes it again
                    entry.ready()
        finally:
            self._arena.release(entry.place)


def _event(device: torch.device) -> torch.cuda.Event | None:
    """When what the current stream has been given is done; None of a CPU, which has done it."""
    return None if device.type == "cpu" else torch.cuda.current_stream(device).record_event()


def _wait(device: torch.device, loaded: Future[torch.cuda.Event | None]) -> None:
    """Until another thread has copied, on a GPU by making the current stream wait."""
    if (copied := loaded.result()) is not None:
        torch.cuda.current_stream(device).wait_event(copied)
