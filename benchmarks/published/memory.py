"""Memory that model_swarm's command takes beyond its engine: peaks of the processes together, shared pages once.

    python -m benchmarks.published.memory --base BASE --data FILE EXPERT ...

Beside it runs the same engine alone, which answers the same prompts with the first expert. The process of the parity
check, which ends after the first loads, is counted apart.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from transformers import AutoTokenizer

from benchmarks.machine import commit, machine_class, write_result
from benchmarks.published.drop_in import MAX_LEN, command_of
from modelswarms_fast.compat.model_swarm.engine import engine_fields
from modelswarms_fast.config import EngineConfig
from modelswarms_fast.engines.protocol import Request, complete
from modelswarms_fast.engines.start import start_here
from modelswarms_fast.records.run_folder import read_json
from modelswarms_fast.weights.base_model import resolve_base
from modelswarms_fast.weights.experts import read_experts

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "compat" / "memory"
PAUSE, TOKENS = 0.5, 10
CHECK = "modelswarms_fast.engines.oracle"


def peaks_of(command: Sequence[str], folder: Path) -> tuple[int, int]:
    """Most bytes of a process and all that it starts, each page by the share of the processes that have it.

    Of all but the parity check's process, and of that one.
    """
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    with subprocess.Popen(command, cwd=folder, env=env, stdout=2) as process:
        peaks, tree = [0, 0], psutil.Process(process.pid)
        while process.poll() is None:
            now = [0, 0]
            with suppress(psutil.NoSuchProcess):
                for one in [tree, *tree.children(recursive=True)]:
                    with suppress(psutil.NoSuchProcess):
                        now[CHECK in one.cmdline()] += one.memory_full_info().pss
            peaks = [max(one) for one in zip(peaks, now, strict=True)]
            time.sleep(PAUSE)
    if process.returncode:
        raise RuntimeError(f"{command} ended with status {process.returncode}")
    return peaks[0], peaks[1]


def alone(base: Path, data: Path, expert: str) -> None:
    """Start the engine, load one expert and answer the dev examples."""
    config = EngineConfig(**engine_fields("vllm", "bfloat16", "nearest", {"max_model_len": str(MAX_LEN)}))
    experts = read_experts([expert], base=base, minimum=1)
    engine = start_here(base, experts, config)
    engine.load(0, experts.rows[0])
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompts = [tokenizer(one["question"]).input_ids for one in read_json(data)["dev"]]
    complete(engine, [Request(0, prompt) for prompt in prompts], TOKENS)
    engine.close()


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published.memory")
    parser.add_argument("--base", required=True)
    parser.add_argument("--data", type=Path, required=True, help="exact_match: question and answer")
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("experts", type=Path, nargs="+")
    given = parser.parse_args()
    base, experts = resolve_base(given.base), [one.resolve() for one in given.experts]
    if given.alone:
        alone(base, given.data, str(experts[0]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder, data = Path(name), Path(name, "data.json")
        content = read_json(given.data)
        data.write_text(json.dumps(content | {"dev": content["dev"][: given.prompts]}))
        words = ["--alone", "--base", str(base), "--data", str(data), str(experts[0])]
        engine, _ = peaks_of([sys.executable, "-m", "benchmarks.published.memory", *words], folder)
        search, check = peaks_of(command_of(folder, base, data, experts, "reference"), folder)
    facts = {"commit": commit(), "machine": machine_class(), "base": given.base, "experts": len(experts)}
    facts |= {"bytes_of_an_expert": read_experts([str(experts[0])], base=base, minimum=1).layout.nbytes}
    facts |= {"engine_alone": engine, "command": search, "beyond": search - engine, "parity_check": check}
    write_result(RESULTS, facts)


if __name__ == "__main__":
    main()
