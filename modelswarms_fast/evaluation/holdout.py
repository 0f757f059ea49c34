"""Dev examples that a search never sees, kept back to choose between its last candidates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.objectives import Utility
from modelswarms_fast.evaluation.objectives.utility import mean

CONFIRM = "confirm"
"""The split of the examples that are kept back."""


def hold_back(utility: Utility, count: int) -> Utility:
    """The utility with `count` of its dev examples in a split of their own, evenly spread over the file.

    Which ones depends on nothing but how many there are, so that searches can be compared. Of several tasks each keeps
    back as many, the first ones one more where `count` cannot be divided.

    Raises:
        InputError: no dev example would be left, or parts of dev say nothing about the utility.
    """
    if utility.of_parts is not None:
        many = len(utility.parts)
        if count < many:
            raise InputError(f"confirm is {count} but {utility.name} has {many} tasks; give an example a task or more.")
        shares = [(count + many - 1 - number) // many for number in range(many)]
        parts = [hold_back(part, share) for part, share in zip(utility.parts, shares, strict=True)]
        return replace(utility.of_parts(parts), chat=utility.chat)
    total = len(utility.examples["dev"])
    if not 0 < count < total:
        raise InputError(f"confirm is {count} but there are {total} dev examples; give from 1 to {total - 1}.")
    if utility.reduce is not mean:
        raise InputError(
            f"confirm keeps back examples of a task whose utility is the mean of its scores; that of {utility.name} "
            "is not, leave confirm out."
        )
    back = {(2 * index + 1) * total // (2 * count) for index in range(count)}
    kept = [index for index in range(total) if index not in back]

    def divide(splits: dict[str, list[Any]]) -> dict[str, list[Any]]:
        dev = splits["dev"]
        return splits | {"dev": [dev[index] for index in kept], CONFIRM: [dev[index] for index in sorted(back)]}

    return replace(utility, examples=divide(utility.examples), asks=divide(utility.asks))
