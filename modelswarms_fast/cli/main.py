"""The entry point of the command line: its commands, its quiet, its errors."""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from modelswarms_fast import __version__
from modelswarms_fast.cli.compare import compare_command
from modelswarms_fast.cli.demo import demo_command
from modelswarms_fast.cli.evaluate import evaluate_command
from modelswarms_fast.cli.options import PROGRAM
from modelswarms_fast.cli.report import report_command
from modelswarms_fast.cli.resume import resume_command
from modelswarms_fast.cli.search import search_command
from modelswarms_fast.cli.serve import serve_command
from modelswarms_fast.cli.study import study_command
from modelswarms_fast.cli.sweep import sweep_command
from modelswarms_fast.cli.token_swarm import token_swarm_command
from modelswarms_fast.errors import EngineError, InputError, ParityError
from modelswarms_fast.records.progress import log, say
from modelswarms_fast.records.stopping import exit_status, stop_at_once, stop_signals

COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo_command,
    "search": search_command,
    "resume": resume_command,
    "evaluate": evaluate_command,
    "report": report_command,
    "sweep": sweep_command,
    "study": study_command,
    "compare": compare_command,
    "token-swarm": token_swarm_command,
    "serve": serve_command,
}


def _stoppable(function: Callable[..., None]) -> Callable[..., None]:
    """A command that a signal ends with the status that shells expect, and with what can be done about it."""

    @wraps(function)
    def command(*arguments: Any, **given: Any) -> None:
        try:
            function(*arguments, **given)
        except KeyboardInterrupt as error:
            _say_notes(error)
            raise typer.Exit(exit_status()) from error

    return command


app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
for name, function in COMMANDS.items():
    app.command(name, no_args_is_help=name != "demo")(_stoppable(function))


def _version(value: bool) -> None:
    if value:
        print(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Adapt language-model experts to a task by swarm search, on one resident engine."""


def main() -> None:
    """Run a command: a user's mistake, or an engine that failed, is one sentence and exit status 2.

    So is a file that cannot be used; --verbose shows where that was found out. A failed parity check is one sentence
    and exit status 3. A run that was cut ends with the command that goes on with it. Ctrl-C, SIGTERM and SIGHUP end a
    command with 128 and their number.
    """
    _quiet()
    for stream in (sys.stdout, sys.stderr):  # what a terminal cannot show must not cost the results, or the message
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with stop_signals(stop_at_once):
            app(_with_chat(sys.argv[1:]), prog_name=PROGRAM)
    except (InputError, EngineError) as error:
        if isinstance(error, EngineError) and error.trace:
            log.info("%s", error.trace)
        say(f"error: {error}", style="red")
        _say_notes(error)
        sys.exit(3 if isinstance(error, ParityError) else 2)
    except OSError as error:
        if error.filename is None:
            traceback.print_exc()
            sys.exit(1)
        log.info("%s", traceback.format_exc())
        say(f"error: {error.filename}: {error.strerror}; give another path.", style="red")
        _say_notes(error)
        sys.exit(2)
    except Exception:  # a defect; where torch.distributed is at work, Python would print "[rank0]: " before every line
        traceback.print_exc()
        sys.exit(1)


def _with_chat(words: list[str]) -> list[str]:
    """`--chat` without a template is `--chat base`. typer has no option whose value may be left out."""
    after = [*words, "--"][1:]
    return [
        part
        for word, following in zip(words, after, strict=True)
        for part in ([word, "base"] if word == "--chat" and following.startswith("-") else [word])
    ]


def _say_notes(error: BaseException) -> None:
    """What was noted of an error, such as how a run goes on that it has cut."""
    for note in dict.fromkeys(getattr(error, "__notes__", ())):
        say(note)


def _quiet() -> None:
    """Only our own output: the engines' advice to programmers is not the user's."""
    warnings.filterwarnings("ignore")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of the engines' processes
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # each retry is a warning of its own
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.getLogger("transformers").setLevel(logging.ERROR)
