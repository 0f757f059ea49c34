"""Write docs/results.md and its figures, and a README.md beside the files of quality, claims and findings.

    python -m benchmarks.reporting.write_results

The page has a figure, five sentences, a table of the tasks, all methods beside each other and what each part of the
search adds. The READMEs have every table.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.reporting.results_tables import (
    GEMMA,
    RESULTS,
    SETTING,
    Result,
    claims_readme,
    findings_readme,
    load,
    load_claims,
    methods_of,
    mixtures,
    notes_of,
    quality_readme,
    quality_rows,
    spread,
)
from benchmarks.reporting.write_performance import STYLE

ROOT = Path(__file__).parents[2]
PANELS = 4  # a row of the figure


def is_gain(against: Result) -> int:
    """1 or -1 where the interval of a difference leaves out 0, else 0."""
    low, high = against["interval"]
    return int(low > 0) - int(high < 0)


def best_method(claim: Result) -> tuple[str, float]:
    """The method with the highest test score, and that score."""
    name = max(claim["methods"], key=lambda method: claim["methods"][method]["test"])
    return name, claim["methods"][name]["test"]


def headline_rows(claims: list[Result], demo: Result) -> list[str]:
    """One line a task."""
    lines = [
        "| task | dev examples | best expert | Model Swarms | difference (95 % interval) | best method |",
        "|---|---|---|---|---|---|",
    ]
    start, end = demo["summary"]["start"], demo["summary"]["end"]
    lines.append(
        f"| demo: mix of four skills | {demo['summary']['dev_examples']} | {start['test']:.3f} | {end['test']:.3f} "
        f"| {end['test'] - start['test']:+.3f} | others not run |"
    )
    for claim in claims:
        expert, swarm = (claim["methods"][name]["test"] for name in ("best_expert", "model_swarms"))
        against = claim["against_model_swarms"]["best_expert"]
        low, high = against["interval"]
        name, score = best_method(claim)
        lines.append(
            f"| {claim['name']} | {claim['examples']['dev'] * len(claim['examples']['files'])} | {expert:.3f} "
            f"| {swarm:.3f} | {against['difference']:+.3f} ({low:+.3f} to {high:+.3f}) | {name}, {score:.3f} |"
        )
    return lines


def sentences(claims: list[Result], demo: Result, quality: list[Result]) -> list[str]:
    """What a reader should know, five times one sentence."""
    summary, base = demo["summary"], demo["test"]["base"]["test"]
    against = {claim["name"]: claim["against_model_swarms"]["best_expert"] for claim in claims}

    def listed(sign: int) -> str:
        return ", ".join(f"{name} ({one['difference']:+.3f})" for name, one in against.items() if is_gain(one) == sign)

    same = sum(is_gain(one) == 0 for one in against.values())
    first = sum(best_method(claim)[0] == "model_swarms" for claim in claims)
    few = [one["summary"] for one in quality if one["name"] == "p3_paraphrase"]
    mixed = [one["summary"] for one in quality if one["name"] == "p3_mixed"]
    gains = ", ".join(f"{one['end']['test'] - one['start']['test']:+.3f}" for one in mixed)
    dev, test = ([one["end"][split] - one["start"][split] for one in few] for split in ("dev", "test"))
    found = [
        f"1. On the demo's mix of skills the winner answers {summary['end']['test']:.3f} of {summary['test_examples']} "
        f"test questions, the best single expert {summary['start']['test']:.3f}, the base model {base:.3f}.",
        f"2. With 50 evaluations a method, Model Swarms is ahead of the best expert on {listed(1)}, behind it on "
        f"{listed(-1)}, and within the errors on {same} of {len(claims)} tasks.",
        f"3. Of all methods that were compared it is the best on {first} of {len(claims)} tasks.",
        f"4. The seed matters: four searches on p3_mixed with 200 dev examples changed the test score by {gains}.",
        f"5. Few dev examples are fitted: on p3_paraphrase with 40 of them dev rose by {min(dev):.3f} to "
        f"{max(dev):.3f} in {len(dev)} searches, and test changed by {min(test):+.3f} to {max(test):+.3f}.",
    ]
    return [*(textwrap.fill(sentence, 118, subsequent_indent="   ") for sentence in found), ""]


def ablation_rows(findings: list[Result]) -> list[str]:
    """One line a variant, each task with its whole search beside it."""
    studies = {one["name"]: one["studies"]["ablation"] for one in findings if "ablation" in one["studies"]}
    head = " | ".join(f"{name}, test | {name}, beside all" for name in studies)
    lines = [f"| | {head} |", "|---|" + "---|" * 2 * len(studies)]
    for variant in next(iter(studies.values()))["summary"]:
        cells = []
        for study in studies.values():
            numbers = study["summary"][variant]
            cells += [
                spread(numbers["test"]),
                "" if variant == "all" else spread(numbers["test_beside_the_first"], "+"),
            ]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return [*lines, ""]


def draw_gains(claims: list[Result], target: Path) -> None:
    """Model Swarms beside the best expert on each task whose score is a share, with the interval of the difference."""
    shown = [claim for claim in claims if claim["methods"]["best_expert"]["test"] <= 1][::-1]
    with rc_context(STYLE):
        figure = Figure(figsize=(7.5, 0.8 + 0.32 * len(shown)))
        axes = figure.subplots()
        for place, claim in enumerate(shown):
            against = claim["against_model_swarms"]["best_expert"]
            low, high = against["interval"]
            colour = {1: "C2", 0: "0.5", -1: "C3"}[is_gain(against)]
            axes.plot([low, high], [place, place], color=colour, linewidth=2)
            axes.plot(against["difference"], place, "o", color=colour)
        axes.axvline(0, color="0.3", linewidth=0.8)
        axes.set_yticks(range(len(shown)), [claim["name"] for claim in shown])
        axes.set_xlabel("test score of Model Swarms minus that of the best expert, 95 % interval")
        axes.grid(axis="y", visible=False)
        figure.tight_layout()
        figure.savefig(target, metadata={"Date": None})


def draw_claims(claims: list[Result], target: Path) -> None:
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
        figure.savefig(target, metadata={"Date": None})


def page(figures: Path) -> list[str]:
    """docs/results.md; its figures are written."""
    claims, findings, everything = (
        load_claims(RESULTS / "claims"),
        load(RESULTS / "findings"),
        load(RESULTS / "quality"),
    )
    quality = [one for one in everything if "history" in one]
    demo = next(one for one in everything if "test" in one)
    gemma = load(RESULTS / "gemma")
    figures.mkdir(parents=True, exist_ok=True)
    draw_gains(claims, figures / "gains.svg")
    draw_claims(claims, figures / "claims.svg")
    return [
        "# Results\n",
        "![Model Swarms beside the best expert on each task](figures/gains.svg)\n",
        *sentences(claims, demo, quality),
        "## Setting\n", SETTING,
        "## Every task\n", *headline_rows(claims, demo), "",
        "Judge is a score of 1 to 10, the others are shares. The demo was run with one seed, and no other method.\n",
        *notes_of(RESULTS),
        "## All methods\n",
        "![Test scores of all methods on all tasks](figures/claims.svg)\n",
        "Each method had at most 50 evaluations on the same dev examples. The red line is Model Swarms.\n",
        "## What each part of the search adds\n",
        "Mean of two seeds with its standard error; `beside all` is the difference to it, seed by seed.\n",
        *ablation_rows(findings),
        "With two seeds nothing can be told apart. No part of the search is shown to matter at three to five moves.\n",
        "## Another base: Gemma 3 270M\n", GEMMA, *quality_rows(gemma), "", *mixtures(gemma), "",
        "## Where the numbers are\n",
        "`benchmarks/results/{quality,claims,findings,gemma}` hold the JSON of each run; the first three also have a",
        "`README.md` with every table.",
        "This page is written by `python -m benchmarks.reporting.write_results`.",
    ]  # fmt: skip


def documents(figures: Path) -> dict[Path, str]:
    """Text of each file that is written."""
    texts = {
        ROOT / "docs" / "results.md": page(figures),
        RESULTS / "quality" / "README.md": quality_readme(),
        RESULTS / "claims" / "README.md": claims_readme(),
        RESULTS / "findings" / "README.md": findings_readme(),
    }
    return {path: "\n".join(lines).rstrip("\n") + "\n" for path, lines in texts.items()}


def main() -> None:
    """Write everything."""
    for path, text in documents(ROOT / "docs" / "figures").items():
        path.write_text(text)


if __name__ == "__main__":
    main()
