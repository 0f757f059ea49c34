"""Model Swarms without files and reloads; see docs/design.md.

The operators are loaded on first use, so that the parts without tensors import without torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelswarms_fast.ops import mix_, swarm_update_

__version__ = "0.1.0"

__all__ = ["__version__", "mix_", "swarm_update_"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from modelswarms_fast import ops

        return getattr(ops, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
