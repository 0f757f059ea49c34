"""Seconds of MoCo's own swarm and generation on a CPU: run as a script, in a copy of the user's clone, by `drop_in.py`.

python -m benchmarks.published.moco_times_clone SPEC. SPEC is JSON: models (folders), swarm (folder that is made),
inputs and length. Its functions are called as its methods call them; pools of processes are loops in this one. One JSON
line goes to standard output: seconds of a generation with all models, and of an update after it.
"""

from __future__ import annotations

import json
import random
import sys
import time
from typing import Any

import torch

from benchmarks.published.moco_clone import Loop, on_a_cpu
from benchmarks.published.published_search import Finder, Missing


def main(spec: dict[str, Any]) -> dict[str, float]:
    """Generate, move, generate and move; the second of each is measured, with files in the system's cache."""
    on_a_cpu(torch.bfloat16)  # the type that it asks for
    sys.meta_path.append(Finder())  # type: ignore[arg-type]
    sys.path.insert(0, ".")
    from model_collaboration.method import distributed_generation as generation
    from model_collaboration.utils import swarm

    Missing.importing = False
    generation.Pool = Loop
    generation.update_generation_hyperparameters(spec["length"], 0.7, 0.9, 32)
    random.seed(0)
    search = swarm.Swarm(
        swarm_base_path=spec["swarm"], model_paths=spec["models"], base_model=spec["models"][0], fast_merge=True,
        starting_velocity_mode="random", weight_randomness=True, inertia=0.2, cognitive_coeff=0.3, social_coeff=0.4,
        repel_coeff=0.05, step_length=0.5, repel_term=True, step_length_factor=0.95, minimum_step_length=0.1,
        gpus=[0], patience=50, restart_patience=50,
    )  # fmt: skip
    seconds: dict[str, float] = {}
    for number in range(2):
        paths, before = search.get_model_paths(), time.perf_counter()
        generation.distributed_generation(paths, [spec["inputs"]] * len(paths), [0])
        seconds["generate"], before = time.perf_counter() - before, time.perf_counter()
        search.update([(7 * number + 3 * model) % 10 / 10 for model in range(len(paths))])
        seconds["update"] = time.perf_counter() - before
    return seconds


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
