"""Write docs/performance.md, its figures, and benchmarks/results/performance/README.md from the JSON files beside it.

    python -m benchmarks.reporting.write_performance

Each file is what pytest-benchmark wrote in one run, or those of its rows that no later run on the same class of machine
measured anew. The page has ten rows and says what is missed; the README beside the files has every target and row.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.machine import NAMES
from benchmarks.reporting.performance_tables import everything, target_table, title
from benchmarks.reporting.performance_targets import Machine, Target, targets

# Text as text, and the same bytes whenever a figure is drawn.
STYLE: dict[Any, Any] = {
    **{"svg.hashsalt": "modelswarms-fast", "svg.fonttype": "none", "font.size": 9, "axes.grid": True},
    **{"grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False},
}
ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "performance"
KINDS = ("operators", "engine", "early_stopping", "gpu")

HEADLINES = {
    "`cpp` update, share of the limit, all threads": "Update of ten particles: share of the memory bandwidth",
    "`cpp` update against torch eager, all threads": "Update: times as fast as the same in PyTorch (eager)",
    "update against the published code, files on tmpfs, one thread": "Update: times as fast as the published code",
    "`cpp` mix, P = 20, n = 10, share of the limit, all threads": "Mix of ten experts: share of the memory bandwidth",
    "load into a slot against vLLM's add_lora from a file": "Load into a slot: times as fast as vLLM's `add_lora`",
    "load by merging, of the fastest copy of the base weights that it reads and writes": (
        "Load by merging: time, in copies of the same weights"
    ),
    "a whole iteration, 10 particles, prompts a second of the plain base model's": (
        "Whole iteration: speed of the plain base model that is kept"
    ),
    "moves with `stop_early`, prompts of a full evaluation a second, of the plain base model's": (
        "The same with early stopping"
    ),
    "a whole iteration against the published code on this CPU": "Whole iteration: times as fast as the published code",
    "driver of 100 particles of four prompts, all of an iteration but the time within the engine": (
        "Time outside the engine, an iteration of 100 particles"
    ),
}
"""The rows of the page, in plain words."""

INTRODUCTION = """\
# Performance

*Ten numbers on four kinds of processor, each beside what was wished for. Measured on two cores of each. GPU: compiled,
not run.*

Both sides of every comparison were measured in the same run, in turns; numbers are medians. "Memory bandwidth" is that
of the fastest plain loop with the same reads and writes. "Base model" is vLLM with the same prompts in one continuous
batch and no particles. "Published code" is the authors' own, on the same processor. The model is SmolLM2-135M-Instruct
with LoRA experts. Speed and times: higher is better, unless the goal says ≤.
"""

WHERE = """\
## Where the numbers are

`benchmarks/results/performance/` holds the JSON of each run, named by date, machine and commit, and in its `README.md`
every target, every row and the versions that were used. This page is written by
`python -m benchmarks.reporting.write_performance`. Measure your own machine in a clone with `python -m benchmarks`;
compare two versions with `python -m benchmarks.reporting.compare_trees`. What was tried and lost is in the
[log](log.md).
"""


def headlines() -> list[tuple[str, Target]]:
    """The targets of the page."""
    known = {target.what: target for target in targets()}
    return [(text, known[what]) for what, text in HEADLINES.items()]


def speeds(machines: Sequence[Machine], target: Path) -> bool:
    """What the update takes in other ways, in times of ours; of the latest machine that measured it."""
    found: dict[str, float] = {}
    for one in machines:
        rows = one.find("update", backend="cpp", headline=True, dtype="bfloat16", threads=one.all_threads)
        rows += [row for row in one.find("update", threads=one.all_threads) if "adapters" in row][:1]
        times = {name: other["ratio"] for row in rows for name, other in row.get("baselines", {}).items()}
        found = {"this package": 1.0} | times if times else found
    if not found:
        return False
    names = sorted(found, key=found.__getitem__, reverse=True)
    figure = Figure(figsize=(8, 0.6 + 0.32 * len(names)))
    axes = figure.subplots()
    axes.barh(
        names, [found[name] for name in names], color=["C3" if name == "this package" else "C0" for name in names]
    )
    for place, name in enumerate(names):
        axes.text(found[name] * 1.08, place, f"{found[name]:.3g}x", va="center")
    axes.set(
        xscale="log", xlabel="time of an update of ten particles, bfloat16, two cores (published code: eight, files)"
    )
    axes.set_xlim(right=3 * max(found.values()))
    axes.grid(axis="y", visible=False)
    _save(figure, target)
    return True


def iterations(machines: Sequence[Machine], target: Path) -> bool:
    """Prompts a second of the plain base model's, by machine and way to serve, with and without early stopping."""
    bars = []
    for one in machines:
        whole = one.find("evaluate", particles=10, stop_early=False)
        for row in [*whole, *one.find("search", stop_early=True)]:
            if "share_of_base" in row:
                early = ", early stopping" if row["stop_early"] else ""
                bars.append((f"{title(one.name)}, {row['serve']}{early}", row["share_of_base"], bool(early)))
    if not bars:
        return False
    figure = Figure(figsize=(8, 0.6 + 0.3 * len(bars)))
    axes = figure.subplots()
    names, values, early_ones = zip(*bars[::-1], strict=True)
    axes.barh(names, values, color=["C2" if early else "C0" for early in early_ones])
    for place, value in enumerate(values):
        axes.text(value + 0.01, place, f"{value:.2f}", va="center")
    axes.axvline(1.0, color="0.4", linestyle=":")
    axes.set(xlabel="speed of the plain base model that is kept", xlim=(0, 1.1 * max(*values, 1.0)))
    axes.grid(axis="y", visible=False)
    _save(figure, target)
    return True


def _save(figure: Any, target: Path) -> None:
    figure.tight_layout()
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Date": None})


def load(results: Path) -> list[Machine]:
    """Every class of machine, in the order of NAMES, with its runs, the latest last."""
    found: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for path in (path for kind in KINDS for path in sorted((results / kind).glob("*_*_*.json"))):
        run = json.loads(path.read_text())
        if "benchmarks" in run:
            found.setdefault(path.stem.split("_")[1], []).append((run["datetime"], run))
    order = [*(name for name in NAMES if name in found), *sorted(found.keys() - NAMES.keys())]
    return [Machine(name, tuple(run for _, run in sorted(found[name], key=lambda one: one[0]))) for name in order]


def page(machines: Sequence[Machine], notes: str, docs: Path) -> str:
    """docs/performance.md; its figures are written."""
    text = [INTRODUCTION, *target_table(machines, headlines())]
    dates = ", ".join(f"{title(one.name)} {one.runs[-1]['datetime'][:10]}" for one in machines)
    text += [
        f"A dash: not measured there. Last measured: {dates}.",
        "A number is that of the code on its day; later code was not measured again.\n",
    ]
    with rc_context(STYLE):
        if speeds(machines, docs / "figures" / "update.svg"):
            text.append("![Time of an update in other ways, in times of ours](figures/update.svg)\n")
        if iterations(machines, docs / "figures" / "iterations.svg"):
            text.append("![Speed of whole iterations beside the plain base model](figures/iterations.svg)\n")
    return "\n".join([*text, notes, WHERE])


def write(results: Path, docs: Path) -> None:
    """Write performance.md and figures/*.svg into docs, README.md into the results."""
    machines, notes = load(results), results / "notes.md"
    (docs / "performance.md").write_text(page(machines, notes.read_text() if notes.exists() else "", docs))
    (results / "README.md").write_text(everything(machines))


if __name__ == "__main__":
    write(RESULTS, ROOT / "docs")
