"""In a fresh process: an engine up to its first evaluated prompt, and what memory an iteration takes at its peak.

python benchmarks/fresh.py ours|plain start|iteration. `plain` is vLLM alone, in this process as ours is (with worker
processes it starts more slowly), with the settings that its CPU build needs. `start` ends with the first prompt;
`iteration` goes on with one particle after the other, or with the base model as often. Prints the peak in bytes.

python benchmarks/fresh.py search first|off [FOLDER]: a short search with that canary, over the example experts or those
in a folder.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

PROMPTS = 20


def peak_bytes() -> int:
    """Resident memory of this process at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def ours(iteration: bool) -> None:
    """The engine of a search, from the first import to a particle's first completion; then an iteration."""
    from engines import EXAMPLES, config

    from modelswarms_fast.base import PACKAGED, resolve_base
    from modelswarms_fast.engines import Request, complete, start_engine
    from modelswarms_fast.experts import read_experts

    experts = read_experts(EXAMPLES / "experts")
    server = start_engine(resolve_base(PACKAGED), experts, config("merged"))
    server.load(0, experts.rows[0])
    complete(server, [Request(0, list(server.tokenizer("Question: Which is a tree?\nAnswer:")["input_ids"]))], 10)
    if iteration:
        from iterations import iterate

        iterate(server, "merged", prompts=PROMPTS)


def plain(iteration: bool) -> None:
    """vLLM alone, to the first completion of the base model; then as many prompts as the iteration has."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    from engines import PARTICLES, plain_settings
    from vllm import LLM, SamplingParams
    from vllm.platforms import current_platform

    llm = LLM(**plain_settings(current_platform.is_cpu()))
    settings = SamplingParams(temperature=0.0, max_tokens=10)
    llm.generate(["Question: Which is a tree?\nAnswer:"], settings, use_tqdm=False)
    if iteration:
        from iterations import utility_of_benchmark

        for _ in range(PARTICLES):
            llm.reset_prefix_cache()
            llm.generate(utility_of_benchmark(PROMPTS).prompts["dev"], settings, use_tqdm=False)


def searched(canary: str, experts: str | None) -> None:
    """A search of one iteration."""
    from tempfile import TemporaryDirectory

    from engines import DATA, EXAMPLES

    from modelswarms_fast.base import PACKAGED
    from modelswarms_fast.loop import search

    with TemporaryDirectory() as out:
        search(
            experts or EXAMPLES / "experts",
            base=PACKAGED,
            task="exact_match",
            data=DATA,
            out=out,
            canary=canary,
            iterations=1,
            limit_dev=6,
            limit_test=4,
            max_model_len=256,
            overwrite=True,
        )


if __name__ == "__main__":
    if sys.argv[1] == "search":
        searched(sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None)
    else:
        {"ours": ours, "plain": plain}[sys.argv[1]](sys.argv[2] == "iteration")
    print(peak_bytes(), flush=True)
    os._exit(0)  # what an engine does on its way out is not asked for
