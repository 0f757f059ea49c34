"""`resume`: going on with a run that was cut."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modelswarms_fast.cli.compare import show_comparison
from modelswarms_fast.cli.options import settings
from modelswarms_fast.cli.report import asker
from modelswarms_fast.cli.study import show_study
from modelswarms_fast.cli.summary import show
from modelswarms_fast.cli.sweep import show_sweep
from modelswarms_fast.records.progress import say


@settings()
def resume_command(
    run: Annotated[Path, typer.Argument(help="The folder of a search, token-swarm, comparison, sweep or study.")],
    iterations: Annotated[int | None, typer.Option(help="Most iterations, if they are to be more than before.")] = None,
    patience: Annotated[int | None, typer.Option(help="Patience, if it is to be more than before.")] = None,
    budget: Annotated[str | None, typer.Option(help="Budget of a search, if it is to be more than before.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Go on although experts, data, base or versions have changed since.")
    ] = False,
    task: Annotated[str | None, typer.Option(help="Of somebody else's run: its task, if it imports code.")] = None,
    policy: Annotated[str | None, typer.Option(help="Of somebody else's run: its policy, if that is a class.")] = None,
    options: Annotated[
        list[str] | None, typer.Option("--option", help="Of somebody else's run: an option that calls a server.")
    ] = None,
    engine_options: Annotated[
        list[str] | None,
        typer.Option("--engine-option", help="Of somebody else's run: an option of its engine that is no number."),
    ] = None,
    trace: Annotated[str | None, typer.Option(help="Of somebody else's run: the file of its trace.")] = None,
) -> None:
    """Go on with RUN where it was cut, with the settings that it was started with.

    It ends as if it had never been cut. A run that has ended goes on if --iterations, --patience or the --budget of a
    search are raised. What a run of somebody else would import or call is asked for.
    """
    from modelswarms_fast.runs.resume import resume

    given = {"task": task, "policy": policy, "options": options, "engine_options": engine_options, "trace": trace}
    raised = {"iterations": iterations, "patience": patience}
    name, content = resume(run, **raised, budget=budget, force=force, say=say, progress=True, given=given, ask=asker())
    if name == "search":
        show(content, run, "global_best")
    elif name == "token-swarm":
        show(content, run, "global_best/mixture.json")
    else:
        {"compare": show_comparison, "sweep": show_sweep, "study": show_study}[name](content, run)
