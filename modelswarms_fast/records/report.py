"""The report of a run: one HTML file that needs nothing else.

It reads the run folder and shows what its files hold; a section whose file is missing is left out. The numbers of the
analyses go to `analysis.json` beside it.
"""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from modelswarms_fast.records import plots, run_folder
from modelswarms_fast.records.analysis import RunFolder, read_run
from modelswarms_fast.records.analysis.registry import ANALYSES, analyse, draw
from modelswarms_fast.records.style import PALETTE, inline, svg

_PHASES = {
    "setup": "orange",
    "update": "purple",
    "load": "green",
    "generate": "blue",
    "score": "red",
    "test": "sky",
    "other": "faint",
}
_UNKNOWN = "n/a"
_RIGHT_OR_WRONG = ("multiple_choice", "exact_match")  # tasks whose scores are 0 or 1
_CLEAR = 2.0  # standard errors
_LONG_LISTS = ("expert_products", "command")  # of config.json; not shown among the settings

Facts = Mapping[str, Any]
Section = dict[str, Any]


def write_report(run: str | os.PathLike[str]) -> Path:
    """Write `report.html` into the run folder and return its path.

    A run that has not ended is reported as far as it got.

    Raises:
        InputError: a file of the run is missing or damaged, or the report cannot be written.
    """
    folder = read_run(run)
    facts = {**folder.config, **(folder.summary or {})}
    numbers = analyse(folder)
    if numbers:
        run_folder.write_json(folder.path / run_folder.ANALYSIS, numbers)
    settings = {name: value for name, value in folder.config.items() if name not in _LONG_LISTS}
    page = _template().render(
        palette=PALETTE,
        title=f"{facts.get('task', 'Search')} on {facts.get('dataset') or facts.get('data', 'unnamed data')}",
        base=facts.get("base"),
        about=_about(folder, facts),
        scores=_scores(folder, facts),
        answers=folder.answers,
        plots=[*_plots_of_search(folder, facts), *map(partial(_plot_of_analysis, numbers), numbers)],
        time=_time(folder, facts),
        command=shlex.join(map(str, facts["command"])) if facts.get("command") else None,
        settings=[(name, _shown(value)) for name, value in _flat(settings)],
    )
    path = folder.path / run_folder.REPORT
    run_folder.write_text(path, page)
    return path


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("modelswarms_fast.records"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _about(run: RunFolder, facts: Facts) -> str:
    words = [f"{len(run.experts)} experts"]
    words += [f"{facts['particles']} particles"] if "particles" in facts else []
    words += [f"{max(len(run.history) - 1, 0)} iterations"]
    words += [f"{name} {facts[name]}" for name in ("state", "engine", "serve", "dtype", "seed") if name in facts]
    ended = "not ended, shown as far as it got" if run.summary is None else f"stopped: {facts.get('stopped', _UNKNOWN)}"
    return f"{', '.join(words)}; {ended}."


def _scores(run: RunFolder, facts: Facts) -> Section:
    """The table of the best expert and the winner on each split, and what it says."""
    start, end = facts.get("start") or {}, facts.get("end") or {}
    if run.summary is None and run.history:  # the history knows dev
        start, end = ({"dev": _global(line, "best")} for line in (run.history[0], run.history[-1]))
    rows = []
    for split in ("dev", "confirm", "test"):
        if split == "confirm" and split not in end:
            continue
        before, after = _number(start.get(split)), _number(end.get(split))
        errors = _error(facts, split, "start", before), _error(facts, split, "end", after)
        cells = [_with_error(before, errors[0]), _with_error(after, errors[1]), _difference(after, before)]
        rows.append([split, _shown(facts.get(f"{split}_examples")), *cells])
    notes = []
    if any("±" in cell for row in rows for cell in row):
        notes.append("± is one standard error.")
    notes.append("The search maximised dev, so its gain there flatters; it never saw test.")
    if "confirm" in end:
        count = len(facts.get("candidates") or [])
        notes.append(f"The winner is the best of the last {count} candidates on confirm, which the search never saw.")
    names = {"expert": start.get("expert"), "winner": f"particle {end.get('particle', _UNKNOWN)}"}
    return {"rows": rows, "verdict": _verdict(run, facts), "note": " ".join(notes), **names}


def _verdict(run: RunFolder, facts: Facts) -> str:
    """Whether the gain on test is outside the error, in one sentence."""
    values = [_number((facts.get(which) or {}).get("test")) for which in ("start", "end")]
    if values[0] is None or values[1] is None:
        return "The test split was not scored yet." if run.summary is None else "The test split was not scored."
    gain = values[1] - values[0]
    if gain == 0:
        return "On test the winner scores the same as the best expert."
    found = f"On test the winner is {abs(gain):.4f} {'better' if gain > 0 else 'worse'} than the best expert"
    error = _error_of_gain(run, facts, values)
    if not error:
        return f"{found}; the error of this difference is not known."
    ratio = abs(gain) / error
    if ratio >= _CLEAR:
        return f"{found}, {ratio:.1f} standard errors of the difference: more than chance explains."
    return f"{found}, only {ratio:.1f} standard errors of the difference: it may be chance."


def _error_of_gain(run: RunFolder, facts: Facts, values: Sequence[float | None]) -> float | None:
    """Standard error of the difference on test: by question where answers.json counts them, else of two samples."""
    counts = (run.answers or {}).get("counts") or {}
    total = int(sum(counts.values()))
    if total:
        gained, lost = int(counts["gained"]), int(counts["lost"])
        return math.sqrt(max(gained + lost - (gained - lost) ** 2 / total, 0.0)) / total
    errors = [_error(facts, "test", which, value) for which, value in zip(("start", "end"), values, strict=True)]
    return None if errors[0] is None or errors[1] is None else math.hypot(errors[0], errors[1])


def _error(facts: Facts, split: str, which: str, value: float | None) -> float | None:
    """Standard error: the run's own on test, else that of a mean of scores that are 0 or 1."""
    count = facts.get(f"{split}_examples")
    known = _number((facts.get("test_standard_error") or {}).get(which)) if split == "test" else None
    if known is not None or value is None or facts.get("task") not in _RIGHT_OR_WRONG:
        return known
    return math.sqrt(value * (1 - value) / count) if isinstance(count, int) and count and 0 <= value <= 1 else None


def _plots_of_search(run: RunFolder, facts: Facts) -> Iterable[Section]:
    shown = _utilities(run, facts)
    if shown.known:
        rise = [value for value in shown.global_best if value is not None]
        words = f"The best utility on dev went from {rise[0]:.4f} to {rise[-1]:.4f}." if rise else ""
        if rise and (last := shown.iterations[shown.global_best.index(rise[-1])]):
            words += f" It rose last in iteration {last}."
        if bounded := sum(len(line.get("bounded") or []) for line in run.history):
            words += f" {bounded:,} utilities are upper bounds: more answers could have changed no decision."
        yield _plot("utilities", "Utility by iteration", words, svg(plots.utilities, shown))
    title = "What the winner is made of"
    if facts.get("randomness") == "coordinate":
        yield {"title": title, "words": "Every weight drew its own coefficients, so the winner is no mixture."}
    elif mixture := _mixture(run, facts):
        largest = max(mixture, key=lambda name: mixture[name])
        away = sum(value < 0 for value in mixture.values())
        words = f"The largest part is {largest}; the coefficients sum to {sum(mixture.values()):.3f}."
        words += f" The winner moves away from {away} of the {len(mixture)} experts." if away else ""
        yield _plot("mixture", title, words, svg(plots.mixture, mixture))


def _plot_of_analysis(numbers: Mapping[str, Any], name: str) -> Section:
    one = ANALYSES[name]
    return _plot(name, one.title, one.in_words(numbers[name]), draw(name, numbers[name]))


def _plot(name: str, title: str, words: str, picture: bytes) -> Section:
    return {"title": title, "words": words, "svg": Markup(inline(picture, name, title))}


def _utilities(run: RunFolder, facts: Facts) -> plots.Utilities:
    rows = [line.get("utilities") or [] for line in run.history]
    count = max((len(row) for row in rows), default=0)
    start = facts.get("start") or {}
    best = [_global(line, "best") for line in run.history]
    dev = _number(start.get("dev"))
    return plots.Utilities(
        iterations=[int(line.get("iteration", index)) for index, line in enumerate(run.history)],
        particles=[[_number(row[i]) if i < len(row) else None for row in rows] for i in range(count)],
        global_best=best,
        global_worst=[_global(line, "worst") for line in run.history],
        restarts=[(index, i) for index, line in enumerate(run.history) for i in line.get("restarts") or []],
        start=dev if dev is not None else next(iter(best), None),
        start_label="best expert" if start.get("expert") is not None else "best at the start",
    )


def _mixture(run: RunFolder, facts: Facts) -> dict[str, float]:
    """Coefficient by expert of the winner, or of the best so far; empty if it is not known."""
    mixture = facts.get("mixture")
    if not mixture and run.history:
        coefficients = run.history[-1].get("global_best_mixture") or []
        mixture = dict(zip(run.experts, coefficients, strict=False))
    known = {str(name): _number(value) for name, value in (mixture or {}).items()}
    return {name: value for name, value in known.items() if value is not None}


def _time(run: RunFolder, facts: Facts) -> Section | None:
    """Seconds and share of each phase, and what was counted; None before there is any time."""
    seconds = facts.get("seconds") or _summed(line.get("seconds") or {} for line in run.history)
    phases = {phase: _number(seconds[phase]) or 0.0 for phase in _PHASES if phase in seconds}
    known = sum(phases.values())
    total = max(_number(seconds.get("total")) or 0.0, known)
    if total <= 0:
        return None
    if total > known:
        phases["other"] = total - known
    longest = max(phases, key=lambda phase: phases[phase])
    counted = [f"{facts[name]:,} {name}" for name in ("evaluations", "prompts", "tokens") if facts.get(name)]
    if facts.get("skipped_examples"):
        counted.append(f"{facts['skipped_examples']:,} prompts left out because they could change no decision")
    if facts.get("reused_scores"):
        counted.append(f"{facts['reused_scores']:,} scores known from the same position")
    if (rate := _number(facts.get("prompts_per_second"))) is not None:
        counted.append(f"{rate:,.1f} prompts/s")
    if (idle := _number(facts.get("engine_idle_share"))) is not None:
        counted.append(f"engine idle {idle:.1%}")
    return {
        "words": f"The largest share of the {total:,.1f} s went to {longest}: {phases[longest] / total:.0%}.",
        "phases": [(phase, _PHASES[phase], spent, spent / total) for phase, spent in phases.items()],
        "total": total,
        "counted": ", ".join(counted),
    }


def _summed(records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for record in records:
        for phase, value in record.items():
            totals[phase] = totals.get(phase, 0.0) + (_number(value) or 0.0)
    return totals


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Name and value of every setting; inner names follow their outer one and a point."""
    rows: list[tuple[str, Any]] = []
    for name, item in value.items():
        inner = isinstance(item, Mapping) and item
        rows += _flat(item, f"{prefix}{name}.") if inner else [(f"{prefix}{name}", item)]
    return rows


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return _UNKNOWN if value is None else str(value)


def _with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return _UNKNOWN
    return f"{value:.4f}" if error is None else f"{value:.4f} ±\N{NO-BREAK SPACE}{error:.4f}"


def _difference(value: float | None, other: float | None) -> str:
    return _UNKNOWN if value is None or other is None else f"{value - other:+.4f}"


def _global(line: Mapping[str, Any], which: str) -> float | None:
    return _number((line.get(f"global_{which}") or {}).get("utility"))


def _number(value: Any) -> float | None:
    """`value` as a finite float, or None."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
