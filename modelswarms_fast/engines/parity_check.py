"""Proof that an engine serves the weights it was given: the same next-token log-probabilities as transformers."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import torch

from modelswarms_fast.config import EngineConfig
from modelswarms_fast.engines.oracle import Oracle
from modelswarms_fast.engines.protocol import Engine, Request
from modelswarms_fast.engines.start import dtype_of
from modelswarms_fast.errors import EngineError
from modelswarms_fast.weights.experts import Experts

# Mean difference allowed between the log-probabilities of the likeliest tokens. In half types the two engines round in
# different places (merged or beside the base weights, other kernels), and a single unlikely token, or all tokens after
# one prompt, may be far off. So it is the mean of several that tells right from wrong; the measurement is in
# docs/explanation/inside-vllm.md.
TOLERANCE = {torch.float32: 2e-3, torch.float16: 0.05, torch.bfloat16: 0.25}
# The share of the tolerance by which an adapter changes the oracle before it counts as an effect.
EFFECT = 0.1
TOP = 10
PROBES = (
    "Question: Which of the four seasons follows the winter?\nAnswer:",
    "Question: What is 12 + 30?\nAnswer:",
    "The capital of France is",
    "Sort these words: pear, apple, fig.\n",
)
Answers = list[Mapping[int, float]]
"""For each probe, log-probabilities by token id."""


class Reference(Protocol):
    """What an engine is compared with: an oracle, or a transformers engine."""

    def load(self, slot: int, row: torch.Tensor) -> None:
        """Look at a row [D], in slot 0."""

    def restore(self) -> None:
        """Look at the base model."""

    def log_probs(self, request: Request) -> dict[int, float]:
        """Of all tokens."""

    def close(self) -> None:
        """It is not asked again."""


class ParityCheck:
    """Compares what an engine serves with the transformers engine given the same row.

    What is checked is every load, or the first of each engine: slot i is a slot of engine i mod `engines`. After the
    last load that is to be checked the oracle is closed; what it said of the base model is kept. Probes are
    plain texts, with or without a chat template: weights are compared, and any tokens do for that.
    """

    def __init__(self, engine: Engine, oracle: Reference, engines: int = 1, every: bool = True) -> None:
        self._engine, self._oracle = engine, oracle
        self._prompts = [list(engine.tokenizer(probe)["input_ids"]) for probe in PROBES]
        self._engines, self._left = engines, None if every else set(range(engines))
        self._base: tuple[Answers, Answers] | None = None
        """What the engine and the oracle say of the base model."""
        self._changed = "its tensors"
        self.tolerance = TOLERANCE[engine.dtype]

    def begin(self, experts: Experts) -> None:
        """Check the base model, before the first load, and warn of adapters that are zero.

        Raises:
            EngineError: as `check`.
        """
        self.check(None, None)
        self._base = self._served(None), self._expected(None)
        names = [module.name for module in experts.modules] or [spec.name for spec in experts.layout.specs]
        self._changed = f"{names[0]} to {names[-1]}"
        for name, row in zip(experts.names, experts.rows, strict=True):
            if experts.modules and _is_zero(experts, row):
                logging.getLogger(__name__).warning("The expert %s changes nothing: its adapter is zero.", name)

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
                if not self._left:
                    self._oracle.close()

    def check(self, slot: int | None, row: torch.Tensor | None) -> float:
        """The mean difference for the row [D] in `slot`, or for the base model (None, None).

        Raises:
            EngineError: it exceeds the tolerance, so the engine serves something else than this row; or it serves the
                base model although the row has an effect.
        """
        if row is None:
            self._oracle.restore()
        else:
            self._oracle.load(0, row)
        served, expected = self._served(slot), self._expected(None if row is None else 0)
        difference = _mean_difference(served, expected)
        if row is not None and self._base is not None and served == self._base[0]:
            effect = _mean_difference(_picked(self._base[1], served), expected)
            if effect > EFFECT * self.tolerance:
                raise EngineError(
                    "What was loaded has no effect in the engine, which answers exactly as the base model does; in the "
                    f"transformers engine it changes the log-probabilities of the probe prompts by {effect:.3g} on "
                    f"average. The likely reason is names: what is adapted ({self._changed}) may be called otherwise "
                    "in the engine's model. Use another serve mode or engine='transformers', and please report it."
                )
        if not difference <= self.tolerance:  # true of a NaN as well
            what = "base model" if row is None else "weights it was given"
            raise EngineError(
                f"The engine does not serve the {what}: log-probabilities of the probe prompts differ "
                f"by {difference:.3g} on average from the transformers engine (tolerance {self.tolerance:g}); use "
                "another serve mode or engine='transformers', and please report it."
            )
        return difference

    def close(self) -> None:
        """Nothing is checked any more."""
        self._oracle.close()

    def _served(self, slot: int | None) -> Answers:
        return [self._engine.log_probs(Request(slot, prompt), top=TOP) for prompt in self._prompts]

    def _expected(self, slot: int | None) -> Answers:
        return [self._oracle.log_probs(Request(slot, prompt)) for prompt in self._prompts]


def start_oracle(base: Path, experts: Experts, config: EngineConfig) -> Oracle | None:
    """Begin to load the oracle that the settings need, beside the engine that starts; None where none is needed.

    Raises InputError: the settings name no dtype to compute in.
    """
    if config.parity_check == "off" or config.engine == "transformers":  # that engine is the oracle itself
        return None
    return Oracle(base, experts, dtype_of(base, config))


def make_parity_check(engine: Engine, oracle: Oracle, experts: Experts, config: EngineConfig) -> ParityCheck:
    """The parity check that the settings ask for. Raises as the oracle does, and as `ParityCheck.begin`."""
    check = ParityCheck(engine, oracle, config.engines, every=config.parity_check == "all")
    check.begin(experts)
    return check


def _picked(answers: Answers, tokens: Answers) -> Answers:
    """Of the answers to each probe, those for the tokens of another."""
    return [{token: one[token] for token in these} for one, these in zip(answers, tokens, strict=True)]


def _mean_difference(some: Answers, expected: Answers) -> float:
    """Of the tokens that `some` has."""
    pairs = zip(some, expected, strict=True)
    differences = [abs(value - right[token]) for one, right in pairs for token, value in one.items()]
    return sum(differences) / len(differences)


def _is_zero(experts: Experts, row: torch.Tensor) -> bool:
    """Whether B A is zero in each module of an adapter [D], and so is whatever else it has."""
    views = experts.layout.views(row)
    for module in experts.modules:
        a, b = views.pop(module.a), views.pop(module.b)
        if bool(a.any()) and bool(b.any()):
            return False
    return not any(bool(view.any()) for view in views.values())
