"""The worker of a rank: vLLM imports this module in a process of its own, before it builds that rank's part of a model.

Nothing else imports it: on a CPU, importing it changes vLLM (`cpu_patches.apply`) for as long as the process lives.
"""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path
from typing import Any

import torch
from vllm.platforms import current_platform

from modelswarms_fast.engines.vllm import cpu_patches
from modelswarms_fast.engines.vllm.launch import leave_errors_to_us
from modelswarms_fast.engines.vllm.nameless import Rings
from modelswarms_fast.engines.vllm.worker import SwarmWorker
from modelswarms_fast.errors import InputError
from modelswarms_fast.weights.shared_memory import SharedTensor

PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
RINGS = Rings()


def end_with_parent() -> None:
    """Have this process end with the one that started it, however that ends."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


end_with_parent()  # also while the model is built
if current_platform.is_cpu():
    cpu_patches.apply()


class RankWorker(SwarmWorker):
    """One of several ranks, each in a process of its own and with its part of every weight."""

    def swarm_call(self, name: str, arguments: tuple[Any, ...]) -> str | None:
        """A method of this worker, called from another process: the sentence of its InputError, or None.

        Tensors are given as what says where they lie.
        """
        given = [argument.view() if isinstance(argument, SharedTensor) else argument for argument in arguments]
        try:
            getattr(self, name)(*given)
        except InputError as error:
            return str(error)
        return None

    def swarm_load(self, serve: str, slot: int, row: torch.Tensor) -> None:
        """Write one flat row [D] into a slot, in place."""
        self._swarm_modes[serve].load(slot, row)

    def swarm_load_mixture(self, serve: str, slot: int, mixture: list[float]) -> None:
        """Serve a mixture [n] of the experts from a slot."""
        self._swarm_modes[serve].load_mixture(slot, torch.tensor(mixture))

    def swarm_restore(self, serve: str) -> None:
        """Put the base model's own weights back, bit for bit."""
        self._swarm_modes[serve].restore()

    def swarm_follow(self) -> None:
        """Be ready to serve; end with the process of the engine, however that ends, and leave nothing.

        All ranks have mapped the memory through which they add up by now, so its names can go.
        """
        self.swarm_worker()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the run's to answer
            signal.signal(number, signal.SIG_IGN)
        leave_errors_to_us()
        RINGS.forget_names()
        for file in Path("/dev/shm").glob(f"{os.environ.get('VLLM_DIST_IDENT', '?')}-*cpushm*"):
            file.unlink(missing_ok=True)
        end_with_parent()
