"""`python -m modelswarms_fast.compat.run SCRIPT ARGS...`: a user's own search.py, with its flags."""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import runpy
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from modelswarms_fast.compat.client import PATH, BrokerError, Client
from modelswarms_fast.compat.run.places import SHIMS
from modelswarms_fast.compat.run.pools import Pools

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PATIENCE = 30.0
"""Seconds in which the broker has to end."""


def main(words: Sequence[str]) -> None:
    """Run a script; what it raises goes on.

    Raises:
        BrokerError: there is no such script, no broker, or an engine cannot do what the script asks for.
        SystemExit: the script ends with this.
    """
    parser = argparse.ArgumentParser(
        prog="python -m modelswarms_fast.compat.run",
        usage="%(prog)s [--engine E] [--dtype D] [--engine_set K=V]... SCRIPT [ARGS...]",
        description="Run a search.py whose evaluate.py is yours; its models are served by engines that stay.",
        allow_abbrev=False,
    )
    parser.add_argument("--engine", default="vllm", help="vllm or transformers")
    parser.add_argument(
        "--dtype", default="auto", help="number type of models; by default the one that evaluate.py names"
    )
    parser.add_argument(
        "--engine_set", action="append", default=[], metavar="K=V", help="a setting of the engine, or an option of vLLM"
    )
    parser.add_argument("script", metavar="SCRIPT", help="a search.py, with an evaluate.py beside it")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGS", help="flags of the script")
    given = parser.parse_args(words)
    script = os.path.abspath(given.script)
    if not os.path.isfile(script):
        raise BrokerError(f"{given.script} is not there; give the search.py of model_swarm or heterogeneous_swarm.")
    folder = os.path.dirname(script)
    if not os.path.isfile(os.path.join(folder, "evaluate.py")):
        raise BrokerError(f"{folder} has no evaluate.py; give a script that has one beside it.")
    with _broker(given):
        print(
            f"{given.script}: ours are lora_merge and the models of evaluate.py; all else is the script's",
            file=sys.stderr,
        )
        sys.argv = [given.script, *given.arguments]
        sys.path[:0] = [SHIMS, folder]
        pools = multiprocessing.Pool = Pools(multiprocessing.Pool)
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit:
            pools.end()
            raise
        pools.end()


@contextlib.contextmanager
def _broker(given: argparse.Namespace) -> Iterator[None]:
    """A broker that the processes of this one find: the one that MODELSWARMS_SOCKET names, or one of our own."""
    if os.environ.get(PATH):
        if (given.engine, given.dtype, given.engine_set) != ("vllm", "auto", []):
            raise BrokerError(f"{PATH} is set; give --engine, --dtype and --engine_set to modelswarms-fast serve.")
        Client().ping()
        yield
        return
    ours, its = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "modelswarms_fast.compat.run.broker_process", json.dumps(_settings(given)), str(its)],
        pass_fds=(its,),
        stdin=subprocess.DEVNULL,
        stdout=2,  # what a script prints may be read by others
        start_new_session=True,
        env=_quiet(),
    )
    os.close(its)
    found: dict[str, str] = {}
    try:
        with os.fdopen(ours) as report:
            found = json.loads(report.read() or '{"error": "The broker has ended; its output says why."}')
        if "error" in found:
            raise BrokerError(found["error"])
        os.environ[PATH] = found["socket"]
        yield
    except BrokerError as error:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)  # it may be about to end
        if "socket" in found and process.returncode is not None:
            raise BrokerError(f"The broker has ended (status {process.returncode}); start the script again.") from error
        raise
    finally:
        os.environ.pop(PATH, None)
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if "socket" in found:
            shutil.rmtree(os.path.dirname(found["socket"]), ignore_errors=True)


def _settings(given: argparse.Namespace) -> dict[str, Any]:
    """Fields of EngineConfig. Raises BrokerError for what the engine cannot be given."""
    from modelswarms_fast.compat.model_swarm.engine import engine_fields  # not for the Python of another environment
    from modelswarms_fast.errors import InputError

    try:
        further = {}
        for pair in given.engine_set:
            name, sign, value = pair.partition("=")
            if not sign:
                raise BrokerError(f"--engine_set has {pair!r}; give K=V, as in max_model_len=2048.")
            further[name] = value
        return engine_fields(given.engine, given.dtype, "nearest", further)
    except InputError as error:
        raise BrokerError(str(error)) from error


def _quiet() -> dict[str, str]:
    """The environment of a broker of which only errors are seen."""
    return {
        "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "VLLM_LOGGING_LEVEL": "ERROR",
        "TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore",
    } | os.environ  # fmt: skip


def _command() -> None:
    try:
        main(sys.argv[1:])
    except BrokerError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    _command()
