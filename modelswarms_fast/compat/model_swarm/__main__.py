"""`python -m modelswarms_fast.compat.model_swarm <the flags of search.py>`."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence

from modelswarms_fast.compat.model_swarm.engine import use_devices
from modelswarms_fast.compat.model_swarm.flags import read_flags
from modelswarms_fast.errors import EngineError, InputError, ParityError


def main(words: Sequence[str]) -> int:
    """Run a search; the exit status. What cannot be used, or an engine that fails, is one sentence and status 2."""
    _quiet()
    try:
        settings = read_flags(words)
        use_devices(settings.gpus)
        from modelswarms_fast.compat.model_swarm.search import search  # once the devices are chosen

        search(settings)
    except (InputError, EngineError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3 if isinstance(error, ParityError) else 2
    except KeyboardInterrupt:
        return 130
    return 0


def _quiet() -> None:
    """Only our own output, as of the other commands."""
    warnings.filterwarnings("ignore")
    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TQDM_DISABLE": "1",
    }.items():
        os.environ.setdefault(name, value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
