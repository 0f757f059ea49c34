"""The study of benchmarks/quality/PROTOCOL.md: policies at equal budgets, over several seeds.

    python -m benchmarks.quality.policies run  TASK EXPERTS DATA OUT [--methods M,...] [--seeds N] [--budget N]
    python -m benchmarks.quality.policies beside TASK EXPERTS DATA OUT [--methods M,...] [--seeds N] [--budget N]
    python -m benchmarks.quality.policies test TASK EXPERTS DATA OUT [--json FILE]

`run` makes one search a method and seed in OUT/TASK/METHOD-SEED, by the command line, so that one that was cut goes on.
What a search has evaluated, the later ones reuse. `beside` runs the baselines in OUT/TASK/beside-SEED, those that draw
nothing with the first seed alone. `test` scores what each search would choose at each budget on test, on one engine,
and writes FILE. What FILE has is not scored again. policy_tables.py makes the tables of it.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.quality import BASE, machine
from modelswarms_fast.records.run_folder import read_history, read_json, write_json
from modelswarms_fast.runs.choose import Rule, Visited, by_posterior, by_shrinking, visited
from modelswarms_fast.runs.compare import compare
from modelswarms_fast.runs.experiment import Experiment
from modelswarms_fast.runs.shrinkage import best_of_each, expected_test

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
BASELINES = (
    "best_expert",
    "uniform_soup",
    "slerp",
    "dare_ties",
    "model_stock",
    "greedy_soup",
    "vote",
    "pack",
    "cbtm",
    "lorahub",
    "evolmerge",
    "random_search",
)
DRAWN = ("lorahub", "evolmerge", "random_search")
"""The baselines that depend on a seed."""
Choices = dict[str, dict[str, Any]]
"""By the way to choose."""


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


def beside(name: str, experts: Path, data: Path, out: Path, methods: Sequence[str], seeds: int, budget: int) -> None:
    """The baselines of a task that have not ended yet, a seed of all methods at a time."""
    for seed in range(seeds):
        some = [method for method in methods if method in DRAWN or seed == 0]
        if some:
            folder = out / name / f"beside-{seed}"
            given = settings_of(TASKS[name], data)
            compare(experts, out=folder, budget=budget, methods=some, seed=seed, resume=True, progress=True, **given)


def choices(folder: Path, ways: dict[str, Callable[[Visited], Rule]], tests: int) -> Iterator[tuple[int, Choices]]:
    """At each budget the position that a search would choose in each way, and what it expects of it on test."""
    history = read_history(folder / "history.jsonl")
    experts = len(read_json(folder / "summary.json")["experts"])
    evaluations = np.cumsum([len(line["utilities"]) for line in history])
    for budget in BUDGETS:
        lines = max(1, int(np.searchsorted(evaluations, budget, side="right")))
        known, found = visited(history[:lines]), Choices()
        for way, rule_of in ways.items():
            rule = rule_of(known)
            at = int(rule(known.utilities[:, None])[0])
            assert known.mixtures is not None
            expected = expected_test(known.scores, at, tests, rule)
            found[way] = {"dev": float(known.utilities[at]), "mixture": known.mixtures[at].tolist()}
            found[way] |= {"expected_test": expected, "expert": at < experts}
        yield budget, found


def test(name: str, experts: Path, data: Path, out: Path, file: Path) -> None:
    """Score on test the choices of all searches of a task, and the experts."""
    content: dict[str, Any] = read_json(file) if file.exists() else {"task": name, "scores": {}}
    content |= {"machine": machine(), "dev": TASKS[name].dev, "runs": {}, "beside": {}}
    wanted: dict[str, list[float]] = {}
    with Experiment(experts, out=out / name / "test", **settings_of(TASKS[name], data)) as experiment:
        count, tests = len(experiment.names), len(experiment.utility.examples["test"])
        products = np.eye(count) if experiment.expert_products is None else np.array(experiment.expert_products)
        ways: dict[str, Callable[[Visited], Rule]] = {
            "best": lambda known: best_of_each,
            "posterior": lambda known: by_posterior(known, np.ones_like(known.bests), products),
            "shrink": lambda known: by_shrinking(known, np.ones_like(known.bests), count),
        }
        for folder in sorted(path for path in (out / name).iterdir() if (path / "summary.json").exists()):
            method, _, seed = folder.name.rpartition("-")
            of_run = {str(budget): found for budget, found in choices(folder, ways, tests)}
            for one in (one for found in of_run.values() for one in found.values()):
                one["test"] = _key(one["mixture"])
                wanted[one["test"]] = one["mixture"]
            seconds = [line["seconds"]["total"] for line in read_history(folder / "history.jsonl")]
            content["runs"].setdefault(method, {})[seed] = {"choices": of_run, "seconds": seconds}
        for folder in sorted((out / name).glob("beside-*")):
            results = read_json(folder / "baselines.json")
            budget = results["config"]["budget"]
            for method, found in results["methods"].items():
                kept = {"budget": budget} | {key: found[key] for key in ("dev", "evaluations", "prompts", "seconds")}
                kept["scores"] = "".join(str(int(score)) for score in found["test_scores"])
                content["beside"].setdefault(method, {})[folder.name.removeprefix("beside-")] = kept
        units = np.eye(count).tolist()
        content["experts"] = {expert: _key(unit) for expert, unit in zip(experiment.names, units, strict=True)}
        wanted |= {_key(unit): unit for unit in units}
        for key in [key for key in wanted if key not in content["scores"]]:
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
    parser.add_argument("what", choices=("run", "beside", "test"))
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("experts", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--methods", help="names after commas (default: all)")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=int, default=200)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    where = given.task, given.experts, given.data, given.out
    if given.what == "test":
        test(*where, given.json or given.out / given.task / "tested.json")
        return
    methods = given.methods.split(",") if given.methods else METHODS if given.what == "run" else BASELINES
    (run if given.what == "run" else beside)(*where, list(methods), given.seeds, given.budget)


if __name__ == "__main__":
    main()
