"""The particles of a run: what they score and answer, and their folders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from modelswarms_fast.compat.model_swarm.folders import copy_files, copy_folder, write_results, write_weights
from modelswarms_fast.compat.model_swarm.objectives import Objective
from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.early_stopping import PartialScores
from modelswarms_fast.evaluation.evaluator import Evaluator
from modelswarms_fast.weights.experts import Experts
from modelswarms_fast.weights.population import Population

NOW, BEST = "now", "personal_best"
# What a trajectory shows of a particle: one weight of each of these, in PEFT's names.
_SHOWN = (
    "base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight",
    "base_model.model.model.layers.10.self_attn.k_proj.lora_B.weight",
)


class Scored(NamedTuple):
    """A particle on a split."""

    utility: float
    scores: list[float]
    results: dict[str, list[Any]]
    """The content of its files, by name."""


class Particles:
    """Evaluates particles, and writes what model_swarm keeps of them."""

    def __init__(
        self, run: Path, experts: Experts, population: Population, objective: Objective, evaluator: Evaluator
    ) -> None:
        self._run, self._experts, self._population = run, experts, population
        self._objective, self._evaluator = objective, evaluator
        evaluator.keep_answers(objective.keep)

    def score(self, particles: Sequence[int], split: str, *, best: bool = False) -> dict[int, Scored]:
        """Particles on a split, where they are or, with `best`, at their personal best; those known are not asked."""
        candidates = self._population.candidates(particles, best)
        return self.told(self._evaluator.score_population(candidates, split), split, best=best)

    def found(self, particles: Sequence[int]) -> dict[int, PartialScores]:
        """Scores on dev of particles where they are, for the loop of a search."""
        return self._evaluator.score_population(self._population.candidates(particles), "dev")

    def told(self, found: dict[int, PartialScores], split: str, *, best: bool = False) -> dict[int, Scored]:
        """Particles whose scores have been found."""
        names = {i: one.name() for i, one in self._population.candidates(found, best).items()}
        scored = {}
        for i in sorted(found):
            scores = found[i].known
            results = self._objective.results(split, scores, self._evaluator.answers(split, names[i]))
            scored[i] = Scored(self._objective.utility.utility_of(split, scores), scores, results)
        return scored

    def place(self, particle: int, name: str) -> Path:
        """The folder of a particle's `now` or `personal_best`."""
        return self._run / f"particle_{particle}" / name

    def write(self, scored: dict[int, Scored], name: str, mark: str = "") -> None:
        """Write the results of particles. Raises InputError."""
        for i, one in scored.items():
            write_results(self.place(i, name), one.results, mark)

    def copy_results(self, particles: Iterable[int], source: str, target: str) -> None:
        """Lay what a folder of a particle says of results over that of the other. Raises InputError."""
        for i in particles:
            copy_files(self.place(i, source), self.place(i, target), results_only=True)

    def copy_to(self, name: str, particle: int) -> None:
        """Lay the files of where a particle is, but its weights, over a folder of the run. Raises InputError."""
        copy_files(self.place(particle, NOW), self._run / name)

    def write_weights(self, now: Iterable[int], best: Iterable[int], *, global_best: bool) -> None:
        """Write the weights of where these particles are, of these personal bests, and of the global best."""
        for i in now:
            write_weights(self.place(i, NOW), self._population.row(i), self._experts)
        for i in best:
            write_weights(self.place(i, BEST), self._population.row(i, best=True), self._experts)
        if global_best:
            write_weights(self._run / "global_best", self._population.global_best(), self._experts)

    def write_rest(self, particles: Iterable[int]) -> None:
        """Write velocities and the global worst, which a run keeps that does not clean up. Raises InputError."""
        for i in particles:
            write_weights(self._run / f"particle_{i}" / "velocity", self._population.velocity(i), self._experts)
        write_weights(self._run / "global_worst", self._population.global_worst(), self._experts)

    def coordinates(self, particles: Iterable[int]) -> list[list[float]]:
        """Two weights of each particle, of the first and the eleventh layer, as a trajectory has them."""
        shown = []
        for i in particles:
            views = self._experts.layout.views(self._population.row(i))
            shown.append([float(views[name][0, 0]) for name in _SHOWN])
        return shown


def check_trajectory(experts: Experts) -> None:
    """Raise InputError if particles lack a weight that a trajectory shows."""
    names = {spec.name for spec in experts.layout.specs}
    for name in _SHOWN:
        if name not in names:
            raise InputError(f"--to_visualize needs the tensor {name}, which the experts lack; leave it out.")


def begin_folders(run: Path, paths: Sequence[str]) -> None:
    """Make the folders of particles that begin as these models. Raises InputError."""
    for i, path in enumerate(paths):
        for name in (NOW, BEST):
            copy_folder(Path(path), run / f"particle_{i}" / name)
