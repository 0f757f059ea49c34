"""A program: mixtures of a tiny model by vLLM's second model runner on a CPU, with its kernels in Triton's interpreter.

vLLM takes that runner on a CPU only where Triton can compile for one. Here Triton is said to, and interprets. Prints
the name of the runner's module and what was completed, as JSON. Argument: the folder of `make_tiny`.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from triton.backends import backends

from modelswarms_fast.config import EngineConfig
from modelswarms_fast.engines.protocol import Request, complete
from modelswarms_fast.engines.start import start_engine
from modelswarms_fast.weights.experts import read_experts

MIXTURES = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.5, 0.0], [1.5, -0.5, 0.0], [0.2, 0.3, 0.5]]
REQUESTS = [Request(slot, prompt) for prompt in ([3, 4, 5, 6], [7, 8]) for slot in (None, *range(len(MIXTURES)))]
TOKENS = 5
ENVIRONMENT = {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"}
"""Of the program."""
# Few requests in a step, so that some begin while others are under way.
CONFIG = EngineConfig(serve="mixture", state="mixture", dtype="float32", max_model_len=64, max_num_seqs=5)


def main(folder: Path) -> None:
    backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True), compiler=None)
    from vllm.v1.worker.gpu.metrics import logits  # only now, for it asks for Triton when it is imported

    logits.libdevice = SimpleNamespace(isnan=lambda values: values != values)  # the interpreter has no libdevice
    engine = start_engine(folder / "base", read_experts(folder / "experts"), CONFIG)
    (worker,) = engine.llm.collective_rpc("swarm_worker")
    for slot, mixture in enumerate(MIXTURES):
        engine.load_mixture(slot, torch.tensor(mixture))
    texts = [completion.text for completion in complete(engine, REQUESTS, TOKENS)]
    print(json.dumps([type(worker.model_runner).__module__, texts]))
    engine.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
