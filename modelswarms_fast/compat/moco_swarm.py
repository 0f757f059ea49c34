"""The policy of MoCo's Swarm: like model_swarm's, but for when it restarts and stops, and where it begins."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modelswarms_fast.compat.draws import R, Source, coefficients_of, draw_partners
from modelswarms_fast.config import LARGEST
from modelswarms_fast.errors import InputError
from modelswarms_fast.errors.arguments import check_fields, check_range
from modelswarms_fast.swarm import AnySwarm, BestUpdate, Floats, Moves, best_of

_REST = 3  # moves after a restart in which a model does not restart again


@dataclass(frozen=True, kw_only=True)
class MocoConfig:
    """How models move and when a search stops; the defaults are those of MoCo's weight_model_swarms.

    Raises:
        InputError: a setting is out of range; the message names it.
    """

    weight_randomness: bool = True
    inertia: float = 0.2
    cognitive_coeff: float = 0.3
    social_coeff: float = 0.4
    repel_coeff: float = 0.05
    repel_term: bool = True
    step_length: float = 0.5
    step_length_factor: float = 0.95
    minimum_step_length: float = 0.1
    patience: int = 5
    """Iterations over which the global best must have risen."""
    restart_patience: int = 3
    """Iterations over which the utility of a model must have risen."""
    iterations: int = 10

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("inertia", "cognitive_coeff", "social_coeff", "repel_coeff", "step_length", "minimum_step_length"):
            check_range(name, getattr(self, name), 0, LARGEST)
        check_range("step_length_factor", self.step_length_factor, 0, 1)
        for name in ("patience", "restart_patience", "iterations"):
            check_range(name, getattr(self, name), 1, LARGEST)
        if self.inertia + self.cognitive_coeff + self.social_coeff + self.repel_term * self.repel_coeff == 0:
            raise InputError("inertia, cognitive_coeff, social_coeff and repel_coeff are all 0; nothing would move.")


class MocoSwarm(AnySwarm):
    """The decisions of MoCo's Swarm for n models, with the methods of `Swarm`.

    When it is made, it draws partners, and the models that are global best and worst before any has a utility. In each
    `ask` it draws r, model by model.

    Raises:
        InputError: fewer than 2 models.
    """

    def __init__(self, config: MocoConfig, models: int, source: Source = random, r: R | None = None) -> None:
        """`source` draws: by default Python's global generator, whose seed the caller sets. `r`: the random factors of
        another search, in place of drawn ones."""
        if models < 2:
            raise InputError(f"There is {models} model; a swarm needs at least 2.")
        self.config, self.particles = config, models
        self.iteration = 0
        self.utilities: Floats = np.full(models, np.nan)
        self.personal_best: Floats = np.full(models, -np.inf)
        self.global_best, self.global_worst = -np.inf, np.inf
        self.histories: list[list[float]] = [[] for _ in range(models)]
        """The utilities of each model, the initial one first."""
        self.global_history: list[float] = []
        self.restart_counter = [0] * models
        """Moves that each model has to wait before it may restart again."""
        self.step_length = config.step_length
        """Of the next moves."""
        self.coefficients: Floats = np.empty((models, 4))
        """[n, 4] of the last moves, in double precision."""
        self.told = False
        self._source, self._r = source, r or self._drawn
        self.partners = draw_partners(source, models)
        """The model that each model's first velocity points at."""
        self.global_best_particle = source.randint(0, models - 1)
        self.global_worst_particle = source.randint(0, models - 1)

    def _drawn(self, iteration: int, particle: int) -> list[float]:
        return [self._source.random() for _ in range(4)]

    def initial_positions(self) -> Floats:
        """[n, n] the models."""
        return np.eye(self.particles)

    def initial_velocities(self, positions: Floats) -> Floats:
        """[n, n] from each model to its partner."""
        velocities: Floats = positions[self.partners] - positions
        return velocities

    def ask(self) -> Moves:
        """Decide the next iteration; `coefficients` then has its coefficients in double precision.

        A model restarts if its utility is not above that of `restart_patience` iterations before, the last one counted,
        and it has not restarted in the three moves before.

        Raises:
            RuntimeError: the initial utilities, or those of the last moves, have not been told.
        """
        if not self.told:
            raise RuntimeError("tell() the utilities of the last positions before the next ask().")
        config = self.config
        self.told = False
        self.iteration += 1
        repel = config.repel_coeff if config.repel_term else 0.0
        weights = (config.inertia, config.cognitive_coeff, config.social_coeff, repel)
        restarts = np.zeros(self.particles, dtype=np.bool_)
        for model, history in enumerate(self.histories):
            restarts[model] = self.restart_counter[model] == 0 and not _rises(history, config.restart_patience)
            self.restart_counter[model] = _REST if restarts[model] else max(0, self.restart_counter[model] - 1)
            r = self._r(self.iteration, model) if config.weight_randomness else (1.0,) * 4
            self.coefficients[model] = coefficients_of(r, weights)
        step_length = self.step_length
        self.step_length = max(step_length * config.step_length_factor, config.minimum_step_length)
        everyone = np.ones(self.particles, dtype=np.bool_)
        return Moves(self.iteration, restarts, self.coefficients.astype(np.float32), step_length, everyone)

    def tell(self, utilities: Sequence[float] | Floats) -> BestUpdate:
        """Record the utilities [n] of the current positions; higher is better, NaN never becomes a best.

        Ties keep the older best, and among models the lowest number.

        Raises:
            ValueError: not n utilities.
        """
        given = np.array(utilities, dtype=np.float64)
        if given.shape != (self.particles,):
            raise ValueError(f"utilities has shape {given.shape}; give one for each of {self.particles} models")
        self.utilities, self.told = given, True
        for history, utility in zip(self.histories, given.tolist(), strict=True):
            history.append(utility)
        finite = np.isfinite(given)
        improved = np.where(finite, given, -np.inf) > self.personal_best
        self.personal_best = np.where(improved, given, self.personal_best)
        best, worst, low = best_of(given), best_of(-given), np.where(finite, given, np.inf).min()
        found_best, found_worst = bool(improved[best] and given[best] > self.global_best), bool(low < self.global_worst)
        if found_best:
            self.global_best_particle, self.global_best = best, float(given[best])
        if found_worst:
            self.global_worst_particle, self.global_worst = worst, float(given[worst])
        self.global_history.append(self.global_best)
        return BestUpdate(improved, best if found_best else None, worst if found_worst else None)

    def stopped(self) -> str | None:
        """Why the search is over ("patience" or "iterations"), or None if it goes on."""
        if not _rises(self.global_history, self.config.patience):
            return "patience"
        return "iterations" if self.iteration >= self.config.iterations else None


def _rises(history: Sequence[float], patience: int) -> bool:
    """Whether the last number is above the one that is `patience` back, itself counted, or there are too few."""
    return len(history) <= patience or not history[-1] <= history[-patience]
