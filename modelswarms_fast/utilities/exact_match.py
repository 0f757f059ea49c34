"""Exact match: the question is the prompt, an output is right when it contains the answer.

Token limits and the words kept are those of the Model Swarms paper's published evaluation (Feng et al., arXiv
2410.11163).
"""

from __future__ import annotations

from typing import Any

FIELDS: dict[str, tuple[type, ...]] = {"question": (str,), "answer": (str, int, float)}

# A worked solution names many numbers; only its end is searched. The published evaluation keeps fewer words
# on dev.
_WORKED_SOLUTIONS = {"gsm8k": {"dev": 5, "test": 10}}


def max_tokens(dataset: str) -> int:
    """New tokens an example may take: 200 for gsm8k (any case), which reasons before it answers, else 10."""
    return 200 if dataset.lower() in _WORKED_SOLUTIONS else 10


def last_words(dataset: str) -> dict[str, int]:
    """Words kept from the end of an output, by split; a split that is absent keeps the whole output."""
    return dict(_WORKED_SOLUTIONS.get(dataset.lower(), {}))


def prompt(example: dict[str, Any]) -> str:
    """Prompt of one example: its question, unchanged."""
    return str(example["question"])


def score(example: dict[str, Any], output: str) -> float:
    """1.0 when `output` contains the example's answer (case matters), else 0.0."""
    return float(str(example["answer"]) in output)
