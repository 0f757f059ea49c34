"""What `--dry-run` prints."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from modelswarms_fast.cli.summary import line
from modelswarms_fast.errors import visible


def show_dry_run(facts: dict[str, Any]) -> None:
    """Print the first prompts as they would be sent, and what the run would take.

    Args:
        facts: what `search` or `evaluate` returns for a dry run.
    """
    console = Console(soft_wrap=True)
    for number, one in enumerate(facts["prompts"]):
        title = f"prompt {number}: {one['tokens']} tokens"
        title += f", at most {one['new_tokens']} new" if one["new_tokens"] else ""
        console.print(Panel(Text(visible(one["prompt"])), title=Text(title), title_align="left"))
        if one["added"]:
            line(console, f"  before it, by the tokenizer: {' '.join(one['added'])}")
        if one["continuations"]:
            line(console, f"  likelihoods of: {', '.join(map(repr, one['continuations']))}")
        if one["expected"] is not None:
            line(console, f"  expected: {one['expected']!r}")
    examples = " and ".join(f"{count} {split}" for split, count in facts["examples"].items())
    line(console, f"examples: {examples}")
    for sentence in (*facts["data_read"], *facts["data_warnings"]):
        line(console, f"  {sentence}")
    longest = facts["longest"]
    line(
        console,
        f"longest prompt: {longest['tokens']} of {longest['max_model_len']} tokens with what follows it "
        f"({longest['split']} example {longest['example']})",
    )
    _plan(console, facts)
    for number, text in enumerate(facts.get("memory_lines", ())):
        line(console, f"  {text}" if number else f"memory: {text}")
    if "state" in facts:
        line(console, f"state: {facts['state']} ({facts['state_reason']})")
    ways = f", serving {' or '.join(facts['serve'])}" if "serve" in facts else ""
    line(console, f"engine: {facts['engine']} in {facts['dtype']}{ways}")
    _time(console, facts["rough_seconds"])
    line(console, "Nothing was started, and nothing was written.")


def _plan(console: Console, facts: dict[str, Any]) -> None:
    plan = facts["plan"]
    swarm = ""
    if "particles" in plan:
        swarm = (
            f"policy {plan['policy']} in the space {plan['space']}, {plan['particles']} particles, at most "
            f"{plan['iterations']} iterations, which end after {plan['patience']} without a new best; "
        )
    line(
        console,
        f"plan: {swarm}at most {plan['requests']:,} prompts, {plan['prompt_tokens']:,} tokens to read, "
        f"{plan['new_tokens']:,} to write",
    )
    if facts["follow_up"]:
        line(console, "  not counted: what may be asked after a first answer")


def _time(console: Console, seconds: dict[str, float]) -> None:
    if "evaluation" in seconds:
        text = _duration(seconds["evaluation"])
    else:
        text = f"{_duration(seconds['iteration'])} an iteration"
        if seconds["most"] > seconds["iteration"]:
            text += f", {_duration(seconds['least'])} to {_duration(seconds['most'])} in all"
    line(console, f"rough time: {text}, by arithmetic; the start of the engine comes on top")


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return f"{max(seconds, 1.0):.0f} s"
