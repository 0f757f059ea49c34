"""What scores on dev say about scores on new examples, where the winner is the best of many."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]

LEVEL = 0.9
"""Of the interval of `expected_test`: how often it should hold the test score."""
SAMPLES = 400
"""Of the examples of dev, drawn to see how a choice depends on them."""


@dataclass(frozen=True)
class Shrunken:
    """Differences of some positions from one, example by example, shrunken toward 0 as far as they are chance."""

    shares: Floats
    """[m] what of each difference is taken for true, from 0 to 1."""
    differences: Floats
    """[m] shrunken."""
    errors: Floats
    """[m] standard deviations of what remains unknown of each."""


def shrink(scores: Floats, reference: Floats) -> Shrunken:
    """Differences of the mean scores [m, E] of positions from those of a reference [E], by empirical Bayes.

    Δ_i = mean(s_i - s_0), se_i = sd(s_i - s_0) / √E, τ² = max(0, var Δ - mean se²), and Δ_i · τ² / (τ² + se_i²) with
    the error √(τ² se_i² / (τ² + se_i²)).
    """
    paired = scores - reference
    found, squares = paired.mean(axis=1), paired.var(axis=1, ddof=1) / paired.shape[1]
    spread = max(0.0, float(found.var(ddof=1) - squares.mean())) if len(found) > 1 else 0.0
    share = spread / np.maximum(spread + squares, np.finfo(float).tiny)
    return Shrunken(share, found * share, np.sqrt(squares * share))


def best_of_each(means: Floats) -> Numbers:
    """The number of the highest in each column of means [m, B]."""
    found: Numbers = means.argmax(axis=0)
    return found


def expected_test(
    scores: Floats, winner: int, tests: int, choose: Callable[[Floats], Numbers] = best_of_each
) -> dict[str, float]:
    """What a position is expected to score on so many new examples, though it was chosen for its score.

    The bootstrap of Tsamardinos et al. (arXiv 1708.07180): dev is drawn again B times from its own examples, with
    replacement, and the choice is made anew on each sample. The score is the mean of what is chosen on the examples
    that its sample lacks. How much what is chosen scores higher on its sample than on dev varies from sample to sample;
    that variance and the error of a test split of this size make the interval.

    Args:
        scores: [m, E] of each position on each dev example.
        winner: its number.
        tests: number of test examples.
        choose: the number [B] of the winner by the mean scores [m, B] on each of B samples of examples.

    Returns:
        `score`, and `low` and `high`, between which the test score should be in `level` of all cases.
    """
    count = scores.shape[1]
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=SAMPLES)
    means = scores @ (drawn.T / count)
    chosen = choose(means)
    optimism = means[chosen, np.arange(SAMPLES)] - scores.mean(axis=1)[chosen]
    outside = np.array(
        [one[lacks == 0].mean() for one, lacks in zip(scores[chosen], drawn, strict=True) if not lacks.all()]
    )
    score = float(outside.mean()) if len(outside) else float(scores[winner].mean())
    half = NormalDist().inv_cdf(0.5 + LEVEL / 2) * math.sqrt(optimism.var() + scores[winner].var() / tests)
    least, most = float(scores.min()), float(scores.max())  # a mean lies between them
    return {"score": score, "low": max(score - half, least), "high": min(score + half, most), "level": LEVEL}
