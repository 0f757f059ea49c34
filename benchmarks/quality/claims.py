"""Model Swarms and every other way to compose the same experts, on several tasks, at one budget of evaluations.

    python -m benchmarks.quality.claims EXPERTS DATA OUT [--train FOLDER] [--only TASK,...] [--methods NAME,...]
        [--budget N]
    python -m benchmarks.quality.claims examples/experts examples/data OUT --only reward --option model=FOLDER
    python -m benchmarks.quality.claims examples/experts examples/data OUT --only judge --option model=NAME \\
        --option endpoint=URL

EXPERTS is a folder of adapters of SmolLM2-135M-Instruct, DATA a folder of evaluation files; OUT gets
TASK/DATE_MACHINE_COMMIT.json, which write_results.py reads, and in runs/ the folders of all searches. --train is what
the experts were trained on, for the methods that train or cluster. What OUT already holds is not run again.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import latest, new_result
from benchmarks.quality.quality import BASE, machine
from modelswarms_fast.records.run_folder import read_json, write_json
from modelswarms_fast.runs.baselines import METHODS, data_merge
from modelswarms_fast.runs.compare import compare

BUDGET = 50
# The middle of the ranges that the published code draws from, but for the step length: its default. Not tuned here.
SWARM = {"inertia": 0.2, "cognitive_coeff": 0.3, "social_coeff": 0.4, "repel_coeff": 0.05}


@dataclass(frozen=True)
class Claim:
    """A task: which files, and how many examples of each."""

    task: str
    files: tuple[str, ...]
    dev: int
    test: int
    options: dict[str, str] = field(default_factory=dict)
    max_tokens: int | None = None


CLAIMS = {
    "p3_mixed": Claim("exact_match", ("p3_mixed",), 100, 280),
    "p3_science": Claim("exact_match", ("p3_science",), 60, 200),
    "p3_topic": Claim("exact_match", ("p3_topic",), 60, 200),
    "p3_sentiment+p3_paraphrase": Claim(
        "multitask", ("p3_sentiment", "p3_paraphrase"), 30, 100, {"tasks": "exact_match"}
    ),
    "hellaswag": Claim("multiple_choice", ("hellaswag",), 40, 150),
    "legal": Claim("multitask:legal", ("hearsay", "citation_prediction_classification"), 20, 75),
    "reward": Claim("reward", ("skills_mix",), 64, 240, max_tokens=16),
    "judge": Claim("judge", ("skills_mix",), 24, 80, max_tokens=16),
}
ASKED_FOR = ("reward", "judge")  # they need a model


def run(
    name: str,
    experts: str,
    data: Path,
    out: Path,
    *,
    train: str | None,
    methods: list[str],
    budget: int,
    options: dict[str, str],
) -> None:
    """One task; its file is written anew after each method."""
    claim = CLAIMS[name]
    paths = [data / f"{file}.json" for file in claim.files]
    folder = out / "runs" / name
    settings: dict[str, Any] = {"max_model_len": 2048, "limit_dev": claim.dev, "limit_test": claim.test}
    if options := claim.options | options:
        settings["options"] = options
    if claim.max_tokens:
        settings["max_tokens"] = claim.max_tokens
    content = compare(
        experts,
        base=BASE,
        task=claim.task,
        data=data if ":" in claim.task else paths[0] if len(paths) == 1 else paths,
        out=folder,
        budget=budget,
        methods=methods,
        swarm=SWARM,
        train=train,
        progress=True,
        resume=True,
        **settings,
    )
    (out / name).mkdir(exist_ok=True)
    target = latest(out / name) or new_result(out / name)
    before = read_json(target) if target.exists() else {"machines": [], "methods": {}}
    machines = before["machines"]
    if content["methods"].keys() != before["methods"].keys() and (here := machine()) not in machines:
        machines.append(here)
    examples = {"dev": claim.dev, "test": claim.test, "files": list(claim.files)}
    # Where things lay is nobody's business.
    config = {key: value for key, value in content["config"].items() if key not in ("data", "sources", "options")}
    for result in content["methods"].values():
        result["recipe"].pop("adapter", None)
    write_json(target, content | {"config": config, "name": name, "examples": examples, "machines": machines})


def train_once() -> None:
    """data_merge trains on what depends on no task: once for all tasks of this run, in the seconds of the first."""
    train, known = data_merge.train, list[Any]()

    def once(*arguments: Any, **more: Any) -> Any:
        if not known:
            known.append(train(*arguments, **more))
        return known[0]

    data_merge.train = once


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experts")
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train")
    parser.add_argument("--only", default=",".join(name for name in CLAIMS if name not in ASKED_FOR))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--budget", type=int, default=BUDGET, metavar="EVALUATIONS")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of the objective")
    asked = parser.parse_args()
    methods, options = asked.methods.split(","), dict(one.split("=", 1) for one in asked.option)
    train_once()
    for name in asked.only.split(","):
        run(
            name,
            asked.experts,
            asked.data,
            asked.out,
            train=asked.train,
            methods=methods,
            budget=asked.budget,
            options=options,
        )


if __name__ == "__main__":
    main()
