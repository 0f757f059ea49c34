"""Processes that stand still: stopped by SIGSTOP, by a terminal or by a debugger."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

LIMIT = 10.0
"""Seconds that a process may be stopped for while others wait for it; then it is killed."""


class StoppedProcesses:
    """Since when processes are stopped, as far as it was looked."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}

    def too_long(self, pids: Iterable[int]) -> list[int]:
        """Those of these processes that have been stopped for longer than LIMIT; to be called again and again."""
        now = time.monotonic()
        self._since = {pid: self._since.get(pid, now) for pid in pids if is_stopped(pid)}
        return [pid for pid, since in self._since.items() if now - since > LIMIT]


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped now."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:  # it has ended
        return False
    return bool(fields) and fields[0] in "Tt"
