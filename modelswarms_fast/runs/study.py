"""Studies: searches that differ in one thing, all on one engine, with several seeds each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from modelswarms_fast.config import LARGEST, SwarmConfig
from modelswarms_fast.errors import InputError, quoted
from modelswarms_fast.errors.arguments import check_range, checked
from modelswarms_fast.evaluation.objectives import Files
from modelswarms_fast.records import checks, run_folder
from modelswarms_fast.records.analysis import studies, weak_to_strong
from modelswarms_fast.records.style import svg
from modelswarms_fast.runs.experiment import Experiment, check_together
from modelswarms_fast.runs.known import keep_known
from modelswarms_fast.runs.started import run_in
from modelswarms_fast.runs.trial import TrialSpec
from modelswarms_fast.runs.trial_folder import config_of, inputs_of
from modelswarms_fast.runs.trial_queue import SEARCHES, run_searches
from modelswarms_fast.swarm import Floats, best_of
from modelswarms_fast.weights.experts import read_model

STUDY = "study.json"
PLOT = "study.svg"
KINDS = ("ablation", "diversity", "drop", "seeds", "weak")
Variant = tuple[dict[str, Any], tuple[int, ...] | None]
"""Settings that differ, and the experts that the first particles are."""


@checked
def study(
    kind: str,
    experts: str | Path | Sequence[str | Path],
    *,
    base: str,
    task: str,
    data: Files = None,
    out: str | Path,
    seeds: int = 3,
    at_once: int = 2,
    swarm: dict[str, Any] | None = None,
    resume: bool = False,
    force: bool = False,
    reuse: Sequence[str | Path] = (),
    say: Callable[[str], None] = lambda line: None,
    **settings: Any,
) -> dict[str, Any]:
    """Run the searches of a study, and test the winner of each.

    Args:
        kind: "ablation" (randomness, each term, restart and decay), "diversity" (a distinct experts, b copies of each,
            a·b fixed), "drop" (dropK and dropN against cost), "seeds", or "weak" (without the best expert, and the
            lower half of them).
        seeds: searches of each variant, with the seeds swarm["seed"] and the next ones.
        swarm: fields of SwarmConfig that all searches share.
        resume: go on with the study in `out`, or begin it if nothing of it is there. seeds and at_once may be others
            than before, iterations and patience higher.
        force, reuse: as in `search`.
        settings: the other arguments of `Experiment`, fields of EngineConfig among them.

    Returns:
        The content of study.json, which with study.svg is written at the end.

    Raises:
        InputError: something given cannot be used.
    """
    if kind not in KINDS:
        raise InputError(f"there is no study {quoted(kind)}; choose {', '.join(KINDS)}.")
    check_range("seeds", seeds, 1, LARGEST)
    check_range("at_once", at_once, 1, LARGEST)
    if kind != "seeds" and (policy := (swarm or {}).get("policy", "swarm")) != "swarm":
        raise InputError(f"policy is {quoted(policy)}, but the study {kind} is of the swarm's own moves; study seeds.")
    folder = Path(out)
    with ExitStack() as stack:
        run = stack.enter_context(run_in(folder, "study", resume=resume))
        experiment = Experiment(
            experts, base=base, task=task, data=data, out=out, swarm=swarm, searches=at_once, **settings
        )
        names = list(experiment.experts.names)
        config = SwarmConfig(**({"particles": len(names)} | (swarm or {})))
        check_together(config, experiment.engine_config)
        inputs = inputs_of(experiment, task, data)
        own = asdict(config) | {"kind": kind, "seeds": seeds, "at_once": at_once}
        run.check(config_of(experiment, inputs, **own), force=force, reuse=reuse)
        patience = run.first_patience
        run.serve(experiment, stack)
        if config.policy != "swarm" and reuse:
            experiment.known = keep_known(folder, reuse, len(experiment.names))
        variants = variants_of(kind, config, experiment.initial)
        specs = []
        for name, (changed, first) in variants.items():
            for seed in range(config.seed, config.seed + seeds):
                specs.append(TrialSpec(f"{name}-{seed}", replace(config, **changed | {"seed": seed}), first, patience))
        records = run_searches(
            experiment,
            specs,
            folder,
            inputs=inputs,
            at_once=at_once,
            ended=lambda one: say(f"{one['name']}: dev {one['end']['dev']:.4f}, {one['evaluations']} evaluations"),
        )
        tests = winners_on_test(experiment, [folder / SEARCHES / one["name"] for one in records])
        expert = best_of(experiment.initial)
        expert_scores = experiment.score_rows([partial(experiment.expert_row, expert)], "test")[0]
        experiment.check_base()
        results: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
        for record, scores in zip(records, tests, strict=True):
            path = folder / SEARCHES / record["name"] / run_folder.HISTORY
            history = run_folder.read_history(path)
            checks.check_history(history, path)
            results[record["name"].rpartition("-")[0]].append(
                {
                    "seed": record["seed"],
                    "dev": record["end"]["dev"],
                    "test": experiment.utility.utility_of("test", scores),
                    "test_standard_error": experiment.utility.error_of("test", scores),
                    "test_scores": scores,
                    "particles": record["particles"],
                    **weak_to_strong.standing(history[0]["utilities"], record["end"]["particle"]),
                    "iterations": record["iterations"],
                    "stopped": record["stopped"],
                    "evaluations": record["evaluations"],
                    "mixture": record["mixture"],
                }
            )
        content = {
            "kind": kind,
            **inputs,
            **run.forced,
            "objective": experiment.utility.report(),
            "seeds": seeds,
            "best_expert": {
                "expert": names[expert],
                "dev": float(experiment.initial[expert]),
                "test": experiment.utility.utility_of("test", expert_scores),
                "test_standard_error": experiment.utility.error_of("test", expert_scores),
            },
            "initial": dict(zip(names, experiment.initial.tolist(), strict=True)),
            "summary": studies.summarise(results),
            "variants": results,
        }
        run_folder.write_json(folder / STUDY, content)
        try:
            run_folder.write_text(folder / PLOT, svg(studies.plot, content).decode())
        except ImportError:
            say("no plot: it needs matplotlib, pip install matplotlib")
        return content


def winners_on_test(experiment: Experiment, folders: Sequence[Path]) -> list[list[float]]:
    """Scores on test of the models that these searches have left, read back from the disk."""
    rows = [partial(read_model, folder / run_folder.GLOBAL_BEST, experiment.experts) for folder in folders]
    return experiment.score_rows(rows, "test")


def variants_of(kind: str, config: SwarmConfig, initial: Floats) -> dict[str, Variant]:
    """By name what each variant changes. initial [n]: utilities of the experts, which say who is weak."""
    n = len(initial)
    order = np.argsort(-np.where(np.isnan(initial), -np.inf, initial), kind="stable").tolist()
    if kind == "ablation":
        changes: dict[str, dict[str, Any]] = {
            "all": {},
            "no randomness": {"randomness": "unit"},
            "no inertia": {"inertia": 0.0},
            "no cognitive": {"cognitive_coeff": 0.0},
            "no social": {"social_coeff": 0.0},
            "no repel": {"repel": False},
            "no restart": {"restart": False},
            "no decay": {"step_length_factor": 1.0},
        }
        return {name: (change, None) for name, change in changes.items()}
    if kind == "drop":
        shares = (0.2, 0.4, 0.6, 0.8)
        found: dict[str, Variant] = {"all evaluated": ({}, None)}
        found |= {f"dropK {share}": ({"drop_k": share}, None) for share in shares}
        return found | {f"dropN {share}": ({"drop_n": share}, None) for share in shares}
    if kind == "diversity":
        # Experts taken evenly from the best to the worst, of each equal part the one at or below its middle. So the
        # best is in no set but the whole, and how good a set is depends on where in the order the scores fall.
        found = {}
        for distinct in range(n, 1, -1):
            if n % distinct == 0:
                chosen = [order[(2 * index + 1) * n // (2 * distinct)] for index in range(distinct)]
                found[f"{distinct} x {n // distinct}"] = ({}, tuple(sorted(chosen) * (n // distinct)))
        if n > 1:
            found[f"1 x {n}"] = ({}, (order[n // 2],) * n)
        return found
    if kind == "weak":
        rest, half = sorted(order[1:]), sorted(order[(n + 1) // 2 :])
        if len(half) < 2:
            raise InputError(f"there are {n} experts; a study of the lower half of them needs at least 4.")
        return {"all experts": ({}, None), "without the best": ({}, tuple(rest)), "lower half": ({}, tuple(half))}
    return {"all": ({}, None)}
