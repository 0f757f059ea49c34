"""Proof that an engine serves the weights it was given: loads are compared with the transformers engine."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import torch

from modelswarms_fast.config import EngineConfig
from modelswarms_fast.engines.agreement import Agreement, Answers, Limits, Rounding, agreement, finite
from modelswarms_fast.engines.oracle import Oracle
from modelswarms_fast.engines.protocol import Engine, Request
from modelswarms_fast.engines.start import dtype_of
from modelswarms_fast.errors import InputError, ParityError
from modelswarms_fast.weights.experts import Experts

log = logging.getLogger(__name__)

PROMPTS, TOKENS = 8, 4096
"""At most so many prompts of the task are asked, with at most so many tokens beyond those of the first."""
DEEP = 1000
"""Likeliest tokens that are asked for after each prompt: what was likely may fall far."""
FIXED = (
    "Question: Which of the four seasons follows the winter?\nAnswer:",
    "Question: What is 12 + 30?\nAnswer:",
    "The capital of France is",
    "Sort these words: pear, apple, fig.\n",
)
"""Asked where the task has fewer prompts than these."""
REMEDY = "use another serve mode or engine='transformers', and please report it."


class Reference(Protocol):
    """What an engine is compared with: an oracle, or a transformers engine."""

    def load(self, slot: int, row: torch.Tensor) -> None:
        """Look at a row [D], in slot 0."""

    def restore(self) -> None:
        """Look at the base model."""

    def log_probs(self, request: Request, top: int) -> dict[int, float]:
        """Of the likeliest tokens, the likeliest first."""

    def close(self) -> None:
        """It is not asked again."""


class ParityCheck:
    """Compares what an engine serves with the transformers engine given the same row: `agreement` says how.

    What is checked is the base model and then every load, or the first of each engine: slot i is a slot of engine i mod
    `engines`. After the last load that is to be checked the oracle is closed.
    """

    def __init__(
        self,
        engine: Engine,
        oracle: Reference,
        prompts: Iterable[Sequence[int]] = (),
        engines: int = 1,
        every: bool = True,
    ) -> None:
        """`prompts`: token ids of the task's prompts as they are sent; the first of them are asked."""
        self._engine, self._oracle = engine, oracle
        self.prompts = choose(prompts)
        """Token ids of what is asked."""
        if len(self.prompts) < len(FIXED):
            self.prompts += [list(engine.tokenizer(text)["input_ids"]) for text in FIXED]
        self._engines, self._left = engines, None if every else set(range(engines))
        self._base: tuple[Answers, Answers] | None = None
        """What the engine and the oracle say of the base model."""
        self.rounding = Rounding(0.0, torch.finfo(engine.dtype).eps)
        """What the two differ by about the base model."""
        self._names: dict[bytes, str] = {}
        """Of the experts, by a sample of each row."""
        self._changed, self._folder = "its tensors", ""
        self._told = False
        """Whether it was said that a change is too small."""

    def begin(self, experts: Experts) -> None:
        """Check the base model, before the first load, and warn of adapters that are zero. Raises as `check`."""
        self._folder = f" {experts.base}" if experts.base else ""
        self.check(None, None)
        names = [module.name for module in experts.modules] or [spec.name for spec in experts.layout.specs]
        self._changed = f"{names[0]} to {names[-1]}"
        for name, row in zip(experts.names, experts.rows, strict=True):
            self._names[_sample(row)] = name
            if experts.modules and _is_zero(experts, row):
                log.warning("The expert %s changes nothing: its adapter is zero.", name)

    def wanted(self, slot: int) -> bool:
        """Whether the next load of a slot is to be checked."""
        return self._left is None or slot % self._engines in self._left

    def hindered(self, slot: int, running: Iterable[int]) -> bool:
        """Whether the engine of this slot works for one of the slots that run: it must do nothing else in a check."""
        return any((slot - other) % self._engines == 0 for other in running)

    def after_load(self, slot: int, row: torch.Tensor) -> None:
        """Check a load, unless its engine has been checked. Raises as `check`."""
        if self.wanted(slot):
            self.check(slot, row)
            if self._left is not None:
                self._left.discard(slot % self._engines)
                if not self._left:
                    self._oracle.close()

    def check(self, slot: int | None, row: torch.Tensor | None) -> Agreement | None:
        """How well the engine agrees about the row [D] in `slot`, or about the base model (None, None); None if that
        cannot be told, of which one warning is logged.

        Raises:
            InputError: the base model answers with NaN or infinity.
            ParityError: the engine does not agree, so it serves something else.
            RuntimeError: the base model has not been checked first.
        """
        if self._base is None:
            if slot is not None:
                raise RuntimeError("check() the base model before a row")
            self._oracle.restore()
            return self._judge_base(self._served(None), self._expected(None))
        if slot is None or row is None:
            self._oracle.restore()
            what, served, expected = "the base model", self._served(None), self._expected(None)
        else:
            self._oracle.load(0, row)
            name = self._names.get(_sample(row))
            whose = f"the expert {name}" if name else "a particle"
            what = f"the weights it was given ({whose}, in slot {slot})"
            served, expected = self._served(slot), self._expected(0)
        return self._judge(what, served, expected)

    def close(self) -> None:
        """Nothing is checked any more."""
        self._oracle.close()

    def _judge_base(self, served: Answers, expected: Answers) -> Agreement:
        """As `check`, of the base model's own answers: there is nothing yet that they could be a change of."""
        for name, answers in (("transformers", expected), ("the engine", served)):
            if not finite(answers):
                raise InputError(
                    f"The base model{self._folder} answers with NaN or infinity, in {name} with dtype {self._dtype}; "
                    "give a base model whose weights are finite, or another dtype."
                )
        found = agreement(served, expected)
        allowed = self.rounding.base
        if not found.within(allowed):
            raise ParityError(f"The engine does not serve the base model: {self._compared(found, allowed)}; {REMEDY}")
        self._base = served, expected
        self.rounding = self.rounding._replace(size=max(found.difference, self.rounding.step))
        return found

    def _judge(self, what: str, served: Answers, expected: Answers) -> Agreement | None:
        """As `check`, of what is changed against the base model."""
        assert self._base is not None
        found = agreement(served, expected, self._base)
        explained = found.explained(self.rounding) if finite(expected) else None
        if explained is None and found.change and not self._told:
            self._told = True
            small = (
                f"change log-probabilities by {found.change:.2g}, too little beside rounding ({self.rounding.size:.2g})"
            )
            log.warning(
                "The parity check cannot tell whether the engine serves %s: they %s in %s.",
                *(what, small if finite(expected) else "answer with NaN or infinity in transformers", self._dtype),
            )
        if explained is not False:
            return found if explained else None
        if served == self._base[0]:
            raise ParityError(
                f"The engine does not serve {what}: they have no effect in the engine, which answers exactly as the "
                f"base model does, and should change log-probabilities by {found.change:.3g}. The likely reason is "
                f"names: what is adapted ({self._changed}) may be called otherwise in the engine's model; {REMEDY}"
            )
        raise ParityError(
            f"The engine does not serve {what}: {self._compared(found, self.rounding.limits(found.change))}; {REMEDY}"
        )

    def _compared(self, found: Agreement, allowed: Limits) -> str:
        what = "what it shows" if self._base is None else "what it shows of their change"
        least, most = 1 - allowed.coefficient, 1 + allowed.coefficient
        return (
            f"{what} after {len(self.prompts)} prompts is not what transformers says, with the coefficient "
            f"{found.coefficient:.4f} ({least:.4f} to {most:.4f}) and the correlation {found.correlation:.6f} (at "
            f"least {allowed.correlation:.6f})"
        )

    @property
    def _dtype(self) -> str:
        return str(self._engine.dtype).removeprefix("torch.")

    def _served(self, slot: int | None) -> Answers:
        return [_listed(self._engine.log_probs(Request(slot, prompt), top=DEEP)) for prompt in self.prompts]

    def _expected(self, slot: int | None) -> Answers:
        return [_listed(self._oracle.log_probs(Request(slot, prompt), top=DEEP)) for prompt in self.prompts]


