"""model_swarm's search, run from the user's clone of it (github.com/BunsenFeng/model_swarm), and ours.

python -m benchmarks.published.model_swarm CLONE --place FOLDER writes what was equal to
benchmarks/results/compat/model_swarm/, and with --script to benchmarks/results/compat/run/. FOLDER is a user's:
initial_experts/, a base model in base/, others of eleven layers in deep_experts/ and deep/, and data/eval/. Both search
in a copy of it, with the same flags and the same random
factors. Nothing of model_swarm is here.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from benchmarks.machine import commit, machine_class, new_result
from benchmarks.published.model_swarm_clone import factors

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "compat"
WEIGHTS = "adapter_model.safetensors"
SEARCHES = {
    "choices": "-e multiple_choice -d quiz -p 3 -m 4",
    "populated": "-e multiple_choice -d quiz -m 2 --populate_initial_experts 1 --initial_experts_num 15 --dropN 0.4",
    "zero": "-e exact_match -d nlgraph -p 2 -m 6 --starting_velocity_mode zero --repel_term 0 --clean_up_on_end 0",
    "best": "-e exact_match -d maths -m 3 --starting_velocity_mode best --to_visualize 1 -b deep -i deep_experts",
    "emergence": "-e multiple_choice -d quiz -m 2 --correctness_emergence 1 --dropK 0.3",
    "multitask": "-e multitask -d legal -m 3",
    "abstentions": "-e AbstainQA -d quiz -m 3",
}
"""The flags of each search; its start is tested, since model_swarm ends with an error otherwise."""
SCRIPTED = ("choices", "zero", "multitask", "abstentions")
"""Those that the clone's own script does on our engine, too."""
_COMMON = "-g 0 -b base --starting_test_set_eval 1"
_ENGINE = "--engine transformers --dtype float32"
_OURS = f"--rounding published {_ENGINE} --draws draws.json"
_SAME = "--weight_randomess 0"
_OWN_FILES = {"config.json", "history.jsonl", "summary.json"}
_UNWRITTEN = ("p_x", "g_x", "x_w")
# Mended: what they call the start of the dev ensemble is of the last positions in these.
_LAST_FOR_START = ("emergence", "multitask")
_MENDED_LINE = "final ensemble metrics for dev"
_OWN_LINE = "p_x, g_x and x_w are not written"
_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")


def compare(
    clone: Path, place: Path, search: str, folder: Path, dtype: str = "float32", *, script: bool = False
) -> dict[str, Any]:
    """One of SEARCHES with both, with adapters in this number type and models in float32.

    With `script`, ours is the clone's own search.py on our engine (`compat.run`), both without random factors.

    Args:
        clone: of model_swarm.
        place: a user's folder.
        search: by its name.
        folder: for both copies, to be made.

    Returns:
        iterations, utilities (how many are different), log_lines, files, contents (of JSON) and tensors, and how many
        of these are equal, and whether scratchpad and args are.

    Raises:
        FileNotFoundError: there is no clone of model_swarm.
        RuntimeError: one of both failed.
    """
    if not (clone / "search.py").is_file():
        raise FileNotFoundError(f"{clone} has no search.py; give a clone of model_swarm")
    theirs, ours = folder / "theirs", folder / "ours"
    for copy in (theirs, ours):
        shutil.copytree(place, copy, ignore=shutil.ignore_patterns("search"))
        (copy / "search").mkdir()
        for file in (copy / "initial_experts").glob(f"*/{WEIGHTS}"):
            state = {name: one.to(getattr(torch, dtype)) for name, one in load_file(file).items()}
            save_file(state, file, {"format": "pt"})
    for file in clone.glob("*.py"):
        for copy in (theirs, ours)[: 1 + script]:
            shutil.copy(file, copy)
    draws = [[factors(iteration, particle) for particle in range(32)] for iteration in range(1, 16)]
    (ours / "draws.json").write_text(json.dumps(draws))
    words = ["-n", search, *_COMMON.split(), *SEARCHES[search].split(), *_SAME.split() * script]
    given = re.search(r"--initial_experts_num (\d+)", SEARCHES[search])
    particles = int(given[1]) if given else len([one for one in (place / "initial_experts").iterdir() if one.is_dir()])
    spec = json.dumps({"particles": particles, "dtype": "float32"})
    _run(theirs, "benchmarks.published.model_swarm_clone", spec, *words)
    if script:
        _run(ours, "modelswarms_fast.compat.run", *_ENGINE.split(), "search.py", *words)
    else:
        _run(ours, "modelswarms_fast.compat.model_swarm", *words, *_OURS.split())
    name = f"{search}_{socket.gethostname()}"
    facts = {"search": search, "flags": SEARCHES[search], "dtype": dtype, "particles": particles}
    return facts | _compared(theirs / "search" / name, ours / "search" / name, None if script else search)


