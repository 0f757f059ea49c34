"""Proof that an engine serves the weights it was given: the same next-token log-probabilities as transformers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from modelswarms_fast.config import EngineConfig
from modelswarms_fast.engines.protocol import Engine, Request
from modelswarms_fast.engines.transformers import TransformersEngine
from modelswarms_fast.errors import EngineError
from modelswarms_fast.weights.experts import Experts

# Mean difference allowed between the log-probabilities of the likeliest tokens. In half types the two engines round in
# different places (merged or beside the base weights, other kernels), and a single unlikely token, or all tokens after
# one prompt, may be far off. So it is the mean of several that tells right from wrong; the measurement is in
# docs/explanation/inside-vllm.md.
TOLERANCE = {torch.float32: 2e-3, torch.float16: 0.05, torch.bfloat16: 0.25}
TOP = 10
PROBES = (
    "Question: Which of the four seasons follows the winter?\nAnswer:",
    "Question: What is 12 + 30?\nAnswer:",
    "The capital of France is",
    "Sort these words: pear, apple, fig.\n",
)


class ParityCheck:
    """Compares what an engine serves with the transformers engine given the same row.

    The oracle holds a second copy of the base model on the CPU. What is checked is every load, or the first of each
    engine: slot i is a slot of engine i mod `engines`.
    """

    def __init__(self, engine: Engine, oracle: TransformersEngine, engines: int = 1, every: bool = True) -> None:
        self._engine, self._oracle = engine, oracle
        self._prompts = [list(engine.tokenizer(probe)["input_ids"]) for probe in PROBES]
        self._engines, self._left = engines, None if every else set(range(engines))
        self.tolerance = TOLERANCE[engine.dtype]

    def wanted(self, slot: int) -> bool:
        """Whether the next load of a slot is to be checked."""
        return self._left is None or slot % self._engines in self._left

    def hindered(self, slot: int, running: Iterable[int]) -> bool:
        """Whether the engine of this slot works for one of the slots that run: it must do nothing else in a check."""
        return any((slot - other) % self._engines == 0 for other in running)

    def after_load(self, slot: int, row: torch.Tensor) -> None:
        """Check a load, unless its engine has been checked.

        Raises:
            EngineError: as `check`.
        """
        if self.wanted(slot):
            self.check(slot, row)
            if self._left is not None:
                self._left.discard(slot % self._engines)

    def check(self, slot: int | None, row: torch.Tensor | None) -> float:
        """The mean difference for the row [D] in `slot`, or for the base model (None, None).

        Raises:
            EngineError: it exceeds the tolerance; the engine serves something else than this row.
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
            raise EngineError(
                "The engine does not serve the weights it was given: log-probabilities of the probe prompts differ "
                f"by {difference:.3g} on average from the transformers engine (tolerance {self.tolerance:g}); use "
                "another serve mode or engine='transformers', and please report it."
            )
        return difference


def make_parity_check(engine: Engine, base: Path, experts: Experts, config: EngineConfig) -> ParityCheck | None:
    """The parity check that the settings ask for; None where it is off or the engine is the oracle itself."""
    if config.parity_check == "off" or config.engine == "transformers":
        return None
    oracle = TransformersEngine(base, experts, dtype=str(engine.dtype)[6:], device=torch.device("cpu"))
    return ParityCheck(engine, oracle, config.engines, every=config.parity_check == "all")
