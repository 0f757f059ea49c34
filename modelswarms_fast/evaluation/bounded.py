"""What a server answers, bounded in size and time: neither is the server's to choose."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

LARGEST_ANSWER = 1 << 20
"""Bytes of one answer."""

_T = TypeVar("_T")


class TooMuch(Exception):
    """A server has answered more than LARGEST_ANSWER, or in a form that may become more."""


class TooSlow(Exception):
    """A server has not ended its answer in time."""


def bound_answers(seconds: float) -> Callable[[Any], None]:
    """A hook for the responses of an httpx client (of any version): it stops reading one after `seconds` (TooSlow).

    After LARGEST_ANSWER bytes it is TooMuch. So is a compressed answer, which may grow a thousandfold.
    """

    def hook(response: Any) -> None:
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise TooMuch
        # The response wants a stream of its own library's kind.
        (kind,) = (one for one in type(response.stream).__mro__ if one.__name__ == "SyncByteStream")
        response.stream = type("Bounded", (_Bounded, kind), {})(response.stream, time.monotonic() + seconds)

    return hook


class _Bounded:
    def __init__(self, stream: Any, end: float) -> None:
        self._stream, self._end = stream, end

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for part in self._stream:
            size += len(part)
            if size > LARGEST_ANSWER:
                raise TooMuch
            if time.monotonic() > self._end:
                raise TooSlow
            yield part

    def close(self) -> None:
        self._stream.close()


def within(seconds: float, call: Callable[[], _T]) -> _T:
    """What a call returns or raises, or TimeoutError after so many seconds, while it goes on in a thread of its own.

    A server can take for ever to send what a client reads before its hooks are asked. The thread ends with the process.
    """
    box: SimpleQueue[tuple[bool, Any]] = SimpleQueue()

    def run() -> None:
        try:
            box.put((True, call()))
        except BaseException as error:
            box.put((False, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        good, value = box.get(timeout=min(seconds, threading.TIMEOUT_MAX))
    except Empty:
        raise TimeoutError from None
    if not good:
        raise value
    return value  # type: ignore[no-any-return]
