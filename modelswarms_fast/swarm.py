"""The policy of a swarm: who moves how, who is best, when to stop. No tensors.

    moves = swarm.ask()              # move the particles by moves.coefficients and moves.step_length
    update = swarm.tell(utilities)     # record the bests that update names

works alone for anyone with positions and an evaluation of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from modelswarms_fast.config import SwarmConfig
from modelswarms_fast.errors import InputError, NoScoreError
from modelswarms_fast.errors.arguments import checked

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# What a random number is for: the second word of the key, so that no two uses share a stream.
_COEFFICIENTS, _DROP_ITERATION, _DROP_PARTICLE, _POPULATE, _PARTNER = range(5)
# Nothing is left of numbers that were drawn before.
_UNUSED = {"buffer": (0, 0, 0, 0), "buffer_pos": 4, "has_uint32": 0, "uinteger": 0}


@dataclass(frozen=True)
class Moves:
    """One iteration's moves, decided before anything moves.

    Order of application: restarted particles take x ← p, v ← 0; then every particle is updated.
    """

    iteration: int
    restarts: Bools
    """[P] True where a particle restarts."""
    coefficients: npt.NDArray[np.float32]
    """[P, 4] inertia, cognitive, social, repel; each row sums to 1."""
    step_length: float
    evaluate: Bools
    """[P] True where the particle is evaluated after the update; others keep their last utility."""


@dataclass(frozen=True)
class BestUpdate:
    """What a round of utilities changed."""

    improved: Bools
    """[P] True where the position is a new personal best."""
    global_best: int | None
    """The particle whose position is the new global best; None if the old one stands."""
    global_worst: int | None
    """The particle whose position is the new global worst; None if the old one stands."""


class AnySwarm(Protocol):
    """What the loop of a search uses of a swarm. `bests` and `waiting` are the same for all that inherit it."""

    particles: int
    """P"""
    iteration: int
    """How many times it has been asked."""
    utilities: Floats
    """[P] as told last, NaN before."""
    personal_best: Floats
    """[P] the highest utility of each particle."""
    global_best: float
    """The highest utility of all."""
    global_best_particle: int
    """The particle that found it."""
    global_worst: float
    """The lowest utility of all."""
    global_worst_particle: int
    """The particle that found it."""
    told: bool
    """Whether the utilities of the current positions have been told."""

    def initial_positions(self) -> Floats:
        """[P, n] each initial position as a mixture of the experts."""

    def initial_velocities(self, positions: Floats) -> Floats:
        """[P, n] each initial velocity as a mixture of the experts; called after the first `tell`."""

    def ask(self) -> Moves:
        """Decide the next iteration."""

    def tell(self, utilities: Floats) -> BestUpdate:
        """Record the utilities [P] of the current positions, of those not evaluated the last ones again."""

    def stopped(self) -> str | None:
        """Why the search is over, or None if it goes on."""

    @property
    def waiting(self) -> bool:
        """Whether the utilities of the last moves have not been told."""
        return self.iteration > 0 and not self.told

    def bests(self) -> dict[str, dict[str, float]]:
        """Global best and worst so far: the particle that found it and its utility."""
        return {
            "global_best": {"particle": self.global_best_particle, "utility": self.global_best},
            "global_worst": {"particle": self.global_worst_particle, "utility": self.global_worst},
        }


def best_of(utilities: Floats) -> int:
    """The number of the highest utility, the first of equals; what is not finite is none."""
    return int(np.where(np.isfinite(utilities), utilities, -np.inf).argmax())


class Swarm(AnySwarm):
    """State and decisions of a swarm of P particles that start from n experts.

    Random numbers come from a counter-based generator (Philox 4x64) keyed by seed, purpose, iteration
    and particle, so they do not depend on processes or on the order of calls.

    Raises:
        InputError: fewer than 2 experts, or fewer particles than experts.
    """

    @checked
    def __init__(
        self,
        config: SwarmConfig,
        n_experts: int,
        first: Sequence[int] | None = None,
        first_patience: int | None = None,
    ) -> None:
        """`first`: the experts that the first particles are, by number, some perhaps several times and others not at
        all; left out, each of them once. `first_patience`: the patience by which particles restart, if that of the
        search was raised since."""
        self.first = list(range(n_experts)) if first is None else list(first)
        if len(self.first) < 2:
            raise InputError(f"There is {len(self.first)} expert; a swarm needs at least 2.")
        if config.particles < len(self.first):
            raise InputError(
                f"particles is {config.particles} but there are {len(self.first)} experts; give at least "
                f"{len(self.first)} particles, or fewer experts."
            )
        self.config = config
        self.particles = config.particles
        self.n_experts = n_experts
        self.iteration = 0
        self.utilities: Floats = np.full(config.particles, np.nan)
        self.personal_best: Floats = np.full(config.particles, -np.inf)
        self.personal_best_iteration = np.zeros(config.particles, dtype=np.int64)
        self.global_best = -np.inf
        self.global_best_particle = -1
        self.global_best_iteration = 0
        self.global_worst = np.inf
        self.global_worst_particle = -1
        self._restart_after = config.restart_patience * (first_patience or config.patience)
        self._step_length = config.step_length
        self.told = False
        self._generator = np.random.Generator(np.random.Philox(0))

    def _random(self, purpose: int, iteration: int, particle: int) -> np.random.Generator:
        """The numbers of one use, until the next call."""
        # One generator for all: to make one takes four times as long as to set one.
        self._generator.bit_generator.state = {
            "bit_generator": "Philox",
            # Drawing advances the lowest word of the counter; the others name iteration and particle.
            "state": {"counter": (0, particle, iteration, 0), "key": (self.config.seed, purpose)},
            **_UNUSED,
        }
        return self._generator

    def initial_positions(self) -> Floats:
        """[P, n] each initial position as an affine mixture of the experts.

        The first particles are experts, each of them once if `first` does not say otherwise. Each further one is
        t·a + (1 - t)·b of two different particles before it, t ~ U(0, 2): half of them interpolate and half
        extrapolate.
        """
        mixture = np.zeros((self.config.particles, self.n_experts))
        mixture[range(len(self.first)), self.first] = 1.0
        for particle in range(len(self.first), self.config.particles):
            random = self._random(_POPULATE, 0, particle)
            a, b = random.choice(particle, size=2, replace=False)
            t = random.uniform(0.0, 2.0)
            mixture[particle] = t * mixture[a] + (1.0 - t) * mixture[b]
        return mixture

    def initial_velocities(self, positions: Floats) -> Floats:
        """[P, n] each initial velocity as a mixture of the experts whose coefficients sum to 0.

        Call it after the first `tell`: `best` points at the first global best.
        """
        mode, particles = self.config.start_velocity, self.config.particles
        if mode == "zero":
            return np.zeros_like(positions)
        targets = [self.global_best_particle] * particles
        if mode == "random":
            draws = [int(self._random(_PARTNER, 0, particle).integers(particles - 1)) for particle in range(particles)]
            targets = [
                draw + (draw >= particle) for particle, draw in enumerate(draws)
            ]  # anyone but the particle itself
        velocities: Floats = positions[targets] - positions
        return velocities

    def ask(self) -> Moves:
        """Decide the next iteration.

        C = r_v φ_v + r_p φ_p + r_g φ_g + r_w φ_w and coefficients (r_v φ_v, r_p φ_p, r_g φ_g, r_w φ_w) / C
        (equation 1 of arXiv 2410.11163). A particle restarts in every iteration in which it has gone
        restart_patience · patience iterations without a new personal best.

        Raises:
            RuntimeError: the initial utilities, or those of the last moves, have not been told.
        """
        if not self.told:
            raise RuntimeError("tell() the utilities of the last positions before the next ask().")
        config, particles = self.config, self.config.particles
        self.told = False
        self.iteration += 1
        if self.iteration > 1:
            self._step_length = max(self._step_length * config.step_length_factor, config.minimum_step_length)

        weights = np.array(
            [config.inertia, config.cognitive_coeff, config.social_coeff, config.repel_coeff * config.repel]
        )
        draws = np.ones((particles, 4))
        dropped = np.zeros(particles, dtype=np.bool_)
        for particle in range(particles):
            if config.randomness == "particle":
                draws[particle] = self._random(_COEFFICIENTS, self.iteration, particle).random(4)
            if config.drop_n:
                dropped[particle] = self._random(_DROP_PARTICLE, self.iteration, particle).random() < config.drop_n
        if config.drop_k and self._random(_DROP_ITERATION, self.iteration, 0).random() < config.drop_k:
            dropped[:] = True
        weighted = draws * weights
        coefficients = weighted / weighted.sum(axis=1, keepdims=True)

        stale = self.iteration - 1 - self.personal_best_iteration
        restarts = (stale >= self._restart_after) & (stale > 0) & config.restart
        return Moves(
            iteration=self.iteration,
            restarts=restarts,
            coefficients=coefficients.astype(np.float32),
            step_length=self._step_length,
            evaluate=~dropped,
        )

    def tell(self, utilities: Sequence[float] | Floats) -> BestUpdate:
        """Record the utilities [P] of the current positions; higher is better, NaN never becomes a best.

        A particle that was not evaluated is told its last utility again. Ties keep the older best, and among
        particles the lowest index.

        Raises:
            ValueError: not P utilities.
            NoScoreError: no initial particle has a finite utility.
        """
        given = np.asarray(utilities, dtype=np.float64)
        if given.shape != (self.config.particles,):
            raise ValueError(
                f"utilities has shape {given.shape}; give one for each of {self.config.particles} particles"
            )
        finite = np.isfinite(given)
        if self.iteration == 0 and not finite.any():
            raise NoScoreError("No initial particle has a finite utility; check the task, the data and the experts.")
        self.utilities = given.copy()
        self.told = True

        high, low = np.where(finite, given, -np.inf), np.where(finite, given, np.inf)
        improved = high > self.personal_best
        self.personal_best = np.where(improved, given, self.personal_best)
        self.personal_best_iteration[improved] = self.iteration
        best, worst = None, None
        if high.max() > self.global_best:
            best = self.global_best_particle = int(high.argmax())
            self.global_best, self.global_best_iteration = float(high[best]), self.iteration
        if low.min() < self.global_worst:
            worst = self.global_worst_particle = int(low.argmin())
            self.global_worst = float(low[worst])
        return BestUpdate(improved=improved, global_best=best, global_worst=worst)

    def stopped(self) -> str | None:
        """Why the search is over ("patience" or "iterations"), or None if it goes on."""
        if self.iteration - self.global_best_iteration >= self.config.patience:
            return "patience"
        return "iterations" if self.iteration >= self.config.iterations else None
