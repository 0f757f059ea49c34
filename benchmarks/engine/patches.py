"""What each change of vLLM's CPU build gains in a whole search: the same search with one of them left out.

    python -m benchmarks.engine.patches OFF SERVE

OFF is `none`, `norms`, `activations`, `logits` or `low_rank`; SERVE is `merged`, `slots` or `mixture`. Prints one JSON
object: the seconds of all loads and steps. Run the cases in turns, each several times, and compare medians.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from modelswarms_fast import search

EXAMPLES = Path(__file__).parents[2] / "examples"
OFF = ("none", "norms", "activations", "logits", "low_rank")


def leave_out(which: str) -> None:
    """Leave one of the changes out, before an engine starts in this process."""
    from modelswarms_fast.engines.vllm import cpu_patches, worker
    from modelswarms_fast.engines.vllm.low_rank import LowRank

    layers = {"norms": "RMSNorm", "activations": "SiluAndMul"}
    if which in layers:
        owner = layers[which]
        cpu_patches._CHANGES[:] = [one for one in cpu_patches._CHANGES if getattr(one[0], "__name__", "") != owner]
    elif which == "logits":
        worker.keep_logits = lambda runner: None
    elif which == "low_rank":
        LowRank.able = staticmethod(lambda parts: False)  # type: ignore[method-assign]


def main() -> None:
    """Run one search and print what it took."""
    off, serve = sys.argv[1:]
    if off not in OFF:
        raise SystemExit(f"there is no change {off}; choose {', '.join(OFF)}")
    leave_out(off)
    with tempfile.TemporaryDirectory() as folder:
        summary = search(
            EXAMPLES / "experts",
            base="smollm2-135m-instruct",
            task="exact_match",
            data=EXAMPLES / "data" / "skills_mix.json",
            out=Path(folder, "run"),
            serve=serve,
            state="mixture",
            iterations=3,
            patience=50,
            limit_dev=80,
            limit_test=8,
            max_model_len=512,
            parity_check="off",
        )
    seconds = sum(
        value for phase, value in summary["seconds"].items() if phase in ("update", "load", "generate", "score")
    )
    print(json.dumps({"off": off, "serve": serve, "seconds": seconds, "prompts": summary["prompts"]}))


if __name__ == "__main__":
    main()
