"""Write docs/performance.md, its figures, and benchmarks/results/performance/README.md from the JSON files beside it.

    python -m benchmarks.reporting.write_performance

Each file is what pytest-benchmark wrote in one run, or those of its rows that no later run on the same class of machine
measured anew. The page has ten rows and says what is missed; the README beside the files has every target and row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks import GROUPS
from benchmarks.machine import NAMES
from benchmarks.reporting.performance_targets import Machine, Row, Target, ratio, targets
from benchmarks.reporting.tables import cells, columns_of, machine

# Text as text, and the same bytes whenever a figure is drawn.
STYLE = {
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

EVERYTHING = """\
# Every target and every row

Written by `python -m benchmarks.reporting.write_performance`; [docs/performance.md](../../../docs/performance.md) has
the ten numbers that matter most.

In every round the baselines, the limit and ours ran once (baselines of more than 0.3 s in every fifth round). Numbers
are medians of the rounds; the share of the limit is that of the two neighbours in a round. The **limit** of an operator
is a plain loop (`csrc/limit.cpp`) that does the loads and stores of the operator and next to nothing else, on as many
threads and bytes; of its variants, with stores through the caches and past them, the fastest counts. On a GPU it is a
copy on the device. **Bytes** are those that have to move: `(5P + 2) · D` numbers for an update, `(P + n) · D` for a
mix. A column "vs" says how many times as long as ours a baseline takes.
"""


def title(name: str) -> str:
    """A class of machine as a reader knows it."""
    return NAMES.get(name, name)


def target_table(machines: Sequence[Machine], chosen: Sequence[tuple[str, Target]]) -> list[str]:
    """One row a target, one column a class of machine."""
    lines = [
        "| what | goal | " + " | ".join(title(one.name) for one in machines) + " |",
        "|---|---|" + "---|" * len(machines),
    ]
    for text, target in chosen:
        lines.append(f"| {text} | {target.goal} | " + " | ".join(target.cell(one) for one in machines) + " |")
    return [*lines, ""]


def headlines() -> list[tuple[str, Target]]:
    """The targets of the page."""
    known = {target.what: target for target in targets()}
    return [(text, known[what]) for what, text in HEADLINES.items()]


def reasons(machine: Machine) -> Iterator[tuple[str, str]]:
    """Measurements of the same machine that say what a missed target would have needed."""

    def listed(rows: Sequence[Row], value: Callable[[Row], str]) -> str:
        return "<br>".join(f"{row['dtype']} {value(row)}" for row in rows) or "—"

    def speed(row: Row) -> str:
        return f"{row['GB/s']:.0f}"

    def limit(row: Row) -> float:
        return float(max(row["limit"].values()))

    both = ("bfloat16", "float32")
    update, mix = (machine.find(group, backend="cpp", headline=True, dtype=both) for group in ("update", "mix"))
    single = [row for row in update if row["threads"] == 1]
    compiled = [row for row in update if not math.isnan(ratio("torch.compile")(row))]
    yield "update: GB/s of one core from its second cache", listed(machine.find("update", in_cache=True), speed)
    yield "update: GB/s of the limit loop on one core from memory", listed(single, lambda row: f"{limit(row):.0f}")
    yield (
        "update: from its slowest to its fastest round, of the median",
        listed(update, lambda row: f"{row['spread']:.0%}, threads {row['threads']}"),
    )
    yield (
        "torch.compile: its share of the limit",
        listed(
            compiled,
            lambda row: f"{row['GB/s'] / ratio('torch.compile')(row) / limit(row):.2f}, threads {row['threads']}",
        ),
    )
    yield (
        "mix: GFLOP/s of the kernel",
        listed(mix, lambda row: f"{operations(row) / row['seconds'] / 1e9:.0f}, threads {row['threads']}"),
    )
    yield (
        "products and sums in registers: GFLOP/s",
        listed(machine.find("mix", registers=True), lambda row: f"{row['GFLOP/s']:.0f}, threads {row['threads']}"),
    )
    yield (
        "mix: GFLOP/s that 0.85 of the limit would need",
        listed(mix, lambda row: f"{0.85 * limit(row) * operations(row) / row['bytes']:.0f}, threads {row['threads']}"),
    )
    yield (
        "growth: how far the limit loop, always the same, went up and down meanwhile",
        "<br>".join(f"{row['against']} {row['limit_spread']:.0%}" for row in machine.find("growth")) or "—",
    )
    early = [row for row in machine.find("search", stop_early=True) if "least_share" in row]
    yield (
        "`stop_early`: share of the examples that was evaluated, and the least in any exact order",
        "<br>".join(
            f"{row['task']}, {row['serve']} {row['evaluated_share']:.2f}, {row['least_share']:.2f}" for row in early
        )
        or "—",
    )
    yield (
        "iteration against the published code: seconds, those of the model's products alone",
        "<br>".join(
            f"{row['engines']} engine{'s' * (row['engines'] > 1)} {row['seconds']:.1f}, {row['products_seconds']:.1f}"
            for row in machine.find("search", published=True)
            if "products_seconds" in row
        )
        or "—",
    )


def reason_table(machines: Sequence[Machine]) -> list[str]:
    """What the machines say of their misses, beside each other."""
    lines = [
        "| measured in the same run | " + " | ".join(title(one.name) for one in machines) + " |",
        "|---|" + "---|" * len(machines),
    ]
    columns = [list(reasons(one)) for one in machines]
    for cells_of_row in zip(*columns, strict=True):
        lines.append(f"| {cells_of_row[0][0]} | " + " | ".join(text for _, text in cells_of_row) + " |")
    return [*lines, ""]


def group_table(machines: Sequence[Machine], group: str) -> list[str]:
    """Every row of a group; values of several machines beside each other."""
    found: dict[tuple[str, Any], list[Row]] = {}
    for one in machines:
        for row in one.find(group):
            found.setdefault((row["row"], row.get("threads")), []).append(row)
    if not found:
        return []
    columns = columns_of([row for rows in found.values() for row in rows])
    lines = [f"| {group} | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for (name, _), rows in found.items():
        texts = [[cells(row).get(column, "") for row in rows] for column in columns]
        # What all agree on, such as the number of threads, is said once.
        joined = [" / ".join(text if len(set(text)) > 1 else text[:1]) for text in texts]
        lines.append(f"| {name} | " + " | ".join(joined) + " |")
    return [*lines, ""]


def operations(row: Row) -> float:
    """Of floating point: an update has 12 a weight and particle, a mix 2 an expert, weight and particle."""
    each = 12 if row["group"] == "update" else 2 * row["experts"]
    return float(each * row["particles"] * row["size"])


def speeds(machines: Sequence[Machine], target: Path) -> bool:
    """What the update takes in other ways, in times of ours; of the latest machine that measured it."""
    found = {}
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


def everything(machines: Sequence[Machine]) -> str:
    """The README beside the JSON files."""
    text = [EVERYTHING, "## Targets\n", *target_table(machines, [(target.what, target) for target in targets()])]
    text += ["## Behind the misses\n", *reason_table(machines), "## Every row\n"]
    text += [f"Several values in a cell: {', '.join(title(one.name) for one in machines)}.\n"]
    for group in GROUPS:
        text += group_table(machines, group)
    text += ["## Runs\n"]
    text += [f"- {title(one.name)}, {run['datetime'][:10]}: {machine(run)}" for one in machines for run in one.runs]
    return "\n".join(text) + "\n"


def write(results: Path, docs: Path) -> None:
    """Write performance.md and figures/*.svg into docs, README.md into the results."""
    machines, notes = load(results), results / "notes.md"
    (docs / "performance.md").write_text(page(machines, notes.read_text() if notes.exists() else "", docs))
    (results / "README.md").write_text(everything(machines))


if __name__ == "__main__":
    write(RESULTS, ROOT / "docs")
