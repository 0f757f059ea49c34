"""Write docs/results.md from the JSON files of quality.py, claims.py, findings.py and of the demo.

python -m benchmarks.reporting.write_results
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.quality.claims import CLAIMS as PLANNED
from benchmarks.reporting.write_performance import STYLE
from modelswarms_fast.records.analysis import emergence, studies, trajectory
from modelswarms_fast.records.style import svg
from modelswarms_fast.runs.baselines import METHODS

HERE = Path(__file__).parents[1]
RESULTS = HERE / "results" / "quality"
CLAIMS = HERE / "results" / "claims"
MORE = CLAIMS / "larger_budget"
FINDINGS = HERE / "results" / "findings"
TARGET = HERE.parent / "docs" / "results.md"
FIGURES = TARGET.parent / "figures"
PANELS = 4  # a row of the figure
PHASES = ("setup", "update", "load", "generate", "score", "test", "total")

INTRODUCTION = """\
# Results

Written by `benchmarks/reporting/write_results.py` from the JSON files in `benchmarks/results/quality/`, which
`benchmarks/quality/quality.py` made. Every search ran ten LoRA experts of SmolLM2-135M-Instruct (rank 4, all linear
layers, one domain each, trained for 80 steps) as ten particles on one resident vLLM engine, `serve="merged"`,
`state="weights"`, bfloat16, greedy decoding. The search sees the dev split alone; the winner is exported, read back
from the disk and scored on the test split once. "Best expert" is the initial expert with the highest dev score, which
is what one would deploy without a search. A score stands with its standard error, sqrt(p (1 - p) / n); the dev score of
a winner is the largest of many evaluations of the same examples and therefore biased upward, the test score is not. The
error of a gain is the unpaired one, larger than the paired where winner and expert are right on the same examples.
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
        # The unpaired error. Both are of the same examples, so it is too large where the two go up and down together.
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


