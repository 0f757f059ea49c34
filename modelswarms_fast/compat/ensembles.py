"""What model_swarm's final metrics say of its best particles together: votes, ties broken as it breaks them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TypeVar

H = TypeVar("H", bound=Hashable)


def best_particles(utilities: Sequence[float], k: int = 10) -> list[int]:
    """The first k particles, in order, whose utility is at least the k-th largest; all, if there are fewer than k.

    Where several have the k-th largest, a better one after them may be left out.
    """
    k = min(k, len(utilities))
    bar = sorted(utilities, reverse=True)[k - 1] if k else 0.0
    return [particle for particle, utility in enumerate(utilities) if utility >= bar][:k]


def vote(answers: Sequence[H], last_utility: float) -> H:
    """The most frequent answer; several are compared by the sum of `last_utility` over the votes of each answer.

    `last_utility` is that of the particle whose answer is the last one: model_swarm adds it for each vote, whoever
    gave it. So of several most frequent answers the first one wins if it is above 0. If it is 0, the first of all
    answers does, and if it is below, the first of the rarest. There is one answer at the least.
    """
    counts = Counter(answers)
    (answer, votes), *others = counts.most_common()
    if not others or others[0][1] < votes:
        return answer
    return max(counts, key=lambda one: counts[one] * last_utility)


def vote_of_best(answers: Sequence[Sequence[H]], utilities: Sequence[float], k: int = 10) -> list[H]:
    """What the best particles vote for, of each example: an answer, or a score, of which each value is one.

    Args:
        answers: [P][examples] of each particle.
        utilities: [P] by which the best are chosen.
        k: how many of them vote.
    """
    chosen = best_particles(utilities, k)
    votes = zip(*(answers[particle] for particle in chosen), strict=True)
    return [vote(given, utilities[chosen[-1]]) for given in votes]


def mean_of_best(scores: Sequence[Sequence[float]], utilities: Sequence[float], k: int = 10) -> float:
    """The mean of the mean scores of all particles that have one of the k largest utilities: more than k, where some
    are equal. This is what model_swarm has for `external_api`, in place of a vote."""
    largest = set(sorted(utilities, reverse=True)[:k])
    means = [sum(one) / len(one) for one, utility in zip(scores, utilities, strict=True) if utility in largest]
    return sum(means) / len(means)
