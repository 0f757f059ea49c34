"""The choice of a winner among the positions of a search, and what it is expected to score on test.

best        the best on dev
confirm     the best of the last candidates on examples that the search has not seen; see `confirm`
posterior   the highest posterior mean of a Gaussian process over all positions
shrink      the largest gain on the best expert, shrunken as far as it is chance; the expert if none is left
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from modelswarms_fast.config import Choose, SwarmConfig
from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.holdout import CONFIRM
from modelswarms_fast.evaluation.objectives import Utility
from modelswarms_fast.evaluation.objectives.utility import mean
from modelswarms_fast.runs.confirm import confirm
from modelswarms_fast.runs.experiment import Experiment
from modelswarms_fast.runs.shrinkage import best_of_each, expected_test, shrink
from modelswarms_fast.runs.trial import Trial
from modelswarms_fast.runs.trial_folder import Winner, best_winner
from modelswarms_fast.weights.experts import read_model

if TYPE_CHECKING:
    from modelswarms_fast.policies.surrogate import Surrogate

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]
Rule = Callable[[Floats], Numbers]
"""From utilities [m, B] of all positions, by B samples of examples, the number [B] of the winner."""


@dataclass(frozen=True)
class Visited:
    """The m positions of a search whose utility is known, in the order of evaluation."""

    iterations: Numbers
    """[m]"""
    particles: Numbers
    """[m]"""
    utilities: Floats
    """[m]"""
    mixtures: Floats | None
    """[m, n]; None where positions are no mixtures."""
    scores: Floats
    """[m, E] of each dev example; none is missing."""
    bests: Bools
    """[m] whether it is its particle's personal best at the end."""

    def number(self, iteration: int, particle: int) -> int | None:
        """Where a particle's position in an iteration is among these."""
        found = np.flatnonzero((self.iterations == iteration) & (self.particles == particle))
        return int(found[0]) if len(found) else None


def visited(history: Sequence[Mapping[str, Any]]) -> Visited:
    """The positions of a history that were evaluated on every example and have a utility."""
    last_improved = {particle: line["iteration"] for line in history for particle in line["improved"]}
    rows: list[tuple[int, int, float, Any, list[float]]] = []
    for line in history:
        for particle, (utility, scores) in enumerate(zip(line["utilities"], line["scores"], strict=True)):
            if utility is None or scores is None or None in scores:
                continue
            mixture = None if line.get("mixtures") is None else line["mixtures"][particle]
            rows.append((line["iteration"], particle, utility, mixture, list(map(float, scores))))
    iterations, particles, utilities, mixtures, scores = zip(*rows, strict=True)
    return Visited(
        np.array(iterations),
        np.array(particles),
        np.array(utilities, dtype=np.float64),
        None if None in mixtures else np.array(mixtures, dtype=np.float64),
        np.array(scores, dtype=np.float64),
        np.array([last_improved.get(particle) == iteration for iteration, particle, *_ in rows]),
    )


def way_to_choose(choose: Choose | None, confirm: int) -> Choose:
    """How the winner is chosen; by default on the examples kept back where there are some. Raises InputError."""
    if choose is None:
        return "confirm" if confirm else "best"
    if choose == "confirm" and not confirm:
        raise InputError("choose is 'confirm' but no dev examples are kept back; say how many with confirm.")
    if choose != "confirm" and confirm:
        raise InputError(
            f"choose is {choose!r} but confirm keeps {confirm} dev examples back to choose by; leave one of them out."
        )
    return choose


def check_way(way: Choose, config: SwarmConfig, utility: Utility) -> None:
    """Raise InputError where a search with these settings cannot choose in this way."""
    if way == "shrink" and utility.reduce is not mean:
        raise InputError(
            f"choose is 'shrink' but the utility of {utility.name} is not the mean of its scores; use "
            "choose='posterior'."
        )
    if way == "posterior":
        if config.randomness == "coordinate":
            raise InputError(
                "choose is 'posterior' but randomness='coordinate' leaves no mixtures to fit; use choose='shrink'."
            )
        _fit()


