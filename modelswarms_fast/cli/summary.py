"""What a search prints when it has ended."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from modelswarms_fast.errors import visible
from modelswarms_fast.records.gain import expected
from modelswarms_fast.records.progress import log, say
from modelswarms_fast.records.stopping import exit_status, how_to_go_on

SMALLEST_SHARE = 0.005
"""Of an expert in the winner that is shown; a smaller one would be shown as 0.00."""


def show(summary: dict[str, Any], out: Path, model: str) -> None:
    """Print the best expert and the winner, what the winner is made of, and what to open first.

    Of a search that a signal has stopped it says how to go on, and exits with the status of that.

    Args:
        summary: the content of summary.json.
        out: the run folder.
        model: what of it holds the winner.
    """
    start, end, errors = summary["start"], summary["end"], summary["test_standard_error"]
    table = Table("", "", "dev", "test ± standard error", box=None)
    for label, name, which, scores in (
        ("best expert", start["expert"], "start", start),
        ("winner", f"particle {end['particle']}", "end", end),
    ):
        test = f"{scores['test']:.4f} ± {errors[which]:.4f}"
        table.add_row(label, Text(visible(name)), f"{scores['dev']:.4f}", test)
    console = Console(soft_wrap=True)
    console.print(table)
    if (words := expected(summary)) is not None:
        line(console, words)
    if summary["mixture"] is not None:
        shares = sorted(summary["mixture"].items(), key=lambda item: -abs(item[1]))
        shown = [f"{value:+.2f} {name}" for name, value in shares if abs(value) >= SMALLEST_SHARE]
        line(console, "winner = " + " ".join(shown))
    if "export_error" in summary:
        rank, error = summary["export_rank"], summary["export_error"]
        line(
            console,
            f"The exported winner is cut to rank {rank}; the relative error of its update matrices is {error:.3g}.",
        )
    line(console, f"Open {out / 'report.html'} first; the winner is {out / model}.")
    _details(summary)
    if summary["stopped"] == "interrupted":
        say(how_to_go_on(out))
        raise typer.Exit(exit_status())


def line(console: Console, text: str) -> None:
    """Print a line as it is: brackets in names are no markup, and no terminal obeys what it quotes."""
    console.print(visible(text), markup=False, highlight=False)


def _details(summary: dict[str, Any]) -> None:
    log.info(
        "%d dev and %d test examples; %d iterations, stopped by %s; %.1f prompts/s",
        summary["dev_examples"],
        summary["test_examples"],
        summary["iterations"],
        summary["stopped"],
        summary["prompts_per_second"],
    )
    log.info("seconds: %s", ", ".join(f"{name} {value:.1f}" for name, value in summary["seconds"].items()))
    if summary.get("objective"):
        log.info("objective: %s", ", ".join(f"{name} {value}" for name, value in summary["objective"].items()))


def wide_console() -> Console:
    """A console for tables: a file has room for wide ones."""
    return Console(width=None if sys.stdout.isatty() else 200)
