"""What the functions of one process share: its models, their engines, and how they are to be served."""

from __future__ import annotations

import atexit
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from modelswarms_fast.compat.client import PATH
from modelswarms_fast.compat.fleet import Fleet
from modelswarms_fast.compat.models import Models
from modelswarms_fast.compat.remote import RemoteFleet
from modelswarms_fast.config import EngineConfig
from modelswarms_fast.errors import InputError

Files = Literal["end", "every"]


class Session:
    """Models of this process and their engines, which a broker has where MODELSWARMS_SOCKET names one.

    `files` says when positions of a swarm get files of weights: at the "end", or after "every" move. `seed` is that of
    drawn answers, the same at each start.
    """

    def __init__(self, settings: EngineConfig, files: Files, seed: int) -> None:
        self.models = Models()
        self.fleet = RemoteFleet(self.models) if os.environ.get(PATH) else Fleet(self.models, settings)
        self.files = files
        self._source, self._lock = random.Random(seed), threading.Lock()

    def seeds(self, count: int) -> list[int]:
        """The next seeds of drawn answers."""
        with self._lock:
            return [self._source.getrandbits(63) for _ in range(count)]


_session: Session | None = None
_LOCK = threading.Lock()


def session() -> Session:
    """The session of this process; without `configure` one with the defaults."""
    with _LOCK:
        global _session
        if _session is None:
            _session = Session(settings_of(), "end", 0)
        return _session


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leave the numbers that the module `random` draws next to the caller: packages draw when they are imported."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


def settings_of(settings: EngineConfig | None = None) -> EngineConfig:
    """These settings, or MoCo's: bfloat16, and long prompts."""
    return settings or EngineConfig(dtype="bfloat16", max_model_len=16384)


def configure(settings: EngineConfig | None = None, files: Files = "end", seed: int = 0) -> None:
    """Begin a session with these settings; the engines of the last one end, and its weights are written.

    Raises:
        InputError: settings are given, and MODELSWARMS_SOCKET names a broker, which has its own.
    """
    global _session
    if settings is not None and os.environ.get(PATH):
        raise InputError(f"Settings of the engines are given, but {PATH} names a broker, which has its own; unset one.")
    close()
    with _LOCK:
        _session = Session(settings_of(settings), files, seed)


def release() -> None:
    """End all engines and give their memory back. They start again when they are needed; weights stay in memory."""
    with _LOCK:
        now = _session
    if now is not None:
        now.fleet.release()


def write(folder: str | os.PathLike[str]) -> None:
    """Write the weights of a folder of a swarm, and of those in it, to their files.

    Raises:
        InputError: a file cannot be written.
    """
    session().models.write(folder)


@atexit.register
def close() -> None:
    """End the session: weights that are held for folders are written, and engines end."""
    global _session
    with _LOCK:
        now, _session = _session, None
    if now is not None:
        now.fleet.release()
        now.models.write(Path("/"))
