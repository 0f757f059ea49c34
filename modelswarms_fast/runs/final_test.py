"""All experts and particles of a search on test, example by example, for the analyses. Nothing is chosen by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from modelswarms_fast.config import EngineConfig, TaskConfig
from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.evaluator import Evaluator
from modelswarms_fast.evaluation.objectives import READING, Answer, Utility
from modelswarms_fast.records.analysis import RunFolder, read_run
from modelswarms_fast.records.run_folder import ENSEMBLE, TEST_SCORES, data_files, write_json
from modelswarms_fast.runs.experiment import Experiment
from modelswarms_fast.runs.trust import check_trusted
from modelswarms_fast.swarm import Floats, Swarm
from modelswarms_fast.weights.experts import Experts
from modelswarms_fast.weights.mixing import mix_row
from modelswarms_fast.weights.population import Population
from modelswarms_fast.weights.row_name import row_name

Rows = Sequence[Callable[[], torch.Tensor]]


def write_test_scores(
    evaluator: Evaluator, experts: Experts, swarm: Swarm, population: Population, folder: Path
) -> None:
    """Write test_scores.json of a search that has ended.

    The particles' own rows are tested, to the bit; those of a move that was not evaluated any more are left out.
    """
    initial = swarm.initial_positions()
    everyone = range(len(initial))
    rows: dict[str, Rows] = {
        "experts": [partial(mix_row, experts, one) for one in torch.eye(len(experts.names))],
        "start": [partial(mix_row, experts, torch.from_numpy(one)) for one in initial],
        "best": [partial(population.row, one, True) for one in everyone],
    }
    if not swarm.waiting:
        rows["end"] = [partial(population.row, one) for one in everyone]
    write_json(folder / TEST_SCORES, {"exact": True, "groups": score_groups(evaluator, rows)})


def evaluate_run(
    folder: str | Path, given: Mapping[str, Any] | None = None, ask: Callable[[str], bool] | None = None
) -> None:
    """Write test_scores.json of a run folder: its experts are read and its engine is started again.

    Particles are mixed from the history's mixtures. With state="weights" that leaves out the rounding
    of their moves, so that scores may differ in an example that was close: `exact` is false then. `given` and `ask` are
    those of `check_trusted`.

    Raises:
        InputError: the folder lacks what is needed, or what its config.json names is not there any more.
    """
    run = read_run(folder)
    if run.config.get("engine", ENSEMBLE) == ENSEMBLE:  # older token swarms name no engine
        raise InputError(f"{folder} is a token swarm, whose mixtures are of no weights; leave --evaluate out.")
    groups = _mixtures(run)
    check_trusted(run.config, str(folder), given, ask)
    asked = {name: run.config[name] for name in (*TaskConfig.__dataclass_fields__, "confirm") if name in run.config}
    settings = {name: run.config[name] for name in EngineConfig.__dataclass_fields__ if name in run.config}
    settings |= {"stop_early": False, "race": False, "parity_check": "off"}
    where = {name: run.config[name] for name in ("base", "task", "data")}
    if written := data_files(folder):  # named and divided as they were
        where["data"] = written
        asked = {name: value for name, value in asked.items() if name not in READING}
    experiment = Experiment(run.config["sources"], **where, out=folder, **asked, **settings)
    with experiment:
        mix = partial(mix_row, experiment.experts)
        rows: dict[str, Rows] = {
            name: [partial(mix, torch.from_numpy(one)) for one in mixtures] for name, mixtures in groups.items()
        }
        first = run.config.get("first") or range(len(experiment.experts.names))
        rows["experts"] = [partial(experiment.expert_row, expert) for expert in first]
        exact = experiment.engine_config.state == "mixture"
        found = score_groups(experiment.evaluator, rows)
    write_json(Path(folder) / TEST_SCORES, {"exact": exact, "groups": found})


def score_groups(evaluator: Evaluator, groups: Mapping[str, Rows]) -> dict[str, dict[str, list[list[Any]]]]:
    """By group `scores` [rows][E] and `labels` [rows][E], what a vote counts; equal rows are asked once."""
    utility, known = evaluator.utility, dict[bytes, tuple[list[float], list[Any]]]()
    found: dict[str, dict[str, list[list[Any]]]] = {}
    for name, rows in groups.items():
        found[name] = {"scores": [], "labels": []}
        for make in rows:
            row = make()
            if (result := known.get(row_name(row))) is None:
                answers = evaluator.generate(row, "test")
                scores = utility.score("test", range(len(answers)), answers)
                result = scores, [_label(utility, index, answers[index], scores[index]) for index in range(len(scores))]
                known[row_name(row)] = result
            found[name]["scores"].append(result[0])
            found[name]["labels"].append(result[1])
    return found


def _label(utility: Utility, example: int, answers: Sequence[Answer], score: float) -> Any:
    """The choice that was named, where there are choices; else the score."""
    named = None if utility.choice is None else utility.choice(utility.examples["test"][example], answers)
    return score if named is None else named


def _mixtures(run: RunFolder) -> dict[str, Floats]:
    positions = run.positions()
    if positions is None or not isinstance(run.config.get("sources"), list):
        raise InputError(f"{run.path} does not say where its particles were; only newer runs of mixtures do")
    best = positions[0].copy()
    for line, mixtures in zip(run.history, positions, strict=True):
        improved = line.get("improved", [])
        best[improved] = mixtures[improved]
    return {"start": positions[0], "best": best, "end": positions[-1]}


GAINED, LOST = 10, 5
"""Examples that answers.json shows."""


def compare_on_test(
    evaluator: Evaluator, expert: torch.Tensor, winner: torch.Tensor
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Scores of two rows [D] on each test example, as `start` and `end`, and the examples on which they differ.

    The second is the content of answers.json: `counts` of examples on which the winner scores higher (`gained`), lower
    (`lost`), or both the same (`both` above the lowest score that one of them got, `neither` at it), and of the first
    two some examples with the prompt as it is sent, the expected answer where there is one, and both answers.
    """
    utility, same = evaluator.utility, torch.equal(expert, winner)
    given = [evaluator.generate(expert, "test")]
    given.append(given[0] if same else evaluator.generate(winner, "test"))
    start, end = (utility.score("test", range(len(answers)), answers) for answers in given)
    lowest = min((score for score in start + end if not math.isnan(score)), default=0.0)
    found: dict[str, list[int]] = {"gained": [], "lost": [], "both": [], "neither": []}
    for example, (before, after) in enumerate(zip(start, end, strict=True)):
        equal = "both" if after > lowest else "neither"
        found["gained" if after > before else "lost" if after < before else equal].append(example)

    def shown(example: int) -> dict[str, Any]:
        content = utility.examples["test"][example]
        expected = content.get("answer")
        if isinstance(expected, list):
            expected = " or ".join(map(str, expected))
        texts = [_text(utility, example, answers[example]) for answers in given]
        return {
            "example": example,
            "prompt": evaluator.sent("test", example),
            "expected": None if expected is None else str(expected),
            "best_expert": texts[0],
            "winner": texts[1],
        }

    return {"start": start, "end": end}, {
        "counts": {name: len(examples) for name, examples in found.items()},
        "gained": [shown(example) for example in found["gained"][:GAINED]],
        "lost": [shown(example) for example in found["lost"][:LOST]],
    }


def _text(utility: Utility, example: int, answers: Sequence[Answer]) -> str:
    """What was answered: the choice where likelihoods are compared, else the last text."""
    if answers[-1].log_prob == answers[-1].log_prob:  # not NaN: a likelihood
        return str(_label(utility, example, answers, math.nan))
    return answers[-1].text
