"""MoCo's swarm of plain vectors: the mixtures, prompts' weights or whatever else a method searches by numbers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from modelswarms_fast.compat.draws import coefficients_of
from modelswarms_fast.compat.moco_swarm import MocoConfig
from modelswarms_fast.errors import InputError

Vector = npt.NDArray[np.float32]


class Uniform(Protocol):
    """What draws: a `random.Random`, or the module `random`."""

    def random(self) -> float:
        """A number from 0 to below 1."""

    def uniform(self, a: float, b: float) -> float:
        """A number from a to b."""

    def choice(self, seq: Sequence[Vector]) -> Vector:
        """One of some."""


class MocoNumericSwarm:
    """P vectors of some dimension, float32, that move by MoCo's rules for numbers.

    They begin anywhere from -1 to 1 in each dimension, and so do their velocities. A vector that restarts does not move
    in that iteration, and may restart in the next one again.

    Raises:
        InputError: fewer than 2 vectors.
    """

    def __init__(self, dimension: int, population: int, config: MocoConfig, source: Uniform = random) -> None:
        """`source` draws: by default Python's global generator, whose seed the caller sets."""
        if population < 2:
            raise InputError(f"population is {population}; a swarm needs at least 2.")
        self.config = config
        self.step_length = config.step_length
        """Of the next moves."""
        self._source, self._dimension = source, dimension
        self.positions = [self._anywhere() for _ in range(population)]
        """P vectors [dimension]."""
        self.velocities = [self._anywhere() for _ in range(population)]
        """P vectors [dimension]."""
        self.global_best_position: Vector = source.choice(self.positions)
        """[dimension]; before the first `update` any of the vectors."""
        self._worst: Vector = source.choice(self.positions)
        self._bests = list(self.positions)
        self._utilities: list[list[float]] = [[] for _ in self.positions]
        self._history: list[float] = []
        self._lowest = np.inf

    def _anywhere(self) -> Vector:
        return np.array([self._source.uniform(-1, 1) for _ in range(self._dimension)], dtype=np.float32)

    def update(self, utilities: Sequence[float]) -> bool:
        """Record the utilities [P] of the positions, and move; True without a move if the search is over.

        Raises:
            ValueError: not P utilities.
        """
        if len(utilities) != len(self.positions):
            raise ValueError(
                f"{len(utilities)} utilities are given; give one for each of {len(self.positions)} vectors"
            )
        best = self._history[-1] if self._history else -np.inf
        for number, utility in enumerate(utilities):
            if utility > max(self._utilities[number], default=-np.inf):
                self._bests[number] = self.positions[number]
            self._utilities[number].append(utility)
            if utility > best:
                best, self.global_best_position = utility, self.positions[number]
            if utility < self._lowest:
                self._lowest, self._worst = utility, self.positions[number]
        self._history.append(best)
        if not _rises(self._history, self.config.patience):
            return True
        for number in range(len(self.positions)):
            self._move(number)
        self.step_length = max(self.step_length * self.config.step_length_factor, self.config.minimum_step_length)
        return False

    def _move(self, number: int) -> None:
        config, p, x = self.config, self._bests[number], self.positions[number]
        if not _rises(self._utilities[number], config.restart_patience):
            self.positions[number], self.velocities[number] = p, self._anywhere()
            return
        r = [self._source.random() for _ in range(4)] if config.weight_randomness else [1.0] * 4
        repel = config.repel_coeff if config.repel_term else 0.0
        a, b, c, d = coefficients_of(r, (config.inertia, config.cognitive_coeff, config.social_coeff, repel))
        velocity = (
            a * self.velocities[number] + b * (p - x) + c * (self.global_best_position - x) + d * (x - self._worst)
        )
        self.positions[number], self.velocities[number] = x + self.step_length * velocity, velocity


def _rises(history: Sequence[float], patience: int) -> bool:
    """Whether the last number is above all others of the last `patience`, or there are no more than so many."""
    return len(history) <= patience or not history[-1] <= max(history[-patience:-1], default=-np.inf)
