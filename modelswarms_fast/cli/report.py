"""`report`: the report of a run, written again."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from modelswarms_fast.cli.options import FLAGS, read_pairs, value_of


def report_command(
    run: Annotated[Path, typer.Argument(help="The folder of a search, ended or not.")],
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Score its experts and particles on test first; starts an engine.")
    ] = False,
    plots: Annotated[Path | None, typer.Option(help="Folder for the plots as SVG files.")] = None,
    task: Annotated[str | None, typer.Option(help="For --evaluate: the run's task, if it imports code.")] = None,
    policy: Annotated[
        str | None, typer.Option(help="For --evaluate: the policy of the run, if that is a class.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="For --evaluate: an option of the run's task that calls a server.")
    ] = None,
    engine_option: Annotated[
        list[str] | None, typer.Option(help="For --evaluate: an option of the run's engine that is no number.")
    ] = None,
) -> None:
    """Write report.html of RUN again, with all analyses that its files allow.

    What RUN would import or call for --evaluate is asked for: RUN may be somebody else's.
    """
    from modelswarms_fast.runs.report import report as write

    given = given_again(task, option, engine_option) | {"policy": policy}
    print("\n".join(map(str, write(run, evaluate=evaluate, plots=plots, given=given, ask=asker()))))


def given_again(task: str | None, option: list[str] | None, engine_option: list[str] | None) -> dict[str, Any]:
    """Settings of a run that the user has given again, as `check_trusted` takes them."""
    texts = read_pairs(engine_option, FLAGS["engine_options"])
    engine_options = {name: value_of(text) for name, text in texts.items()}
    return {"task": task, "options": read_pairs(option), "engine_options": engine_options}


def asker() -> Callable[[str], bool] | None:
    """What puts a question to the user; None where there is no terminal to answer at."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    return lambda question: typer.confirm(question, err=True)
