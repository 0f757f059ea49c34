"""Engines of a group that are disturbed, and what becomes of their processes."""

import os
import signal
from pathlib import Path

import pytest

from modelswarms_fast.engines import stopped as standing
from modelswarms_fast.engines.pool import pool as groups
from modelswarms_fast.engines.pool import supervisor
from modelswarms_fast.engines.pool.pool import EnginePool


def hurry(monkeypatch, limit, stopped=60.0):
    """Shorten the seconds that an engine has to answer, and those that it may be stopped for."""
    monkeypatch.setattr(standing, "LIMIT", stopped)
    monkeypatch.setattr(supervisor, "PIPE_LIMIT", limit)
    for module in (groups, supervisor):
        monkeypatch.setattr(module, "LOOK", 0.02)
    monkeypatch.setattr(supervisor, "PATIENCE", 1.0)
    monkeypatch.setattr(supervisor, "STEP_LIMIT", limit)


@pytest.fixture
def disturb(monkeypatch):
    """Sends a signal to an engine with requests under way, in these steps of the group; gives the groups' processes."""
    seen = []

    def plan(steps, what=signal.SIGKILL):
        real, count = EnginePool._receive, 0

        def receive(self):
            nonlocal count
            seen.extend(worker.process for worker in self._workers if worker.process not in seen)
            if self._sharing.busy:
                count += 1
                if count in steps:
                    worker = self._workers[min(self._sharing.busy)]
                    os.kill(worker.process.pid, what)
            real(self)

        monkeypatch.setattr(EnginePool, "_receive", receive)
        return seen

    return plan


def lives(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def pids(group: EnginePool) -> list[int]:
    """Of the engines' processes."""
    return [worker.process.pid for worker in group._workers]
