"""The paper's findings on one task: a search whose particles are all tested, and the studies. One JSON file a task.

    python -m benchmarks.quality.findings EXPERTS DATA OUT [--only NAME,...] [--kinds KIND,...] [--seeds N] ...

EXPERTS and DATA are folders, as for claims.py. OUT gets NAME/DATE_MACHINE_COMMIT.json, which write_results.py draws,
and in runs/ the folders of all searches: what they hold is not run again.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from benchmarks.machine import latest, new_result
from benchmarks.quality.claims import SWARM
from benchmarks.quality.quality import BASE, machine
from modelswarms_fast import search
from modelswarms_fast.records.analysis import read_run
from modelswarms_fast.records.analysis.registry import analyse
from modelswarms_fast.records.run_folder import read_json, write_json
from modelswarms_fast.runs.study import KINDS, STUDY, study


@dataclass(frozen=True)
class Task:
    """How many examples, and how long a search is."""

    dev: int
    test: int
    iterations: int


TASKS = {"skills_mix": Task(64, 240, 5), "p3_mixed": Task(50, 160, 4)}


def shown(content: dict[str, Any]) -> dict[str, Any]:
    """Without what is of this machine, or in the files of the run alone."""
    return {key: value for key, value in content.items() if key not in ("data", "sources", "memory", "objective")}


def run(name: str, experts: str, data: Path, out: Path, kinds: list[str], seeds: int, task: Task) -> dict[str, Any]:
    """All of one task."""
    folder = out / "runs" / name
    common: dict[str, Any] = {
        "base": BASE,
        "task": "exact_match",
        "data": data / f"{name}.json",
        "limit_dev": task.dev,
        "limit_test": task.test,
        "max_model_len": 2048,
    }
    swarm: dict[str, Any] = SWARM | {"iterations": task.iterations}
    whole = folder / "search"
    if not (whole / "test_scores.json").exists():
        search(experts, out=whole, overwrite=True, final_test=True, progress=True, **common, **swarm)
    found: dict[str, Any] = {
        "name": name,
        "machine": machine(),
        "swarm": SWARM,
        "search": shown(read_json(whole / "summary.json")),
        "analysis": json.loads(json.dumps(analyse(read_run(whole)))),
        "studies": {},
    }
    for kind in kinds:
        if not (folder / kind / STUDY).exists():
            # Early stopping changes no decision but by rounding: it asks for fewer examples at once, and what shares a
            # batch can change an answer in bfloat16, most with AMX. All variants of a study stop early alike.
            more: dict[str, Any] = {"resume": True, "stop_early": True, "say": print}
            study(kind, experts, out=folder / kind, seeds=seeds, swarm=swarm, **more, **common)
        found["studies"][kind] = shown(read_json(folder / kind / STUDY))
    return found


def main() -> None:
    """Run what was asked for; each study is written as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experts")
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default=",".join(TASKS))
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--seeds", type=int, default=2)
    for field in fields(Task):
        parser.add_argument(f"--{field.name}", type=int, help="instead of the task's own, for what has not been run")
    asked = parser.parse_args()
    given = {field.name: getattr(asked, field.name) for field in fields(Task)}
    for name in asked.only.split(","):
        kinds = asked.kinds.split(",")
        task = replace(TASKS[name], **{key: value for key, value in given.items() if value is not None})
        for count in range(len(kinds) + 1):
            content = run(name, asked.experts, asked.data, asked.out, kinds[:count], asked.seeds, task)
            folder = asked.out / name
            folder.mkdir(exist_ok=True)
            write_json(latest(folder) or new_result(folder), content)


if __name__ == "__main__":
    main()
