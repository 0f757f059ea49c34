"""Pools of a script that keep their processes: to start one, and to import a script in it, takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Pools:
    """multiprocessing.Pool. A pool whose calls have ended is lent again, to who asks for as many processes."""

    def __init__(self, real: Callable[..., Any]) -> None:
        """`real`: that of multiprocessing."""
        self._real = real
        self._free: dict[Any, list[Any]] = {}

    def __call__(self, processes: Any = None, *args: Any, **given: Any) -> Any:
        """A pool; with more than a number of processes it is a new one."""
        if args or given:
            return self._real(processes, *args, **given)
        free = self._free.setdefault(processes, [])
        return Lent(free.pop() if free else self._real(processes), free)

    def end(self) -> None:
        """End the processes of pools that were given back."""
        for free in self._free.values():
            while free:
                pool = free.pop()
                pool.close()
                pool.join()


class Lent:
    """A pool, until it is closed."""

    def __init__(self, pool: Any, free: list[Any]) -> None:
        """`free`: where it goes then."""
        self._pool, self._free = pool, free
        self._again = True

    def map(self, *args: Any, **given: Any) -> Any:
        """That of the pool."""
        return self._pool.map(*args, **given)

    def starmap(self, *args: Any, **given: Any) -> Any:
        """That of the pool."""
        return self._pool.starmap(*args, **given)

    def apply(self, *args: Any, **given: Any) -> Any:
        """That of the pool."""
        return self._pool.apply(*args, **given)

    def close(self) -> None:
        """Give it back, unless calls may still run in it."""
        if self._again:
            self._free.append(self._pool)
            self._pool = None
        else:
            self._pool.close()
        self._again = False

    def join(self) -> None:
        """Wait for its end, unless it was given back."""
        if self._pool is not None:
            self._pool.join()

    def __enter__(self) -> Lent:
        return self

    def __exit__(self, *error: object) -> None:
        if self._again:
            self.close()
        elif self._pool is not None:
            self._pool.terminate()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self._again = False  # calls may run on after it
        return getattr(self._pool, name)
