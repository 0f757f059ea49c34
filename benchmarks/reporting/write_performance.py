"""Write docs/performance.md and its figures: python -m benchmarks.reporting.write_performance.

Every file of benchmarks/results/performance and benchmarks/results/gpu is what pytest-benchmark wrote in one run; runs
stand side by side.
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
from benchmarks.reporting.performance_targets import Row, Run, ratio, targets
from benchmarks.reporting.tables import cells, columns_of, machine

# Text as text, and the same bytes whenever a figure is drawn.
STYLE = {
    **{"svg.hashsalt": "modelswarms-fast", "svg.fonttype": "none", "font.size": 9, "axes.grid": True},
    **{"grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False},
}

HERE = Path(__file__).parents[1]
SOURCES = ("performance", "gpu")

INTRODUCTION = """\
# Performance

Written by `benchmarks/reporting/write_performance.py` from the JSON files in `benchmarks/results/`; measure your own
machine with `python -m benchmarks` or `pytest benchmarks --benchmark-json=FILE`.

Whatever is compared was measured in the same run, in turns: in every round the baselines, the limit and ours once
(baselines of more than 0.3 s in every fifth round). Numbers are medians of the rounds; the share of the limit is that
of the two neighbours in a round. The **limit** of an operator is a plain loop (`csrc/limit.cpp`) that does the loads
and stores of the operator and next to nothing else, on as many threads and bytes; of its variants, with stores through
the caches and past them, the fastest counts. On a GPU it is a copy on the device. **Bytes** are those that have to
move: `(5P + 2) · D` numbers for an update, `(P + n) · D` for a mix. A column "vs" says how many times as long as ours a
baseline takes.
"""


def target_table(runs: Sequence[Run]) -> list[str]:
    """What was wished for, and every run."""
    lines = ["| what | target | " + " | ".join(run.name for run in runs) + " |", "|---|---|" + "---|" * len(runs)]
    for target in targets():
        lines.append(f"| {target.what} | {target.goal} | " + " | ".join(target.cell(run) for run in runs) + " |")
    return lines


def reasons(run: Run) -> Iterator[tuple[str, str]]:
    """Measurements of the same run that say what a missed target would have needed."""

    def listed(rows: Sequence[Row], value: Callable[[Row], str]) -> str:
        return "<br>".join(f"{row['dtype']} {value(row)}" for row in rows) or "—"

    def speed(row: Row) -> str:
        return f"{row['GB/s']:.0f}"

    def limit(row: Row) -> float:
        return float(max(row["limit"].values()))

    both = ("bfloat16", "float32")
    update, mix = (run.find(group, backend="cpp", headline=True, dtype=both) for group in ("update", "mix"))
    single = [row for row in update if row["threads"] == 1]
    compiled = [row for row in update if not math.isnan(ratio("torch.compile")(row))]
    yield "update: GB/s of one core from its second cache", listed(run.find("update", in_cache=True), speed)
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
        listed(run.find("mix", registers=True), lambda row: f"{row['GFLOP/s']:.0f}, threads {row['threads']}"),
    )
    yield (
        "mix: GFLOP/s that 0.85 of the limit would need",
        listed(mix, lambda row: f"{0.85 * limit(row) * operations(row) / row['bytes']:.0f}, threads {row['threads']}"),
    )
    yield (
        "growth: how far the limit loop, always the same, went up and down meanwhile",
        "<br>".join(f"{row['against']} {row['limit_spread']:.0%}" for row in run.find("growth")) or "—",
    )
    early = [row for row in run.find("search", stop_early=True) if "least_share" in row]
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
            for row in run.find("search", published=True)
            if "products_seconds" in row
        )
        or "—",
    )


def reason_table(runs: Sequence[Run]) -> list[str]:
    """What the runs say of their misses, beside each other."""
    lines = [
        "| measured in the same run | " + " | ".join(run.name for run in runs) + " |",
        "|---|" + "---|" * len(runs),
    ]
    columns = [list(reasons(run)) for run in runs]
    for cells_of_row in zip(*columns, strict=True):
        lines.append(f"| {cells_of_row[0][0]} | " + " | ".join(text for _, text in cells_of_row) + " |")
    return [*lines, ""]


def group_table(runs: Sequence[Run], group: str) -> list[str]:
    """Every row of a group; values of several runs beside each other."""
    found: dict[tuple[str, Any], list[Row]] = {}
    for run in runs:
        for row in run.find(group):
            found.setdefault((row["row"], row.get("threads")), []).append(row)
    if not found:
        return []
    columns = columns_of([row for rows in found.values() for row in rows])
    lines = [f"| {group} | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for (name, _), rows in found.items():
        texts = [[cells(row).get(column, "") for row in rows] for column in columns]
        # What all runs agree on, such as the number of threads, is said once.
        joined = [" / ".join(text if len(set(text)) > 1 else text[:1]) for text in texts]
        lines.append(f"| {name} | " + " | ".join(joined) + " |")
    return [*lines, ""]


def operations(row: Row) -> float:
    """Of floating point: an update has 12 a weight and particle, a mix 2 an expert, weight and particle."""
    each = 12 if row["group"] == "update" else 2 * row["experts"]
    return float(each * row["particles"] * row["size"])


def roofline(run: Run, target: Path) -> bool:
    """Operations a second against operations a byte, under the roofs that the same run measured."""
    rows = [
        row
        for row in (*run.find("update"), *run.find("mix"))
        if "share_of_limit" in row and row.get("threads") == run.all_threads and row["backend"] == "cpp"
    ]
    roofs = [row["GFLOP/s"] for row in run.find("mix", threads=run.all_threads, registers=True)]
    if not rows or not roofs:
        return False
    figure = Figure(figsize=(8, 4.6))
    axes = figure.subplots()
    intensities = [0.3, 60.0]
    for group, style in (("update", "-"), ("mix", "--")):
        own = [max(row["limit"].values()) for row in rows if row["group"] == group]
        if own:
            label = f"memory, loop of the {group}: {max(own):.0f} GB/s"
            axes.plot(intensities, [x * max(own) for x in intensities], style, color="0.4", linewidth=1, label=label)
    axes.axhline(max(roofs), color="0.4", linestyle=":", label=f"products and sums: {max(roofs):.0f} GFLOP/s")
    kinds = [("update", "bfloat16"), ("update", "float32"), ("mix", "bfloat16"), ("mix", "float32")]
    for (group, dtype), marker, colour in zip(kinds, "osDv", ("C0", "C0", "C1", "C1"), strict=True):
        own_rows = [row for row in rows if (row["group"], row["dtype"]) == (group, dtype)]
        x = [operations(row) / row["bytes"] for row in own_rows]
        y = [operations(row) / row["seconds"] / 1e9 for row in own_rows]
        axes.plot(
            x, y, marker, color=colour, markerfacecolor=colour if marker in "oD" else "none", label=f"{group} {dtype}"
        )
        for name, fill in (("torch eager", "C3"), ("torch.compile", "C2"), ("torch.matmul", "C3")):
            others = [(a, row) for a, row in zip(x, own_rows, strict=True) if name in row.get("baselines", {})]
            y = [operations(row) / row["baselines"][name]["seconds"] / 1e9 for _, row in others]
            label = name if dtype == "bfloat16" and others and name not in axes.get_legend_handles_labels()[1] else None
            axes.plot([a for a, _ in others], y, "x" if fill == "C3" else "+", color=fill, label=label)
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="GFLOP/s", xlim=intensities)
    axes.set_ylim(top=2 * max(roofs))
    axes.legend(loc="lower right", fontsize=7)
    _save(figure, target)
    return True


def scaling(runs: Sequence[Run], target: Path) -> bool:
    """Seconds of an update against P and against D, with the fitted lines."""
    rows = [(run, row) for run in runs for row in run.find("growth")]
    if not rows:
        return False
    figure = Figure(figsize=(8, 3.6))
    panels = figure.subplots(1, 2)
    for axes, against in zip(panels, "PD", strict=True):
        for index, (run, row) in enumerate((run, row) for run, row in rows if row["against"] == against):
            points = row["points"]
            label = f"{run.name}: at most {row['worst_deviation']:.1%} off"
            axes.plot(
                points,
                [1e3 * value for value in row["point_seconds"]],
                "osDv"[index % 4],
                color=f"C{index}",
                label=label,
            )
            axes.plot(points, [1e3 * (row["fixed"] + row["each"] * x) for x in points], color=f"C{index}", linewidth=1)
        axes.set(xscale="log", yscale="log", xlabel=against, ylabel="ms")
        if axes.lines:
            axes.legend(fontsize=7)
    _save(figure, target)
    return True


def _save(figure: Any, target: Path) -> None:
    figure.tight_layout()
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Date": None})


def load(results: Path) -> list[Run]:
    """Every run that was kept, by folder and name."""
    paths = [path for source in SOURCES for path in sorted((results / source).glob("*.json"))]
    runs = [Run(path.stem, json.loads(path.read_text())) for path in paths]
    return [run for run in runs if "benchmarks" in run.results]


def write(results: Path, docs: Path) -> None:
    """Write performance.md and figures/*.svg into docs."""
    with rc_context(STYLE):
        _write(load(results), results / "performance" / "notes.md", docs)


def _write(runs: Sequence[Run], notes: Path, docs: Path) -> None:
    text = [INTRODUCTION, "## Targets\n", *target_table(runs), "", "## Behind the misses\n", *reason_table(runs)]
    text += [notes.read_text()] if notes.exists() else []
    if scaling(runs, docs / "figures" / "scaling.svg"):
        text.append("![Seconds of an update against P and against D](figures/scaling.svg)\n")
    for run in runs:
        if roofline(run, docs / "figures" / f"roofline-{run.name}.svg"):
            text.append(f"![Roofline of {run.name}](figures/roofline-{run.name}.svg)\n")
    text += ["## Every row\n", f"Several values in a cell: {', '.join(run.name for run in runs)}.\n"]
    for group in GROUPS:
        text += group_table(runs, group)
    text += ["## Machines\n", *(f"- {run.name}: {machine(run.results)}" for run in runs)]
    (docs / "performance.md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    write(HERE / "results", HERE.parent / "docs")
