"""What was wished for of each group, and how a run's rows say whether it is so; tables by write_performance.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.reporting.tables import bytes_text, seconds_text

Row = dict[str, Any]

LABELS = {
    "lora": "example adapter",
    "large lora": "large adapter",
    "full": "whole checkpoint",
    "examples": "example adapter",
    "all-linear": "all linear layers",
}
"""What a reader sees in place of what a row says."""


@dataclass(frozen=True)
class Machine:
    """A class of machine: its runs, the latest last. Of a row that several runs have, the latest counts."""

    name: str
    runs: tuple[dict[str, Any], ...]

    @property
    def rows(self) -> list[Row]:
        """extra_info of every benchmark."""
        found: list[Row] = []
        for run in self.runs:
            own = [benchmark["extra_info"] for benchmark in run["benchmarks"]]
            known = {_name(row) for row in own}
            found = [row for row in found if _name(row) not in known] + own
        return found

    @property
    def all_threads(self) -> int:
        """As many threads as the runs had."""
        return int(self.runs[-1]["machine_info"]["threads"])

    def find(self, group: str, **facts: Any) -> list[Row]:
        """Rows of a group with these facts; a fact of a tuple means any of its values."""
        return [row for row in self.rows if row["group"] == group and all(_is(row, *fact) for fact in facts.items())]


def _name(row: Row) -> tuple[str, str, int | None]:
    return row["group"], row["row"], row.get("threads")


def _is(row: Row, name: str, wanted: Any) -> bool:
    return row.get(name) in (wanted if isinstance(wanted, tuple) else (wanted,))


@dataclass(frozen=True)
class Target:
    """A line of the table: values by label, each on the right side of the bound or not."""

    what: str
    bound: float
    at_least: bool
    values: Callable[[Machine], dict[str, float]]
    text: Callable[[float], str] = "{:.2f}".format

    @property
    def goal(self) -> str:
        """The bound as text."""
        return f"{'≥' if self.at_least else '≤'} {self.text(self.bound)}"

    def met(self, value: float) -> bool:
        """Whether a value is on the right side."""
        return value >= self.bound if self.at_least else value <= self.bound

    def cell(self, machine: Machine) -> str:
        """The values of a machine, the missed ones in bold; "—" where it has none."""
        parts = []
        for label, value in self.values(machine).items():
            verdict = f"{self.text(value)} met" if self.met(value) else f"**{self.text(value)} missed**"
            parts.append(f"{LABELS.get(label, label)} {verdict}".strip())
        return "<br>".join(parts) or "—"


def share(row: Row) -> float:
    """Of the limit."""
    return float(row["share_of_limit"])


def ratio(baseline: str) -> Callable[[Row], float]:
    """Seconds of a baseline over ours; NaN where the row has no such baseline."""
    return lambda row: float(row.get("baselines", {}).get(baseline, {}).get("ratio", math.nan))


def fastest(word: str) -> Callable[[Row], float]:
    """Ours over the fastest baseline whose name begins with this; NaN where the row has none."""

    def value(row: Row) -> float:
        found = [one["ratio"] for name, one in row.get("baselines", {}).items() if name.startswith(word)]
        return 1 / min(found) if found else math.nan

    return value


def by(label: str, value: Callable[[Row], float], rows: Sequence[Row]) -> dict[str, float]:
    """The worst value of the rows with the same label: what a target says has to hold for each of them."""
    found: dict[str, float] = {}
    for row in rows:
        if not math.isnan(value(row)):
            name = str(row.get(label, ""))
            found[name] = min(found.get(name, math.inf), value(row))
    return found


def targets() -> Iterator[Target]:
    """The table of targets."""
    both = ("bfloat16", "float32")

    def update(value: Callable[[Row], float], single: bool) -> Callable[[Machine], dict[str, float]]:
        def values(machine: Machine) -> dict[str, float]:
            count = 1 if single else machine.all_threads
            return by("dtype", value, machine.find("update", backend="cpp", headline=True, dtype=both, threads=count))

        return values

    def mix(
        value: Callable[[Row], float], single: bool, dtypes: tuple[str, ...] = both
    ) -> Callable[[Machine], dict[str, float]]:
        def values(machine: Machine) -> dict[str, float]:
            count = 1 if single else machine.all_threads
            return by("dtype", value, machine.find("mix", backend="cpp", headline=True, dtype=dtypes, threads=count))

        return values

    times = "{:.3g}x".format
    for single, where in ((False, "all threads"), (True, "one thread")):
        yield Target(f"`cpp` update, share of the limit, {where}", 0.90, True, update(share, single))
    for single, where in ((False, "all threads"), (True, "one thread")):
        yield Target(
            f"`cpp` update against torch eager, {where}", 10, True, update(ratio("torch eager"), single), times
        )
        yield Target(
            f"`cpp` update against torch.compile, {where}", 1.5, True, update(ratio("torch.compile"), single), times
        )
    yield Target(
        "update against the published code, files on tmpfs, one thread",
        300,
        True,
        lambda machine: by(
            "adapters", ratio("published code"), [r for r in machine.find("update", threads=1) if "adapters" in r]
        ),
        "{:.0f}x".format,
    )
    for single, where in ((False, "all threads"), (True, "one thread")):
        yield Target(f"`cpp` mix, P = 20, n = 10, share of the limit, {where}", 0.85, True, mix(share, single))
        yield Target(
            f"`cpp` mix, P = 20, n = 10, against torch.matmul in bfloat16, {where}",
            1.5,
            True,
            mix(ratio("torch.matmul"), single, ("bfloat16",)),
            times,
        )
    yield Target(
        "one call from Python, P = 4, D = 100,000, beside the C++ function",
        10e-6,
        False,
        lambda machine: {row["dtype"]: row["overhead_seconds"] for row in machine.find("overhead", size=100_000)},
        seconds_text,
    )
    for backend in ("cuda", "triton"):
        yield Target(
            f"`{backend}` update, share of a copy on the device, worst of P 4 to 64, D 1e6 to 1e8",
            0.92,
            True,
            lambda machine, backend=backend: by("dtype", share, machine.find("update", backend=backend, headline=True)),
        )
    yield Target(
        "streaming from pinned memory, share of the PCIe copy in both directions",
        0.85,
        True,
        lambda machine: by("dtype", share, machine.find("stream", headline=True)),
    )
    yield Target(
        "growth: the worst point's distance from a line over two decades",
        0.05,
        False,
        lambda machine: {f"against {row['against']}": row["worst_deviation"] for row in machine.find("growth")},
        "{:.1%}".format,
    )
    yield Target(
        "memory of a swarm, of what the formula allows",
        1.0,
        False,
        lambda machine: {
            row["state"]: row["taken_bytes"] / row["bound_bytes"]
            for row in machine.find("rows")
            if "taken_bytes" in row
        },
    )
    yield from load_targets()
    yield from evaluate_targets()


def load_targets() -> Iterator[Target]:
    """Of one particle into an engine that runs."""
    times = "{:.3g}x".format

    def one(value: Callable[[Row], float], **facts: Any) -> Callable[[Machine], dict[str, float]]:
        # Their bound is an upper one, and there is one row each.
        return lambda machine: {
            str(row["kind"]): value(row) for row in machine.find("load", **facts) if not math.isnan(value(row))
        }

    yield Target(
        "load into a slot, of the fastest copy of the row", 1.2, False, one(fastest("row"), serve="slots"), times
    )
    yield Target(
        "load into a slot against vLLM's add_lora from a file",
        100,
        True,
        one(ratio("add_lora from a file"), serve="slots"),
        times,
    )
    yield Target(
        "load by merging, of the fastest copy of the base weights that it reads and writes",
        1.5,
        False,
        one(lambda row: fastest("base weights")(row) if row["kind"] == "lora" else fastest("row")(row), serve="merged"),
        times,
    )


def evaluate_targets() -> Iterator[Target]:
    """Of whole iterations, and of what surrounds an engine."""

    def whole(fact: str, **facts: Any) -> Callable[[Machine], dict[str, float]]:
        return lambda machine: {row["serve"]: row[fact] for row in machine.find("evaluate", **facts) if fact in row}

    def worst(fact: str, value: Callable[[Row], float] | None = None) -> Callable[[Machine], dict[str, float]]:
        def values(machine: Machine) -> dict[str, float]:
            found = [value(row) if value else float(row[fact]) for row in machine.find("evaluate") if fact in row]
            return {"": max(found)} if found else {}

        return values

    share = "share_of_base"
    yield Target(
        "a whole iteration, 10 particles, prompts a second of the plain base model's",
        0.95,
        True,
        whole(share, particles=10, stop_early=False),
    )
    yield Target(
        "particles in one step of an engine that serves mixtures",
        1000,
        True,
        worst("particles_in_a_step", lambda row: int(row["particles_in_a_step"])),
        "{:,.0f}".format,
    )
    yield Target(
        "moves with `stop_early`, prompts of a full evaluation a second, of the plain base model's",
        1.3,
        True,
        lambda machine: {
            f"{row['task']}, {row['serve']}": row[share]
            for row in machine.find("search", stop_early=True)
            if share in row
        },
    )
    yield Target(
        "idle share of the engine in an iteration",
        0.03,
        False,
        whole("idle_share", particles=10, stop_early=False),
        "{:.1%}".format,
    )
    yield Target(
        "driver of 100 particles of four prompts, all of an iteration but the time within the engine",
        5e-3,
        False,
        worst("overhead_seconds"),
        seconds_text,
    )
    yield Target(
        "a whole iteration against the published code on this CPU",
        20,
        True,
        lambda machine: {
            name.rpartition(" ")[2] + (", 2 engines" if row.get("engines") == 2 else ""): one["ratio"]
            for row in machine.find("search", published=True, stop_early=False)
            for name, one in row["baselines"].items()
        },
        "{:.3g}x".format,
    )
    yield Target(
        "memory beyond vLLM alone and the rows",
        200e6,
        False,
        worst("beyond_bytes"),
        bytes_text,
    )
    yield Target(
        "memory of a search over ten whole checkpoints beyond vLLM alone, without pages of a file of rows",
        4e9,
        False,
        lambda machine: {
            f"{row['state']}, host_memory {row['host_memory']}": row[
                "checkpoints_bytes" if row["host_memory"] == "none" else "unmapped_checkpoints_bytes"
            ]
            for row in machine.find("evaluate")
            if "checkpoints_bytes" in row
        },
        bytes_text,
    )
    yield Target(
        "start of the engine to the first prompt, of vLLM's alone",
        1.2,
        False,
        worst("beyond_bytes", lambda row: 1 / ratio("vLLM alone")(row)),
    )
