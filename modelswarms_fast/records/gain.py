"""What a search gained: the scores before and after, whether the gain is outside its error, and what changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from modelswarms_fast.records.analysis import RunFolder

UNKNOWN = "n/a"
_RIGHT_OR_WRONG = ("multiple_choice", "exact_match")  # tasks whose scores are 0 or 1
_CLEAR = 2.0  # standard errors
CHOSEN = {
    "posterior": "the position with the highest mean of a Gaussian process over all that were evaluated",
    "shrink": "the position with the largest gain on the best expert, less what of it is chance",
}
"""Ways to choose a winner that need words; see `modelswarms_fast.runs.choose`."""


def scores(run: RunFolder) -> dict[str, Any]:
    """The table of the best expert and the winner on each split (`rows`), and what it says."""
    facts = run.facts
    start, end = facts.get("start") or {}, facts.get("end") or {}
    if run.summary is None and run.history:  # the history knows dev
        start, end = ({"dev": global_utility(line, "best")} for line in (run.history[0], run.history[-1]))
    rows = []
    for split in ("dev", "confirm", "test"):
        if split == "confirm" and split not in end:
            continue
        before, after = number(start.get(split)), number(end.get(split))
        values = ((before, "start"), (after, "end"))
        cells = [_with_error(value, _error(run, split, which, value)) for value, which in values]
        change = UNKNOWN if before is None or after is None else f"{after - before:+.4f}"
        rows.append([split, shown_as(facts.get(f"{split}_examples")), *cells, change])
    notes = []
    if any("±" in cell for row in rows for cell in row):
        notes.append("± is one standard error.")
    notes.append("The search maximised dev, so its gain there flatters; it never saw test.")
    if "confirm" in end:
        count = len(facts.get("candidates") or [])
        notes.append(f"The winner is the best of the last {count} candidates on confirm, which the search never saw.")
    if (way := CHOSEN.get(str(end.get("chosen_by")))) is not None:
        notes.append(f"The winner is {way}.")
    if (words := expected(facts)) is not None:
        notes.append(words)
    names = {"expert": start.get("expert"), "winner": f"particle {end.get('particle', UNKNOWN)}"}
    return {"rows": rows, "verdict": verdict(run), "note": " ".join(notes), **names}


def expected(facts: Mapping[str, Any]) -> str | None:
    """What the winner was expected to score on test, in one sentence; None where a summary does not say it."""
    found = facts.get("expected_test")
    if not found:
        return None
    return (
        f"From dev the winner is expected to score {found['score']:.4f} on test; with a probability of "
        f"{found['level']:.0%}, from {found['low']:.4f} to {found['high']:.4f}."
    )


def verdict(run: RunFolder) -> str:
    """Whether the gain on test is outside its error, in one sentence."""
    gain = _gain(run)
    if gain is None:
        return "The test split was not scored yet." if run.summary is None else "The test split was not scored."
    if gain == 0:
        return "On test the winner scores the same as the best expert."
    found = f"On test the winner is {abs(gain):.4f} {'better' if gain > 0 else 'worse'} than the best expert"
    error = _error_of_gain(run)
    if not error:
        return f"{found}; the error of this difference is not known."
    ratio = abs(gain) / error
    if ratio >= _CLEAR:
        return f"{found}, {ratio:.1f} standard errors of the difference: more than chance is likely to give."
    return f"{found}, only {ratio:.1f} standard errors of the difference: it may be chance."


def what_changed(run: RunFolder, answers: Mapping[str, Any]) -> dict[str, Any]:
    """How many questions the winner and the best expert differ on, and some of them under their titles."""
    counts, split = answers["counts"], answers["split"]
    if _right_or_wrong(run):
        words = (
            f"The winner is right on {counts['gained']} {split} questions that the best expert misses, and misses "
            f"{counts['lost']} that the best expert has right. Both are right on {counts['both']}, neither on "
            f"{counts['neither']}."
        )
        titles = "Right now, wrong before", "Wrong now, right before"
    else:
        words = (
            f"The winner scores higher than the best expert on {counts['gained']} {split} questions, lower on "
            f"{counts['lost']}, the same on {counts['both'] + counts['neither']}."
        )
        titles = "Higher than before", "Lower than before"
    return {"words": words, "gained": (titles[0], answers["gained"]), "lost": (titles[1], answers["lost"])}


def global_utility(line: Mapping[str, Any], which: str) -> float | None:
    """Utility of the global `best` or `worst` in a line of the history."""
    return number((line.get(f"global_{which}") or {}).get("utility"))


def number(value: Any) -> float | None:
    """`value` as a finite float, or None."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def shown_as(value: Any) -> str:
    """A value of a JSON file as a table shows it."""
    if isinstance(value, list):
        return ", ".join(map(shown_as, value))
    return UNKNOWN if value is None else str(value)


def _test_score(run: RunFolder, which: str) -> float | None:
    return number((run.facts.get(which) or {}).get("test"))


def _gain(run: RunFolder) -> float | None:
    """On test, of the winner over the best expert."""
    before, after = _test_score(run, "start"), _test_score(run, "end")
    return None if before is None or after is None else after - before


def _counts(run: RunFolder) -> tuple[int, int, int]:
    """Of all test questions, those gained, those lost; zeros without answers.json."""
    counts = (run.answers or {}).get("counts") or {}
    return int(sum(counts.values())), int(counts.get("gained", 0)), int(counts.get("lost", 0))


def _right_or_wrong(run: RunFolder) -> bool:
    """Whether the gain is exactly that of the questions gained and lost: then every score is 0 or 1."""
    gain = _gain(run)
    total, gained, lost = _counts(run)
    return gain is not None and total > 0 and math.isclose((gained - lost) / total, gain, abs_tol=1e-6)


def _error_of_gain(run: RunFolder) -> float | None:
    """Standard error of the gain: question by question where each is right or wrong, else that of two samples."""
    if _right_or_wrong(run):
        total, gained, lost = _counts(run)
        return math.sqrt(max(gained + lost - (gained - lost) ** 2 / total, 0.0)) / total
    before, after = (_error(run, "test", which, _test_score(run, which)) for which in ("start", "end"))
    return None if before is None or after is None else math.hypot(before, after)


def _error(run: RunFolder, split: str, which: str, value: float | None) -> float | None:
    """Standard error of a score: the run's own on test, else that of a mean of scores that are 0 or 1."""
    facts = run.facts
    count = facts.get(f"{split}_examples")
    known = number((facts.get("test_standard_error") or {}).get(which)) if split == "test" else None
    if known is not None or value is None or facts.get("task") not in _RIGHT_OR_WRONG:
        return known
    return math.sqrt(value * (1 - value) / count) if isinstance(count, int) and count and 0 <= value <= 1 else None


def _with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:.4f}" if error is None else f"{value:.4f} ±\N{NO-BREAK SPACE}{error:.4f}"
