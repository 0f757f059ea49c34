"""Proof that an engine serves the weights it was given: the same next-token log-probabilities as transformers."""

from __future__ import annotations

from pathlib import Path

import torch

from modelswarms_fast.config import EngineConfig
from modelswarms_fast.engines import Engine, Request
from modelswarms_fast.engines.transformers import TransformersEngine
from modelswarms_fast.experts import Experts

# Mean difference allowed between the log-probabilities of the likeliest tokens. In half types the two engines round in
# different places (merged or beside the base weights, other kernels), and a single unlikely token, or all tokens after
# one prompt, may be far off. So it is the mean of several that tells right from wrong; docs/design.md has the
# measurement.
TOLERANCE = {torch.float32: 2e-3, torch.float16: 0.05, torch.bfloat16: 0.25}
TOP = 10
PROBES = (
    "Question: Which of the four seasons follows the winter?\nAnswer:",
    "Question: What is 12 + 30?\nAnswer:",
    "The capital of France is",
    "Sort these words: pear, apple, fig.\n",
)


class Canary:
    """Compares what an engine serves with the transformers engine given the same row.

    The oracle holds a second copy of the base model on the CPU. `loads` is how many loads are checked, None for all.
    """

    def __init__(self, engine: Engine, oracle: TransformersEngine, loads: int | None = None) -> None:
        self._engine, self._oracle = engine, oracle
        self._prompts = [list(engine.tokenizer(probe)["input_ids"]) for probe in PROBES]
        self._left = loads
        self.tolerance = TOLERANCE[engine.dtype]

    @property
    def wanted(self) -> bool:
        """Whether the next load is to be checked."""
        return self._left != 0

    def after_load(self, slot: int, row: torch.Tensor) -> None:
        """Check a load, unless enough have been checked.

        Raises:
            RuntimeError: as `check`.
        """
        if self.wanted:
            self.check(slot, row)
            self._left = None if self._left is None else self._left - 1

    def check(self, slot: int | None, row: torch.Tensor | None) -> float:
        """The mean difference for the row [D] in `slot`, or for the base model (None, None).

        Raises:
            RuntimeError: it exceeds the tolerance; the engine serves something else than this row.
        """
        if row is None:
            self._oracle.restore()
        else:
            self._oracle.load(0, row)
        differences = []
        for prompt in self._prompts:
            expected = self._oracle.log_probs(Request(None if row is None else 0, prompt))
            served = self._engine.log_probs(Request(slot, prompt), top=TOP)
            differences += [abs(value - expected[token]) for token, value in served.items()]
        difference = sum(differences) / len(differences)
        if not difference <= self.tolerance:  # true of a NaN as well
            raise RuntimeError(
                "The engine does not serve the weights it was given: log-probabilities of the probe prompts differ "
                f"by {difference:.3g} on average from the transformers engine (tolerance {self.tolerance:g})."
            )
        return difference


def make_canary(engine: Engine, base: Path, experts: Experts, config: EngineConfig) -> Canary | None:
    """The canary that the settings ask for; None where it is off or the engine is the oracle itself."""
    if config.canary == "off" or config.engine == "transformers":
        return None
    oracle = TransformersEngine(base, experts, dtype=str(engine.dtype)[6:], device=torch.device("cpu"))
    return Canary(engine, oracle, loads=config.engines if config.canary == "first" else None)
