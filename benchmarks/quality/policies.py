"""The study of benchmarks/quality/PROTOCOL.md: policies at equal budgets, over several seeds.

    python -m benchmarks.quality.policies run  TASK EXPERTS DATA OUT [--methods M,...] [--seeds N] [--budget N]
    python -m benchmarks.quality.policies test TASK EXPERTS DATA OUT [--json FILE]

`run` makes one search a method and seed in OUT/TASK/METHOD-SEED, by the command line, so that one that was cut goes on.
What a search has evaluated, the later ones reuse. `test` scores what each method would choose at each budget on test,
on one engine, and writes FILE. What FILE has is not scored again. policy_tables.py makes the tables of it.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.quality import BASE, machine
from modelswarms_fast.records.run_folder import read_history, read_json, write_json
from modelswarms_fast.runs.experiment import Experiment
from modelswarms_fast.swarm import best_of

BUDGETS = (50, 100, 200, 500)
"""Evaluations of all dev examples, those of the experts among them."""


@dataclass(frozen=True)
class Task:
    """A task of the study: its file, and how many of the dev examples steer the search."""

    file: str
    dev: int
    objective: str = "exact_match"


TASKS = {
    "p3_large": Task("p3_large.json", 200),
    "skills_mix": Task("skills_mix.json", 200),
    "p3_topic": Task("p3_topic.json", 150),
}
# The options of each method. The swarm's patience is the published one; a policy ends by its budget alone.
METHODS: dict[str, tuple[str, ...]] = {
    "swarm": (),
    "swarm-expert": ("--randomness", "expert"),
    "cma-es": ("--policy", "cma-es", "--patience", "1000"),
    "cma-es-free": ("--policy", "cma-es", "--space", "free", "--patience", "1000"),
    "guided": ("--policy", "guided", "--patience", "1000"),
    "guided-free": ("--policy", "guided", "--space", "free", "--patience", "1000"),
}


def settings_of(task: Task, data: Path) -> dict[str, Any]:
    """What all searches of a task have in common, by the names of the options."""
    return {
        "base": BASE,
        "task": task.objective,
        "data": data / task.file,
        "limit_dev": task.dev,
        "max_model_len": 1024,
        "state": "mixture",
        "serve": "merged",
    }


def run(name: str, experts: Path, data: Path, out: Path, methods: Sequence[str], seeds: int, budget: int) -> None:
    """The searches of a task that have not ended yet, a seed of all methods at a time."""
    count, done = len([path for path in experts.iterdir() if (path / "adapter_config.json").exists()]), list[Path]()
    for seed in range(seeds):
        for method in methods:
            folder = out / name / f"{method}-{seed}"
            command = [sys.executable, "-c", "from modelswarms_fast.cli.main import main; main()"]
            command += ["search", str(experts), "--out", str(folder), "--resume", "--seed", str(seed)]
            command += ["--iterations", str(budget // count - 1), *METHODS[method]]
            for option, value in settings_of(TASKS[name], data).items():
                command += [f"--{option.replace('_', '-')}", str(value)]
            for other in done[:1]:  # the experts are known
                command += ["--reuse", str(other)]
            if not _ended(folder, budget // count - 1):
                subprocess.run(command, check=True)
            done.append(folder)


def _ended(folder: Path, iterations: int) -> bool:
    path = folder / "summary.json"
    if not path.exists():
        return False
    summary = read_json(path)
    return bool(summary["ended"]) and (summary["stopped"] == "patience" or summary["iterations"] >= iterations)


def choices(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """What a search would choose at each budget: its best on dev so far, with what it has cost."""
    history, evaluations, prompts, seconds = read_history(folder / "history.jsonl"), 0, 0, 0.0
    best: dict[str, Any] = {"dev": -np.inf}
    budgets = list(BUDGETS)
    for line in history:
        utilities = np.array(line["utilities"], dtype=np.float64)
        evaluations, prompts = evaluations + len(utilities), prompts + line["prompts"]
        seconds += line["seconds"]["total"]
        if (found := best_of(utilities)) is not None and utilities[found] > best["dev"]:
            best = {"dev": float(utilities[found]), "mixture": line["mixtures"][found], "iteration": line["iteration"]}
        while budgets and evaluations >= budgets[0]:
            yield budgets.pop(0), best | {"evaluations": evaluations, "prompts": prompts, "seconds": seconds}
    for budget in budgets:  # it has ended before
        yield budget, best | {"evaluations": evaluations, "prompts": prompts, "seconds": seconds}


def test(name: str, experts: Path, data: Path, out: Path, file: Path) -> None:
    """Score on test the choices of all searches of a task, and the experts."""
    content: dict[str, Any] = read_json(file) if file.exists() else {"task": name, "scores": {}}
    content |= {"machine": machine(), "runs": {}}
    wanted: dict[str, list[float]] = {}
    for folder in sorted(path for path in (out / name).iterdir() if (path / "summary.json").exists()):
        method, _, seed = folder.name.rpartition("-")
        summary = read_json(folder / "summary.json")
        of_run = {str(budget): choice for budget, choice in choices(folder)}
        for choice in of_run.values():
            choice["test"] = _key(choice["mixture"])
            wanted[choice["test"]] = choice["mixture"]
        content["runs"].setdefault(method, {})[seed] = of_run
        content["experts"] = {expert: None for expert in summary["experts"]}
    for position, expert in enumerate(content["experts"]):
        unit = [float(position == other) for other in range(len(content["experts"]))]
        content["experts"][expert] = _key(unit)
        wanted[_key(unit)] = unit
    missing = [key for key in wanted if key not in content["scores"]]
    with Experiment(experts, out=out / name / "test", **settings_of(TASKS[name], data)) as experiment:
        for key in missing:
            scores = experiment.score_mixtures([wanted[key]], "test")[0]
            content["scores"][key] = "".join(str(int(score)) for score in scores)
            write_json(file, content)
            print(f"{len(content['scores'])} of {len(wanted)}", flush=True)
    write_json(file, content)


def _key(mixture: Sequence[float]) -> str:
    return hashlib.blake2b(np.asarray(mixture, dtype=np.float64).tobytes(), digest_size=8).hexdigest()


def main() -> None:
    """Run or test one task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "test"))
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("experts", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=int, default=200)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    where = given.task, given.experts, given.data, given.out
    if given.what == "run":
        run(*where, given.methods.split(","), given.seeds, given.budget)
    else:
        test(*where, given.json or given.out / given.task / "tested.json")


if __name__ == "__main__":
    main()
