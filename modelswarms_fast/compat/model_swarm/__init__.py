"""model_swarm's command and functions, with its flags, files and numbers, on the engines of this package.

`__main__` is the command: `flags` reads what it is given, `search` opens it, and `events` are in model_swarm's order.
`objectives` makes utilities of its evaluation types, and `engine` chooses what serves them. `particles` evaluates
particles and writes their `folders`; `scratchpad` is what is recorded as a search goes, and `metrics` has the numbers
at its end. `functions` has what is called by itself: `evaluate` and `evaluate_test`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelswarms_fast.compat.model_swarm.functions import (
        configure,
        evaluate,
        evaluate_test,
        release,
        update_only_one_or_two,
    )
    from modelswarms_fast.compat.model_swarm.metrics import overall_metrics
    from modelswarms_fast.compat.tensors import lora_merge

__all__ = [
    "configure", "evaluate", "evaluate_test", "lora_merge", "overall_metrics", "release", "update_only_one_or_two"
]  # fmt: skip

_FILES = {"lora_merge": "tensors", "overall_metrics": "model_swarm.metrics"}


def __getattr__(name: str) -> Any:
    if name in __all__:  # on first use, so that nothing imports torch that needs none
        file = _FILES.get(name, "model_swarm.functions")
        return getattr(importlib.import_module(f"modelswarms_fast.compat.{file}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
