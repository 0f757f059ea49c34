"""How often the parity check is wrong: right loads that it refuses, and wrong loads that it passes.

    python -m benchmarks.engine.parity_rates --json benchmarks/results/parity/BASE/FILE.json [--dtype DTYPE]
        [--trials N] [--base gemma-3-270m --experts FOLDER] [--data FILE]

A trial is a row: an expert, or a random mixture, some of them weak. vLLM serves it merged and from a slot, and the
oracle says what it should answer. Then vLLM is given something else, or its answers are those of something else, and
the oracle's stay. The limits were chosen on the first 20 trials of SmolLM2 in bfloat16. The rates are of all others.

In a file that is there already the numbers of this dtype are replaced. docs/reference/parity-check.md is made of them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality.quality import machine
from modelswarms_fast.config import EngineConfig
from modelswarms_fast.engines.agreement import Answers, agreement
from modelswarms_fast.engines.oracle import Oracle
from modelswarms_fast.engines.parity_check import FIXED, PROMPTS, ParityCheck
from modelswarms_fast.engines.protocol import Request
from modelswarms_fast.engines.start import start_engine
from modelswarms_fast.evaluation.evaluator import Evaluator
from modelswarms_fast.evaluation.objectives import load_utility
from modelswarms_fast.weights.base_model import resolve_base
from modelswarms_fast.weights.experts import Experts, read_experts
from modelswarms_fast.weights.packaged import SMOLLM2

EXAMPLES = Path(__file__).parents[2] / "examples"
COUNTS = (PROMPTS // 2, PROMPTS)
"""Numbers of prompts that are tried."""
DTYPES = ("float32", "float16", "bfloat16")
MODES = ("merged", "slots")


def main() -> None:
    """Measure one dtype, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--base", default=SMOLLM2)
    parser.add_argument("--experts", type=Path, default=EXAMPLES / "experts")
    parser.add_argument("--data", type=Path, default=EXAMPLES / "data" / "skills_mix.json")
    parser.add_argument("--dtype", choices=DTYPES, action="append")
    parser.add_argument("--trials", type=int, default=30)
    given = parser.parse_args()
    os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "TQDM_DISABLE": "1"}
    for dtype in given.dtype or DTYPES:
        measure(given.json, given.base, given.experts, given.data, dtype, given.trials)


def measure(file: Path, base: str, folder: Path, data: Path, dtype: str, trials: int) -> None:
    """Write the numbers of one dtype into the file, after each trial."""
    content: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"dtypes": {}}
    content |= {"base": base, "data": data.name, "machine": machine()}
    experts = read_experts(folder, dtype=getattr(torch, dtype), base=resolve_base(base))
    content["experts"] = list(experts.names)
    found: dict[str, Any] = {"commit": content["machine"]["commit"], "trials": []}
    content["dtypes"][dtype] = found
    with_engine = Measured(resolve_base(base), experts, data, dtype)
    found |= {"base": with_engine.base, "seconds": with_engine.seconds}
    for trial in range(trials):
        found["trials"].append(with_engine.trial(trial))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=1) + "\n")
        print(dtype, trial, found["trials"][-1]["what"], round(time.perf_counter() - with_engine.began, 1), flush=True)
    with_engine.close()


