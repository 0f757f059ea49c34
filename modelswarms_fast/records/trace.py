"""When the driver and the engines did what: the idle share of the engines, and a trace to look at.

The file is in the trace event format of chrome://tracing and Perfetto: complete events ("ph": "X") with times in
microseconds, one thread a lane.
"""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from modelswarms_fast.errors import InputError, short
from modelswarms_fast.records.run_folder import write_text

_BEGINNING = b'{"traceEvents": ['
_DRIVER = 0
_UNSEEN = nullcontext()


class Trace:
    """Adds up how long engines are busy and, given a path, keeps every event to be written there."""

    def __init__(self, path: str | Path | None = None) -> None:
        """Raises InputError for a path at which something else than a trace lies, which would be replaced."""
        self.path = None if path is None else Path(path)
        if self.path is not None:
            _check_place(self.path)
        self.now: dict[str, Any] = {}
        """What is worked on, as arguments of the next events."""
        self._busy: dict[int, float] = {}
        self._events: list[dict[str, Any]] = []
        self._started = time.perf_counter()

    def watch(self, what: str, lane: int, start: float, end: float) -> None:
        """A load or a step of an engine; see `engines.Watch`."""
        self._busy[lane] = self._busy.get(lane, 0.0) + end - start
        self._add(what, 1 + lane, start, end)

    def span(self, what: str) -> AbstractContextManager[None]:
        """Work of the driver."""
        return _UNSEEN if self.path is None else self._span(what)  # every particle has several

    @contextmanager
    def _span(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._add(what, _DRIVER, start, time.perf_counter())

    @property
    def engines(self) -> int:
        """How many engines have worked, at least 1."""
        return max(len(self._busy), 1)

    def busy(self) -> float:
        """Seconds in loads and steps so far, of all engines together."""
        return sum(self._busy.values())

    def idle(self, busy: float, seconds: float) -> float:
        """Share of so many seconds in which an engine did nothing, on average, if all were busy for `busy` together."""
        return 1 - busy / self.engines / max(seconds, 1e-9)

    def write(self) -> None:
        """Write all events up to now, if there is a path; the file is whole or as it was. Raises InputError."""
        if self.path is None:
            return
        with suppress(OSError):  # writing says what is wrong
            self.path.parent.mkdir(parents=True, exist_ok=True)
        lanes = sorted({_DRIVER} | {1 + lane for lane in self._busy})
        names = [
            {
                "name": "thread_name",
                "ph": "M",
                "pid": 0,
                "tid": lane,
                "args": {"name": "driver" if lane == _DRIVER else f"engine {lane - 1}"},
            }
            for lane in lanes
        ]
        # Its beginning is what `_check_place` looks for.
        write_text(self.path, json.dumps({"traceEvents": names + self._events, "displayTimeUnit": "ms"}) + "\n")

    def _add(self, what: str, lane: int, start: float, end: float) -> None:
        if self.path is not None:
            ts, duration = (start - self._started) * 1e6, (end - start) * 1e6
            event = {"name": what, "ph": "X", "pid": 0, "tid": lane, "ts": ts, "dur": duration, "args": dict(self.now)}
            self._events.append(event)


def _check_place(path: Path) -> None:
    """Refuse to replace anything but a trace. Raises InputError."""
    try:
        trace = stat.S_ISREG(path.lstat().st_mode)
        if trace:
            with path.open("rb") as file:
                trace = file.read(len(_BEGINNING)) == _BEGINNING
    except (FileNotFoundError, NotADirectoryError):  # the second is said when its folder is made
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write the trace {short(str(path))}: {reason}; give another file") from error
    if not trace:
        raise InputError(f"{path} is there and is no trace, so it is not replaced; give another file for the trace")