def choose(
    way: Choose, experiment: Experiment, trial: Trial, history: Sequence[Mapping[str, Any]]
) -> tuple[Winner, dict[str, Any]]:
    """The winner of a search that has ended, and what summary.json says of the choice.

    With state="mixture" every position can win, else the personal bests, whose weights there are.
    """
    known, said = visited(history), dict[str, Any]()
    scores, rule, at = known.scores, _rule(way, experiment, trial, known), None
    if way == "confirm":
        found = confirm(experiment.evaluator, trial.loop.swarm, trial.loop.population)
        winner = replace(_personal_best(trial, found.particle), scores={CONFIRM: found.confirm})
        said["candidates"], scores = found.candidates, found.scores
        at = [one["particle"] for one in found.candidates].index(found.particle)
    else:
        winner = best_winner(trial)
        if way != "best":
            winner = _position(experiment, trial, known, int(rule(known.utilities[:, None])[0]))
        at = known.number(winner.iteration, winner.particle)
    if at is not None and experiment.utility.reduce is mean:
        said["expected_test"] = expected_test(scores, at, len(experiment.utility.examples["test"]), rule)
    return winner, said


def _rule(way: Choose, experiment: Experiment, trial: Trial, known: Visited) -> Rule:
    """How a way chooses; "confirm" among the candidates alone."""
    allowed = np.ones_like(known.bests) if experiment.engine_config.state == "mixture" else known.bests
    if way == "posterior":
        products = experiment.expert_products
        return by_posterior(known, allowed, np.eye(len(experiment.names)) if products is None else np.array(products))
    if way == "shrink":
        return by_shrinking(known, allowed, len(trial.loop.swarm.first))
    return best_of_each


def by_posterior(known: Visited, allowed: Bools, products: Floats) -> Rule:
    """The highest posterior mean among the positions that are allowed [m]."""
    assert known.mixtures is not None
    surrogate = _fit()(known.mixtures, known.utilities, products)
    return lambda utilities: best_of_each(np.where(allowed[:, None], surrogate.smoothed(utilities), -np.inf))


def by_shrinking(known: Visited, allowed: Bools, experts: int) -> Rule:
    """The largest shrunken gain on the best expert among the positions that are allowed [m], if it exceeds its error.

    Else that expert. `experts`: how many particles are one at the start.
    """
    initial = (known.iterations == 0) & (known.particles < experts)
    if not initial.any():  # none of them has a score
        return best_of_each
    best = int(np.where(initial, known.utilities, -np.inf).argmax())
    found = shrink(known.scores, known.scores[best])

    def rule(utilities: Floats) -> Numbers:
        expert = best_of_each(np.where(initial[:, None], utilities, -np.inf))
        columns = np.arange(utilities.shape[1])
        gains = found.shares[:, None] * (utilities - utilities[expert, columns])
        largest = best_of_each(np.where(allowed[:, None], gains, -np.inf))
        return np.where(gains[largest, columns] > found.errors[largest], largest, expert)

    return rule


def _fit() -> Callable[[Floats, Floats, Floats], Surrogate]:
    """The function that fits a surrogate. Raises InputError if its library is not installed."""
    try:
        from modelswarms_fast.policies.surrogate import fit
    except ModuleNotFoundError as error:
        raise InputError(
            f"choose is 'posterior', which needs {error.name}; pip install 'modelswarms-fast[policies]'."
        ) from error
    return fit


def _personal_best(trial: Trial, particle: int) -> Winner:
    """The personal best of a particle as the winner."""
    swarm, population = trial.loop.swarm, trial.loop.population
    return Winner(
        int(swarm.personal_best_iteration[particle]),
        particle,
        float(swarm.personal_best[particle]),
        population.best_mixture(particle),
        partial(population.row, particle, True),
    )


def _position(experiment: Experiment, trial: Trial, known: Visited, at: int) -> Winner:
    """The position of this number as the winner: a mixture, a personal best, or an expert."""
    iteration, particle, dev = int(known.iterations[at]), int(known.particles[at]), float(known.utilities[at])
    if experiment.engine_config.state != "mixture" and known.bests[at]:
        return _personal_best(trial, particle)
    mixture = None if known.mixtures is None else known.mixtures[at]
    if experiment.engine_config.state == "mixture":
        assert mixture is not None
        row = partial(experiment.mix, torch.from_numpy(mixture))
    else:  # its row in memory belongs to a particle now
        source = experiment.experts.sources[trial.loop.swarm.first[particle]]
        row = partial(read_model, source, experiment.experts)
    return Winner(iteration, particle, dev, None if mixture is None else mixture.tolist(), row)
