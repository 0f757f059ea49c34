"""Write docs/results.md from the JSON files of quality.py and of the demo: python benchmarks/write_results.py."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "quality"
TARGET = HERE.parent / "docs" / "results.md"
PHASES = ("setup", "update", "load", "generate", "score", "test", "total")

INTRODUCTION = """\
# Results

Written by `benchmarks/write_results.py` from the JSON files in `benchmarks/results/quality/`, which
`benchmarks/quality.py` made. Every search ran ten LoRA experts of SmolLM2-135M-Instruct (rank 4, all linear layers,
one domain each, trained for 80 steps) as ten particles on one resident vLLM engine, `serve="merged"`,
`state="weights"`, bfloat16, greedy decoding. The search sees the dev split alone; the winner is exported, read back
from the disk and scored on the test split once. "Best expert" is the initial expert with the highest dev score, which
is what one would deploy without a search. A score stands with its standard error, sqrt(p (1 - p) / n); the dev score of
a winner is the largest of many evaluations of the same examples and therefore biased upward, the test score is not.
"""


def scored(value: float, count: int) -> str:
    """A share of right answers with its standard error."""
    return f"{value:.3f} ± {math.sqrt(value * (1 - value) / count):.3f}"


def load() -> list[dict[str, Any]]:
    """Every result, by name and seed."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]


def quality_rows(results: list[dict[str, Any]]) -> list[str]:
    """One line a search: the base, the best expert and Model Swarms."""
    lines = [
        "| task | seed | examples dev / test | | base | best expert | Model Swarms | gain on test |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        summary = result["summary"]
        start, end = summary["start"], summary["end"]
        counts = {"dev": summary["dev_examples"], "test": summary["test_examples"]}
        gain = end["test"] - start["test"]
        # Two shares of the same examples: without pairing the error of a difference is at most this.
        error = math.sqrt(sum(row["test"] * (1 - row["test"]) for row in (start, end)) / counts["test"])
        for split, count in counts.items():
            first = (
                f"| {result['name']} | {summary['seed']} | {counts['dev']} / {counts['test']} "
                if split == "dev"
                else "| | | "
            )
            last = "" if split == "dev" else f"{gain:+.3f} ± {error:.3f}"
            expert = f" ({start['expert']})" if split == "dev" else ""
            lines.append(
                f"{first}| {split} | {scored(result['base'][split], count)} | {scored(start[split], count)}{expert} "
                f"| {scored(end[split], count)} | {last} |"
            )
    return lines


def time_rows(results: list[dict[str, Any]]) -> list[str]:
    """One line a search: seconds by phase."""
    lines = [
        "| task | seed | iterations | evaluations | prompts | prompts/s | " + " | ".join(PHASES) + " |",
        "|---|---|---|---|---|---|" + "---|" * len(PHASES),
    ]
    for result in results:
        summary = result["summary"]
        seconds = " | ".join(f"{summary['seconds'][phase]:.2f}" for phase in PHASES)
        lines.append(
            f"| {result['name']} | {summary['seed']} | {summary['iterations']} | {summary['evaluations']} "
            f"| {summary['prompts']} | {summary['prompts_per_second']:.1f} | {seconds} |"
        )
    return lines


def mixtures(results: list[dict[str, Any]]) -> list[str]:
    """What each winner is made of."""
    lines = ["| task | seed | winner |", "|---|---|---|"]
    for result in results:
        parts = sorted(result["summary"]["mixture"].items(), key=lambda part: -abs(part[1]))
        text = " ".join(f"{value:+.2f} {name}" for name, value in parts if abs(value) >= 0.005)
        lines.append(f"| {result['name']} | {result['summary']['seed']} | {text} |")
    return lines


def demo() -> list[str]:
    """The demo's winner beside every expert, on test."""
    path = HERE / "results" / "demo.json"
    if not path.exists():
        return []
    result = json.loads(path.read_text())
    summary = result["summary"]
    rows = {name: (row["test"], row["standard_error"]) for name, row in result["test"].items()}
    rows["**Model Swarms**"] = (summary["end"]["test"], summary["test_standard_error"]["end"])
    return [
        "## The demo\n",
        f"`make demo`: eight example experts, the mix of four skills; {summary['dev_examples']} dev examples, "
        f"{summary['iterations']} iterations, seed {summary['seed']}, {summary['seconds']['total']:.0f} s in all.",
        f"On dev the best expert ({summary['start']['expert']}) has {summary['start']['dev']:.3f} and the winner "
        f"{summary['end']['dev']:.3f}; on the {summary['test_examples']} test examples:\n",
        "| | test |",
        "|---|---|",
        *(f"| {name} | {mean:.3f} ± {error:.3f} |" for name, (mean, error) in sorted(rows.items(), key=lambda r: r[1])),
        "",
    ]


def main() -> None:
    """Write the document."""
    results = load()
    machines = sorted({", ".join(f"{key} {value}" for key, value in result["machine"].items()) for result in results})
    notes = HERE / "results" / "quality" / "notes.md"
    text = [
        INTRODUCTION,
        "## Scores\n",
        *quality_rows(results),
        "",
        *([notes.read_text()] if notes.exists() else []),
        *demo(),
        "## Seconds by phase\n",
        *time_rows(results),
        "",
        "Made on: " + "; ".join(machines) + ".",
        "",
        "## What the winners are made of\n",
        *mixtures(results),
    ]
    TARGET.write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
