"""Every target and every row: the README beside the JSON of performance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks import GROUPS
from benchmarks.machine import NAMES
from benchmarks.reporting.performance_targets import Machine, Row, Target, ratio, targets
from benchmarks.reporting.tables import cells, columns_of, machine

EVERYTHING = """\
# Every target and every row

Written by `python -m benchmarks.reporting.write_performance`; [docs/performance.md](../../../docs/performance.md) has
the ten numbers that matter most.

In every round the baselines, the limit and ours ran once (baselines of more than 0.3 s in every fifth round). Numbers
are medians of the rounds; the share of the limit is that of the two neighbours in a round. The **limit** of an operator
is a plain loop (`benchmarks/operators/limits.cpp`) that does the loads and stores of the operator and next to nothing
else, on as many threads and bytes; of its variants, with stores through the caches and past them, the fastest counts.
On a GPU it is a copy on the device. **Bytes** are those that have to move: `(5P + 2) · D` numbers for an update, `(P +
n) · D` for a mix. A column "vs" says how many times as long as ours a baseline takes.
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
