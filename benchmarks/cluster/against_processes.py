"""Iterations of one search with engines as actors of Ray, and as processes: seconds of each, in turn.

    python -m benchmarks.cluster.against_processes EXPERTS --base BASE --task TASK --data DATA [--repeats 3]

Both serve mixtures of the same experts, with the same seed, so that their iterations have the same work. The first
iteration of a search is left out. Nothing else may run on the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from modelswarms_fast.records.run_folder import HISTORY, read_history
from modelswarms_fast.runs.search import search


def seconds(settings: dict[str, Any], **more: Any) -> list[float]:
    """Seconds of each iteration after the first."""
    with tempfile.TemporaryDirectory() as folder:
        search(**settings, **more, out=Path(folder) / "run")
        return [line["seconds"]["total"] for line in read_history(Path(folder) / "run" / HISTORY)[1:]]


def compare(settings: dict[str, Any], cluster: str, repeats: int) -> dict[str, Any]:
    """Seconds of iterations by processes and by Ray, and the ratio of their medians."""
    found: dict[str, list[float]] = {"processes": [], "ray": []}
    for repeat in range(repeats):
        order = ("processes", "ray") if repeat % 2 == 0 else ("ray", "processes")
        for name in order:
            found[name] += seconds(settings, **({"cluster": cluster} if name == "ray" else {}))
    medians = {name: statistics.median(some) for name, some in found.items()}
    return {"seconds": found, "medians": medians, "ratio": medians["ray"] / medians["processes"]}


def main() -> None:
    """Print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experts")
    for name in ("base", "task", "data"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--engine", default="vllm")
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--cluster", default="local")
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--limit-dev", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    settings = vars(parser.parse_args()) | {"state": "mixture", "parity_check": "off", "patience": 10**6, "seed": 0}
    cluster, repeats = settings.pop("cluster"), settings.pop("repeats")
    print(json.dumps(compare(settings, cluster, repeats)))


if __name__ == "__main__":
    main()
