"""What model_swarm and MoCo take, run from the user's clones, and what takes their place, in one run.

    python -m benchmarks.published.drop_in --model-swarm CLONE --moco CLONE --base BASE --data FILE EXPERT ...

writes benchmarks/results/compat/times/. Rows: an iteration of model_swarm's search; MoCo's distributed_generation, from
the second call on; a round of its weight_model_swarms, which is a generation and an update. Theirs leaves out what a
clone does beside that: processes that start, pauses. Nothing of either is here.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.machine import commit, machine_class, new_result
from benchmarks.published.published import DATASET, published_iteration
from modelswarms_fast.compat import moco
from modelswarms_fast.compat.moco import session
from modelswarms_fast.config import EngineConfig
from modelswarms_fast.records.run_folder import read_history, read_json
from modelswarms_fast.weights.base_model import resolve_base
from modelswarms_fast.weights.export import TOKENIZER_FILES

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "compat" / "times"
MEASURED = (1, 2, 3)
"""Particles of model_swarm that are moved and evaluated: neither the best nor the worst."""
MOVES, ROUNDS, TOKENS, MAX_LEN = 4, 3, 20, 1024


def model_swarm_rows(clone: Path, base: Path, data: Path, experts: Sequence[Path]) -> list[dict[str, Any]]:
    """An iteration of all particles for each way to pad: ours in bfloat16, theirs in float16, as it asks, and so."""
    theirs = {
        dtype: published_iteration(clone, experts, base, data, measured=MEASURED, dtype=dtype)["seconds"]
        for dtype in ("float16", "bfloat16")
    }
    rows = []
    for padding in ("reference", "clean"):
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            command = command_of(place, base, data, experts, padding)
            env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
            ended = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, check=False)
            if ended.returncode:
                raise RuntimeError(f"the search failed: {ended.stderr[-3000:]}")
            (run,) = (place / "search").iterdir()
            history = read_history(run / "history.jsonl")
            seconds = statistics.median(line["seconds"]["total"] for line in history[1:])
        row = {"what": "model_swarm, one iteration", "padding": padding, "particles": len(experts)}
        row |= {"prompts": len(read_json(data)["dev"]), "theirs": theirs, "ours": seconds}
        rows.append(row | {"ratio": {dtype: one / seconds for dtype, one in theirs.items()}})
    return rows


def command_of(place: Path, base: Path, data: Path, experts: Sequence[Path], padding: str) -> list[str]:
    """Our command for a search of a few moves in this folder, which gets the files that it needs."""
    (place / "search").mkdir()
    (place / "data" / "eval").mkdir(parents=True)
    shutil.copy(data, place / "data" / "eval" / f"{DATASET}.json")
    for expert in experts:
        shutil.copytree(expert, place / "initial_experts" / expert.name)
    words = ["-n", "times", "-e", "exact_match", "-d", DATASET, "-g", "0", "-b", str(base), "-m", str(MOVES)]
    words += ["-p", "50", "--dtype", "bfloat16", "--padding", padding, "--limit_test", "10"]
    words += ["--engine_set", f"max_model_len={MAX_LEN}"]
    return [sys.executable, "-m", "modelswarms_fast.compat.model_swarm", *words]


def moco_rows(clone: Path, base: Path, inputs: list[str], experts: Sequence[Path]) -> list[dict[str, Any]]:
    """A generation with all experts, and a round of the search, in bfloat16 as MoCo has it."""
    with tempfile.TemporaryDirectory() as folder:
        models = [str(_with_base(expert, base, Path(folder, expert.name))) for expert in experts]
        spec = {"models": models, "inputs": inputs, "length": TOKENS, "swarm": f"{folder}/theirs/"}
        copy = Path(folder, "clone")
        shutil.copytree(clone, copy, ignore=shutil.ignore_patterns(".git", "*.json"))
        env = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "WANDB_DISABLED": "true"}
        command = [sys.executable, "-m", "benchmarks.published.moco_times_clone", json.dumps(spec)]
        ended = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise RuntimeError(f"MoCo failed: {ended.stderr[-3000:]}")
        theirs = json.loads(ended.stdout.splitlines()[-1])
        found = {serve: _our_moco(spec | {"swarm": f"{folder}/{serve}/"}, serve) for serve in ("merged", "slots")}
    facts = {"dtype": "bfloat16", "models": len(models), "prompts": len(inputs), "tokens": TOKENS}
    rows = []
    for serve, ours in found.items():
        for what, parts in (
            ("MoCo, distributed_generation", ["generate"]),
            ("MoCo, one round", ["generate", "update"]),
        ):
            seconds = [sum(one[part] for part in parts) for one in (theirs, ours)]
            row = {"what": what, "serve": serve, **facts, "theirs": seconds[0], "ours": seconds[1]}
            rows.append(row | {"first": ours["first"], "ratio": seconds[0] / seconds[1]})
    return rows


def _with_base(expert: Path, base: Path, folder: Path) -> Path:
    """A copy of an adapter as MoCo needs it: with the folder of its base model and the tokenizer."""
    shutil.copytree(expert, folder)
    config = read_json(folder / "adapter_config.json") | {"base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copy(base / name, folder)
    return folder


def _our_moco(spec: dict[str, Any], serve: str) -> dict[str, float]:
    """Median seconds of a generation, from the second on, and of an update; and of the first generation."""
    slots = {"serve": serve, "slots": len(spec["models"])} if serve == "slots" else {}
    session.configure(EngineConfig(dtype="bfloat16", max_model_len=MAX_LEN, **slots))
    try:
        moco.update_generation_hyperparameters(spec["length"], 0.7, 0.9, 32)
        random.seed(0)
        models = spec["models"]
        search = moco.Swarm(
            spec["swarm"], models, models[0], True, "random", True, 0.2, 0.3, 0.4, 0.05, 0.5, True, 0.95, 0.1, [0], 50,
            50,
        )  # fmt: skip
        generate, update = [], []
        for number in range(ROUNDS + 1):
            before = time.perf_counter()
            moco.distributed_generation(search.get_model_paths(), [spec["inputs"]] * len(models), [0])
            generate.append(time.perf_counter() - before)
            before = time.perf_counter()
            search.update([(7 * number + 3 * model) % 10 / 10 for model in range(len(models))])
            update.append(time.perf_counter() - before)
        return {
            "first": generate[0],
            "generate": statistics.median(generate[1:]),
            "update": statistics.median(update[1:]),
        }
    finally:
        session.close()


def main() -> None:
    """Measure all rows, print each, and write them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published.drop_in")
    parser.add_argument("--model-swarm", type=Path, help="your clone of model_swarm")
    parser.add_argument("--moco", type=Path, help="your clone of MoCo")
    parser.add_argument("--base", required=True)
    parser.add_argument("--data", type=Path, required=True, help="exact_match: question and answer")
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("experts", type=Path, nargs="+")
    given = parser.parse_args()
    base, rows = resolve_base(given.base), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as folder:
        data, content = Path(folder, "data.json"), read_json(given.data)
        content["dev"] = content["dev"][: given.prompts]
        data.write_text(json.dumps(content))
        if given.model_swarm:
            rows += model_swarm_rows(given.model_swarm.resolve(), base, data, given.experts)
        if given.moco:
            inputs = [one["question"] for one in content["dev"]]
            rows += moco_rows(given.moco.resolve(), base, inputs, given.experts)
    facts = {"commit": commit(), "machine": machine_class(), "torch": torch.__version__}
    facts |= {"transformers": transformers.__version__, "base": given.base, "rows": rows}
    place = new_result(RESULTS)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(rows, indent=1))
    print(place)


if __name__ == "__main__":
    main()