class Measured:
    """An engine and an oracle, and what they say of the base model."""

    def __init__(self, base: Path, experts: Experts, data: Path, dtype: str) -> None:
        self.experts, self.began = experts, time.perf_counter()
        self._random = torch.Generator().manual_seed(0)
        self._oracle = Oracle(base, experts, dtype)
        config = EngineConfig(dtype=dtype, serve="auto", state="weights", slots=1, max_model_len=1024)
        self._engine = start_engine(base, experts, config)
        self._oracle.wait()
        prompts = Evaluator(self._engine, load_utility("exact_match", data), ("dev",)).probes("dev")
        self._checks: dict[str, ParityCheck] = {}
        self._bases: dict[str, tuple[Answers, Answers]] = {}
        self.seconds: dict[str, Any] = {}
        self.base: dict[str, Any] = {}
        self._served: list[Answers] = []
        """Of each trial's right load, served merged."""
        for mode in MODES:
            self._engine.set_mode(mode)  # type: ignore[arg-type]
            check = self._checks[mode] = ParityCheck(self._engine, self._oracle, prompts)
            self.seconds |= {"base": self._timed(check.begin, experts)} if mode == "merged" else {}
            check.begin(experts)
            assert check._base is not None
            self._bases[mode] = check._base
            self.base[mode] = {count: numbers(*(one[:count] for one in check._base)) for count in COUNTS}
        self.base["tokens"] = [len(prompt) for prompt in self._checks["merged"].prompts]

    def close(self) -> None:
        """End the processes."""
        self._oracle.close()
        self._engine.close()

    def trial(self, number: int) -> dict[str, Any]:
        """The row of this number, loaded rightly in each mode and wrongly in one of them."""
        what, row = self._row(number)
        start = time.perf_counter()
        self._oracle.load(0, row)
        check = self._checks["merged"]
        expected = check._expected(0)
        oracle, start = time.perf_counter() - start, time.perf_counter()
        right = {mode: self._answers(mode, row) for mode in MODES}
        seconds = {"oracle": oracle, "engine": (time.perf_counter() - start) / len(MODES)}
        if number == 0:
            self.seconds["four"] = self._four(row)
        mode = MODES[number % len(MODES)]
        wrong = {kind: self._answers(mode, change) for kind, change in self._changed(number, row).items()}
        wrong["nothing"] = self._bases[mode][0]
        if self._served:
            wrong["stale"] = self._served[-1]
            experts = [one for one in range(min(number, len(self.experts.names))) if one != number]
            wrong["another"] = self._served[experts[number % len(experts)]]
        self._served.append(right[mode])
        return {
            "what": what,
            "mode": mode,
            "seconds": seconds,
            "right": {mode: self._judged(mode, answers, expected) for mode, answers in right.items()},
            "wrong": {kind: self._judged(mode, answers, expected) for kind, answers in wrong.items()},
            "not restored": {count: numbers(right[mode][:count], self._bases[mode][1][:count]) for count in COUNTS},
        }

    def _row(self, number: int) -> tuple[str, torch.Tensor]:
        """What a trial loads, and its row [D]: first the experts, then mixtures as a search makes them."""
        count, draw = len(self.experts.names), self._random
        mixture = torch.softmax(torch.randn(count, generator=draw), 0)
        if number < count:
            what, mixture = "expert", torch.eye(count)[number]
        elif number % 3 == 0:
            what, mixture = "weak", mixture * (0.2 + 0.6 * float(torch.rand(1, generator=draw)))
        elif number % 3 == 1:
            what, mixture = "beyond", mixture + 0.25 * torch.randn(count, generator=draw)
        else:
            what = "mixture"
        rows = self.experts.rows
        return what, (mixture[:, None] * rows.float()).sum(dim=0).to(rows.dtype)

    def _changed(self, number: int, row: torch.Tensor) -> dict[str, torch.Tensor]:
        """Wrong rows by kind."""
        layout, modules = self.experts.layout, self.experts.modules
        kinds = sorted({module.name.rpartition(".")[2] for module in modules})
        layers = sorted({layer_of(module.name) for module in modules})
        kind = kinds[number % len(kinds)]
        layer = layers[int(torch.randint(len(layers), (1,), generator=self._random))]
        other = layout.views(self.experts.rows[(number + 1) % len(self.experts.names)])
        found = {name: row.clone() for name in ("module", "layer", "scaling", "exchanged")}
        views = {name: layout.views(one) for name, one in found.items()}
        for module in modules:
            if module.name.endswith(kind):
                views["module"][module.b].zero_()
            if layer_of(module.name) == layer:
                views["layer"][module.b].zero_()
            views["scaling"][module.b].div_(module.scaling)
            views["exchanged"][module.a].copy_(other[module.a])
        return found

    def _answers(self, mode: str, row: torch.Tensor) -> Answers:
        self._engine.set_mode(mode)  # type: ignore[arg-type]
        self._engine.load(0, row)
        answers = self._checks[mode]._served(0)
        self._engine.restore()
        return answers

    def _judged(self, mode: str, served: Answers, expected: Answers) -> dict[int, Any]:
        base = self._bases[mode]
        return {
            count: numbers(served[:count], expected[:count], (base[0][:count], base[1][:count])) for count in COUNTS
        }

    def _four(self, row: torch.Tensor) -> dict[str, float]:
        """Seconds for a load, of each engine, with the four fixed prompts."""
        prompts = [list(self._engine.tokenizer(text)["input_ids"]) for text in FIXED]
        self._engine.load(0, row)
        found = {
            name: self._timed(lambda asked=asked: [asked(Request(0, prompt), 10) for prompt in prompts])
            for name, asked in (("oracle", self._oracle.log_probs), ("engine", self._engine.log_probs))
        }
        self._engine.restore()
        return found

    def _timed(self, work: Callable[..., Any], *arguments: Any) -> float:
        start = time.perf_counter()
        work(*arguments)
        return time.perf_counter() - start


def layer_of(name: str) -> int:
    """The number of the layer in a module's name."""
    return next(int(part) for part in name.split(".") if part.isdigit())


def numbers(served: Answers, expected: Answers, base: tuple[Answers, Answers] | None = None) -> list[float | None]:
    """Coefficient, correlation, change and difference; None for NaN."""
    return [None if math.isnan(value) else float(f"{value:.9g}") for value in agreement(served, expected, base)]


if __name__ == "__main__":
    main()
