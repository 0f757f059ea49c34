"""Run the benchmarks and show tables: python -m benchmarks [update|mix|...] [--quick] [--json FILE].

Run it in the folder of the clone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import GROUPS
from benchmarks.reporting.tables import machine, tables
from modelswarms_fast.errors import InputError

STANDARD_ERROR = 2  # as the shell numbers it


def run_benchmarks(
    groups: Sequence[str], *, quick: bool, model_swarm: Path | None, target: Path | None
) -> dict[str, Any]:
    """Run groups of benchmarks (none: all of them) in a process of their own; returns pytest-benchmark's JSON.

    Raises:
        InputError: there is no such group, no clone to run in, no pytest-benchmark, or a benchmark failed.
    """
    for group in groups:
        if group not in GROUPS:
            raise InputError(f"There is no benchmark {group!r}; choose from {', '.join(GROUPS)}.")
    folder = Path("benchmarks")
    if not (folder / "conftest.py").is_file():
        raise InputError("There is no folder benchmarks here; run the benchmarks in a clone of the repository.")
    if model_swarm is not None and not (model_swarm / "merge.py").is_file():
        raise InputError(f"{model_swarm} has no merge.py; give a clone of the published code with --model-swarm.")
    if importlib.util.find_spec("pytest_benchmark") is None:
        raise InputError("The benchmarks need pytest-benchmark; install it: pip install pytest pytest-benchmark")
    with tempfile.TemporaryDirectory() as scratch:
        target = target or Path(scratch) / "benchmarks.json"
        command = [sys.executable, "-m", "pytest", f"--benchmark-json={target}", "--benchmark-quiet"]
        command += [str(folder / GROUPS[group] / f"bench_{group}.py") for group in groups or GROUPS]
        command += ["--quick"] * quick
        command += [] if model_swarm is None else [f"--model-swarm={model_swarm}"]
        # Progress goes to standard error, the tables to standard output.
        code = subprocess.run(command, stdout=STANDARD_ERROR, check=False).returncode
        if code != 0 or not target.is_file():
            raise InputError(f"A benchmark failed (pytest ended with {code}); its error is above.")
        results: dict[str, Any] = json.loads(target.read_text())
    return results


def main() -> int:
    """Run what was asked for; a mistake is one sentence and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure this machine.")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"{', '.join(GROUPS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="small rows, few rounds: to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the numbers in this file")
    parser.add_argument("--model-swarm", type=Path, metavar="FOLDER", help="your clone of the published code")
    asked = parser.parse_args()
    try:
        results = run_benchmarks(asked.groups, quick=asked.quick, model_swarm=asked.model_swarm, target=asked.json)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    console = Console(width=None if sys.stdout.isatty() else 200)  # a file has room
    for table in tables(results):
        console.print(table)
    console.print(machine(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