def _run(folder: Path, module: str, *words: str) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "TQDM_DISABLE": "1"}
    ended = subprocess.run(
        [sys.executable, "-m", module, *words], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise RuntimeError(f"{module} failed: {ended.stderr[-3000:]}")


def _compared(theirs: Path, ours: Path, search: str | None) -> dict[str, Any]:
    """What two run folders have in common; with `search`, but for what ours is meant to have otherwise."""
    mended = search in _LAST_FOR_START
    lines = [_lines(folder, mended) for folder in (theirs, ours)]
    files = [_files(theirs), _files(ours)]
    if search is not None:
        files[0] -= {file for file in files[0] if file.split("/")[-2:-1] in [[one] for one in _UNWRITTEN]}
        files[1] -= _OWN_FILES | {file for file in files[1] if file.endswith("_test.json")}
    contents, tensors = [], []
    for file in sorted(files[0] & files[1]):
        if file.endswith(".safetensors"):
            a, b = load_file(theirs / file), load_file(ours / file)
            tensors += [name in a and name in b and torch.equal(a[name], b[name]) for name in a.keys() | b.keys()]
        elif file.endswith(".json") and not (mended and "/now/" in file):
            contents.append(_read(theirs / file) == _read(ours / file))
    scratchpad = _read(ours / "utility_scratchpad.json")
    texts = [(folder / "utility_scratchpad.json").read_text() for folder in (theirs, ours)]
    histories = [value for name, value in scratchpad.items() if name.endswith("_history") and name != "g_history"]
    return {
        "iterations": len(scratchpad["g_history"]) - 1,
        "utilities": len({utility for history in histories for utility in history}),
        "scratchpad_equal": texts[0] == texts[1],
        "args_equal": (theirs / "args.txt").read_text() == (ours / "args.txt").read_text(),
        "log_lines": len(lines[0]),
        "log_lines_equal": sum(a == b for a, b in zip(*lines, strict=False)) if len(lines[0]) == len(lines[1]) else 0,
        "files": len(files[0]),
        "files_equal": len(files[0] & files[1]) if files[0] == files[1] else 0,
        "contents": len(contents),
        "contents_equal": sum(contents),
        "tensors": len(tensors),
        "tensors_equal": sum(tensors),
    }


def _lines(run: Path, mended: bool) -> list[str]:
    """The lines of a log, final metrics among them, without times and what is meant to differ."""
    lines = [line for line in (run / "log.txt").read_text().splitlines() if line.startswith("INFO:root:")]
    lines = [_TIME.sub("TIME", line.removeprefix("INFO:root:")) for line in lines]
    return [line for line in lines if not (line.startswith(_OWN_LINE) or (mended and line.startswith(_MENDED_LINE)))]


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def main() -> None:
    """Compare all searches, the first in each number type, and write what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published.model_swarm")
    parser.add_argument("clone", type=Path, help="your clone of model_swarm")
    parser.add_argument("--place", type=Path, required=True, help="folder with experts, base models and data/eval")
    parser.add_argument("--script", action="store_true", help="ours is the clone's own script, by compat.run")
    given = parser.parse_args()
    clone, place = given.clone.resolve(), given.place.resolve()
    first = next(iter(SEARCHES))
    wanted = [(search, "float32") for search in (SCRIPTED if given.script else SEARCHES)]
    if not given.script:
        wanted = [(first, "bfloat16"), (first, "float16"), *wanted]
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for search, dtype in wanted:
            both = Path(folder, f"{search}_{dtype}")
            runs.append(compare(clone, place, search, both, dtype, script=given.script))
            print(json.dumps(runs[-1]), flush=True)
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=clone, capture_output=True, text=True)
    facts = {
        "model_swarm": head.stdout.strip(),
        "commit": commit(),
        "machine": machine_class(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "runs": runs,
    }
    target = new_result(RESULTS / ("run" if given.script else "model_swarm"))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(facts, indent=1) + "\n")
    print(target)


if __name__ == "__main__":
    main()
