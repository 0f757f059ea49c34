"""Which engine of a pool works on which request: arithmetic on numbers, without an engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

LEAST = 4  # requests for which another engine loads a particle


class Task(NamedTuple):
    """What an engine is to do next: requests to one of its slots, which first loads the particle if it has another."""

    engine: int
    place: int | None
    """Slot of the engine; None for the base model."""
    slot: int | None
    """Slot of the pool, whose particle it is."""
    load: bool
    requests: list[int]


class Sharing:
    """K engines with s slots serve K · s particles. Slot i is at home in slot i div K of engine i mod K.

    An engine is given `ahead` requests at most; those that no engine has been given wait here. They go to their home.
    They go to another engine, which loads the particle too, in two cases: their home is not up, or an engine has
    nothing of its own to do, as at the end of an iteration. Then none is given more than its share of what is left.
    """

    def __init__(self, engines: int) -> None:
        self._count = engines
        self.each = 1
        """Slots of an engine."""
        self.ahead = 32
        """Most requests that an engine is given."""
        self._up: set[int] = set()
        self._idle: set[int] = set()
        """Engines that are up and have no request."""
        self._waiting: list[dict[int | None, deque[int]]] = [{} for _ in range(engines)]
        """By home: slot of the pool → requests that no engine has."""
        self._left = 0
        """How many wait."""
        self._given: dict[int, tuple[int, int | None, int, int | None]] = {}
        """Request → engine, its slot, home, slot of the pool."""
        self._load = [0] * engines
        """Requests that each engine has."""
        self._at: list[dict[int | None, set[int]]] = [{} for _ in range(engines)]
        """Slot of the engine → its requests; no empty ones."""
        self._own = [0] * engines
        """Requests of each home, waiting or given."""
        self._free = set(range(engines))
        """Engines of which there are none."""
        self._held: list[dict[int, tuple[int, int]]] = [{} for _ in range(engines)]
        """Slot of the engine → the particle that it has loaded: slot of the pool and version."""
        self._versions: dict[int, int] = {}
        self._loads = 0
        self._touched: set[int] = set()

    def load(self, slot: int) -> None:
        """The slot has another particle from now on; it has no requests."""
        self._loads += 1
        self._versions[slot] = self._loads

    def clear(self) -> None:
        """No engine has a particle any more."""
        self._versions.clear()
        for held in self._held:
            held.clear()

    def submit(self, request: int, slot: int | None) -> None:
        """A request waits; those to the base model are at home in the engines in turn."""
        home = self._home(request, slot)
        self._waiting[home].setdefault(slot, deque()).append(request)
        self._left += 1
        self._add(home, 1)
        self._touched.add(home)

    def ended(self, request: int) -> None:
        """A request has been answered, or is not wanted any more by the engine that has it."""
        engine, place, home, _ = self._given.pop(request)
        here = self._at[engine][place]
        here.discard(request)
        if not here:
            del self._at[engine][place]
        self._load[engine] -= 1
        if not self._load[engine]:
            self._idle.add(engine)
        self._add(home, -1)
        self._touched.add(engine)

    def drop(self, requests: Collection[tuple[int, int | None]]) -> dict[int, list[int]]:
        """Requests with their slots are given up; by engine those that it has to be told of."""
        told: dict[int, list[int]] = {}
        waiting: dict[tuple[int, int | None], set[int]] = {}
        for request, slot in sorted(requests):
            if request in self._given:
                told.setdefault(self._given[request][0], []).append(request)
                self.ended(request)
            else:
                waiting.setdefault((self._home(request, slot), slot), set()).add(request)
        for (home, slot), gone in waiting.items():
            self._put(home, slot, deque(one for one in self._waiting[home][slot] if one not in gone))
            self._left -= len(gone)
            self._add(home, -len(gone))
        return told

    def up(self, engine: int) -> None:
        """An engine is there, with nothing loaded."""
        self._up.add(engine)
        self._idle.add(engine)
        self._touched.add(engine)

    def down(self, engine: int) -> list[int]:
        """An engine is gone; the requests that it had, which wait again."""
        self._up.discard(engine)
        self._idle.discard(engine)
        self._held[engine].clear()
        lost = sorted(request for some in self._at[engine].values() for request in some)
        self._at[engine].clear()
        self._load[engine] = 0
        again: dict[tuple[int, int | None], list[int]] = {}
        for request in lost:
            _, _, home, slot = self._given.pop(request)
            again.setdefault((home, slot), []).append(request)
        for (home, slot), some in again.items():
            self._waiting[home].setdefault(slot, deque()).extendleft(reversed(some))
            self._touched.add(home)
        self._left += len(lost)
        return lost

    @property
    def busy(self) -> set[int]:
        """Engines that have requests."""
        return {engine for engine in self._up if self._load[engine]}

    @property
    def unfinished(self) -> bool:
        """Whether there is a request."""
        return self._left > 0 or bool(self._given)

    def settle(self, slot: int | None) -> Task | None:
        """Have a slot's particle loaded where nothing else is worked on, for a single question; None: not now."""
        if slot is None:
            return next((Task(engine, None, None, False, []) for engine in sorted(self._up)), None)
        engine, place = slot % self._count, slot // self._count
        if engine not in self._up:
            engine, place = min(self._idle, default=-1), 0
            if engine < 0:
                return None
        elif any(self._given[one][2] != engine for some in self._at[engine].values() for one in some):
            return None
        return Task(engine, place, slot, self._hold(engine, place, slot), [])

    def assign(self) -> Iterator[Task]:
        """Give requests to engines that have room."""
        if not self._left or not self._up:
            self._touched.clear()
            return
        spare = bool(self._free & self._up)
        orphans: list[int] = []
        if len(self._up) < self._count:
            orphans = [home for home in range(self._count) if self._waiting[home] and home not in self._up]
        limit = self.ahead
        if spare:
            limit = min(limit, max(LEAST, -(-(self._left + len(self._given)) // len(self._up))))
        touched, self._touched = self._touched & self._up, set()
        for engine in sorted(touched):
            yield from self._orphans(engine, orphans, limit)
            yield from self._at_home(engine, limit)
        if self._left and (spare or orphans):
            for engine in sorted((touched | self._idle) & self._up):
                if not self._waiting[engine]:
                    yield from self._orphans(engine, orphans, limit)
                    if spare:
                        yield from self._help(engine, limit)

    def _at_home(self, engine: int, limit: int) -> Iterator[Task]:
        for slot in list(self._waiting[engine]):
            if self._load[engine] >= limit:
                return
            if slot is None or self._open(engine, slot // self._count, slot):
                yield self._give(engine, None if slot is None else slot // self._count, engine, slot, limit)

    def _orphans(self, engine: int, homes: Sequence[int], limit: int) -> Iterator[Task]:
        for home in homes:
            for slot in list(self._waiting[home]):
                if self._load[engine] >= limit:
                    return
                place = None if slot is None else self._place(engine, slot)
                if slot is None or place is not None:
                    yield self._give(engine, place, home, slot, limit)

    def _help(self, engine: int, limit: int) -> Iterator[Task]:
        """Give an engine without work of its own some of the slot that has the most waiting."""
        while self._left and self._load[engine] < limit:
            found = max(
                (
                    (len(some), -home, slot)
                    for home in self._homes(engine)
                    for slot, some in self._waiting[home].items()
                    if slot is None or self._place(engine, slot) is not None
                ),
                key=lambda one: one[:2],
                default=None,
            )
            if found is None:
                return
            _, home, slot = found
            place = None if slot is None else self._place(engine, slot)
            yield self._give(engine, place, -home, slot, limit)

    def _homes(self, engine: int) -> Iterable[int]:
        """Homes whose requests an engine can help with: those of the slots that it works on already, or all."""
        here = {self._given[next(iter(some))][2] for some in self._at[engine].values()}
        mine = [home for home in here if self._waiting[home]]
        return mine or [home for home in range(self._count) if self._waiting[home]]

    def _place(self, engine: int, slot: int) -> int | None:
        """The slot of an engine that serves a particle already, or one that serves nothing now."""
        version = self._versions.get(slot, 0)
        for place, held in self._held[engine].items():
            if held == (slot, version):
                return place
        places = range(self.each)
        return next((place for place in places if place not in self._at[engine]), None)

    def _open(self, engine: int, place: int, slot: int) -> bool:
        """Whether a slot of an engine has this particle, or nothing to do."""
        held = self._held[engine].get(place)
        return place not in self._at[engine] or held == (slot, self._versions.get(slot, 0))

    def _give(self, engine: int, place: int | None, home: int, slot: int | None, limit: int) -> Task:
        waiting = self._waiting[home][slot]
        requests = [waiting.popleft() for _ in range(min(limit - self._load[engine], len(waiting)))]
        self._put(home, slot, waiting)
        self._left -= len(requests)
        self._load[engine] += len(requests)
        self._idle.discard(engine)
        self._at[engine].setdefault(place, set()).update(requests)
        for request in requests:
            self._given[request] = (engine, place, home, slot)
        load = place is not None and slot is not None and self._hold(engine, place, slot)
        return Task(engine, place, slot, load, requests)

    def _hold(self, engine: int, place: int, slot: int) -> bool:
        """A slot of an engine has this particle from now on; whether it had another."""
        held = (slot, self._versions.get(slot, 0))
        if self._held[engine].get(place) == held:
            return False
        self._held[engine][place] = held
        return True

    def _put(self, home: int, slot: int | None, waiting: deque[int]) -> None:
        if waiting:
            self._waiting[home][slot] = waiting
        else:
            del self._waiting[home][slot]

    def _add(self, home: int, count: int) -> None:
        self._own[home] += count
        if self._own[home]:
            self._free.discard(home)
        else:
            self._free.add(home)

    def _home(self, request: int, slot: int | None) -> int:
        return (request if slot is None else slot) % self._count
