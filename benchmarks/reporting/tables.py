"""Tables of what the benchmarks have written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table


def tables(results: Mapping[str, Any]) -> list[Table]:
    """One table a group: every row with what was measured beside it in the same run."""
    rows = [benchmark["extra_info"] for benchmark in results["benchmarks"]]
    found = []
    for group in dict.fromkeys(row["group"] for row in rows):
        own = [row for row in rows if row["group"] == group]
        table = Table(title=group, title_justify="left")
        table.add_column("row", no_wrap=True)
        columns = columns_of(own)
        for column in columns:
            table.add_column(column, justify="right")
        for row in own:
            texts = cells(row)
            table.add_row(row["row"], *(texts.get(column, "") for column in columns))
        found.append(table)
    return found


def cells(row: Mapping[str, Any]) -> dict[str, str]:
    """What a row's extra_info says, by column; a baseline's column says how many times as long as ours it takes."""
    texts = {"threads": str(row["threads"])} if "threads" in row else {}
    texts["time"] = seconds_text(row["seconds"])
    if "GB/s" in row:
        texts["GB/s"] = f"{row['GB/s']:.1f}"
    if "limit" in row:
        texts |= {"limit": f"{max(row['limit'].values()):.1f}", "share of limit": f"{row['share_of_limit']:.2f}"}
    for name, baseline in row.get("baselines", {}).items():
        texts[f"vs {name}"] = f"{baseline['ratio']:.3g}" if baseline["ratio"] < 100 else f"{baseline['ratio']:.0f}"
    if "added_bytes" in row:
        texts["peak memory"] = bytes_text(row.get("rows_bytes", 0) + row["added_bytes"]["ours"])
    if "taken_bytes" in row:
        texts |= {"memory": bytes_text(row["taken_bytes"]), "at most": bytes_text(row["bound_bytes"])}
    if "overhead_seconds" in row:
        texts["overhead"] = seconds_text(row["overhead_seconds"])
    if "worst_deviation" in row:
        texts["off the line"] = f"{row['worst_deviation']:.1%}"
    if "prompts/s" in row:
        texts["prompts/s"] = f"{row['prompts/s']:.1f}"
    if "share_of_base" in row:
        texts["share of base"] = f"{row['share_of_base']:.2f}"
    if "least_share" in row:
        texts |= {"evaluated": f"{row['evaluated_share']:.2f}", "at least": f"{row['least_share']:.2f}"}
    if "idle_share" in row:
        texts["idle"] = f"{row['idle_share']:.1%}"
    if "beyond_bytes" in row:
        texts["beyond engine and rows"] = bytes_text(row["beyond_bytes"])
    if "unmapped_checkpoints_bytes" in row:
        texts["beyond engine"] = bytes_text(row["checkpoints_bytes"])
        texts["without files"] = bytes_text(row["unmapped_checkpoints_bytes"])
    if "GFLOP/s" in row:
        texts["GFLOP/s"] = f"{row['GFLOP/s']:.0f}"
    texts |= {name: seconds_text(seconds) for name, seconds in row.get("phases", {}).items()}
    return texts


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns of a table of these rows: baselines after the limit, the rest as it comes."""
    found = list(dict.fromkeys(column for row in rows for column in cells(row)))
    first = [name for name in ("threads", "time", "GB/s", "limit", "share of limit") if name in found]
    baselines = [name for name in found if name.startswith("vs ")]
    return [*first, *baselines, *(name for name in found if name not in {*first, *baselines})]


def machine(results: Mapping[str, Any]) -> str:
    """One line: what was measured, and on what."""
    info, commit = results["machine_info"], results["commit_info"]
    versions = ", ".join(f"{name} {number}" for name, number in info["versions"].items())
    dirty = " and changes that are not committed" if commit["dirty"] else ""
    place = f"{info['cpu']}, {info['cores']} cores" + (f", {info['gpu']}" if "gpu" in info else "")
    return f"{place}; Python {info['python']}, {versions}; commit {commit['id'][:7]}{dirty}"


def seconds_text(seconds: float) -> str:
    """Seconds in a unit in which they are readable."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if abs(seconds) * factor >= 1:
            return _short(seconds * factor, unit)
    return f"{seconds * 1e9:.0f} ns"


def bytes_text(count: float) -> str:
    """Bytes in a unit in which they are readable, powers of ten."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= factor:
            return _short(count / factor, unit)
    return f"{count:.0f} B"


def _short(number: float, unit: str) -> str:
    return f"{number:.0f} {unit}" if abs(number) >= 100 else f"{number:.3g} {unit}"
