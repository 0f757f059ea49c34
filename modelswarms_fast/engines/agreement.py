"""Whether two engines agree about a load, in two numbers.

The question: does what a load changes in the answers of an engine, against the base model on the same engine, agree in
size and direction with what it changes for transformers? Answers are log-probabilities of the likeliest next tokens
after some prompts, those of a prompt about their mean, so that they are logits up to a constant.

The two numbers are the coefficient of the regression of the one change on the other, which is their size, and their
correlation, which is their direction. Both are 1 but for rounding. The answers of the base model say how large rounding
is, since both engines serve the same weights there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Answers = Sequence[Mapping[int, float]]
"""After each prompt, natural log-probabilities of likely next tokens by token id, the likeliest first."""
TOP = 20
"""Likeliest next tokens that are compared after each prompt: of the base model, and of the load."""


class Limits(NamedTuple):
    """What is taken for agreement."""

    coefficient: float
    """Furthest that the coefficient may be from 1."""
    correlation: float
    """Least correlation."""


# Chosen on one half of the trials of benchmarks/engine/parity_rates.py. The other half says how often they err:
# docs/reference/parity-check.md.
COEFFICIENT, CORRELATION = 4.0, 3.5
"""How many times its rounding a change may be off in size, and in direction."""
LEAST, STEPS = 1e-3, 8.0
"""A share of the change that is never too much, and so many steps of the dtype: what shifts activations far is rounded
anew in them. By up to 4 steps in real models, and by up to 12 in tiny ones with random adapters."""
TELLING = 8.0
"""A change that is less than so many times its rounding cannot be told from it."""
BASE_LEAST, BASE_STEPS = 5e-3, 40.0
"""What may be off in the base model's own answers: this share of them, or so many steps of the dtype. It is a wide
bound: engines rounded by 8 steps in bfloat16, and by 0.000004 in float32."""


class Rounding(NamedTuple):
    """What two engines differ by though they serve the same."""

    size: float
    """In log-probabilities of the base model, as a root mean square."""
    step: float
    """The dtype's: between 1 and the next number."""

    def limits(self, change: float) -> Limits:
        """What may be off in a change of this size. A correlation falls by half the square of what is off."""
        share, least = self.size / change, max(LEAST, STEPS * self.step)
        return Limits(max(COEFFICIENT * share, least), 1 - max(CORRELATION * share, least) ** 2 / 2)

    @property
    def base(self) -> Limits:
        """What may be off in what the engines say of the base model itself."""
        least = max(BASE_LEAST, BASE_STEPS * self.step)
        return Limits(least, 1 - least**2 / 2)


class Agreement(NamedTuple):
    """How well what an engine shows agrees with what transformers expects. NaN where a number cannot be computed."""

    coefficient: float
    """Of the regression of what is shown on what is expected, through the origin."""
    correlation: float
    """About zero."""
    change: float
    """The larger of what is expected and what is shown, as a root mean square."""
    difference: float
    """Between the two, as a root mean square."""

    def within(self, allowed: Limits) -> bool:
        """Whether both numbers are near enough to 1; NaN is not."""
        return abs(self.coefficient - 1) <= allowed.coefficient and self.correlation >= allowed.correlation

    def explained(self, rounding: Rounding) -> bool | None:
        """Whether rounding explains what is off; None if the change is too small to tell."""
        if self.change < TELLING * rounding.size:
            return None
        return self.within(rounding.limits(self.change))


def agreement(served: Answers, expected: Answers, base: tuple[Answers, Answers] | None = None) -> Agreement:
    """Of answers to the same prompts; of what they change where `base` has what both say of the base model.

    Looked at are the tokens that are likeliest by what is expected. A token that the engine does not list is taken to
    be as likely as the last of its list.
    """
    right, shown = [], []
    for number in range(len(expected)):
        wanted, given = expected[number], served[number]
        tokens = list(wanted)[:TOP]
        if base is not None:
            before, given_before = base[1][number], base[0][number]
            either = dict.fromkeys(list(before)[:TOP] + tokens)
            tokens = [token for token in either if token in before and token in wanted]
        x, y = _values(wanted, tokens), _values(given, tokens)
        if base is not None:
            x, y = x - _values(before, tokens), y - _values(given_before, tokens)
        if tokens:
            right.append(x - x.mean())
            shown.append(y - y.mean())
    return _compare(np.concatenate(right or [_NONE]), np.concatenate(shown or [_NONE]))


def finite(answers: Answers) -> bool:
    """Whether all of them are numbers."""
    return all(math.isfinite(value) for one in answers for value in one.values())


_Numbers = npt.NDArray[np.float64]
_NONE: _Numbers = np.empty(0)


def _values(answers: Mapping[int, float], tokens: Sequence[int]) -> _Numbers:
    least = min(answers.values(), default=math.nan)
    return np.array([answers.get(token, least) for token in tokens], dtype=np.float64)


def _compare(right: _Numbers, shown: _Numbers) -> Agreement:
    both, squares, others = float(right @ shown), float(right @ right), float(shown @ shown)
    count = len(right) or math.nan
    return Agreement(
        both / squares if squares else math.nan,
        both / math.sqrt(squares * others) if squares and others else math.nan,
        math.sqrt(max(squares, others) / count),
        math.sqrt(float((shown - right) @ (shown - right)) / count),
    )
