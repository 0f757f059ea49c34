"""MoCo's swarm and generation, run from the user's clone of it (github.com/BunsenFeng/model_collaboration), and ours.

python -m benchmarks.published.moco CLONE --models … writes what was equal to benchmarks/results/compat/moco/. Both do
the same search on the same adapters with the same scores and random seed, in float32, and answer the same inputs at
top_p 1e-6, which leaves the likeliest token. Nothing of MoCo is here.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from benchmarks.machine import commit, machine_class, new_result
from modelswarms_fast.compat import moco
from modelswarms_fast.compat.moco import session
from modelswarms_fast.config import EngineConfig

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "compat" / "moco"
TOP_P = 1e-6
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SCORES = ([0.5, 0.4, 0.6], [0.4, 0.4, 0.55], [0.3, 0.4, 0.5], [0.3, 0.7, 0.4], [0.2, 0.6, 0.3], [0.2, 0.5, 0.3],
          [0.2, 0.5, 0.3], [0.1, 0.5, 0.3], [0.1, 0.4, 0.2], [0.1, 0.4, 0.2])  # fmt: skip
"""Of each round: models restart in some, and the search stops by itself."""
WEIGHTS = "adapter_model.safetensors"


def compare(clone: Path, models: Sequence[str], other: str, folder: Path, dtype: str = "float32") -> dict[str, Any]:
    """Search and generate with both, with adapters in this number type.

    Args:
        clone: MoCo's.
        models: folders of three adapters, with tokenizers.
        other: a full model, which generates beside them.
        folder: for all files.

    Returns:
        rounds, texts (how many) and texts_equal, tensors and tensors_equal (of positions, velocities and bests after
        each round), and whether scratchpad, over, files and draw (the next random number) are equal.

    Raises:
        FileNotFoundError: there is no clone of MoCo.
        RuntimeError: MoCo failed.
    """
    if not (clone / "model_collaboration" / "utils" / "swarm.py").is_file():
        raise FileNotFoundError(f"{clone} has no model_collaboration/utils/swarm.py; give a clone of MoCo")
    folder.mkdir()
    experts = []
    for number, model in enumerate(models):
        experts.append(str(shutil.copytree(model, folder / f"expert_{number}")))
        state = {key: one.to(DTYPES[dtype]) for key, one in load_file(Path(experts[-1], WEIGHTS)).items()}
        save_file(state, Path(experts[-1], WEIGHTS), {"format": "pt"})
    inputs = ["bad", "dig<begin>up", "fun", "a<begin>", "xyz", "long" * 9]
    jobs = [(experts[0], inputs), (other, inputs[:3]), (experts[1], []), (experts[0], inputs[2:]), (experts[2], inputs)]
    spec = {"models": experts, "scores": SCORES, "inputs": inputs, "seed": 7, "length": 8, "jobs": jobs}
    theirs = _theirs(clone, folder, spec | {"swarm": f"{folder}/theirs/", "out": f"{folder}/rounds"})
    ours, tensors = _ours(folder, spec | {"swarm": f"{folder}/ours/"})
    texts = [
        mine == his
        for one, two in zip(_texts(ours), _texts(theirs), strict=True)
        for mine, his in zip(one, two, strict=True)
    ]
    return {
        "dtype": dtype,
        "rounds": len(theirs["rounds"]),
        "texts": len(texts),
        "texts_equal": sum(texts),
        "different_texts": len({text for some in _texts(theirs) for text in some}),
        "tensors": len(tensors),
        "tensors_equal": sum(tensors),
        "over_equal": [over for _, over in ours["rounds"]] == [over for _, over in theirs["rounds"]],
        "scratchpad_equal": ours["scratchpad"] == theirs["scratchpad"],
        "files_equal": ours["files"] == theirs["files"],
        "next_draw_equal": ours["draw"] == theirs["draw"],
    }


def _texts(run: dict[str, Any]) -> list[list[str]]:
    return [some for answers, _ in run["rounds"] for some in answers] + list(run["jobs"])


def _theirs(clone: Path, folder: Path, spec: dict[str, Any]) -> dict[str, Any]:
    copy = folder / "clone"
    shutil.copytree(clone, copy, ignore=shutil.ignore_patterns(".git", "*.json"))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.published.moco_clone", json.dumps(spec)],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "WANDB_DISABLED": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"MoCo failed: {done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _ours(folder: Path, spec: dict[str, Any]) -> tuple[dict[str, Any], list[bool]]:
    """Our run, and of each tensor whether it is the one in their files of that round."""
    session.configure(EngineConfig(engine="transformers", dtype="float32"))
    try:
        moco.update_generation_hyperparameters(spec["length"], 0.7, TOP_P, 3)
        random.seed(spec["seed"])
        search = moco.Swarm(
            spec["swarm"], spec["models"], spec["models"][0], True, "random", True, 0.2, 0.3, 0.4, 0.05, 0.5, True,
            0.95, 0.1, [0, 1], 5, 3,
        )  # fmt: skip
        rounds: list[Any] = []
        tensors: list[bool] = []
        for number, scores in enumerate(spec["scores"]):
            paths = search.get_model_paths()
            answers = moco.distributed_generation(paths, [spec["inputs"]] * len(paths), [0, 1])
            rounds.append([answers, search.update(scores)])
            moco.write(spec["swarm"])
            for file in sorted(Path(spec["swarm"]).rglob(WEIGHTS)):
                mine, his = (
                    load_file(file),
                    load_file(folder / "rounds" / str(number) / file.relative_to(spec["swarm"])),
                )
                tensors += [key in mine and torch.equal(mine[key], one) for key, one in his.items()]
            if rounds[-1][1]:
                break
        search.clean_up()
        names, inputs = [name for name, _ in spec["jobs"]], [some for _, some in spec["jobs"]]
        jobs = moco.distributed_generation(names, inputs, [0, 1])
        base = Path(spec["swarm"])
        left = sorted(str(file.relative_to(base)) for file in base.rglob("*") if file.is_file())
        text = (base / "utility_scratchpad.json").read_text()
        return {"rounds": rounds, "jobs": jobs, "scratchpad": text, "files": left, "draw": random.random()}, tensors
    finally:
        session.close()


def main() -> None:
    """Compare in each number type, and write what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published.moco")
    parser.add_argument("clone", type=Path, help="your clone of MoCo")
    parser.add_argument("--models", type=Path, nargs=4, required=True, help="three adapters and a full model")
    given = parser.parse_args()
    *models, other = map(str, given.models)
    with tempfile.TemporaryDirectory() as folder:
        runs = [compare(given.clone.resolve(), models, other, Path(folder, dtype), dtype) for dtype in DTYPES]
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=given.clone, capture_output=True, text=True)
    facts = {
        "model_collaboration": head.stdout.strip(),
        "commit": commit(),
        "machine": machine_class(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "runs": runs,
    }
    place = new_result(RESULTS)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(facts, indent=1) + "\n")
    print(place)


if __name__ == "__main__":
    main()
