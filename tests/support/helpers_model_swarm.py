"""A folder as a user of model_swarm has it: experts on a tiny random base, data in data/eval, and the command."""

import json
import os
import random
import shutil
import socket
from pathlib import Path

from helpers_models import make_adapter, make_base
from helpers_search import write_tokenizer

from modelswarms_fast.compat.model_swarm.__main__ import main

NAMES = ("ada", "bob", "cyd")
HOST = socket.gethostname()
QUICK = ["--engine", "transformers", "--dtype", "float32", "-m", "3", "-p", "5", "-g", "0", "-b", "base"]


def make_place(folder: Path, experts=NAMES, dtype=None, **shape) -> Path:
    """Experts, a base of one-letter tokens, and a data set of each kind."""
    base = make_base(folder / "base", shape={"max_position_embeddings": 400, "eos_token_id": 0, **shape})
    write_tokenizer(base)
    for seed, name in enumerate(experts):
        make_adapter(
            base, folder / "initial_experts" / name, seed=seed, scale=0.5, **({"dtype": dtype} if dtype else {})
        )
    write_choices(folder, "quiz", 12)
    write_questions(folder, "nlgraph", 12)
    for seed, name in enumerate(("hearsay", "citation_prediction_classification")):
        write_choices(folder, name, 5 + seed, seed=seed + 1)
    return folder


def write_data(folder: Path, name: str, examples: list) -> None:
    path = folder / "data" / "eval" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    half = len(examples) // 2
    path.write_text(json.dumps({"dataset": name.upper(), "dev": examples[:half], "test": examples[half:]}))


def write_choices(folder: Path, name: str, count: int, *, seed: int = 0) -> None:
    """So many dev and test questions, whose choices are named by letters that the base says often."""
    draw = random.Random(seed)
    keys = "abcdefghij"
    examples = [
        {
            "question": "".join(draw.choices("bcdfgaeiou", k=draw.randint(1, 12))),
            "choices": {key: f"{key}{key}{number}" for key in keys},
            "answer": draw.choice(keys),
        }
        for number in range(2 * count)
    ]
    write_data(folder, name, examples)


def write_questions(folder: Path, name: str, count: int) -> None:
    draw = random.Random(7)
    examples = [
        {"question": "".join(draw.choices("bcdfgaeiou", k=draw.randint(1, 30))), "answer": draw.choice("abcdefghijkl")}
        for _ in range(2 * count)
    ]
    write_data(folder, name, examples)


def run_in(place: Path, *words: str, name: str = "mine") -> Path:
    """Run the command there; the run folder."""
    before = Path.cwd()
    os.chdir(place)
    try:
        assert main(["-n", name, *QUICK, *words]) == 0
    finally:
        os.chdir(before)
    return place / "search" / f"{name}_{HOST}"


def tree(folder: Path) -> set[str]:
    """All files below a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def read(path: Path):
    return json.loads(path.read_text())


def said(run: Path) -> list[str]:
    """What model_swarm's log has, without times."""
    lines = [line for line in (run / "log.txt").read_text().splitlines() if line.startswith("INFO:root:")]
    return [line.removeprefix("INFO:root:") for line in lines]


def make_place_of_all(folder: Path) -> Path:
    """Twelve experts, others of eleven layers, and forty examples a split: for what the original can evaluate here."""
    experts = tuple(f"expert_{letter}" for letter in "abcdefghijkl")
    deep = make_place(folder / "made", experts, num_hidden_layers=11)
    make_place(folder, experts)
    for name, new in (("base", "deep"), ("initial_experts", "deep_experts")):
        (deep / name).rename(folder / new)
    shutil.rmtree(deep)
    for expert in experts:  # its multitask passes no base on, and loads the folder by itself
        write_tokenizer(folder / "initial_experts" / expert)
    write_choices(folder, "quiz", 40)
    write_questions(folder, "nlgraph", 40)
    write_questions(folder, "maths", 40)
    for name in ("hearsay", "citation_prediction_classification"):
        write_choices(folder, name, 20, seed=len(name))
    return folder
