"""What earlier runs on the same experts and examples have found, for a policy that learns from it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from modelswarms_fast.records import checks, run_folder
from modelswarms_fast.runs.trial_queue import SEARCHES
from modelswarms_fast.swarm import Floats


def keep_known(folder: Path, runs: Iterable[str | Path], experts: int) -> tuple[Floats, Floats]:
    """Mixtures [m, n] and utilities [m] of run folders, kept in known.json so that a run that goes on has the same.

    What it holds already is returned as it is; an earlier run may have gone on since. Raises InputError.
    """
    path = folder / run_folder.KNOWN
    if path.exists():
        content = run_folder.read_json(path)
        checks.check_known(content, path, experts)
    else:
        content = _found(runs, experts)
        run_folder.write_json(path, content)
    return np.array(content["mixtures"], dtype=np.float64).reshape(-1, experts), np.array(content["utilities"])


def _found(runs: Iterable[str | Path], experts: int) -> dict[str, list[object]]:
    """The first evaluation of each position; those without a score, or with a bound of one, are left out."""
    known: dict[tuple[float, ...], float] = {}
    for run in runs:
        for path in (Path(run, run_folder.HISTORY), *sorted(Path(run, SEARCHES).glob(f"*/{run_folder.HISTORY}"))):
            if not path.exists():
                continue
            history = run_folder.read_whole_history(path)
            checks.check_history(history, path, experts)
            for line in history:
                bounded = {one["particle"] for one in line.get("bounded", [])}
                positions = enumerate(zip(line.get("mixtures") or [], line["utilities"], strict=False))
                evaluated = line.get("evaluated") or [True] * len(line["utilities"])
                for particle, (mixture, utility) in positions:
                    if evaluated[particle] and particle not in bounded and utility is not None:
                        known.setdefault(tuple(mixture), utility)
    finite = {mixture: utility for mixture, utility in known.items() if math.isfinite(utility)}
    return {"mixtures": [list(one) for one in finite], "utilities": list(finite.values())}
