"""MoCo on engines that stay: its functions, with its arguments and results.

`generation` answers prompts, and `session` has what the functions share.
"""

from modelswarms_fast.compat.moco.generation import (
    batch_generate_text,
    distributed_generation,
    update_generation_hyperparameters,
)
from modelswarms_fast.compat.moco.session import release

__all__ = ["batch_generate_text", "distributed_generation", "release", "update_generation_hyperparameters"]
