"""Weak to strong: how good the particle was at the start that found the winner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from modelswarms_fast.records.analysis import RunFolder


def standing(utilities: Sequence[float | None], particle: int) -> dict[str, Any]:
    """Of a particle among initial utilities its `rank`, 1 the best, and how many are better (`above`).

    Equals share the mean of their ranks, None is last. A rank of 2 may be that of a joint best of three, hence `above`.
    """
    values = np.array([-np.inf if one is None else one for one in utilities], dtype=np.float64)
    above, equal = int((values > values[particle]).sum()), int((values == values[particle]).sum())
    return {"rank": above + (equal + 1) / 2, "above": above}


def of_run(run: RunFolder) -> dict[str, Any] | None:
    """`rank` and `above` at the start of the particle that found the winner, `of` how many particles; None if nothing
    has won."""
    best = run.history[-1].get("global_best") if run.history else None
    if not best:
        return None
    utilities, winner = run.history[0]["utilities"], best["particle"]
    return {"particle": winner, **standing(utilities, winner), "of": len(utilities)}


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The ranks of the runs of a study, the share whose winner was not the best at the start nor one of several that
    were, and the share from the lower half."""
    return {
        "ranks": [run["rank"] for run in runs],
        "of": [run["particles"] for run in runs],
        "not_the_best": float(np.mean([run["above"] > 0 for run in runs])),
        "from_the_lower_half": float(np.mean([run["rank"] > (run["particles"] + 1) / 2 for run in runs])),
    }
