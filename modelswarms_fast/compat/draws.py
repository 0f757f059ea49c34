"""The random numbers of published swarms: partners from Python's generator, and r, which a caller may give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from modelswarms_fast.errors import InputError

R = Callable[[int, int], Sequence[float]]
"""The four r of an iteration, counted from 1, and a particle: of inertia, cognitive, social and repel."""


class Source(Protocol):
    """What draws: a `random.Random`, or the module `random`."""

    def random(self) -> float:
        """A number from 0 to below 1."""

    def randint(self, a: int, b: int) -> int:
        """A whole number from a to b, both included."""


def draw_partners(source: Source, particles: int) -> list[int]:
    """For each particle, in order, another one: drawn among all, and again while it is the particle itself."""
    partners = []
    for particle in range(particles):
        partner = source.randint(0, particles - 1)
        while partner == particle:
            partner = source.randint(0, particles - 1)
        partners.append(partner)
    return partners


def coefficients_of(r: Sequence[float], weights: Sequence[float]) -> list[float]:
    """r times the four weights, divided by their sum, each operation in double precision and in this order.

    Raises:
        InputError: the sum is 0.
    """
    inertia, cognitive, social, repel = (a * b for a, b in zip(r, weights, strict=True))
    total = inertia + cognitive + social + repel
    if total == 0:
        raise InputError("r times the weights is 0 for all four terms; give r of which one is above 0.")
    return [inertia / total, cognitive / total, social / total, repel / total]
