"""What early stopping saves in a search, and the most that any exact order of the examples could save."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.engine.base_model import BaseModel, Pass, llm_beside
from benchmarks.engine.iterations import Iteration, noted, search_moves
from modelswarms_fast.evaluation.early_stopping import DecisionBounds
from modelswarms_fast.evaluation.objectives import Utility


def least_examples(scores: Sequence[float], limits: DecisionBounds) -> int:
    """So many of these scores [N], the right ones, decide that a particle is neither a new best nor a new worst.

    All of them if it is one. The lowest show that it is no best, the highest that it is no worst; the least number of
    both together, whatever the order of the others.
    """
    count, ordered = len(scores), sorted(scores)
    lowest, highest = (list(itertools.accumulate(some, initial=0.0)) for some in (ordered, ordered[::-1]))
    for asked in range(count):
        missing = count - asked
        for lows in range(asked + 1):
            known = lowest[lows] + highest[asked - lows]
            upper, lower = (known + missing * score for score in (limits.highest, limits.lowest))
            if upper / count <= limits.personal_best and lower / count >= limits.global_worst:
                return asked
    return count


def least_share(moves: Sequence[Iteration]) -> float:
    """Of all examples of fully evaluated moves, those that some exact order could not have left out."""
    each = [(scores, one.limits[particle]) for one in moves for particle, scores in one.scores.items()]
    whole = [[score for score in scores if score is not None] for scores, _ in each]
    return sum(map(least_examples, whole, (limits for _, limits in each))) / sum(map(len, whole))


def waves_of(moves: Sequence[Iteration], passes: Sequence[Pass]) -> Iterator[list[Pass]]:
    """The passes of each move."""
    left = iter(passes)
    for one in moves:
        wave: list[Pass] = []
        while sum(map(len, wave)) < one.prompts:
            wave.append(next(left))
        yield wave


def stopped_early(server: Any, serve: str, utility: Utility, moves: int) -> dict[str, Any]:
    """A search in full, then the same with early stopping beside the base model; the facts of a row.

    The base model completes what the full search asked for in its moves, and gives as many tokens.
    """
    with noted(server) as passes:
        full = search_moves(server, serve, utility, moves)
    particles = len(full[0].scores)
    least = least_share(full[1:])
    base = BaseModel(llm_beside(serve), list(waves_of(full[1:], passes[particles:])))
    early = search_moves(
        server, serve, utility, moves, stop_early=True, known=full[0].line, base=base, pace=1 / max(least, 0.1)
    )
    seconds = sum(one.seconds for one in early)
    prompts, evaluated = (sum(one.prompts for one in ran) for ran in (full[1:], early))
    same = [a.decisions == b.decisions for a, b in zip(full[1:], early, strict=True)]
    bests = [max(limits.personal_best for limits in one.limits.values()) for one in full[1:]]
    means = [sum(limits.personal_best for limits in one.limits.values()) / particles for one in full[1:]]
    rate = base.prompts / base.seconds
    return {
        "seconds": seconds,
        "baselines": {"base model": {"seconds": prompts / rate, "ratio": prompts / rate / seconds}},
        "prompts/s": prompts / seconds,
        "share_of_base": prompts / seconds / rate,
        "idle_share": 1 - sum(one.busy for one in early) / seconds,
        "evaluated_prompts": evaluated,
        "evaluated_share": evaluated / prompts,
        "least_share": least,
        "tokens": sum(one.tokens for one in early),
        "base_tokens": base.tokens,
        "full_seconds": sum(one.seconds for one in full[1:]),
        "same_moves": sum(itertools.takewhile(bool, same)),
        "personal_bests": [{"best": best, "mean": mean} for best, mean in zip(bests, means, strict=True)],
        "each_move": [
            {
                "prompts": a.prompts,
                "evaluated": b.prompts,
                "least_share": least_share([a]),
                "full_seconds": a.seconds,
                "seconds": b.seconds,
            }
            for a, b in zip(full[1:], early, strict=True)
        ],
        "phases": {name: sum(one.phases.get(name, 0.0) for one in early) for name in early[-1].phases},
    }
