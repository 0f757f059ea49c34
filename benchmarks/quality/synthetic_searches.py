"""Searches of synthetic tasks: which finds more, what each way to choose is worth, and two libraries for `guided`.

    python -m benchmarks.quality.synthetic_searches searches OUT [--tasks FIRST:END] [--only NAME ...] [--budget N]
    python -m benchmarks.quality.synthetic_searches moves OUT
    python -m benchmarks.quality.synthetic_searches libraries OUT

A position is scored on 200 dev examples, and what is chosen on 5,000 test examples; see `synthetic_tasks`. The settings
of `guided` were chosen on tasks 0 to 11 (`moves`), and all searches are judged on others, from 100 on. Each task is
searched once, with its number as the seed. OUT gets searches.json, moves.json and libraries.json; what searches.json
holds of the same tasks and other methods stays. `libraries` needs botorch.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import commit, machine_class
from benchmarks.quality.synthetic_tasks import EXAMPLES, EXPERTS, Floats, SyntheticTask
from modelswarms_fast.config import EngineConfig, SwarmConfig
from modelswarms_fast.policies import Problem, guided, load_policy, surrogate
from modelswarms_fast.policies.space import space_of
from modelswarms_fast.records.run_folder import read_json, write_json
from modelswarms_fast.runs.choose import Rule, Visited, by_posterior, by_shrinking
from modelswarms_fast.runs.shrinkage import best_of_each, expected_test
from modelswarms_fast.swarm import Swarm
from modelswarms_fast.weights.experts import Experts
from modelswarms_fast.weights.layout import Layout
from modelswarms_fast.weights.population import Population

BUDGETS = (50, 200, 500)
"""Evaluations, those of the experts among them."""
TESTS = 1000
"""Examples of the test split whose score the interval of `expected_test` is to hold."""
TUNED = range(12)
"""Tasks that the settings of `guided` were chosen on."""
LIBRARY_TASKS = range(4)
SEARCHES: dict[str, dict[str, Any]] = {
    "swarm": {},
    "swarm, expert": {"randomness": "expert"},
    "swarm, expert, free": {"randomness": "expert", "space": "free"},
    "cma-es": {"policy": "cma-es"},
    "cma-es, scaled": {"policy": "cma-es", "space": "scaled"},
    "cma-es, free": {"policy": "cma-es", "space": "free"},
    "guided": {"policy": "guided"},
    "guided, scaled": {"policy": "guided", "space": "scaled"},
    "guided, free": {"policy": "guided", "space": "free"},
}


class Found:
    """All m positions of a search: `mixtures` [m, n], `scores` [m, E] on dev, and CPU `seconds` of each ask."""

    def __init__(self, task: SyntheticTask, settings: dict[str, Any], budget: int, seed: int) -> None:
        """Search with ten particles; the moves are those of a run with state="mixture"."""
        config = SwarmConfig(particles=EXPERTS, seed=seed, patience=10_000, **settings)
        swarm, space = Swarm(config, EXPERTS), space_of(config.space, EXPERTS)
        nothing = np.empty((0, EXPERTS)), np.empty(0)
        policy = load_policy(config.policy, Problem(EXPERTS, EXPERTS, seed, space, task.products, nothing))
        population = _population(swarm)
        mixtures, scores, self.seconds = list[Floats](), list[Floats](), list[float]()
        while True:
            at = population.mixtures()
            assert at is not None
            mixtures.append(at)
            scores.append(task.scores(at, "dev"))
            utilities = scores[-1].mean(axis=1)
            update = swarm.tell(utilities)
            population.promote(update.improved, update.global_best, update.global_worst)
            if len(scores) == 1:
                population.start(swarm.initial_velocities(at))
            if policy is not None:
                policy.tell(at, utilities)
            if len(scores) * EXPERTS >= budget:
                break
            moves, began = swarm.ask(), time.process_time()
            asked = None if policy is None else policy.ask()
            self.seconds.append(time.process_time() - began)
            if asked is not None:
                population.place(asked)
            else:
                population.update(moves.restarts, moves.coefficients, moves.step_length, moves.iteration)
        self.mixtures, self.scores = np.concatenate(mixtures), np.concatenate(scores)


def _population(swarm: Swarm) -> Population:
    """Positions as mixtures of experts that are weights of nothing."""
    config, rows = swarm.config, torch.zeros(EXPERTS, 1)
    layout = Layout.of({"weight": rows[0]}, rows.dtype)
    names = tuple(map(str, range(EXPERTS)))
    return Population(
        Experts("full", names, layout, rows, rows, (), {}, names),
        swarm.initial_positions(),
        EngineConfig(state="mixture"),
        torch.device("cpu"),
        randomness=config.randomness,
        space=config.space,
        seed=config.seed,
    )


def choices(task: SyntheticTask, found: Found, budget: int) -> dict[str, dict[str, float]]:
    """By way to choose among the first positions: dev and test of the winner, and what was expected of it."""
    scores, mixtures = found.scores[:budget], found.mixtures[:budget]
    count = len(scores)
    numbers, every = np.arange(count), np.ones(count, dtype=np.bool_)
    known = Visited(numbers // EXPERTS, numbers % EXPERTS, scores.mean(axis=1), mixtures, scores, every)
    rules: dict[str, Rule] = {
        "best": best_of_each,
        "posterior": by_posterior(known, every, task.products),
        "shrink": by_shrinking(known, every, EXPERTS),
    }
    some = np.random.default_rng(task.number).permutation(EXAMPLES["test"])[:TESTS]
    result = {}
    for way, rule in rules.items():
        winner = int(rule(known.utilities[:, None])[0])
        test = task.scores(mixtures[[winner]], "test")[0]
        expected = expected_test(scores, winner, TESTS, rule)
        result[way] = {
            "dev": float(known.utilities[winner]),
            "test": float(test.mean()),
            "expected": expected["score"],
            "width": expected["high"] - expected["low"],
            "covered": float(expected["low"] <= test[some].mean() <= expected["high"]),
        }
    return result


def means(runs: list[dict[str, float]]) -> dict[str, float]:
    """Of each number the mean over runs, and of test its standard error."""
    found = {name: float(np.mean([one[name] for one in runs])) for name in runs[0]}
    error = float(np.std([one["test"] for one in runs], ddof=1) / np.sqrt(len(runs)))
    return found | {"test_error": error, "test_minus_dev": found["test"] - found["dev"], "runs": len(runs)}


def run_searches(out: Path, tasks: list[int], only: list[str], largest: int) -> None:
    """Each method on each task."""
    path, budgets = out / "searches.json", [one for one in BUDGETS if one <= largest]
    for name in only:
        runs: list[dict[int, dict[str, dict[str, float]]]] = []
        seconds: list[float] = []
        for number in tasks:
            task = SyntheticTask(number)
            found = Found(task, SEARCHES[name], budgets[-1], seed=number)
            seconds += found.seconds
            runs.append({budget: choices(task, found, budget) for budget in budgets})
        by_budget = {
            str(budget): {way: means([run[budget][way] for run in runs]) for way in runs[0][budget]}
            for budget in budgets
        }
        tests = {
            str(budget): {way: [run[budget][way]["test"] for run in runs] for way in runs[0][budget]}
            for budget in budgets
        }
        result = {"budgets": by_budget, "tests": tests}
        if "policy" in SEARCHES[name]:
            result["seconds_a_move"] = {"mean": float(np.mean(seconds)), "most": max(seconds)}
        content = read_json(path) if path.exists() else {}
        if content.get("tasks") != tasks:
            content = {"tasks": tasks, "machine": machine_class(), "commit": commit(), "methods": {}}
        content["methods"][name] = result
        write_json(path, content)


def run_moves(out: Path) -> None:
    """How many moves of the swarm `guided` begins with: dev and test at several budgets, on the tasks for tuning."""
    content: dict[str, Any] = {"tasks": [*TUNED], "machine": machine_class(), "commit": commit(), "moves": {}}
    for moves in (0, 1, 2, 4):
        guided.SWARM_MOVES = moves
        runs = []
        for number in TUNED:
            task = SyntheticTask(number)
            found = Found(task, {"policy": "guided"}, 200, seed=number)
            best = [int(found.scores[:budget].mean(axis=1).argmax()) for budget in (50, 100, 200)]
            runs.append(task.scores(found.mixtures[best], "test").mean(axis=1))
        errors = np.std(runs, axis=0, ddof=1) / np.sqrt(len(runs))
        means_of = dict(zip(("50", "100", "200"), np.mean(runs, axis=0).tolist(), strict=True))
        content["moves"][str(moves)] = {"test": means_of, "errors": errors.tolist()}
        write_json(out / "moves.json", content)


class Botorch:
    """The same surrogate on botorch: SingleTaskGP with a Matérn kernel of smoothness 5/2, by its own samples."""

    def __init__(self, mixtures: Floats, utilities: Floats, products: Floats) -> None:
        """Fit it."""
        from botorch.fit import fit_gpytorch_mll
        from botorch.models import SingleTaskGP
        from botorch.models.transforms import Standardize
        from gpytorch.kernels import MaternKernel, ScaleKernel
        from gpytorch.mlls import ExactMarginalLogLikelihood

        self._metric = surrogate.metric_of(products)
        points = torch.from_numpy(mixtures @ self._metric)
        model = SingleTaskGP(
            points,
            torch.from_numpy(utilities)[:, None],
            covar_module=ScaleKernel(MaternKernel(nu=2.5)),
            outcome_transform=Standardize(m=1),
        )
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        self._model = model

    def sample(self, points: Floats, count: int, seed: int) -> Floats:
        """As `Surrogate.sample`."""
        torch.manual_seed(seed)
        with torch.no_grad():
            posterior = self._model.posterior(torch.from_numpy(points @ self._metric))
            found: Floats = posterior.rsample(torch.Size([count]))[..., 0].numpy()
        return found


def run_libraries(out: Path) -> None:
    """CPU seconds of a fit and a batch of ten at 500 positions, and what `guided` finds with each library."""
    task, content = SyntheticTask(TUNED[0]), dict[str, Any]()
    found = Found(task, {"policy": "cma-es", "space": "affine"}, 500, seed=0)
    utilities = found.scores.mean(axis=1)
    candidates = found.mixtures[np.arange(1000) % 500] + 0.01 * np.random.default_rng(0).standard_normal(
        (1000, EXPERTS)
    )
    ways: dict[str, Callable[..., Any]] = {"scikit-learn": surrogate.fit, "botorch": Botorch}
    for name, fit in ways.items():
        seconds = []
        for _ in range(4):
            began = time.process_time()
            fit(found.mixtures, utilities, task.products).sample(candidates, 10, 0)
            seconds.append(time.process_time() - began)
        guided.fit = fit
        tests = []
        for number in LIBRARY_TASKS:
            one = SyntheticTask(number)
            searched = Found(one, {"policy": "guided"}, 100, seed=number)
            winner = int(searched.scores.mean(axis=1).argmax())
            tests.append(float(one.scores(searched.mixtures[[winner]], "test").mean()))
        content[name] = {"seconds": sorted(seconds[1:]), "tests_at_100": tests, "test_at_100": float(np.mean(tests))}
        content |= {"tasks": [*LIBRARY_TASKS], "machine": machine_class(), "commit": commit()}
        write_json(out / "libraries.json", content)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("searches", "moves", "libraries"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--tasks", default="100:112", metavar="FIRST:END")
    parser.add_argument("--only", nargs="*", default=list(SEARCHES), metavar="NAME")
    parser.add_argument("--budget", type=int, default=BUDGETS[-1])
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.what == "searches":
        run_searches(asked.out, list(range(*map(int, asked.tasks.split(":")))), asked.only, asked.budget)
    elif asked.what == "moves":
        run_moves(asked.out)
    else:
        run_libraries(asked.out)


if __name__ == "__main__":
    main()