def load_claims(folder: Path) -> list[dict[str, Any]]:
    """The comparison of each task, in the order of claims.py."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return sorted(found, key=lambda claim: list(PLANNED).index(claim["name"]))


def methods_of(claims: list[dict[str, Any]]) -> list[str]:
    """Names of all methods, in the order of docs/baselines.md."""
    seen = {name for claim in claims for name in claim["methods"]}
    return [name for name in METHODS if name in seen]


def overview(claims: list[dict[str, Any]]) -> list[str]:
    """One line a method: its test score on each task, the best in bold, and how often Model Swarms was ahead."""
    lines = ["| | " + " | ".join(claim["name"] for claim in claims) + " |", "|---|" + "---|" * len(claims)]
    for name in methods_of(claims):
        cells = []
        for claim in claims:
            result = claim["methods"].get(name)
            best = max(one["test"] for one in claim["methods"].values())
            text = "" if result is None else f"{result['test']:.3f} ± {result['test_standard_error']:.3f}"
            cells.append(f"**{text}**" if result and result["test"] == best else text)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def claim_rows(claim: dict[str, Any]) -> list[str]:
    """One line a method: dev, test, what it cost, and the paired bootstrap."""
    config, examples = claim["config"], claim["examples"]
    lines = [
        f"### {claim['name']}\n",
        f"`{config['task']}` on {' and '.join(examples['files'])}; {examples['dev']} dev and up to {examples['test']} "
        f"test examples a file, {config['budget']} evaluations a method, seed {config['seed']}.\n",
        "| | dev | test | Model Swarms ahead by (95 % interval) | in | evaluations | prompts | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    against = claim.get("against_model_swarms", {})
    for name in methods_of([claim]):
        result, ahead = claim["methods"][name], ""
        share = ""
        if name in against:
            low, high = against[name]["interval"]
            ahead, share = f"{against[name]['difference']:+.3f} ({low:+.3f} to {high:+.3f})", against[name]["share"]
            share = f"{share:.0%}"
        dev = "" if result["dev"] is None else f"{result['dev']:.3f}"
        lines.append(
            f"| {name} | {dev} | {result['test']:.3f} ± {result['test_standard_error']:.3f} | {ahead} | {share} "
            f"| {result['evaluations']} | {result['prompts']} | {result['seconds']:.0f} |"
        )
    return [*lines, ""]


def draw_claims(claims: list[dict[str, Any]]) -> None:
    """A panel a task and in it a row a method: test scores with their standard errors."""
    names = methods_of(claims)[::-1]
    with rc_context(STYLE):
        rows = -(-len(claims) // PANELS)
        figure = Figure(figsize=(9.5, rows * (0.7 + 0.2 * len(names))))
        panels = figure.subplots(rows, PANELS, sharey=True, squeeze=False)
        for panel, claim in zip(panels.flat, claims, strict=False):
            for place, name in enumerate(names):
                if result := claim["methods"].get(name):
                    colour = "C3" if name == "model_swarms" else "C0"
                    error = result["test_standard_error"]
                    panel.errorbar(result["test"], place, xerr=error, fmt="o", markersize=4, color=colour, linewidth=1)
            if "model_swarms" in claim["methods"]:
                panel.axvline(claim["methods"]["model_swarms"]["test"], color="C3", linewidth=0.6)
            panel.set_title(claim["name"].replace("+", "\n+ "), fontsize=8)
            panel.grid(axis="y", visible=False)
        for panel in panels.flat[len(claims) :]:
            panel.set_visible(False)
        panels[0][0].set_yticks(range(len(names)), names)
        figure.supxlabel("test score ± standard error", fontsize=8)
        figure.tight_layout()
        figure.savefig(FIGURES / "claims.svg", metadata={"Date": None})


def comparison() -> list[str]:
    """Model Swarms beside all other methods."""
    if not (claims := load_claims(CLAIMS)):
        return []
    draw_claims(claims)
    notes = CLAIMS / "notes.md"
    return [
        "## Model Swarms and other ways to compose the same experts\n",
        "Made by `benchmarks/quality/claims.py`, one run of each method on a task, some methods later than others",
        "(each file lists its commits), all before norms and activations of the CPU engine became kernels that round",
        "otherwise (64f64e3), so that the same run may now end elsewhere: the ten experts, one resident engine, the",
        "same dev examples, and at most as many evaluations on them for each method as for Model Swarms, those of the",
        "experts among them.",
        "A method chooses by dev alone; what it has chosen is scored on test once ([baselines.md](baselines.md)). The",
        "interval is a paired bootstrap over the test examples, `in` the share of its samples in which Model Swarms is",
        "ahead.\n",
        "![Test scores of all methods](figures/claims.svg)\n",
        *overview(claims),
        "",
        *([notes.read_text()] if notes.exists() else []),
        *(line for claim in claims for line in claim_rows(claim)),
        *larger_budget(),
    ]


def larger_budget() -> list[str]:
    """The methods that can use more evaluations, with more of them."""
    if not (claims := load_claims(MORE)):
        return []
    return [
        "## The methods that search, with more evaluations\n",
        *overview(claims),
        "",
        (MORE / "notes.md").read_text(),
        *(line for claim in claims for line in claim_rows(claim)),
    ]


def findings() -> list[str]:
    """What happens in a swarm, and what each part of it does, task by task."""
    found = [json.loads(path.read_text()) for path in sorted(FINDINGS.glob("*.json"))]
    if not found:
        return []
    notes = FINDINGS / "notes.md"
    return [
        "## Findings\n",
        "Made by `benchmarks/quality/findings.py`: one search whose experts and particles are all scored on test",
        "afterwards, and studies, in which searches differ in one thing ([analysis.md](analysis.md)). Test is the mean",
        "of the seeds with its standard error over them; `beside the first` is the same of the differences in pairs of",
        "equal seeds, which leaves out what the test examples themselves are uncertain by. Of equal particles each has",
        "the mean of their ranks.\n",
        *([notes.read_text()] if notes.exists() else []),
        *(line for one in found for line in finding_rows(one)),
    ]


def finding_rows(one: dict[str, Any]) -> list[str]:
    """Emergence and studies of one task, with their figures."""
    name, summary = one["name"], one["search"]

    def figure(kind: str, plot: Any, numbers: Any) -> str:
        (FIGURES / f"{name}-{kind}.svg").write_bytes(svg(plot, numbers))
        return f"![{kind} on {name}](figures/{name}-{kind}.svg)\n"

    start, end, error = summary["start"], summary["end"], summary["test_standard_error"]["end"]
    lines = [
        f"### {name}\n",
        f"The search: {summary['dev_examples']} dev and {summary['test_examples']} test examples, "
        f"{summary['particles']} particles, {summary['iterations']} iterations, seed {summary['seed']}. Best expert "
        f"({start['expert']}): dev {start['dev']:.3f}, test {start['test']:.3f}; winner: dev {end['dev']:.3f}, test "
        f"{end['test']:.3f} ± {error:.3f}; {summary['prompts']} prompts, {summary['seconds']['total']:.0f} s.\n",
    ]
    analysis = one["analysis"]
    if (numbers := analysis.get("emergence", {}).get("test")) and numbers["missed_by_all_experts"]:
        lines += [
            f"On test, C-surge is {numbers['c_surge']:.3f}: so many questions are answered by more particles than at "
            f"the start (fewer: {numbers['c_fall']:.3f}). All experts miss {numbers['missed_by_all_experts']} of the "
            f"{numbers['questions']} questions, and C-emerge is {numbers['c_emerge']:.3f} ± "
            f"{numbers['c_emerge_standard_error']:.3f}: a final particle answers {numbers['per_particle']:.3f} of "
            f"them, one more expert would {numbers['one_more_expert']:.3f}.\n",
            figure("emergence", emergence.plot, analysis["emergence"]),
        ]
    if "trajectory" in analysis:
        lines.append(figure("trajectory", trajectory.plot, analysis["trajectory"]))
    for kind, study in one["studies"].items():
        lines += study_rows(kind, study)
        lines.append(figure(kind, studies.plot, study))
    return lines


def study_rows(kind: str, study: dict[str, Any]) -> list[str]:
    """One line a variant."""

    def spread(numbers: dict[str, float | None] | None, sign: str = "") -> str:
        if numbers is None or numbers["mean"] is None:
            return ""
        error = "" if numbers["error"] is None else f" ± {numbers['error']:.3f}"
        return f"{numbers['mean']:{sign}.3f}{error}"

    best = study["best_expert"]
    lines = [
        f"#### {kind} on {study['dataset']}\n",
        f"{study['dev_examples']} dev and {study['test_examples']} test examples, {study['seeds']} seeds a variant. "
        f"Best expert: {best['expert']}, dev {best['dev']:.3f}, test {best['test']:.3f} ± "
        f"{best['test_standard_error']:.3f}.\n",
        "| | dev | test | beside the first | evaluations | ranks of the winners at the start |",
        "|---|---|---|---|---|---|",
    ]
    for index, (variant, numbers) in enumerate(study["summary"].items()):
        ranks = ", ".join(f"{rank:g}" for rank in numbers["weak_to_strong"]["ranks"])
        beside = "" if index == 0 else spread(numbers["test_beside_the_first"], "+")
        lines.append(
            f"| {variant} | {spread(numbers['dev'])} | {spread(numbers['test'])} | {beside} "
            f"| {numbers['evaluations']['mean']:.0f} | {ranks} |"
        )
    return [*lines, ""]


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
        *comparison(),
        *findings(),
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
