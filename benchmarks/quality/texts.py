"""Which examples have a text in common, though they ask different things about it.

Data that was made from templates has one text in several examples. Two examples share it if they have WORDS words in a
row in common that are not part of a template, which is what more than COMMON prompts have.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence

WORDS, COMMON = 8, 20
HELD_OUT, SEED = 10, 0
"""One example in so many is held out."""

Pair = tuple[str, str]
"""Prompt and completion."""


def phrases(text: str) -> set[str]:
    """All that a text has of WORDS words in a row; the whole text where it is shorter."""
    words = text.lower().split()
    return {" ".join(words[first : first + WORDS]) for first in range(max(1, len(words) - WORDS + 1))}


def own_phrases(prompts: Iterable[str]) -> list[set[str]]:
    """Of each prompt the phrases that no template has."""
    found = [phrases(prompt) for prompt in prompts]
    often = Counter(phrase for some in found for phrase in some)
    return [{phrase for phrase in some if often[phrase] <= COMMON} for some in found]


def apart(pairs: Sequence[Pair], questions: Iterable[str]) -> list[Pair]:
    """The examples whose text is in none of these questions."""
    asked = {phrase for question in questions for phrase in phrases(question)}
    own = own_phrases(prompt for prompt, _ in pairs)
    return [pair for pair, some in zip(pairs, own, strict=True) if not some & asked]


def held_apart(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """The examples to learn from, and those that are held out: no text is in both."""
    groups = together(own_phrases(prompt for prompt, _ in pairs))
    random.Random(SEED).shuffle(groups)
    wanted, held = max(1, len(pairs) // HELD_OUT), set[int]()
    for group in groups:
        if len(held) + len(group) <= wanted:
            held |= set(group)
    if not held:  # all groups are large
        held |= set(min(groups, key=len))
    rest = [pair for number, pair in enumerate(pairs) if number not in held]
    return rest, [pair for number, pair in enumerate(pairs) if number in held]


def together(own: Sequence[set[str]]) -> list[list[int]]:
    """The numbers of examples, those in one group that share a phrase, directly or by way of others."""
    above = list(range(len(own)))

    def top(number: int) -> int:
        while above[number] != number:
            above[number] = above[above[number]]
            number = above[number]
        return number

    first: dict[str, int] = {}
    for number, some in enumerate(own):
        for phrase in some:
            above[top(number)] = top(first.setdefault(phrase, number))
    groups: dict[int, list[int]] = {}
    for number in range(len(own)):
        groups.setdefault(top(number), []).append(number)
    return list(groups.values())
