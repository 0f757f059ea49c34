"""Many searches with settings drawn from ranges, on one engine, and the best of them by dev."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from modelswarms_fast.config import LARGEST, LONGEST, SwarmConfig
from modelswarms_fast.errors import InputError, quoted
from modelswarms_fast.errors.arguments import check_range, checked
from modelswarms_fast.evaluation.objectives import Files
from modelswarms_fast.records import run_folder
from modelswarms_fast.runs.experiment import Experiment, check_together
from modelswarms_fast.runs.known import keep_known
from modelswarms_fast.runs.started import run_in
from modelswarms_fast.runs.study import winners_on_test
from modelswarms_fast.runs.trial import TrialSpec
from modelswarms_fast.runs.trial_folder import config_of, inputs_of
from modelswarms_fast.runs.trial_queue import SEARCHES, run_searches
from modelswarms_fast.swarm import best_of

SWEEP = "sweep.json"

# Of the published search (arXiv 2410.11163).
PUBLISHED: dict[str, tuple[float, float]] = {
    "inertia": (0.1, 0.3),
    "cognitive_coeff": (0.1, 0.5),
    "social_coeff": (0.2, 0.6),
    "repel_coeff": (0.01, 0.1),
    "step_length": (0.5, 1.0),
}
_SHORT = {"cognitive": "cognitive_coeff", "social": "social_coeff", "repel": "repel_coeff", "step": "step_length"}
_DRAWN = {field.name for field in fields(SwarmConfig) if field.type == "float"}
_DRAWS = 101  # the second word of the generator's key: no swarm uses it


@checked
def sweep(
    experts: str | Path | Sequence[str | Path],
    *,
    base: str,
    task: str,
    data: Files = None,
    out: str | Path,
    searches: int = 20,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    evaluations: int | None = None,
    minutes: float | None = None,
    at_once: int = 2,
    swarm: dict[str, Any] | None = None,
    resume: bool = False,
    force: bool = False,
    reuse: Sequence[str | Path] = (),
    say: Callable[[str], None] = lambda line: None,
    **settings: Any,
) -> dict[str, Any]:
    """Run searches, and test the best on dev once.

    Args:
        searches: the most searches; with a budget it may be fewer.
        ranges: setting -> (lowest, highest), drawn uniformly; those of the published search if None.
        evaluations: budget of particles evaluated by all searches together, never exceeded.
        minutes: no search begins after so many, and those under way stop after their iteration.
        at_once: searches under way.
        swarm: fields of SwarmConfig that all searches share, `seed` among them: search i has seed + i.
        resume: go on with the sweep in `out`, or begin it if nothing of it is there. searches, evaluations, minutes and
            at_once may be others than before, iterations and patience higher.
        force, reuse: as in `search`.
        settings: the other arguments of `Experiment`, fields of EngineConfig among them.

    Returns:
        The content of sweep.json: `searches`, the best on dev first, each with its settings, dev and cost; `best` with
        its folder, dev and test; `best_expert`; `evaluations`.

    Raises:
        InputError: something given cannot be used, or `out` holds a sweep of other arguments.
    """
    folder, shared = Path(out), dict(swarm or {})
    chosen = check_ranges(PUBLISHED if ranges is None else ranges)
    for name, value in (("searches", searches), ("at_once", at_once), ("evaluations", evaluations)):
        check_range(name, value, 1, LARGEST if name != "evaluations" else LONGEST)
    check_range("minutes", minutes, 0, LARGEST)
    if shared.get("policy") == "cma-es":
        raise InputError("policy is 'cma-es', which has none of the settings that a sweep draws; use a study of seeds.")
    with ExitStack() as stack:
        run = stack.enter_context(run_in(folder, "sweep", resume=resume))
        experiment = Experiment(
            experts, base=base, task=task, data=data, out=out, swarm=shared, searches=at_once, **settings
        )
        names = list(experiment.experts.names)
        first = SwarmConfig(**({"particles": len(names)} | shared))
        check_together(first, experiment.engine_config)
        inputs = inputs_of(experiment, task, data)
        own = asdict(first) | {
            "ranges": {name: f"{low!r}:{high!r}" for name, (low, high) in chosen.items()},
            "searches": searches,
            "evaluations": evaluations,
            "minutes": minutes,
            "at_once": at_once,
        }
        run.check(config_of(experiment, inputs, **own), force=force, reuse=reuse)
        specs = [
            TrialSpec(
                f"{index:03d}",
                SwarmConfig(**asdict(first) | drawn | {"seed": first.seed + index}),
                first_patience=run.first_patience,
            )
            for index, drawn in enumerate(draw(chosen, searches, first.seed))
        ]
        run.serve(experiment, stack)
        if first.policy != "swarm" and reuse:
            experiment.known = keep_known(folder, reuse, len(experiment.names))
        trace, clock = experiment.evaluator.trace, time.perf_counter()
        records = run_searches(
            experiment,
            specs,
            folder,
            inputs=inputs,
            at_once=at_once,
            budget=evaluations,
            minutes=minutes,
            ended=lambda one: say(f"{one['name']}: dev {one['end']['dev']:.4f}, {one['evaluations']} evaluations"),
        )
        seconds = time.perf_counter() - clock
        say(f"{seconds:.0f} s, the engine idle for {trace.idle(trace.busy(), seconds):.1%} of them")
        if not records:
            raise InputError(f"no search has ended after {minutes:g} minutes; give more")
        by_name = {one.name: one.config for one in specs}
        table = [
            {
                "name": one["name"],
                **{name: getattr(by_name[one["name"]], name) for name in chosen},
                "seed": one["seed"],
                "dev": one["end"]["dev"],
                "iterations": one["iterations"],
                "stopped": one["stopped"],
                "evaluations": one["evaluations"],
                "mixture": one["mixture"],
            }
            for one in records
        ]
        table.sort(key=lambda one: (-one["dev"], one["name"]))
        best = folder / SEARCHES / table[0]["name"]
        expert = best_of(experiment.initial)
        tests = winners_on_test(experiment, [best])
        tests += experiment.score_rows([partial(experiment.expert_row, expert)], "test")
        experiment.check_base()
        test, error = experiment.utility.utility_of, experiment.utility.error_of
        content = {
            **inputs,
            **run.forced,
            "objective": experiment.utility.report(),
            "ranges": chosen,
            "evaluations": len(names) + sum(one["evaluations"] for one in table),
            "best": {
                "name": table[0]["name"],
                "model": str(best.relative_to(folder) / run_folder.GLOBAL_BEST),
                "dev": table[0]["dev"],
                "test": test("test", tests[0]),
                "test_standard_error": error("test", tests[0]),
            },
            "best_expert": {
                "expert": names[expert],
                "dev": float(experiment.initial[expert]),
                "test": test("test", tests[1]),
                "test_standard_error": error("test", tests[1]),
            },
            "searches": table,
        }
        run_folder.write_json(folder / SWEEP, content)
        return content


def check_ranges(ranges: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Ranges by the full names of their settings. Raises InputError."""
    found = {}
    for name, (low, high) in ranges.items():
        full = _SHORT.get(name, name)
        if full not in _DRAWN:
            raise InputError(f"there is no setting {name} to draw; choose {', '.join(sorted(_DRAWN))}.")
        if not low <= high:
            raise InputError(f"the range of {name} is {low:g} to {high:g}; give the lower end first.")
        for end in (low, high):
            changed: dict[str, Any] = {full: end}
            SwarmConfig(particles=2, **changed)  # says what is wrong with it
        found[full] = (float(low), float(high))
    return found


def parse_range(text: str) -> tuple[str, tuple[float, float]]:
    """Setting and ends of "inertia=0.1:0.3". Raises InputError."""
    name, _, ends = text.partition("=")
    low, colon, high = ends.partition(":")
    try:
        return name.strip(), (float(low), float(high if colon else low))
    except ValueError as error:
        raise InputError(f"the range is {quoted(text)}; give a setting and its ends, as in inertia=0.1:0.3") from error


def draw(ranges: Mapping[str, tuple[float, float]], count: int, seed: int) -> list[dict[str, float]]:
    """The settings of `count` searches; those of search i do not depend on how many there are."""
    found = []
    for index in range(count):
        key = np.array([seed, _DRAWS], dtype=np.uint64)
        random = np.random.Generator(np.random.Philox(key=key, counter=np.array([0, index, 0, 0], dtype=np.uint64)))
        found.append({name: float(random.uniform(low, high)) for name, (low, high) in sorted(ranges.items())})
    return found
