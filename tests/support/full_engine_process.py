"""Run as the process of an engine of a group: its address space is full in a step that a file in SCRATCH asks for."""

import os
import resource
import sys
from pathlib import Path

import torch

from modelswarms_fast.engines.pool import worker_process
from modelswarms_fast.engines.transformers import TransformersEngine


def main() -> None:
    real = TransformersEngine._generate

    def generate(self, *arguments, **more):
        found = real(self, *arguments, **more)
        if Path(os.environ["SCRATCH"], "full").exists():
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 24), resource.RLIM_INFINITY))
            torch.empty(1 << 30, dtype=torch.uint8)
        return found

    TransformersEngine._generate = generate
    worker_process.main(int(sys.argv[1]))


if __name__ == "__main__":
    main()
