"""MoCo on engines that stay: `patch` puts this package in the place of what MoCo loads and merges anew at each call.

`generation` answers prompts, `swarm` moves models, `merging` sums them, and `session` has what they share. `patching`
puts them into MoCo, and `__main__` runs MoCo so.
"""

from modelswarms_fast.compat.moco.generation import (
    batch_generate_text,
    distributed_generation,
    update_generation_hyperparameters,
)
from modelswarms_fast.compat.moco.merging import lora_merge
from modelswarms_fast.compat.moco.patching import patch, unpatch
from modelswarms_fast.compat.moco.session import release, write
from modelswarms_fast.compat.moco.swarm import Swarm

__all__ = [
    "Swarm", "batch_generate_text", "distributed_generation", "lora_merge", "patch", "release", "unpatch",
    "update_generation_hyperparameters", "write",
]  # fmt: skip
