"""The policy of model_swarm, event by event: its random stream, when it restarts and stops, and how it breaks ties."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from modelswarms_fast.compat.draws import R, coefficients_of, draw_partners
from modelswarms_fast.config import SwarmConfig
from modelswarms_fast.errors import InputError, NoScoreError
from modelswarms_fast.swarm import AnySwarm, BestUpdate, Floats, Moves, best_of

_SEED = 42  # of all that model_swarm draws but r


class Child(NamedTuple):
    """A particle that no expert is: share · first + (1 - share) · second, of two particles before it."""

    first: int
    second: int
    share: float


class PublishedSwarm(AnySwarm):
    """The decisions of model_swarm's search for P particles and n experts, with the methods of `Swarm`.

    They differ from those of `Swarm` in this:

    - children, partners and dropped evaluations are drawn from one stream of Python's generator, whose seed is 42;
    - a search stops, and a particle restarts, one iteration earlier;
    - of several particles that are the new global worst together, the last one is, and the first one at the start.

    Raises:
        InputError: fewer than 2 experts, fewer particles than experts, or randomness per coordinate or expert.
    """

    def __init__(
        self, config: SwarmConfig, n_experts: int, r: R | None = None, *, children_are_experts: bool = False
    ) -> None:
        """`r`: the random factors, for a search that is to have those of another; left out, they are drawn from
        `config.seed`. They are not asked for where `config.randomness` is unit. `children_are_experts`: positions are
        mixtures of all initial particles, for a population that is given the children ready-made."""
        if n_experts < 2:
            raise InputError(f"There is {n_experts} expert; a swarm needs at least 2.")
        if config.particles < n_experts:
            raise InputError(
                f"particles is {config.particles} but there are {n_experts} experts; give at least {n_experts} "
                "particles, or fewer experts."
            )
        if config.randomness not in ("particle", "unit"):
            raise InputError(
                f"randomness is '{config.randomness}' but model_swarm draws a factor a term and particle; use "
                "'particle', or 'unit' for none."
            )
        self.config = config
        self.particles = config.particles
        self.n_experts = n_experts
        self._children_are_experts = children_are_experts
        self.iteration = 0
        self.utilities: Floats = np.full(config.particles, np.nan)
        self.personal_best: Floats = np.full(config.particles, -np.inf)
        self.personal_best_iteration = np.zeros(config.particles, dtype=np.int64)
        self.global_best, self.global_worst = -np.inf, np.inf
        self.global_best_particle = self.global_worst_particle = -1
        self.global_best_iteration = 0
        self.coefficients: Floats = np.empty((config.particles, 4))
        """[P, 4] of the last moves, in double precision."""
        self._step_length = config.step_length
        self.told = False
        self.dropped_all = False
        """Whether no particle is evaluated after the last moves."""
        self._r = r or self._drawn
        self._own = random.Random(f"r {config.seed}")
        self._stream = random.Random(_SEED)
        self.children = [self._draw_child(number) for number in range(n_experts, config.particles)]
        """The particles that are no experts, in order."""
        drawn = config.start_velocity == "random"
        self.partners = draw_partners(self._stream, config.particles) if drawn else []
        """The particle that each particle's first velocity points at; empty unless it is drawn at random."""

    def _draw_child(self, number: int) -> Child:
        first = second = self._stream.choice(range(number))
        while second == first:
            second = self._stream.choice(range(number))
        return Child(first, second, 2 * self._stream.random())

    def _drawn(self, iteration: int, particle: int) -> list[float]:
        return [self._own.random() for _ in range(4)]

    def initial_positions(self) -> Floats:
        """[P, n] each initial position as a mixture of the experts: these first, then the children."""
        if self._children_are_experts:
            return np.eye(self.particles)
        mixture = np.zeros((self.particles, self.n_experts))
        mixture[range(self.n_experts), range(self.n_experts)] = 1.0
        for number, child in enumerate(self.children, self.n_experts):
            mixture[number] = child.share * mixture[child.first] + (1 - child.share) * mixture[child.second]
        return mixture

    def initial_velocities(self, positions: Floats) -> Floats:
        """[P, n] each initial velocity as a mixture of the experts. Call it after the first `tell`."""
        if self.config.start_velocity == "zero":
            return np.zeros_like(positions)
        targets = self.partners or [self.global_best_particle] * self.particles
        velocities: Floats = positions[targets] - positions
        return velocities

    def ask(self) -> Moves:
        """Decide the next iteration; `coefficients` then has its coefficients in double precision.

        A particle restarts in every iteration by whose end it would have gone restart_patience · patience iterations
        without a new personal best.

        Raises:
            RuntimeError: the initial utilities, or those of the last moves, have not been told.
        """
        if not self.told:
            raise RuntimeError("tell() the utilities of the last positions before the next ask().")
        config = self.config
        self.told = False
        self.iteration += 1
        if self.iteration > 1:
            self._step_length = max(self._step_length * config.step_length_factor, config.minimum_step_length)
        self.dropped_all = self._stream.random() < config.drop_k
        dropped = np.array([self._stream.random() < config.drop_n for _ in range(self.particles)])
        repel = config.repel_coeff if config.repel else 0.0
        weights = (config.inertia, config.cognitive_coeff, config.social_coeff, repel)
        for particle in range(self.particles):
            r = (1.0,) * 4 if config.randomness == "unit" else self._r(self.iteration, particle)
            self.coefficients[particle] = coefficients_of(r, weights)
        stale = self.iteration - self.personal_best_iteration
        return Moves(
            iteration=self.iteration,
            restarts=(stale >= config.restart_patience * config.patience) & config.restart,
            coefficients=self.coefficients.astype(np.float32),
            step_length=self._step_length,
            evaluate=~(dropped | self.dropped_all),
        )

    def tell(self, utilities: Sequence[float] | Floats) -> BestUpdate:
        """Record the utilities [P] of the current positions; higher is better, NaN never becomes a best.

        A particle that was not evaluated is told its last utility again. Ties keep the older best. Of several particles
        the first one is the new global best; the last one is the new global worst, but the first one at the start.

        Raises:
            ValueError: not P utilities.
            NoScoreError: no initial particle has a finite utility.
        """
        given = np.array(utilities, dtype=np.float64)
        if given.shape != (self.particles,):
            raise ValueError(f"utilities has shape {given.shape}; give one for each of {self.particles} particles")
        finite = np.isfinite(given)
        if self.iteration == 0 and not finite.any():
            raise NoScoreError("No initial particle has a finite utility; check the task, the data and the experts.")
        self.utilities, self.told = given, True
        high, low = np.where(finite, given, -np.inf), np.where(finite, given, np.inf)
        improved = high > self.personal_best
        self.personal_best = np.where(improved, given, self.personal_best)
        self.personal_best_iteration[improved] = self.iteration
        best, worst = None, None
        if high.max() > self.global_best:
            best = self.global_best_particle = best_of(given)
            self.global_best, self.global_best_iteration = float(high[best]), self.iteration
        if low.min() < self.global_worst:
            worst = int(np.flatnonzero(low == low.min())[-1 if self.iteration else 0])
            self.global_worst_particle, self.global_worst = worst, float(low[worst])
        return BestUpdate(improved=improved, global_best=best, global_worst=worst)

    def stopped(self) -> str | None:
        """Why the search is over ("patience" or "iterations"), or None if it goes on.

        It is over after `patience` iterations at the least, if the last `patience` global bests are equal.
        """
        patience = self.config.patience
        if self.iteration >= patience and self.iteration - self.global_best_iteration >= patience - 1:
            return "patience"
        return "iterations" if self.iteration >= self.config.iterations else None
