"""The report of a run: one HTML file that needs nothing else, with its plots as inline SVG.

It reads the run folder alone (`config.json`, `history.jsonl` and, once the run has ended, `summary.json`; with
`test_scores.json` it says more). The numbers of its analyses go to `analysis.json` beside it.
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from modelswarms_fast.records import plots, run_folder
from modelswarms_fast.records.analysis import read_run
from modelswarms_fast.records.analysis.registry import PLOTS, analyse, draw

_PHASES = ("setup", "update", "load", "generate", "score", "test")
_UNKNOWN = "n/a"
_TITLES = {
    "composition": "What the global best was made of",
    "trajectory": "Where the particles went",
    "emergence": "Correctness emergence",
    "weak_to_strong": "Weak to strong",
    "top_k": "Ensembles of the best particles, on test",
}
_VOTERS = (("start", "initial particles"), ("end", "personal bests"))
_RIGHT_OR_WRONG = ("multiple_choice", "exact_match")  # tasks whose scores are 0 or 1

# Colours follow the reader's light or dark setting; the plots take them from here too.
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6570; --line: #d5dae0; --page: #ffffff;
  --best: #0b62c4; --worst: #b3461d; --start: #2c7a3f; --particle: #9aa4af;
  --p0: #6b7785; --p1: #c98500; --p2: #7a4fb5; --p3: #0b62c4; --p4: #2c7a3f; --p5: #b3461d; --p6: #b9c1ca; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaee; --soft: #9ba6b1; --line: #39424c; --page: #14181c;
    --best: #6cb2ff; --worst: #ff9166; --start: #74c98a; --particle: #7d8995;
    --p0: #8d99a6; --p1: #e8b04a; --p2: #b796ea; --p3: #6cb2ff; --p4: #74c98a; --p5: #ff9166; --p6: #4a545e; }
}
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 860px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1em; margin: 2em 0 .5em; }
p { margin: .4em 0; overflow-wrap: anywhere; }
.soft { color: var(--soft); }
img { width: 100%; max-width: 760px; background: #ffffff; }
svg { width: 100%; height: auto; display: block; }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
svg .name text { fill: var(--ink); }
.axis { stroke: var(--line); stroke-width: 1; }
.particle { fill: none; stroke: var(--particle); stroke-width: 1; opacity: .6; }
.best { fill: none; stroke: var(--best); stroke-width: 3; }
.worst { fill: none; stroke: var(--worst); stroke-width: 1.5; stroke-dasharray: 6 4; }
.start { stroke: var(--start); stroke-width: 2; stroke-dasharray: 2 3; }
.particle.dot { fill: var(--particle); }
.best.dot { fill: var(--best); }
.worst.dot { fill: var(--worst); }
.restart { fill: var(--page); stroke: var(--ink); stroke-width: 1.2; }
.plus { fill: var(--best); }
.minus { fill: var(--worst); }
.legend { display: flex; flex-wrap: wrap; gap: .2em 1.4em; color: var(--soft); font-size: .87em; }
.legend svg { display: inline-block; width: 26px; height: 10px; margin-right: .4em; vertical-align: middle; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .25em .8em .25em 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { font-weight: 600; }
.n { text-align: right; font-variant-numeric: tabular-nums; }
td.n { white-space: nowrap; }
.bar { display: flex; height: 18px; border-radius: 3px; overflow: hidden; margin: .6em 0; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .5em; }
details { margin-top: 2em; }
summary { font-weight: 600; cursor: pointer; }
details td { overflow-wrap: anywhere; }
details td:first-child { width: 34%; }
"""

Facts = Mapping[str, Any]
History = Sequence[Mapping[str, Any]]


def write_report(run: str | os.PathLike[str]) -> Path:
    """Write `report.html` into the run folder and return its path.

    A run that has not ended is reported as far as it got. Raises InputError when a file of the run is missing
    or damaged, or the report cannot be written.
    """
    folder = Path(run)
    config = run_folder.read_json(folder / run_folder.CONFIG)
    history = run_folder.read_history(folder / run_folder.HISTORY)
    ended = (folder / run_folder.SUMMARY).exists()
    summary = run_folder.read_json(folder / run_folder.SUMMARY) if ended else {}
    facts = {**config, **summary}
    shown = {name: value for name, value in config.items() if name != "expert_products"}
    title = f"{facts.get('task', 'Search')} on {facts.get('dataset') or facts.get('data', 'unnamed data')}"
    body = [
        f"<h1>{escape(title)}</h1>",
        _headline(facts, history, ended),
        _scores(facts, history),
        "<h2>Utility by iteration</h2>",
        _utilities(facts, history),
        "<h2>Mixture of the global best</h2>",
        _mixture(facts, history),
        *_findings(folder, config),
        "<h2>Where the time went</h2>",
        _time(facts, history),
        f"<details><summary>Settings</summary>{_table(('setting', 'value'), _flat(shown))}</details>",
    ]
    head = [
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style>",
    ]
    page = ["<!DOCTYPE html>", '<html lang="en"><head>', *head, "</head><body>", *body, "</body></html>", ""]
    path = folder / run_folder.REPORT
    run_folder.write_text(path, "\n".join(page))
    return path


