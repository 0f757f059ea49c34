"""What evaluation costs: particles, prompts, tokens and the seconds of each phase."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from modelswarms_fast.records.score_file import Cost


class _Clock:
    """A context, several of which every particle has: made by contextlib it would take three times as long."""

    __slots__ = ("_phase", "_seconds", "_start")

    def __init__(self, seconds: dict[str, float], phase: str) -> None:
        self._seconds, self._phase = seconds, phase

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *raised: object) -> None:
        self._seconds[self._phase] += time.perf_counter() - self._start


@dataclass
class Spent:
    """What evaluation has cost so far."""

    evaluations: int = 0
    """Particles that were served."""
    prompts: int = 0
    """Completed."""
    tokens: int = 0
    """Generated for them, the ends of sequences included, or looked at in a continuation."""
    reused: int = 0
    """Scores known from an earlier evaluation of the same position."""
    skipped: int = 0
    """Scores that could change no decision any more."""
    passes: int = 0
    """Of an ensemble: prompts that have gone through an expert."""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("load", "generate", "score"), 0.0))

    def add(self, cost: Cost, skipped: int = 0) -> None:
        """Count what an earlier call of this run has spent on an evaluation."""
        self.evaluations += cost.evaluations
        self.prompts += cost.prompts
        self.tokens += cost.tokens
        self.reused += cost.reused
        self.passes += cost.passes
        self.skipped += skipped

    def clock(self, phase: str) -> _Clock:
        """Add the seconds of a block to a phase."""
        return _Clock(self.seconds, phase)

    def since(self, before: Spent) -> Spent:
        """What was spent after `before` was copied."""
        seconds = {phase: total - before.seconds[phase] for phase, total in self.seconds.items()}
        return Spent(
            self.evaluations - before.evaluations,
            self.prompts - before.prompts,
            self.tokens - before.tokens,
            self.reused - before.reused,
            self.skipped - before.skipped,
            self.passes - before.passes,
            seconds,
        )

    def copy(self) -> Spent:
        """The amounts as they are now."""
        return replace(self, seconds=dict(self.seconds))
