"""A search in model_swarm's order of events, from the initial evaluation to the last line of its log."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modelswarms_fast.compat.model_swarm.flags import Settings
from modelswarms_fast.compat.model_swarm.folders import now_string, use_dev_results
from modelswarms_fast.compat.model_swarm.metrics import dev_ensemble, files_of, metrics_of, print_metrics
from modelswarms_fast.compat.model_swarm.objectives import Objective
from modelswarms_fast.compat.model_swarm.particles import BEST, NOW, Particles, Scored
from modelswarms_fast.compat.model_swarm.scratchpad import Curves, Scratchpad, Shown, say
from modelswarms_fast.compat.published import PublishedSwarm
from modelswarms_fast.records import run_folder
from modelswarms_fast.records.run_folder import Journal
from modelswarms_fast.runs.experiment import Experiment
from modelswarms_fast.runs.loop import Meter, SearchLoop
from modelswarms_fast.swarm import best_of
from modelswarms_fast.weights.population import Population


class Events:
    """What happens in one search, and what is written and logged of it."""

    def __init__(
        self,
        settings: Settings,
        objective: Objective,
        swarm: PublishedSwarm,
        experiment: Experiment,
        population: Population,
        run: Path,
    ) -> None:
        self._settings, self._objective, self._swarm, self._run = settings, objective, swarm, run
        self._experiment = experiment
        self._all = range(swarm.particles)
        self._particles = Particles(run, experiment.experts, population, objective, experiment.evaluator)
        self._loop = SearchLoop(swarm, population, objective.utility)
        self._population = population
        self._scratchpad = Scratchpad(swarm.particles)
        self._shown = Shown(run.name, settings.project, run_folder.read_json(run / run_folder.CONFIG))
        # What is known of where each particle is, on dev.
        self._here: dict[int, Scored] = {}
        self._saves = settings.emergence or settings.eval_type == "multitask"
        self._worst_before = swarm.global_worst
        self._without_score: list[dict[str, int]] = []

    def search(self) -> dict[str, Any]:
        """Search, test, and return the final metrics."""
        with Journal(self._run / run_folder.HISTORY) as journal:
            meter = Meter(self._experiment.evaluator)
            self._begin(journal, meter)
            starting_dev = dict(self._here)
            starting_test = self._test_start()
            self._iterate(journal, meter)
        self._particles.write_weights(self._all, self._all, global_best=True)
        metrics = self._finish(starting_dev, starting_test, meter.total())
        self._shown.close()
        say(f"the end of search... {now_string()}")
        return metrics

    def _begin(self, journal: Journal, meter: Meter) -> None:
        self._evaluate(journal, meter, 0.0)
        self._particles.write(self._here, NOW, "_dev")
        self._take_bests([])  # a personal best is a copy of the expert, without results
        say("search initialized")
        for i, path in enumerate(self._experiment.experts.sources):
            say(f"expert {i}: {path}")

    def _test_start(self) -> dict[int, Scored] | None:
        if not self._settings.test_start:
            return None
        found = self._particles.score(self._all, "test")
        self._particles.write(found, NOW)
        self._say_tested(found)
        return found

    def _iterate(self, journal: Journal, meter: Meter) -> None:
        say(f"starting search... {now_string()}")
        trajectory = Curves(self._run, "particle_trajectory.json", self._swarm.particles)
        emergence = Curves(self._run, "correctness_emergence.json", self._swarm.particles)
        while self._swarm.iteration < self._swarm.config.iterations:
            say("--------------------------")
            say(f"iteration {self._swarm.iteration + 1}! {now_string()}")
            say("updating particles...")
            if self._swarm.stopped():
                say("patience reached!")
                return
            if self._settings.trajectory:
                trajectory.add(self._particles.coordinates(self._all))
            if self._settings.emergence:
                emergence.add([_rights(self._here[i].results) for i in self._all])
            before = time.perf_counter()
            self._loop.move()
            update_seconds = time.perf_counter() - before
            restarts = np.flatnonzero(self._loop.restarts).tolist()
            for i in restarts:
                say(f"particle_{i} restarted!")
            self._particles.copy_results(restarts, BEST, NOW)
            say(f"all particles updated! {now_string()}")
            say("evaluating particles...")
            improved = self._evaluate(journal, meter, update_seconds)
            self._particles.copy_results(improved, NOW, BEST)
            self._take_bests(improved)
            say(f"all particles evaluated! {now_string()}")
            say("--------------------------")

    def _evaluate(self, journal: Journal, meter: Meter, update_seconds: float) -> list[int]:
        """Evaluate where the particles are, and record what was found; those with a new personal best."""
        swarm, first = self._swarm, self._swarm.iteration == 0
        if swarm.dropped_all:
            say("dropped iteration!")
        found = self._particles.found(self._loop.wanted)
        here = self._particles.told(found, "dev")
        self._here |= here
        self._worst_before = swarm.global_worst
        line = self._loop.tell(found)
        if self._saves and not first:
            self._particles.write(here, NOW, "_dev")
        for sentence in self._scratchpad.tell(swarm.utilities, swarm.personal_best, swarm.bests()):
            say(sentence)
        self._shown.log(self._scratchpad.numbers)
        self._scratchpad.write(self._run)
        self._without_score += [{"iteration": swarm.iteration, "particle": i} for i in line["without_score"]]
        journal.append(line | meter.lap(update_seconds))
        return [int(i) for i in line["improved"]]

    def _take_bests(self, improved: Sequence[int]) -> None:
        """Lay the files of the particles that found them over the global best and worst; weights if they are wanted."""
        swarm = self._swarm
        best = swarm.global_best_iteration == swarm.iteration
        if best:
            self._particles.copy_to("global_best", swarm.global_best_particle)
        if not self._settings.clean_up and swarm.global_worst != self._worst_before:
            self._particles.copy_to("global_worst", swarm.global_worst_particle)
        if self._settings.every:
            now = self._all if swarm.iteration else ()
            self._particles.write_weights(now, improved, global_best=best)

    def _finish(
        self, starting_dev: dict[int, Scored], starting_test: dict[int, Scored] | None, cost: dict[str, Any]
    ) -> dict[str, Any]:
        """Score the personal bests on dev and on test; the final metrics, which are logged and in summary.json."""
        say(f"ending search and starting test set evaluation... {now_string()}")
        say(f"global best particle: {self._scratchpad.best_particle}")
        particles, eval_type = self._particles, self._settings.eval_type
        began = time.perf_counter()
        dev = particles.score(self._all, "dev", best=True)
        particles.write(dev, BEST, "_dev")
        test = particles.score(self._all, "test", best=True)
        particles.write(test, BEST)
        self._say_tested(test)
        metrics = self._metrics(test, starting_test)
        best = metrics["ending_best_particle_on_validation"]
        if eval_type == "AbstainQA":
            metrics["ending_best_single_test_accuracy"] = test[best].utility
        for split, scored in (("test", test), ("dev", dev)):
            of_tasks = self._objective.utilities(split, scored[best].scores)
            for name, utility in zip(self._objective.tasks, of_tasks, strict=True):
                metrics[f"ending_best_single_{split}_{name}"] = utility
        self._shown.log(metrics)
        say(f"final metrics for test: {metrics}")
        ensemble = dev_ensemble(self._metrics(dev, starting_dev))
        for place, scored in ((BEST, dev), (NOW, starting_dev)):
            for i in self._all:
                use_dev_results(particles.place(i, place), files_of(eval_type), scored[i].results)
        self._shown.log(ensemble)
        say(f"final ensemble metrics for dev: {ensemble}")
        if not self._settings.clean_up:
            particles.write_rest(self._all)
            say("p_x, g_x and x_w are not written: moves are made in memory")
        cost["seconds"] |= {"test": time.perf_counter() - began}
        self._summarise(test, starting_test, metrics | ensemble, cost)
        return metrics

    def _metrics(self, ending: dict[int, Scored], starting: dict[int, Scored] | None) -> dict[str, Any]:
        found = metrics_of(
            self._settings.eval_type,
            self._scratchpad.content,
            [ending[i].results for i in self._all],
            None if starting is None else [starting[i].results for i in self._all],
        )
        print_metrics(found)
        return found

    def _summarise(
        self,
        test: dict[int, Scored],
        starting_test: dict[int, Scored] | None,
        metrics: dict[str, Any],
        cost: dict[str, Any],
    ) -> None:
        """Write summary.json, of which the report is made. Raises InputError."""
        swarm, loop, experiment = self._swarm, self._loop, self._experiment
        start, names = best_of(loop.initial), experiment.names
        coefficients = self._population.global_best_mixture()
        engine, winner = experiment.engine, swarm.global_best_particle
        summary = {
            "name": self._run.name,
            "task": self._settings.eval_type,
            "dataset": self._settings.dataset,
            "particles": swarm.particles,
            "seed": swarm.config.seed,
            "state": experiment.engine_config.state,
            "serve": engine.serve,
            "engine": experiment.engine_config.engine,
            "dtype": str(engine.dtype).removeprefix("torch."),
            "iterations": swarm.iteration,
            "stopped": swarm.stopped(),
            "start": {"particle": start, "expert": names[start], "dev": float(loop.initial[start])}
            | ({} if starting_test is None else {"test": starting_test[start].utility}),
            "end": {"particle": winner, "iteration": swarm.global_best_iteration, "dev": swarm.global_best}
            | {"test": test[winner].utility, "chosen_by": "best"},
            "mixture": None if coefficients is None else dict(zip(names, coefficients, strict=True)),
            "objective": self._objective.utility.report(),
            "without_score": self._without_score,
            "metrics": metrics,
            **cost,
            "ended": True,
        }
        run_folder.write_json(self._run / run_folder.SUMMARY, summary)

    def _say_tested(self, found: dict[int, Scored]) -> None:
        say("Test set results:")
        for i in self._all:
            say(f"particle_{i}: {found[i].utility}")


def _rights(results: Mapping[str, Sequence[Any]]) -> list[int]:
    """1 for each right answer, or score of 1, and 0 for each other."""
    if "scores" in results:
        return [int(score == 1) for score in results["scores"]]
    return [int(gold == pred) for gold, pred in zip(results["golds"], results["preds"], strict=True)]
