"""MoCo on engines that stay: its functions, with its arguments and results.

`generation` answers prompts, `swarm` moves models, `merging` sums them, and `session` has what they share.
"""

from modelswarms_fast.compat.moco.generation import (
    batch_generate_text,
    distributed_generation,
    update_generation_hyperparameters,
)
from modelswarms_fast.compat.moco.merging import lora_merge
from modelswarms_fast.compat.moco.session import release, write
from modelswarms_fast.compat.moco.swarm import Swarm

__all__ = [
    "Swarm", "batch_generate_text", "distributed_generation", "lora_merge", "release",
    "update_generation_hyperparameters", "write",
]  # fmt: skip
