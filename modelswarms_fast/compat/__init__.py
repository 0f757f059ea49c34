"""What model_swarm and MoCo decide and compute, for their users: the same numbers from the same settings.

`published` is the policy of model_swarm, `moco_swarm` that of MoCo's Swarm and `moco_numeric` MoCo's swarm of plain
vectors; `draws` has the random numbers that both share. `tensors` merges adapters as both do. `ensembles` has the votes
of model_swarm's final metrics. The folder `model_swarm/` has its command and its functions. `models` says what a path
means, `fleet` keeps the engines that serve such models, on the GPUs that `devices` gives them, and `moco/` is MoCo on
both. `broker` serves a fleet to other processes, which ask by `client`; `remote` is such a fleet from their side.
`run/` has such processes: a user's own search.py and evaluate.py.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelswarms_fast.compat.tensors import lora_merge

__all__ = ["lora_merge"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # on first use, so that the policies import without torch
        return getattr(importlib.import_module(f"{__name__}.tensors"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
