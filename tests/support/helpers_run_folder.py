"""Run folders made by hand, as a search leaves them. Every text that a user can choose tries to act as markup."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NASTY = '<script>alert("1")</script>&'
IMAGE = "<img src=x onerror=alert(1)>"
CONFIG: dict[str, Any] = {
    "base": "some-base",
    "task": "exact_match",
    "dataset": "riddles",
    "experts": ["science", NASTY, IMAGE + "x" * 60],
    "particles": 3,
    "seed": 11,
    "inner": {"patience": 7, "empty": None},
    "command": ["modelswarms-fast", "search", "my experts", NASTY],
}
MIXTURE = [0.75, -0.25, 0.5]
SUMMARY: dict[str, Any] = {
    "stopped": "patience",
    "start": {"particle": 1, "expert": NASTY, "dev": 0.25, "test": 0.2},
    "end": {"particle": 2, "dev": 0.5, "test": 0.36},
    "mixture": dict(zip(CONFIG["experts"], MIXTURE, strict=True)),
    "dev_examples": 100,
    "test_examples": 400,
    "evaluations": 12,
    "prompts": 1200,
    "tokens": 34567,
    "prompts_per_second": 1234.56,
    "seconds": {"setup": 1.0, "update": 0.5, "load": 0.5, "generate": 6.0, "score": 0.0, "test": 1.0, "total": 10.0},
}


def line(iteration: int, utilities: list[float | None], best: float, worst: float, **more: Any) -> dict[str, Any]:
    """A line of history.jsonl."""
    return {
        "iteration": iteration,
        "utilities": utilities,
        "restarts": [],
        "global_best": {"particle": 0, "utility": best},
        "global_worst": {"particle": 1, "utility": worst},
        "global_best_mixture": MIXTURE,
        "seconds": {"update": 0.25, "load": 0.25, "generate": 2.0, "score": 0.5, "total": 3.0},
    } | more


HISTORY = [
    line(0, [0.25, 0.1, 0.2], 0.25, 0.1),
    line(1, [0.3, None, 0.2], 0.3, 0.1),
    line(2, [0.3, 0.2, 0.5], 0.5, 0.1, restarts=[1]),
    line(3, [0.4, 0.2, 0.4], 0.5, 0.1),
]


def question(example: int, **more: Any) -> dict[str, Any]:
    """A question of answers.json."""
    texts = {"prompt": f"What is {NASTY}?", "expected": IMAGE, "best_expert": NASTY, "winner": IMAGE}
    return {"example": example} | texts | more


ANSWERS: dict[str, Any] = {
    "split": "test",
    "best_expert": NASTY,
    "winner": "particle 2",
    "counts": {"gained": 72, "lost": 8, "both": 72, "neither": 248},
    "gained": [question(3), question(5, prompt="long " * 200 + "end", expected=None)],
    "lost": [question(7, winner="x" * 5000)],
}
_ANSWERS_OF = {  # scores on test of three models, and what they named
    "scores": [[1, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0]],
    "labels": [["A", "B", "C", "D"], ["B", "B", "B", "B"], ["A", "A", "A", "A"]],
}
TEST_SCORES: dict[str, Any] = {"exact": True, "groups": dict.fromkeys(("experts", "start", "best", "end"), _ANSWERS_OF)}


def write_run(
    folder: Path,
    history: list[dict[str, Any]] = HISTORY,
    config: dict[str, Any] = CONFIG,
    summary: dict[str, Any] | None = SUMMARY,
    answers: dict[str, Any] | None = None,
) -> Path:
    """Write the files of a run; `summary` None: it has not ended."""
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "history.jsonl").write_text("".join(json.dumps(one) + "\n" for one in history))
    for name, content in (("summary.json", summary), ("answers.json", answers)):
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return folder


def write_whole_run(folder: Path) -> Path:
    """Write a run with all that a report can show."""
    corners = [[float(row == column) for column in range(3)] for row in range(3)]
    mixtures = [corners, [[0.9, 0.1, 0.0], *corners[1:]], [[0.8, 0.3, -0.1], *corners[1:]], [MIXTURE, *corners[1:]]]
    scores = [[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]] * 3 + [[[1, 1, 1, 0], [0, 1, 0, 0], [0, 0, 1, 1]]]
    history = [
        one | {"mixtures": mixture, "scores": score, "improved": [0], "bounded": []}
        for one, mixture, score in zip(HISTORY, mixtures, scores, strict=True)
    ]
    write_run(folder, history, answers=ANSWERS)
    (folder / "test_scores.json").write_text(json.dumps(TEST_SCORES))
    return folder
