"""Is one version faster than another? Two checkouts, each with its built extension, measured in turns.

    python -m benchmarks.reporting.compare_trees TREE_A TREE_B [--json FILE] [--only operators,merged,slots] [--quick]

Measured: the update and the mix of ten particles of five million weights (bfloat16, float32), a load by merging and
into a slot, and a whole iteration of the demo's task in both ways. Each tree has a process of its own, and they wait
for each other; the order changes every round. Prints medians and the ratio B / A. At most eight minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.reporting.tables import seconds_text

SCRIPT = Path(__file__).with_name("tree_measurements.py")
KINDS = {
    "operators": {"update bfloat16": 9, "update float32": 9, "mix bfloat16": 9, "mix float32": 9},
    "merged": {"load, merged": 9, "iteration, merged": 3},
    "slots": {"load, slots": 9, "iteration, slots": 3},
}
"""What is measured, and in how many rounds, by the process that measures it."""
PAUSE_SECONDS = 0.2  # the threads of the other process go on spinning for a while
FULL, QUICK = {"size": 5_000_000, "dev": 20}, {"size": 20_000, "dev": 1}


class Tree:
    """A process that measures one kind in one tree."""

    def __init__(self, tree: Path, kind: str, settings: dict[str, Any], python: str, scratch: str) -> None:
        self._command = command = [python, "-P", str(SCRIPT), kind, json.dumps(settings)]
        environment = os.environ | {"PYTHONPATH": str(tree)}
        self._process = subprocess.Popen(
            command, cwd=scratch, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        package = Path(self._answer()["package"])
        if not package.is_relative_to(tree):
            self.close()
            raise RuntimeError(f"{python} imports {package}, which is not in {tree}")

    def wait(self) -> None:
        """Until it can measure."""
        self._answer()

    def measure(self, name: str) -> dict[str, list[float]]:
        """Seconds by name."""
        assert self._process.stdin is not None
        self._process.stdin.write(name + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(self._command)} ended; its error is above")
        answer: dict[str, Any] = json.loads(line)
        return answer


def compare(
    trees: Sequence[Path], kinds: Sequence[str], settings: dict[str, Any], python: str, most_rounds: int
) -> dict[str, Any]:
    """By name: seconds of A and of B [rounds], their medians and the ratio B / A."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for kind in kinds:
            pair = []
            for tree in trees:  # one after the other: two engines that start at once only wait for each other
                pair.append(Tree(tree, kind, settings, python, scratch))
                pair[-1].wait()
            for name, rounds in KINDS[kind].items():
                for turn in range(min(rounds, most_rounds)):
                    for index in (0, 1) if turn % 2 == 0 else (1, 0):
                        time.sleep(PAUSE_SECONDS)
                        for what, seconds in pair[index].measure(name).items():
                            found.setdefault(what, ([], []))[index].extend(seconds)
            for one in pair:
                one.close()
    return {name: summary(*seconds) for name, seconds in found.items()}


def summary(a: list[float], b: list[float]) -> dict[str, Any]:
    """Medians, the ratio B / A, and how far the rounds of each are apart, of its median."""
    medians = [statistics.median(seconds) for seconds in (a, b)]
    spreads = [(max(seconds) - min(seconds)) / statistics.median(seconds) for seconds in (a, b)]
    return {"a": a, "b": b, "medians": medians, "ratio": medians[1] / medians[0], "spreads": spreads}


def commit_of(tree: Path) -> str:
    """Short id of what is checked out, with a + where files differ from it; "" without git."""
    ended = subprocess.run(
        ["git", "-C", str(tree), "describe", "--always", "--exclude=*", "--dirty=+"], capture_output=True, text=True
    )
    return ended.stdout.strip()


def show(results: dict[str, Any], console: Console) -> None:
    """A table, one row a measurement."""
    table = Table(title=f"A: {results['commits'][0]}  B: {results['commits'][1]}", title_justify="left")
    table.add_column("", no_wrap=True)
    for column in ("A", "B", "B / A", "spread A", "spread B"):
        table.add_column(column, justify="right")
    for name, one in results["measured"].items():
        texts = [*map(seconds_text, one["medians"]), f"{one['ratio']:.3f}", *(f"{part:.0%}" for part in one["spreads"])]
        table.add_row(name, *texts)
    console.print(table)


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reporting.compare_trees", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("trees", nargs=2, type=Path, metavar="TREE")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the seconds of every round in this file")
    parser.add_argument("--only", default=",".join(KINDS), metavar="KINDS", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--python", default=sys.executable, help="the interpreter, for both trees")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, two rounds: to see that it works")
    asked = parser.parse_args()
    kinds = asked.only.split(",")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        parser.error(f"there is no measurement {unknown[0]!r}; choose from {', '.join(KINDS)}")
    trees = [tree.resolve() for tree in asked.trees]
    if missing := [tree for tree in trees if not (tree / "modelswarms_fast").is_dir()]:
        parser.error(f"{missing[0]} has no folder modelswarms_fast; give a checkout")
    settings = (QUICK if asked.quick else FULL) | {"examples": str(trees[1] / "examples")}
    try:
        measured = compare(trees, kinds, settings, asked.python, 2 if asked.quick else 99)
    except RuntimeError as error:
        sys.exit(str(error))
    results = {"commits": [commit_of(tree) for tree in trees], "settings": settings | {"examples": "examples"}}
    results["measured"] = measured
    if asked.json is not None:
        asked.json.write_text(json.dumps(results, indent=1) + "\n")
    show(results, Console(width=None if sys.stdout.isatty() else 120))


if __name__ == "__main__":
    main()