def _headline(facts: Facts, history: History, ended: bool) -> str:
    experts = facts.get("experts")
    words = [f"{len(experts)} experts"] if isinstance(experts, list) else []
    words += [f"{facts['particles']} particles"] if "particles" in facts else []
    words += [f"{max(len(history) - 1, 0)} iterations"]
    words += [f"{name} {facts[name]}" for name in ("state", "engine", "serve", "dtype", "seed") if name in facts]
    status = f"stopped: {facts.get('stopped', _UNKNOWN)}" if ended else "not ended, shown as far as it got"
    base = f"<p>Base model {escape(str(facts['base']))}</p>" if "base" in facts else ""
    return f'{base}<p class="soft">{escape(", ".join(words))}; {escape(status)}</p>'


def _scores(facts: Facts, history: History) -> str:
    start, end = facts.get("start") or {}, facts.get("end") or {}
    if not end and history:  # not ended: the journal knows dev
        start, end = ({"dev": _global(line, "best")} for line in (history[0], history[-1]))
    rows, confirmed = [], "confirm" in end
    for split in ("dev", "confirm", "test") if confirmed else ("dev", "test"):
        before, after = _number(start.get(split)), _number(end.get(split))
        count = facts.get(f"{split}_examples")
        shown = [_with_error(facts, split, which, value) for which, value in (("start", before), ("end", after))]
        rows.append((split, count, *shown, _difference(after, before)))
    gaps = [_difference(_number(one.get("dev")), _number(one.get("test"))) for one in (start, end)]
    rows.append(("dev - test", "", *gaps, ""))
    notes = ["The search maximised dev, so its end is the best of many draws and flatters; test was not searched."]
    if any("±" in str(cell) for row in rows for cell in row):
        notes.insert(0, "± is one standard error.")
    if start.get("expert") is not None:
        notes.insert(0, f"Start: the best initial expert, {start['expert']}. End: particle {end.get('particle')}.")
    if confirmed:
        count = len(facts.get("candidates") or [])
        notes.append(f"The winner is the best of the last {count} candidates on confirm, which was not searched.")
    if (rate := _number(facts.get("prompts_per_second"))) is not None:
        notes.append(f"{rate:,.1f} prompts/s.")
    table = _table(("split", "examples", "start", "end", "change"), rows, numbers_from=1)
    return f'<h2>Start and end</h2>{table}<p class="soft">{escape(" ".join(notes))}</p>'


def _difference(value: float | None, other: float | None) -> str:
    return _UNKNOWN if value is None or other is None else f"{value - other:+.4f}"


def _findings(folder: Path, config: Facts) -> list[str]:
    """The sections of the analyses that the files allow, and analysis.json with their numbers."""
    if not isinstance(config.get("experts"), list):
        return []
    numbers = analyse(read_run(folder))
    if numbers:
        run_folder.write_json(folder / run_folder.ANALYSIS, numbers)
    body = []
    for name, one in numbers.items():
        body.append(f"<h2>{escape(_TITLES[name])}</h2>")
        try:
            if name in PLOTS:
                body.append(
                    f'<img alt="{escape(_TITLES[name])}" src="data:image/svg+xml;base64,{_encoded(name, one)}">'
                )
        except ImportError:
            body.append('<p class="soft">The plot needs matplotlib: pip install matplotlib.</p>')
        body.append(f'<p class="soft">{escape(_in_words(name, one))}</p>')
    return body


def _encoded(name: str, numbers: Any) -> str:
    return base64.b64encode(draw(name, numbers)).decode()


def _in_words(name: str, one: Any) -> str:
    """What a reader should take from the numbers of an analysis."""
    if name == "weak_to_strong":
        return f"The particle that found the winner was number {one['rank']:g} of {one['of']} at the start."
    if name == "top_k":
        words = [f"{len(one[key])} {what}: {one[key][-1]:.4f}" for key, what in _VOTERS]
        return f"Majority vote of the best on dev, on test; {', '.join(words)}. One alone: {one['end'][0]:.4f}."
    if name == "emergence":
        words = []
        for split, found in one.items():
            share = "n/a" if found["c_emerge"] is None else f"{found['c_emerge']:.1%}"
            words.append(
                f"On {split}, {found['missed_by_all_experts']} of {found['questions']} questions were missed by all "
                f"experts; of these some final particle answers {share} (C-emerge)."
            )
        if "dev" in one:
            words.append("Dev was searched and flatters.")
        return " ".join([*words, "More particles answer more by chance alone."])
    if name == "trajectory":
        return f"The plane holds {sum(one['variance']):.0%} of the variance of all positions."
    return "Coefficients below 0 move away from their expert."


