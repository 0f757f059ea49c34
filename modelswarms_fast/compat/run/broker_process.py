"""The broker of one script: `python -m modelswarms_fast.compat.run.broker_process SETTINGS READY`, run by the command.

SETTINGS are fields of EngineConfig, as JSON. READY is a descriptor, to which the path of the socket is written once it
is there, or a sentence that says why there is none. It serves until the process that started it has ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from modelswarms_fast.compat.broker import Broker
from modelswarms_fast.config import EngineConfig
from modelswarms_fast.errors import InputError
from modelswarms_fast.records.stopping import Stopped, stop_at_once, stop_signals


def main(settings: str, ready: int) -> None:
    """Serve, in a private folder that is removed at the end."""
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the script: it ends this process when it has ended
    with suppress(Stopped), stop_signals(stop_at_once), tempfile.TemporaryDirectory() as folder:
        with os.fdopen(ready, "w") as report:
            try:
                broker = Broker(Path(folder, "models"), EngineConfig(**json.loads(settings))).__enter__()
            except InputError as error:
                report.write(json.dumps({"error": str(error)}))
                return
            report.write(json.dumps({"socket": str(broker.path)}))
        try:
            broker.serve(lambda: os.getppid() != parent)
        finally:
            broker.__exit__()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
