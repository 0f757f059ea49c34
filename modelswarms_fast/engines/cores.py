"""How the cores and threads of this machine are shared by several processes."""

from __future__ import annotations

import os


def asked_threads(otherwise: int) -> int:
    """Threads that OMP_NUM_THREADS asks for at the outermost level: its first number, if it has one."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() else otherwise


def share_cores(cores: list[int], number: int, count: int) -> list[int]:
    """The cores of one of several: equal parts without a common one, as far as there are enough."""
    if len(cores) < count:
        return [cores[number % len(cores)]]
    return cores[number * len(cores) // count : (number + 1) * len(cores) // count]
