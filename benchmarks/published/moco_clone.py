"""MoCo's own swarm and generation on a CPU: run as a script, in a copy of the user's clone, by `moco.py`.

python moco_clone.py SPEC, in the folder of the copy. Its functions are called as its methods call them; nothing of it
is here. Around them: pools of processes are loops in this one, models are read in float32 and stay on the CPU.

SPEC is JSON: models (folders), swarm (folder that is made), scores (a list a round, one a model), inputs, seed, length,
jobs (a list of model and inputs, generated at once), out (folder for copies of the weights after each round). One JSON
line goes to standard output: rounds (a list of answers, over), jobs (answers), scratchpad (text), files (names of all
that is left in the swarm's folder).
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.published.published_search import Finder, Missing

TOP_P = 1e-6


class Loop:
    """A pool whose work is done here."""

    def __init__(self, processes: int) -> None:
        del processes

    def starmap(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> list[Any]:
        """Each call in turn."""
        return [function(*one) for one in arguments]

    def close(self) -> None:
        """Nothing."""

    def join(self) -> None:
        """Nothing."""


def on_a_cpu(dtype: torch.dtype) -> None:
    """Models are read in this type, and on the CPU, whatever the code asks for."""
    original = AutoModelForCausalLM.from_pretrained

    def from_pretrained(name: str, **more: Any) -> Any:
        return original(name, dtype=dtype)

    AutoModelForCausalLM.from_pretrained = from_pretrained


def main(spec: dict[str, Any]) -> dict[str, Any]:
    """Run the search and the jobs."""
    sys.meta_path.append(Finder())  # type: ignore[arg-type]
    on_a_cpu(torch.float32)
    sys.path.insert(0, ".")
    from model_collaboration.method import distributed_generation as generation
    from model_collaboration.utils import swarm

    Missing.importing = False
    generation.Pool = Loop
    generation.update_generation_hyperparameters(spec["length"], 0.7, TOP_P, 3)
    random.seed(spec["seed"])
    search = swarm.Swarm(
        swarm_base_path=spec["swarm"], model_paths=spec["models"], base_model=spec["models"][0], fast_merge=True,
        starting_velocity_mode="random", weight_randomness=True, inertia=0.2, cognitive_coeff=0.3, social_coeff=0.4,
        repel_coeff=0.05, step_length=0.5, repel_term=True, step_length_factor=0.95, minimum_step_length=0.1,
        gpus=[0, 1], patience=5, restart_patience=3,
    )  # fmt: skip
    rounds = []
    for number, scores in enumerate(spec["scores"]):
        paths = search.get_model_paths()
        answers = generation.distributed_generation(paths, [spec["inputs"]] * len(paths), [0, 1])
        over = search.update(scores)
        shutil.copytree(spec["swarm"], Path(spec["out"], str(number)))
        rounds.append([answers, over])
        if over:
            break
    search.clean_up()
    names, inputs = [name for name, _ in spec["jobs"]], [some for _, some in spec["jobs"]]
    jobs = generation.distributed_generation(names, inputs, [0, 1])
    left = sorted(str(file.relative_to(spec["swarm"])) for file in Path(spec["swarm"]).rglob("*") if file.is_file())
    text = Path(spec["swarm"], "utility_scratchpad.json").read_text()
    return {"rounds": rounds, "jobs": jobs, "scratchpad": text, "files": left, "draw": random.random()}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