def start_oracle(base: Path, experts: Experts, config: EngineConfig) -> Oracle | None:
    """Begin to load the oracle that the settings need, beside the engine that starts; None where none is needed.

    Raises InputError: the settings name no dtype to compute in.
    """
    if config.parity_check == "off" or config.engine == "transformers":  # that engine is the oracle itself
        return None
    return Oracle(base, experts, dtype_of(base, config))


def make_parity_check(
    engine: Engine, oracle: Oracle, experts: Experts, config: EngineConfig, prompts: Iterable[Sequence[int]]
) -> ParityCheck:
    """The parity check that the settings ask for, with the task's prompts. Raises as `ParityCheck.begin`."""
    check = ParityCheck(engine, oracle, prompts, config.engines, every=config.parity_check == "all")
    check.begin(experts)
    return check


def choose(prompts: Iterable[Sequence[int]]) -> list[list[int]]:
    """The first of the task's prompts, each once."""
    chosen: list[list[int]] = []
    for prompt in dict.fromkeys(map(tuple, prompts)):
        if len(chosen) == PROMPTS or (chosen and sum(map(len, chosen)) + len(prompt) > TOKENS):
            break
        chosen.append(list(prompt))
    return chosen


def _listed(answers: dict[int, float]) -> dict[int, float]:
    """Without tokens that are impossible."""
    return {token: value for token, value in answers.items() if value != -math.inf}


def _sample(row: torch.Tensor) -> bytes:
    """A part of a row [D] that tells experts apart."""
    return bytes(row[:: max(1, len(row) // 4096)].cpu().contiguous().view(torch.uint8).numpy())


def _is_zero(experts: Experts, row: torch.Tensor) -> bool:
    """Whether B A is zero in each module of an adapter [D], and so is whatever else it has."""
    views = experts.layout.views(row)
    for module in experts.modules:
        a, b = views.pop(module.a), views.pop(module.b)
        if bool(a.any()) and bool(b.any()):
            return False
    return not any(bool(view.any()) for view in views.values())
