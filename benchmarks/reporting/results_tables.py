"""Every table of the results: the READMEs beside the JSON of quality, claims and findings."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from benchmarks.machine import latest
from benchmarks.quality.claims import CLAIMS as PLANNED
from modelswarms_fast.runs.baselines import METHODS

RESULTS = Path(__file__).parents[1] / "results"
PHASES = ("setup", "update", "load", "generate", "score", "test", "total")
BESIDE = (
    "Written by `python -m benchmarks.reporting.write_results`; "
    "[docs/results.md](../../../docs/results.md) has the summary."
)

SETTING = """\
Ten LoRA experts of SmolLM2-135M-Instruct (rank 4, all linear layers, one domain each, 80 training steps) are the
particles. The search sees the dev split alone. What it chose is scored on the test split once. "Best expert" is the
initial expert with the highest dev score: what one would use without a search. Reward and judge, and the demo, have the
eight example experts.
"""

GEMMA = """\
Three LoRA experts of Gemma 3 270M (pretrained, 4-bit weights dequantised to bfloat16): sentiment, topic and
paraphrase, made by `benchmarks/quality/train.py` with 60 batches of 8 examples each. p3_three is the first 40 dev and
100 test examples of each of the three domains; no expert covers all of them. vLLM on a CPU, `serve="merged"`, six
particles, four moves; nothing was tuned. Scores stand with their standard errors; the error of a gain is unpaired.
"""

QUALITY = """\
Every search ran on one resident vLLM engine, `serve="merged"`, `state="weights"`, bfloat16, greedy decoding. A score
stands with its standard error, sqrt(p (1 - p) / n). The dev score of a winner is the largest of many evaluations of the
same examples and therefore too high; the test score is not. The error of a gain is the unpaired one, larger than the
paired where winner and expert are right on the same examples.
"""

CLAIMS = """\
Made by `benchmarks/quality/claims.py`: the ten experts, one resident engine, the same dev examples, and at most as many
evaluations on them for each method as for Model Swarms, those of the experts among them. A method chooses by dev alone;
what it chose is scored on test once. The interval is a paired bootstrap over the test examples; `in` is the share of
its samples in which Model Swarms is ahead. Some methods ran later than others (each file lists its commits), all before
norms and activations of the CPU engine became kernels that round otherwise (64f64e3): the same run may now end
elsewhere.
"""

FINDINGS = """\
Made by `benchmarks/quality/findings.py`: one search whose experts and particles are all scored on test afterwards, and
studies, in which searches differ in one thing. Test is the mean of the seeds with its standard error over them; `beside
the first` is the same of the differences in pairs of equal seeds. Of equal particles each has the mean of their ranks.
"""

Result = dict[str, Any]


def load(folder: Path) -> list[Result]:
    """The latest result of each folder in a folder, by name."""
    found = [latest(path) for path in sorted(folder.iterdir()) if path.is_dir()]
    return [json.loads(path.read_text()) for path in found if path is not None]


def load_claims(folder: Path) -> list[Result]:
    """The comparison of each task, in the order of claims.py."""
    return sorted(load(folder), key=lambda claim: list(PLANNED).index(claim["name"]))


def notes_of(folder: Path) -> list[str]:
    """What was learned, written by hand."""
    path = folder / "notes.md"
    return [path.read_text()] if path.exists() else []


def scored(value: float, count: int) -> str:
    """A share of right answers with its standard error."""
    return f"{value:.3f} ± {math.sqrt(value * (1 - value) / count):.3f}"


def quality_rows(results: list[Result]) -> list[str]:
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


def time_rows(results: list[Result]) -> list[str]:
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


def mixtures(results: list[Result]) -> list[str]:
    """What each winner is made of."""
    lines = ["| task | seed | winner |", "|---|---|---|"]
    for result in results:
        parts = sorted(result["summary"]["mixture"].items(), key=lambda part: -abs(part[1]))
        text = " ".join(f"{value:+.2f} {name}" for name, value in parts if abs(value) >= 0.005)
        lines.append(f"| {result['name']} | {result['summary']['seed']} | {text} |")
    return lines


def methods_of(claims: list[Result]) -> list[str]:
    """Names of all methods, in the order of docs/reference/baselines.md."""
    seen = {name for claim in claims for name in claim["methods"]}
    return [name for name in METHODS if name in seen]


def overview(claims: list[Result]) -> list[str]:
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


def claim_rows(claim: Result) -> list[str]:
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


def finding_rows(one: Result) -> list[str]:
    """Emergence and studies of one task."""
    name, summary = one["name"], one["search"]

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
        ]
    for kind, study in one["studies"].items():
        lines += study_rows(kind, study)
    return lines


def spread(numbers: dict[str, float | None] | None, sign: str = "") -> str:
    """A mean over seeds with its error."""
    if numbers is None or numbers["mean"] is None:
        return ""
    error = "" if numbers["error"] is None else f" ± {numbers['error']:.3f}"
    return f"{numbers['mean']:{sign}.3f}{error}"


def study_rows(kind: str, study: Result) -> list[str]:
    """One line a variant."""

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


def demo_rows(result: Result) -> list[str]:
    """The demo's winner beside every expert, on test."""
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


def quality_readme() -> list[str]:
    """Scores, seconds and winners of every search."""
    folder = RESULTS / "quality"
    results = [one for one in load(folder) if "history" in one]
    demo = next(one for one in load(folder) if "test" in one)
    machines = sorted({", ".join(f"{key} {value}" for key, value in result["machine"].items()) for result in results})
    return [
        "# Searches on every task\n", BESIDE, "", SETTING, QUALITY, "## Scores\n", *quality_rows(results), "",
        *notes_of(folder), *demo_rows(demo), "## Seconds by phase\n", *time_rows(results), "",
        "Made on: " + "; ".join(machines) + ".", "", "## What the winners are made of\n", *mixtures(results),
    ]  # fmt: skip


def claims_readme() -> list[str]:
    """Every method on every task."""
    folder = RESULTS / "claims"
    claims, more = load_claims(folder), load_claims(folder / "larger_budget")
    return [
        "# Model Swarms and other ways to compose the same experts\n",
        BESIDE, "", SETTING, CLAIMS, *overview(claims), "",
        *notes_of(folder), *(line for claim in claims for line in claim_rows(claim)),
        "## The methods that search, with more evaluations\n", *overview(more), "", *notes_of(folder / "larger_budget"),
        *(line for claim in more for line in claim_rows(claim)),
    ]  # fmt: skip


def findings_readme() -> list[str]:
    """What happens in a swarm, and what each part of it does, task by task."""
    folder = RESULTS / "findings"
    rows = [line for one in load(folder) for line in finding_rows(one)]
    return ["# What happens in a swarm\n", BESIDE, "", SETTING, FINDINGS, *notes_of(folder), *rows]
