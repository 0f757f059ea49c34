"""Score every example expert and the base on the demo's test split, beside a finished demo: one JSON file.

    python -m benchmarks.quality.demo runs/demo [FILE]

`make demo` scores only the expert that was best on dev; this says how the winner stands to all of them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.machine import new_result
from benchmarks.quality.quality import machine
from modelswarms_fast.config import EngineConfig
from modelswarms_fast.engines.start import start_engine
from modelswarms_fast.evaluation.evaluator import Evaluator
from modelswarms_fast.evaluation.objectives import load_utility
from modelswarms_fast.evaluation.objectives.utility import mean, mean_error
from modelswarms_fast.records.run_folder import write_json
from modelswarms_fast.weights.base_model import resolve_base
from modelswarms_fast.weights.experts import read_experts

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
RESULTS = ROOT / "benchmarks" / "results" / "quality" / "demo"


def main() -> None:
    """Evaluate and write."""
    run = Path(sys.argv[1])
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else new_result(RESULTS)
    target.parent.mkdir(parents=True, exist_ok=True)
    summary = json.loads((run / "summary.json").read_text())
    summary["data"] = "examples/data/skills_mix.json"
    experts = read_experts(EXAMPLES / "experts")
    utility = load_utility("exact_match", EXAMPLES / "data" / "skills_mix.json")
    engine = start_engine(resolve_base(summary["base"]), experts, EngineConfig(max_model_len=512))
    evaluator = Evaluator(engine, utility, splits=("test",))
    scores = {name: evaluator.score_model(row, "test") for name, row in zip(experts.names, experts.rows, strict=True)}
    scores["base"] = evaluator.score_base("test")
    test = {
        name: {"test": mean("test", own), "standard_error": mean_error("test", own)} for name, own in scores.items()
    }
    write_json(target, {"summary": summary, "test": test, "machine": machine()})


if __name__ == "__main__":
    main()
