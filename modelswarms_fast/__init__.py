"""Model Swarms: search for a better language model among the mixtures of several experts.

Public names are loaded on first use, so that the parts without tensors import without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelswarms_fast.config import EngineConfig, SwarmConfig
    from modelswarms_fast.errors import EngineError, InputError, ParityError
    from modelswarms_fast.ops import mix_, swarm_update_, swarm_update_rows_
    from modelswarms_fast.runs.compare import compare
    from modelswarms_fast.runs.evaluate import evaluate
    from modelswarms_fast.runs.experiment import Experiment
    from modelswarms_fast.runs.report import report
    from modelswarms_fast.runs.resume import resume
    from modelswarms_fast.runs.search import search
    from modelswarms_fast.runs.study import study
    from modelswarms_fast.runs.sweep import sweep
    from modelswarms_fast.runs.token_swarm import token_swarm
    from modelswarms_fast.swarm import Swarm
    from modelswarms_fast.weights.streaming import stream_update_rows_

__version__ = "0.1.0"

_HOME = {
    "EngineConfig": "config",
    "EngineError": "errors",
    "Experiment": "runs.experiment",
    "InputError": "errors",
    "ParityError": "errors",
    "Swarm": "swarm",
    "SwarmConfig": "config",
    "compare": "runs.compare",
    "evaluate": "runs.evaluate",
    "mix_": "ops",
    "report": "runs.report",
    "resume": "runs.resume",
    "search": "runs.search",
    "stream_update_rows_": "weights.streaming",
    "study": "runs.study",
    "swarm_update_": "ops",
    "swarm_update_rows_": "ops",
    "sweep": "runs.sweep",
    "token_swarm": "runs.token_swarm",
}

__all__ = [
    "EngineConfig",
    "EngineError",
    "Experiment",
    "InputError",
    "ParityError",
    "Swarm",
    "SwarmConfig",
    "__version__",
    "compare",
    "evaluate",
    "mix_",
    "report",
    "resume",
    "search",
    "stream_update_rows_",
    "study",
    "swarm_update_",
    "swarm_update_rows_",
    "sweep",
    "token_swarm",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
