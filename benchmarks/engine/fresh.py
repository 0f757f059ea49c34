"""In a fresh process: an engine up to its first evaluated prompt, and what memory an iteration takes at its peak.

    python -m benchmarks.engine.fresh ours|plain start|iteration
    python -m benchmarks.engine.fresh search FOLDER STATE HOST_MEMORY|none [PARITY_CHECK]

`plain` is vLLM alone, in this process as ours is (with worker processes it starts more slowly), with the settings that
its CPU build needs. `start` ends with the first prompt; `iteration` goes on with one particle after the other, or with
the base model as often. `search` is a whole search over the experts in a folder, without a parity check unless named.
The last line printed is the peak in bytes; the line before it, but for `start`, the peak without pages of files,
looked at every hundredth of a second.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

PROMPTS = 20


def peak_bytes() -> int:
    """Resident memory of this process at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def search(experts: str, state: str, host_memory: str, parity_check: str = "off") -> None:
    """All of it: reading, two evaluations of every particle, the export of the winner and its test."""
    import tempfile

    import modelswarms_fast
    from benchmarks.engine.engines import DATA, MAX_MODEL_LEN
    from modelswarms_fast.weights.packaged import SMOLLM2

    budget = None if host_memory == "none" else host_memory
    found = sorted(str(path) for path in Path(experts).iterdir() if path.is_dir())
    with tempfile.TemporaryDirectory(dir=experts) as folder:
        modelswarms_fast.search(
            found, base=SMOLLM2, task="exact_match", data=DATA,
            out=Path(folder, "run"), limit_dev=8, limit_test=4, iterations=1, state=state, host_memory=budget,
            parity_check=parity_check, max_model_len=MAX_MODEL_LEN, progress=True,
        )  # fmt: skip


class Watcher(threading.Thread):
    """The peak of the memory of this process that is no page of a file."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0

    def run(self) -> None:
        """Until the process ends."""
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            now = sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))
            self.peak = max(self.peak, now)
            time.sleep(0.01)


def ours(iteration: bool) -> None:
    """The engine of a search, from the first import to a particle's first completion; then an iteration."""
    from benchmarks.engine.engines import EXAMPLES, config
    from modelswarms_fast.engines.protocol import Request, complete
    from modelswarms_fast.engines.start import start_engine
    from modelswarms_fast.weights.base_model import resolve_base
    from modelswarms_fast.weights.experts import read_experts
    from modelswarms_fast.weights.packaged import SMOLLM2

    experts = read_experts(EXAMPLES / "experts")
    server = start_engine(resolve_base(SMOLLM2), experts, config("merged"))
    server.load(0, experts.rows[0])
    complete(server, [Request(0, list(server.tokenizer("Question: Which is a tree?\nAnswer:")["input_ids"]))], 10)
    if iteration:
        from benchmarks.engine.iterations import iterate

        iterate(server, "merged", prompts=PROMPTS)


def plain(iteration: bool) -> None:
    """vLLM alone, to the first completion of the base model; then as many prompts as the iteration has."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    from vllm import LLM, SamplingParams
    from vllm.platforms import current_platform

    from benchmarks.engine.engines import PARTICLES, plain_settings

    llm = LLM(**plain_settings(current_platform.is_cpu()))
    settings = SamplingParams(temperature=0.0, max_tokens=10)
    llm.generate(["Question: Which is a tree?\nAnswer:"], settings, use_tqdm=False)
    if iteration:
        from benchmarks.engine.iterations import utility_of_benchmark

        for _ in range(PARTICLES):
            llm.reset_prefix_cache()
            llm.generate(utility_of_benchmark(PROMPTS).prompts["dev"], settings, use_tqdm=False)


if __name__ == "__main__":
    watcher = Watcher()
    if sys.argv[2] != "start":
        watcher.start()
    if sys.argv[1] == "search":
        search(*sys.argv[2:])
    else:
        {"ours": ours, "plain": plain}[sys.argv[1]](sys.argv[2] == "iteration")
    print(watcher.peak)
    print(peak_bytes(), flush=True)
    os._exit(0)  # what an engine does on its way out is not asked for