def _with_error(facts: Facts, split: str, which: str, value: float | None) -> str:
    """`value` with its standard error: the run's own on test, else of scores that are 0 or 1, by their mean."""
    if value is None:
        return _UNKNOWN
    count = facts.get(f"{split}_examples")
    error = _number((facts.get("test_standard_error") or {}).get(which)) if split == "test" else None
    if error is None and facts.get("task") in _RIGHT_OR_WRONG and isinstance(count, int) and count and 0 <= value <= 1:
        error = math.sqrt(value * (1 - value) / count)
    return f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"


def _utilities(facts: Facts, history: History) -> str:
    rows = [line.get("utilities") or [] for line in history]
    count = max((len(row) for row in rows), default=0)
    best = [_global(line, "best") for line in history]
    start = facts.get("start") or {}
    dev = _number(start.get("dev"))
    plot = plots.utility_plot(
        iterations=[int(line.get("iteration", index)) for index, line in enumerate(history)],
        particles=[[_number(row[i]) if i < len(row) else None for row in rows] for i in range(count)],
        global_best=best,
        global_worst=[_global(line, "worst") for line in history],
        restarts=[(index, i) for index, line in enumerate(history) for i in line.get("restarts") or []],
        start=dev if dev is not None else next(iter(best), None),
        start_label="best initial expert" if start.get("expert") is not None else "best at the start",
    )
    bounded = sum(len(line.get("bounded") or []) for line in history)
    if not bounded:
        return plot
    note = f"{bounded:,} utilities are upper bounds: the evaluation stopped when it could change no decision."
    return f'{plot}<p class="soft">{note}</p>'


def _mixture(facts: Facts, history: History) -> str:
    if facts.get("randomness") == "coordinate":
        return "<p>Every coordinate drew its own coefficients, so the global best is no mixture of the experts.</p>"
    mixture = facts.get("mixture")
    if not mixture and history:
        coefficients = history[-1].get("global_best_mixture") or []
        names = facts.get("experts")
        if not isinstance(names, list) or len(names) != len(coefficients):
            names = [f"expert {index}" for index in range(len(coefficients))]
        mixture = dict(zip(names, coefficients, strict=True))
    known = {str(name): number for name, value in (mixture or {}).items() if (number := _number(value)) is not None}
    if not known:
        return "<p>The mixture is not known for this run.</p>"
    total = sum(known.values())
    note = f"The coefficients sum to {total:.3f}; a negative one moves away from its expert."
    return f'{plots.mixture_plot(known)}<p class="soft">{note}</p>'


def _time(facts: Facts, history: History) -> str:
    seconds = facts.get("seconds") or _summed(line.get("seconds") or {} for line in history)
    phases = {phase: _number(seconds[phase]) or 0.0 for phase in _PHASES if phase in seconds}
    known = sum(phases.values())
    total = max(_number(seconds.get("total")) or 0.0, known)
    if total <= 0:
        return "<p>No times are recorded yet.</p>"
    if total > known:
        phases["other"] = total - known
    bar, rows = [], []
    for index, phase in enumerate((*_PHASES, "other")):
        if phase in phases:
            share, colour = phases[phase] / total, f"background:var(--p{index})"
            bar.append(f'<div style="width:{share:.2%};{colour}" title="{phase}"></div>')
            key = f'<span class="key" style="{colour}"></span>'
            numbers = f'<td class="n">{phases[phase]:,.2f}</td><td class="n">{share:.1%}</td>'
            rows.append(f"<tr><td>{key}{phase}</td>{numbers}</tr>")
    rows.append(f'<tr><th>total</th><th class="n">{total:,.2f}</th><th></th></tr>')
    head = '<tr><th>phase</th><th class="n">seconds</th><th class="n">share</th></tr>'
    counted = [name for name in ("evaluations", "prompts", "tokens") if isinstance(facts.get(name), int)]
    words = [f"{facts[name]:,} {name}" for name in counted]
    if facts.get("skipped_examples"):
        words.append(f"{facts['skipped_examples']:,} left out because they could change no decision")
    if facts.get("reused_scores"):
        words.append(f"{facts['reused_scores']:,} scores known from the same position")
    if (idle := _number(facts.get("engine_idle_share"))) is not None:
        words.append(f"engine idle {idle:.1%}")
    counts = ", ".join(words)
    return f'<div class="bar">{"".join(bar)}</div><table>{head}{"".join(rows)}</table><p class="soft">{counts}</p>'


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


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value)
    return _UNKNOWN if value is None else str(value)


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]], numbers_from: int | None = None) -> str:
    """HTML table, the columns from `numbers_from` on set as numbers; everything is escaped."""

    def line(cells: Sequence[Any], tag: str) -> str:
        text = len(cells) if numbers_from is None else numbers_from
        kinds = ["" if index < text else ' class="n"' for index in range(len(cells))]
        inner = (f"<{tag}{kind}>{escape(_text(cell))}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))
        return f"<tr>{''.join(inner)}</tr>"

    return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def _global(line: Mapping[str, Any], which: str) -> float | None:
    return _number((line.get(f"global_{which}") or {}).get("utility"))


def _number(value: Any) -> float | None:
    """`value` as a finite float, or None."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
