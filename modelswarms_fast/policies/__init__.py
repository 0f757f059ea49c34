"""Policies: what proposes the next mixtures of a search, in its loop and beside the swarm's own moves.

`space` says what mixtures a search is among, and their coordinates. `cma_es` is a policy of its own; `guided` is one by
a Gaussian process, the `surrogate`; `own` loads a class of the user and checks what it returns.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from modelswarms_fast.errors import InputError, quoted
from modelswarms_fast.policies.space import Space

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """What a policy is made for."""

    experts: int
    """n"""
    particles: int
    """P, positions an iteration."""
    seed: int
    """Of all that is drawn."""
    space: Space
    """What mixtures may be asked for, and their coordinates."""
    products: Floats
    """[n, n] inner products of the experts, or of their updates, the metric of mixtures a: |a - b|² is (a - b)ᵀ G
    (a - b). The identity where they were too large to be worth the time."""
    known: tuple[Floats, Floats]
    """[m, n] mixtures and their [m] utilities, of earlier runs on the same experts and examples; m may be 0."""


class Policy(Protocol):
    """What proposes the next mixtures.

    They may depend on the problem and on what was told, and on nothing else: a run that was cut tells the same again,
    and asks again.
    """

    def ask(self) -> Floats | None:
        """[P, n] the next mixtures, one a particle; None: the particles move as those of the published swarm do."""

    def tell(self, mixtures: Floats, utilities: Floats) -> None:
        """Take in the positions [P, n] of an iteration and their utilities [P], NaN where there is no score.

        Called once for the initial positions, which begin with the experts, and once after each `ask`.
        """


# By name: the file, what it calls its policy, and the library that it needs.
_POLICIES = {"cma-es": ("cma_es", "CmaEs", "cmaes"), "guided": ("guided", "Guided", "scikit-learn")}


def find_policy(name: str) -> Callable[[Problem], Policy] | None:
    """What makes the policy of this name; None for "swarm", whose moves are the swarm's own.

    Raises:
        InputError: a library is missing, or the class of the user cannot be imported; one sentence with the remedy.
    """
    if name == "swarm":
        return None
    if ":" in name:
        return importlib.import_module(f"{__name__}.own").of_class(name)  # type: ignore[no-any-return]
    file, made, _ = _POLICIES[name]
    try:
        return getattr(importlib.import_module(f"{__name__}.{file}"), made)  # type: ignore[no-any-return]
    except ModuleNotFoundError as error:
        raise InputError(
            f"policy {quoted(name)} needs {error.name}; pip install 'modelswarms-fast[policies]'."
        ) from error


def load_policy(name: str, problem: Problem) -> Policy | None:
    """The policy "swarm" (None), "cma-es", "guided", or a class of the user as "module:Class", made for a problem.

    Raises InputError as `find_policy`, and where the class of the user fails.
    """
    make = find_policy(name)
    return None if make is None else make(problem)


def libraries_of(name: str) -> tuple[str, ...]:
    """The packages that decide what the policy of this name asks for."""
    return (_POLICIES[name][2],) if name in _POLICIES else ()


def problem_of(space: Space, particles: int, seed: int) -> Problem:
    """A problem of experts that are all orthogonal and of one length, with nothing known."""
    n = space.experts
    return Problem(n, particles, seed, space, np.eye(n), (np.empty((0, n)), np.empty(0)))
