"""`serve`: engines for programs of other environments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from modelswarms_fast.cli.options import settings
from modelswarms_fast.config import EngineConfig

ENGINE = ("engine", "dtype", "max_model_len", "max_num_seqs", "serve", "slots", "engine_options")


@settings(EngineConfig, only=ENGINE)
def serve_command(
    at: Annotated[
        Path, typer.Option("--socket", metavar="PATH", help="Where to listen; made, and removed at the end.")
    ],
    **given: Any,
) -> None:
    """Serve models to other processes over a Unix socket, on engines that stay. Ctrl-C ends it."""
    from modelswarms_fast.compat.broker import Broker
    from modelswarms_fast.records.progress import say

    with Broker(at, EngineConfig(**given)) as broker:
        say(f"serving at {broker.path}; for clients: export MODELSWARMS_SOCKET={broker.path}")
        broker.serve()
