"""Model Swarms without files and reloads; see docs/design.md.

Public names are loaded on first use, so that the parts without tensors import without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelswarms_fast.config import EngineConfig, SwarmConfig
    from modelswarms_fast.errors import InputError
    from modelswarms_fast.ops import mix_, swarm_update_, swarm_update_rows_
    from modelswarms_fast.runs.search import search
    from modelswarms_fast.swarm import Swarm
    from modelswarms_fast.weights.streaming import stream_update_rows_

__version__ = "0.1.0"

_HOME = {
    "EngineConfig": "config",
    "InputError": "errors",
    "Swarm": "swarm",
    "SwarmConfig": "config",
    "mix_": "ops",
    "search": "runs.search",
    "stream_update_rows_": "weights.streaming",
    "swarm_update_": "ops",
    "swarm_update_rows_": "ops",
}

__all__ = [
    "EngineConfig",
    "InputError",
    "Swarm",
    "SwarmConfig",
    "__version__",
    "mix_",
    "search",
    "stream_update_rows_",
    "swarm_update_",
    "swarm_update_rows_",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
