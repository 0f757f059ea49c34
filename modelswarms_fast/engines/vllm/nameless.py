"""What vLLM's processes talk through has no name once all of them have it: nothing is left, whatever ends them.

Between processes vLLM has rings of chunks in shared memory (`/dev/shm`) and sockets in a folder. Their names are needed
until each process has opened them. A run that is killed before that leaves them, and the next one removes them. So it
is with the file by which processes meet, which is needed to the end.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vllm.distributed.device_communicators.shm_broadcast import ShmRingBuffer
from vllm.v1.executor import multiproc_executor, uniproc_executor

SOCKETS = "VLLM_RPC_BASE_PATH"  # of vLLM: where its sockets are made
STORE = "get_file_store_init_method"  # of vLLM's executors: where the file is by which processes meet
PREFIX = "modelswarms-vllm-"
MEMORY = Path("/dev/shm")


class Rings:
    """The rings that this process creates, until `forget_names`; their names are noted in the folder of the sockets."""

    def __init__(self) -> None:
        self._created: list[Any] = []
        self._initialize = ShmRingBuffer.__init__
        initialize = self._initialize

        def recorded(ring: Any, *arguments: Any, **given: Any) -> None:
            initialize(ring, *arguments, **given)
            if ring.is_creator:
                self._created.append(ring)
                if (folder := Path(os.environ.get(SOCKETS, ""))).name.startswith(PREFIX):
                    (folder / ring.shared_memory.name.strip("/")).touch()

        ShmRingBuffer.__init__ = recorded

    def stop(self) -> None:
        """Note no more of them."""
        ShmRingBuffer.__init__ = self._initialize

    def forget_names(self) -> None:
        """All processes have opened them: their names go, and the memory with the last process that has it."""
        self.stop()
        for ring in self._created:
            ring.shared_memory.unlink()
            ring.is_creator = False  # whose end would take the name away
        self._created = []


@contextmanager
def meeting_in(folder: Path) -> Iterator[None]:
    """Have the processes of an engine that starts meet by a file in this folder, which vLLM would leave in /tmp."""
    before = []
    for executor in (uniproc_executor, multiproc_executor):
        if (function := getattr(executor, STORE, None)) is not None:  # other versions meet by a port
            before.append((executor, function))
            setattr(executor, STORE, lambda: f"file://{folder}/store")
    try:
        yield
    finally:
        for executor, function in before:
            setattr(executor, STORE, function)


def forget_sockets(folder: Path) -> None:
    """Remove the sockets of a folder: all processes have opened them."""
    for path in folder.iterdir():
        if path.is_socket():
            path.unlink(missing_ok=True)


@contextmanager
def own_folder() -> Iterator[Path]:
    """A folder for what an engine has on the disk, removed at the end; those of killed processes are removed first."""
    place = Path(tempfile.gettempdir())
    for left in place.glob(f"{PREFIX}*"):
        _sweep(left)
    folder, held = _held_folder(place)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def _held_folder(place: Path) -> tuple[Path, int]:
    """A new folder, and the handle that locks it as long as this process lives."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        try:
            held = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        fcntl.flock(held, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):  # another start has swept it up before it was locked
            if os.path.samestat(os.stat(folder), os.fstat(held)):
                return folder, held
        os.close(held)


def _sweep(folder: Path) -> None:
    """Remove a folder of sockets, and the memory that it names, unless its process lives or is another user's."""
    try:
        held = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
    except OSError:
        return
    try:
        if os.fstat(held).st_uid != os.getuid():
            return
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in os.listdir(held):
            if name.startswith("psm_") and (MEMORY / name).is_file() and (MEMORY / name).stat().st_uid == os.getuid():
                (MEMORY / name).unlink()
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # its process lives, or another one sweeps
        pass
    finally:
        os.close(held)
