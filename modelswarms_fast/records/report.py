"""The report of a run: one HTML file that needs nothing else.

It reads the run folder and shows what its files hold; a section whose file is missing is left out. The numbers of the
analyses go to `analysis.json` beside it.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from modelswarms_fast.errors import InputError, short
from modelswarms_fast.errors.arguments import check_path
from modelswarms_fast.records import plots, run_folder
from modelswarms_fast.records.analysis import RunFolder, read_run
from modelswarms_fast.records.analysis.registry import ANALYSES, analyse, draw
from modelswarms_fast.records.gain import UNKNOWN, global_utility, number, scores, shown_as, what_changed
from modelswarms_fast.records.style import PALETTE, inline, svg

_PHASES = {
    "setup": "orange",
    "update": "purple",
    "policy": "olive",
    "load": "green",
    "generate": "blue",
    "score": "red",
    "test": "sky",
    "other": "faint",
}
_LONG_LISTS = (
    "expert_products",
    "command",
    "data_read",
    "data_warnings",
)  # of config.json; shown elsewhere or not at all

Section = dict[str, Any]


def write_report(run: str | os.PathLike[str]) -> Path:
    """Write `report.html` into the run folder and return its path.

    A run that has not ended is reported as far as it got.

    Raises:
        InputError: a file of the run is missing or damaged, or the report cannot be written.
    """
    folder = read_run(run)
    with _shown(folder):
        return _write_report(folder)


def _write_report(folder: RunFolder) -> Path:
    facts = folder.facts
    numbers = analyse(folder)
    if numbers:
        run_folder.write_json(folder.path / run_folder.ANALYSIS, numbers)
    settings = {name: value for name, value in folder.config.items() if name not in _LONG_LISTS}
    page = _template().render(
        palette=PALETTE,
        title=f"{facts.get('task', 'Search')} on {facts.get('dataset') or facts.get('data', 'unnamed data')}",
        base=facts.get("base"),
        about=_about(folder),
        data=[*_lines(facts, "data_read"), *(f"Warning: {one}." for one in _lines(facts, "data_warnings"))],
        scores=scores(folder),
        answers=None if folder.answers is None else what_changed(folder, folder.answers),
        plots=_plots(folder, numbers),
        time=_time(folder),
        command=shlex.join(map(str, facts["command"])) if facts.get("command") else None,
        settings=[(name, shown_as(value)) for name, value in _flat(settings)],
    )
    path = folder.path / run_folder.REPORT
    run_folder.write_text(path, page)
    return path


def write_plots(run: str | os.PathLike[str], target: str | os.PathLike[str]) -> list[Path]:
    """Write the plots of the report as SVG files into the folder `target` and return their paths.

    Raises:
        InputError: a file of the run is missing or damaged, or a plot cannot be written.
    """
    folder = read_run(run)
    check_path("plots", target)
    try:
        Path(target).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {target}: {error.strerror}; choose another folder for --plots.") from error
    written = []
    with _shown(folder):
        found = _plots(folder, analyse(folder))
    for plot in found:
        if "picture" in plot:
            written.append(Path(target, f"{plot['name']}.svg"))
            run_folder.write_text(written[-1], plot["picture"].decode())
    return written


@contextmanager
def _shown(folder: RunFolder) -> Iterator[None]:
    """What numbers that no run finds do to a plot, or a field that no schema knows to the page, is one sentence."""
    try:
        yield
    except (InputError, ImportError, MemoryError):
        raise
    except Exception as error:
        raise InputError(
            f"{folder.path} holds what cannot be shown ({type(error).__name__}: {short(error)}); restore good copies"
            " of its files"
        ) from error


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("modelswarms_fast.records"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _about(run: RunFolder) -> str:
    facts = run.facts
    words = [f"{len(run.experts)} experts"]
    words += [f"{facts['particles']} particles"] if "particles" in facts else []
    words += [f"{max(len(run.history) - 1, 0)} iterations"]
    words += [f"{name} {facts[name]}" for name in ("policy", "space", "state", "engine") if name in facts]
    words += [f"{name} {facts[name]}" for name in ("serve", "dtype", "seed") if name in facts]
    ended = "not ended, shown as far as it got" if run.summary is None else f"stopped: {facts.get('stopped', UNKNOWN)}"
    return f"{', '.join(words)}; {ended}."


def _lines(facts: Mapping[str, Any], name: str) -> list[str]:
    found = facts.get(name)
    return [str(one) for one in found] if isinstance(found, list) else []


def _plots_of_search(run: RunFolder) -> Iterable[Section]:
    shown = _utilities(run)
    if shown.known:
        rise = [value for value in shown.global_best if value is not None]
        words = f"The best utility on dev went from {rise[0]:.4f} to {rise[-1]:.4f}." if rise else ""
        if rise and (last := shown.iterations[shown.global_best.index(rise[-1])]):
            words += f" It rose last in iteration {last}."
        cut = [one for line in run.history for one in line.get("bounded") or []]
        if estimated := sum("estimate" in one for one in cut):
            words += f" {estimated:,} utilities are estimates: the race had stopped these particles."
        if bounded := len(cut) - estimated:
            words += f" {bounded:,} utilities are upper bounds: more answers could have changed no decision."
        yield _plot("utilities", "Utility by iteration", words, svg(plots.utilities, shown))
    title = "What the winner is made of"
    if run.facts.get("randomness") == "coordinate":
        yield {
            "title": title,
            "words": "Every weight drew its own coefficients, so the global best is no mixture of the experts.",
        }
    elif mixture := _mixture(run):
        largest = max(mixture, key=lambda name: mixture[name])
        away = sum(value < 0 for value in mixture.values())
        words = f"The largest part is {largest}; the coefficients sum to {sum(mixture.values()):.3f}."
        words += f" The winner moves away from {away} of the {len(mixture)} experts." if away else ""
        yield _plot("mixture", title, words, svg(plots.mixture, mixture))


def _plots(run: RunFolder, numbers: Mapping[str, Any]) -> list[Section]:
    return [*_plots_of_search(run), *map(partial(_plot_of_analysis, numbers), numbers)]


def _plot_of_analysis(numbers: Mapping[str, Any], name: str) -> Section:
    one = ANALYSES[name]
    return _plot(name, one.title, one.in_words(numbers[name]), draw(name, numbers[name]))


def _plot(name: str, title: str, words: str, picture: bytes) -> Section:
    return {
        "name": name,
        "title": title,
        "words": words,
        "picture": picture,
        "svg": Markup(inline(picture, name, title)),
    }


def _utilities(run: RunFolder) -> plots.Utilities:
    rows = [line.get("utilities") or [] for line in run.history]
    count = max((len(row) for row in rows), default=0)
    start = run.facts.get("start") or {}
    best = [global_utility(line, "best") for line in run.history]
    dev = number(start.get("dev"))
    return plots.Utilities(
        iterations=[int(line.get("iteration", index)) for index, line in enumerate(run.history)],
        particles=[[number(row[i]) if i < len(row) else None for row in rows] for i in range(count)],
        global_best=best,
        global_worst=[global_utility(line, "worst") for line in run.history],
        restarts=[(index, i) for index, line in enumerate(run.history) for i in line.get("restarts") or []],
        start=dev if dev is not None else next(iter(best), None),
        start_label="best expert" if start.get("expert") is not None else "best at the start",
    )


def _mixture(run: RunFolder) -> dict[str, float]:
    """Coefficient by expert of the winner, or of the best so far; empty if it is not known."""
    mixture = run.facts.get("mixture")
    if not mixture and run.history:
        coefficients = run.history[-1].get("global_best_mixture") or []
        mixture = dict(zip(run.experts, coefficients, strict=False))
    known = {str(name): number(value) for name, value in (mixture or {}).items()}
    return {name: value for name, value in known.items() if value is not None}


def _time(run: RunFolder) -> Section | None:
    """Seconds and share of each phase, and what was counted; None before there is any time."""
    facts = run.facts
    seconds = facts.get("seconds") or _summed(line.get("seconds") or {} for line in run.history)
    phases = {phase: number(seconds[phase]) or 0.0 for phase in _PHASES if phase in seconds}
    known = sum(phases.values())
    total = max(number(seconds.get("total")) or 0.0, known)
    if total <= 0:
        return None
    if total > known:
        phases["other"] = total - known
    longest = max(phases, key=lambda phase: phases[phase])
    counted = [f"{facts[name]:,} {name}" for name in ("evaluations", "prompts", "tokens") if facts.get(name)]
    if facts.get("skipped_examples"):
        counted.append(f"{facts['skipped_examples']:,} left out because they could change no decision")
    if facts.get("reused_scores"):
        counted.append(f"{facts['reused_scores']:,} scores known from the same position")
    if (rate := number(facts.get("prompts_per_second"))) is not None:
        counted.append(f"{rate:,.1f} prompts/s")
    if (idle := number(facts.get("engine_idle_share"))) is not None:
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
            totals[phase] = totals.get(phase, 0.0) + (number(value) or 0.0)
    return totals


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Name and value of every setting; inner names follow their outer one and a point."""
    rows: list[tuple[str, Any]] = []
    for name, item in value.items():
        inner = isinstance(item, Mapping) and item
        rows += _flat(item, f"{prefix}{name}.") if inner else [(f"{prefix}{name}", item)]
    return rows
