"""What a broker costs beside the same engine in this process: a call of some prompts, and an empty call.

    python -m benchmarks.published.broker MODEL DATA [--prompts N]

MODEL is an adapter with the files of a tokenizer. Both are asked in turn, so that what slows one slows the other.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.machine import commit, machine_class, write_result
from modelswarms_fast.compat.broker import GREEDY, Broker
from modelswarms_fast.compat.client import Client
from modelswarms_fast.compat.fleet import Job
from modelswarms_fast.config import EngineConfig
from modelswarms_fast.records.run_folder import read_json

RESULTS = Path(__file__).parents[1] / "results" / "compat" / "broker"
ROUNDS, TOKENS, EMPTY = 9, 20, 200


def seconds_of(call: Callable[[], object]) -> float:
    """Of one call."""
    before = time.perf_counter()
    call()
    return time.perf_counter() - before


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published.broker")
    parser.add_argument("model")
    parser.add_argument("data", type=Path, help="its dev examples have a question each")
    parser.add_argument("--prompts", type=int, default=50)
    given = parser.parse_args()
    texts = [one["question"] for one in read_json(given.data)["dev"][: given.prompts]]
    over = threading.Event()
    with (
        tempfile.TemporaryDirectory() as folder,
        Broker(Path(folder, "s"), EngineConfig(dtype="bfloat16", max_model_len=1024)) as broker,
    ):
        thread = threading.Thread(target=broker.serve, args=(over.is_set,))
        thread.start()
        client = Client(str(broker.path))
        tokenizer = broker.models.tokenizer(broker.models.find(given.model))
        ids = [list(tokenizer(text).input_ids) for text in texts]
        jobs = [Job(given.model, ids, TOKENS, [GREEDY] * len(ids))]
        asked = [{"model": given.model, "prompts": ids, "max_tokens": TOKENS}]
        broker.fleet.generate(jobs)  # the engine has started
        pairs = [
            (seconds_of(lambda: broker.fleet.generate(jobs)), seconds_of(lambda: client.generate(asked)))
            for _ in range(ROUNDS)
        ]
        empty = statistics.median(seconds_of(client.ping) for _ in range(EMPTY))
        over.set()
        thread.join()
    ratios = sorted(there / here for here, there in pairs)
    facts = {"commit": commit(), "machine": machine_class(), "torch": torch.__version__, "prompts": len(texts)}
    facts |= {"tokens": TOKENS, "in_process_seconds": statistics.median(here for here, _ in pairs)}
    facts |= {"ratio": statistics.median(ratios), "ratios": ratios, "empty_call_seconds": empty}
    write_result(RESULTS, facts)


if __name__ == "__main__":
    main()
