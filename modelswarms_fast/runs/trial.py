"""A search with a folder of its own that goes on, after a cut, where its history ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modelswarms_fast.records import run_folder
from modelswarms_fast.config import SwarmConfig
from modelswarms_fast.errors import InputError
from modelswarms_fast.weights.experts import export
from modelswarms_fast.runs.loop import SearchLoop
from modelswarms_fast.records.run_folder import Journal, read_history, read_json, write_json
from modelswarms_fast.evaluation.early_stopping import PartialScores
from modelswarms_fast.runs.experiment import Experiment
from modelswarms_fast.swarm import Swarm
from modelswarms_fast.evaluation.objectives import named


@dataclass(frozen=True)
class TrialSpec:
    """A search to be run."""

    name: str
    """Of its folder."""
    config: SwarmConfig
    first: tuple[int, ...] | None = None
    """The experts that its first particles are, as `Swarm` has it."""


class Search:
    """One search: its swarm, and the folder with its history."""

    def __init__(self, experiment: Experiment, planned: TrialSpec, folder: Path, inputs: Mapping[str, Any]) -> None:
        """Open the folder: a new one, or that of the same search, cut before its end. Raises InputError."""
        self.planned, self.folder, self._session, self._inputs = planned, folder, experiment, inputs
        self.swarm = Swarm(planned.config, len(experiment.experts.names), planned.first)
        self.particles = experiment.particles(self.swarm)
        expected = experiment.evaluator.expectation("dev") if experiment.engine_config.stop_early else None
        self.steps = SearchLoop(self.swarm, self.particles, experiment.utility, expected)
        self.evaluations = 0
        """Population evaluated up to now, the experts at its start left out."""
        self.began = time.perf_counter()
        self.record: dict[str, Any] | None = None
        """Its summary, once it has ended."""
        self._old: list[dict[str, Any]] = []
        config = dict(inputs) | {"first": planned.first} | asdict(planned.config) | asdict(experiment.engine_config)
        config = run_folder.plain(config)
        if (folder / run_folder.HISTORY).exists():
            path = folder / run_folder.CONFIG
            known = read_json(path) if path.exists() else config
            known.pop("expert_products", None)  # sums in another order have other last digits
            if known != config:
                raise InputError(f"{folder} holds a search with other settings; choose another folder")
            self._old = read_history(folder / run_folder.HISTORY)
        folder.mkdir(parents=True, exist_ok=True)
        # Written anew as far as it is whole: a line that a crash cut off must not stand before the next one.
        lines = [run_folder.to_line(line) for line in self._old]
        run_folder.write_text(folder / run_folder.HISTORY, "".join(lines))
        write_json(folder / run_folder.CONFIG, config | {"expert_products": experiment.expert_products})
        self._journal = Journal(folder / run_folder.HISTORY)

    def advance(self, tallies: Mapping[int, PartialScores], asked_to_stop: Callable[[], bool]) -> list[int]:
        """Tell the scores of the particles that were wanted, and move on to where particles have to be evaluated.

        Returns them; none if the search has ended, and then `record` says how.
        """
        while True:
            line = self.steps.tell(tallies)
            self.evaluations += sum(line["evaluated"]) - (len(self.swarm.first) if self.swarm.iteration == 0 else 0)
            if self._old:
                if run_folder.plain(line) != self._old.pop(0):
                    raise InputError(
                        f"{self.folder}: its history does not repeat, since something it was made with has changed; "
                        "remove the folder to run this search anew"
                    )
            else:
                self._journal.append(line)
            if stopped := self.swarm.stopped() or (None if self._old or not asked_to_stop() else "budget"):
                self._finish(stopped)
                return []
            self.steps.move()
            if self._old:
                tallies = self._recorded()
            elif self.steps.wanted:
                return self.steps.wanted
            else:  # an iteration that is not evaluated
                tallies = {}

    def begin(self, experts: Sequence[PartialScores], asked_to_stop: Callable[[], bool]) -> tuple[dict[int, PartialScores], list[int]]:
        """The particles to evaluate first, and the tallies of those that are experts, or where its history ends."""
        if self._old:
            return {}, self.advance(self._recorded(), asked_to_stop)
        known = {particle: experts[expert] for particle, expert in enumerate(self.swarm.first)}
        return known, [particle for particle in self.steps.wanted if particle not in known]

    def close(self) -> None:
        """Let go of its rows and its file."""
        self._journal.close()
        self.particles.close()

    def _recorded(self) -> dict[int, PartialScores]:
        """Tallies of the particles that are wanted, from the next line of the history."""
        line = self._old[0]
        found = {}
        for particle in self.steps.wanted:
            limits = None if self.steps.limits is None else self.steps.limits[particle]
            tally = self._session.evaluator.tally("dev", limits)
            tally.scores = [None if score is None else float(score) for score in line["scores"][particle]]
            found[particle] = tally
        return found

    def _finish(self, stopped: str) -> None:
        names = self._session.experts.names
        coefficients = self.particles.global_best_mixture()
        mixture = None if coefficients is None else dict(zip(names, coefficients, strict=True))
        initial = np.where(np.isnan(self.steps.initial), -np.inf, self.steps.initial)
        start = int(initial[: len(self.swarm.first)].argmax())
        self.record = dict(self._inputs) | {
            "name": self.planned.name,
            "particles": self.planned.config.particles,
            "seed": self.planned.config.seed,
            "stopped": stopped,
            "iterations": self.swarm.iteration,
            "start": {
                "particle": start,
                "expert": names[self.swarm.first[start]],
                "dev": float(self.steps.initial[start]),
            },
            "end": {"particle": self.swarm.global_best_particle, "dev": self.swarm.global_best},
            "mixture": mixture,
            "evaluations": self.evaluations,
            "wall_seconds": time.perf_counter() - self.began,
        }
        provenance = dict(self._inputs) | {"mixture": mixture, "dev": self.swarm.global_best}
        experts, row = self._session.experts, self.particles.global_best()
        export(self.folder / "global_best", row, experts, base=self._session.base_folder, provenance=provenance)
        write_json(self.folder / run_folder.SUMMARY, self.record)


def claim_folder(folder: Path, name: str, asked: dict[str, Any]) -> None:
    """Have the folder say in a file of this name what is asked for. Raises InputError if it says something else."""
    if (folder / name).exists():
        if run_folder.read_json(folder / name) != run_folder.plain(asked):
            raise InputError(f"{folder} holds searches of other arguments ({name}); choose another folder")
        return
    run_folder.check_name(folder)
    run_folder.check_run_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / name, asked)


def inputs_of(experiment: Experiment, *, base: str, task: str, data: Any, **settings: Any) -> dict[str, Any]:
    """What all searches of an experiment share: what their results depend on beside the settings of swarm and engine."""
    optional: dict[str, Any] = {
        "limit_dev": None,
        "limit_test": None,
        "max_tokens": None,
        "scoring": "generate",
        "options": {},
    }
    return {
        "base": base,
        "task": task,
        "dataset": experiment.utility.dataset,
        "data": named(data),
        "experts": list(experiment.experts.names),
        "sources": list(experiment.experts.sources),
        "weights": experiment.expert_digests,
        **{f"{split}_examples": len(examples) for split, examples in experiment.utility.examples.items()},
        **experiment.utility.digests(),
        **{name: settings.get(name, default) for name, default in optional.items()},
    }
