"""What compare_trees.py measures in one tree. A process of its own, which answers on standard output; not run by hand.

    python tree_measurements.py operators|merged|slots SETTINGS

SETTINGS is JSON: examples (folder), size (weights of a row), dev (examples of an iteration). Each line of standard
input names what to measure; each answer is a line of JSON, seconds by name. The first answer says what was imported.
Only names that both an old and a new tree have are used, or both are tried.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PARTICLES = EXPERTS = 10
CALLS, LOADS, ITERATIONS = 10, 30, 2
Measured = dict[str, list[float]]


def timed(call: Callable[[], Any], before: Callable[[], Any] = lambda: None, count: int = CALLS) -> float:
    """Median seconds of a call; `before` is called outside of the clock."""
    found = []
    for _ in range(count):
        before()
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def operators(settings: dict[str, Any]) -> Callable[[str], Measured]:
    """The update and the mix of ten particles, bfloat16 and float32."""
    import torch

    from modelswarms_fast import mix_, swarm_update_

    try:
        from modelswarms_fast.weights.arena import empty_rows
    except ImportError:
        from modelswarms_fast.memory import empty_rows  # type: ignore[import-not-found, no-redef]

    size, device = settings["size"], torch.device("cpu")
    generator = torch.Generator().manual_seed(0)

    def rows(count: int, dtype: torch.dtype) -> torch.Tensor:
        found = empty_rows(count, size, dtype, device)
        for row in found:
            row.copy_(torch.randn(size, generator=generator))
        return found

    def calls(dtype: torch.dtype) -> tuple[Callable[[], Any], Callable[[], Any]]:
        memory = rows(3 * PARTICLES + 2, dtype)
        x, v, p = (memory[first : first + PARTICLES] for first in range(0, 3 * PARTICLES, PARTICLES))
        coefficients = torch.full((PARTICLES, 4), 0.25)
        mixed, experts = rows(PARTICLES, dtype), rows(EXPERTS, dtype)
        mixture = torch.full((PARTICLES, EXPERTS), 1 / EXPERTS)
        return (
            lambda: swarm_update_(x, v, p, memory[-2], memory[-1], coefficients, 0.5),
            lambda: mix_(mixed, experts, mixture),
        )

    known: dict[str, Callable[[], Any]] = {}
    for dtype in ("bfloat16", "float32"):
        known[f"update {dtype}"], known[f"mix {dtype}"] = calls(getattr(torch, dtype))
    for call in known.values():
        timed(call, count=3)
    return lambda name: {name: [timed(known[name])]}


def starter() -> Callable[..., Any]:
    """`start_engine`, wherever it is in this tree."""
    for name in ("modelswarms_fast.engines.start", "modelswarms_fast.engines.protocol", "modelswarms_fast.engines"):
        try:
            found: Callable[..., Any] = importlib.import_module(name).start_engine
        except (ImportError, AttributeError):
            continue
        return found
    raise RuntimeError("this tree has no start_engine where one was known to be")


def engine(serve: str, settings: dict[str, Any]) -> Callable[[str], Measured]:
    """Loads and whole iterations of the demo's task: one engine, used by every search of this process."""
    import numpy as np

    import modelswarms_fast
    from modelswarms_fast.config import EngineConfig

    off: dict[str, Any] = {"parity_check" if "parity_check" in EngineConfig.__dataclass_fields__ else "canary": "off"}
    original, kept = starter(), list[Any]()

    def start_once(base: Any, experts: Any, config: Any) -> Any:
        if not kept:
            server = original(base, experts, config)
            server.close = lambda: None  # the next search goes on with it
            kept.extend((server, experts))
        return kept[0]

    def search() -> Measured:
        examples = Path(settings["examples"])
        for name, module in list(sys.modules.items()):
            if name.startswith("modelswarms_fast") and vars(module).get("start_engine") is original:
                module.start_engine = start_once  # type: ignore[attr-defined]
        with tempfile.TemporaryDirectory() as folder:
            modelswarms_fast.search(
                examples / "experts", base="smollm2-135m-instruct", task="exact_match",
                data=examples / "data" / "skills_mix.json", out=Path(folder, "run"), limit_dev=settings["dev"],
                limit_test=4, iterations=ITERATIONS, serve=serve, state="weights", max_model_len=512, seed=0,
                **off,
            )  # fmt: skip
            lines = [json.loads(line) for line in Path(folder, "run", "history.jsonl").read_text().splitlines()]
        moves = [line["seconds"] for line in lines if line.get("iteration", 0) > 0]
        return {f"iteration, {serve}": [seconds["total"] for seconds in moves]}

    search()
    server, experts = kept
    other_memory = np.zeros(1 << 24, np.int64)  # more than the caches hold, which an engine's steps empty as well
    turn = itertools.count()

    def load() -> None:
        number = next(turn)
        server.load(number % server.slots, experts.rows[number % len(experts.rows)])

    def measure(name: str) -> Measured:
        if name.startswith("iteration"):
            return search()
        seconds = timed(load, other_memory.max, LOADS)
        server.restore()
        return {name: [seconds]}

    return measure


def main() -> None:
    """Answer until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    kind, settings = sys.argv[1], json.loads(sys.argv[2])
    import modelswarms_fast

    print(json.dumps({"package": str(modelswarms_fast.__file__)}), file=answers, flush=True)
    measure = operators(settings) if kind == "operators" else engine(kind, settings)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(line.strip())), file=answers, flush=True)


if __name__ == "__main__":
    main()
    sys.stderr.flush()
    os._exit(0)  # an engine's own way out is not asked for
