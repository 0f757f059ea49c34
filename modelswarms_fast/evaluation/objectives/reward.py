"""A reward model scores each response: objective 3 of the Model Swarms paper (Feng et al., arXiv 2410.11163).

    general   s = min(max((reward - low) / (high - low), 0), 1)
    verbose   (s + l) / 2,  l = min(max((tokens - 10) / (longest - 10), 0), 1)
    concise   (s + 1 - l) / 2
    reverse   1 - s

The constants are those of the published evaluation: `low` and `high` measured once on the initial pool, a shortest
response of 10 tokens, a longest of 200 and the token that its tokenizer begins a text with. Only `reverse` has
another form here: published is the negative of a mean with the unscaled length.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.dataset import Data
from modelswarms_fast.evaluation.objectives.callables import prompt
from modelswarms_fast.evaluation.objectives.classifier import DTYPES, Classifier
from modelswarms_fast.evaluation.objectives.data import Wanted, dataset_of, read_examples
from modelswarms_fast.evaluation.objectives.utility import Answer, Ask, Utility

VARIANTS = ("general", "verbose", "concise", "reverse")
MAX_TOKENS = 200
SHORTEST = 10
BATCH = 16

Pair = tuple[str, str]  # prompt, response


def load(data: Data, wanted: Wanted) -> Utility:
    """The utility of an evaluation file and a reward model, loaded once.

    `wanted.task` is "reward" or "reward:" and a variant. Options: `model`, a folder or hub id; `dtype`, `device` and
    `batch` of it; `low` and `high`, the constants; `adversarial`, "yes" for `reverse`. Raises InputError.
    """
    variant = wanted.task.partition(":")[2] or VARIANTS[0]
    if variant not in VARIANTS:
        raise InputError(f'no reward is called "{wanted.task}"; choose reward:{", reward:".join(VARIANTS)}')
    wanted.check_options("model", "dtype", "device", "batch", "low", "high", "adversarial")
    if (variant == "reverse") != (wanted.choice("adversarial", "no", "yes") == "yes"):
        raise InputError(
            "reward:reverse searches for the responses that the reward model likes least, to study its misuse; it "
            "needs --option adversarial=yes, and no other reward takes that"
        )
    constants = None
    if "low" in wanted.options or "high" in wanted.options:
        constants = wanted.number("low"), wanted.number("high")
        if constants[0] >= constants[1]:
            raise InputError(f"{wanted.task}: low is {constants[0]:g} and high {constants[1]:g}; give low below high")
    examples = read_examples(data, wanted, {"prompt": (str,)}, instead="question")
    limit, batch = wanted.max_tokens or MAX_TOKENS, wanted.whole("batch", BATCH)
    if variant in ("verbose", "concise") and limit < SHORTEST:
        raise InputError(
            f"max_tokens is {limit}, but {wanted.task} scores lengths from {SHORTEST} tokens on; give at least that"
        )
    classifier = Classifier(
        wanted.text("model"), dtype=wanted.choice("dtype", *DTYPES), device=wanted.options.get("device"), batch=batch
    )
    reward = Reward(classifier, variant, limit)
    reward.constants = constants

    def score_examples(examples: Sequence[dict[str, Any]], answers: Sequence[Sequence[Answer]]) -> list[float]:
        return reward.scores(_pairs(examples, answers))

    def calibrate(examples: Sequence[dict[str, Any]], answers: Sequence[Sequence[Answer]]) -> None:
        reward.calibrate(_pairs(examples, answers))

    return Utility(
        wanted.task,
        dataset_of(data),
        examples,
        {split: [(Ask(prompt(one), limit),) for one in some] for split, some in examples.items()},
        score_examples,
        batch=batch,
        score_range=(0.0, 1.0),
        calibrate=calibrate if constants is None else None,
        report=reward.report,
    )


class Reward:
    """Scores from 0 to 1 of prompts and responses, on constants that are fixed once.

    `constants` are the rewards that count as 0 and as 1; None until `calibrate` measures them.
    """

    def __init__(self, classifier: Classifier, variant: str, longest: int = MAX_TOKENS) -> None:
        """`longest`: tokens that a response may take."""
        if len(classifier.labels) != 1:
            raise InputError(
                f"{classifier.name} has {len(classifier.labels)} outputs, a reward model has one; give another "
                "--option model"
            )
        self._classifier, self._variant, self._longest = classifier, variant, longest
        self.constants: tuple[float, float] | None = None
        self._known: dict[bytes, float] = {}

    def rewards(self, pairs: Sequence[Pair]) -> list[float]:
        """What the model says, unscaled; a pair that was seen before keeps its number, whatever it is batched with."""
        keys = [hashlib.blake2b(repr(pair).encode(), digest_size=16).digest() for pair in pairs]
        new = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in self._known}
        if new:
            templated = bool(getattr(self._classifier.tokenizer, "chat_template", None))
            rows = self._classifier.logits([self._text(*pair) for pair in new.values()], special=not templated)
            self._known.update(zip(new, (row[0] for row in rows), strict=True))
        return [self._known[key] for key in keys]

    def calibrate(self, pairs: Sequence[Pair]) -> None:
        """Fix the constants as the least and the greatest reward of these, unless they are fixed already."""
        if self.constants is not None:
            return
        rewards = [reward for reward in self.rewards(pairs) if math.isfinite(reward)]
        if not rewards or min(rewards) == max(rewards):
            raise InputError(
                f"{self._classifier.name} gives every answer of the initial experts the same reward, so nothing can "
                "be scaled; give --option low=... and high=..., or another model"
            )
        self.constants = min(rewards), max(rewards)

    def scores(self, pairs: Sequence[Pair]) -> list[float]:
        """Scores from 0 to 1; NaN where the reward is NaN. Raises InputError without constants."""
        if self.constants is None:
            raise InputError(
                "the reward has no constants to be scaled with; give --option low=... and high=... (a search measures "
                "them on its experts and writes them to its config.json)"
            )
        low, high = self.constants
        scaled = [
            reward if math.isnan(reward) else _within((reward - low) / (high - low)) for reward in self.rewards(pairs)
        ]
        if self._variant == "general":
            return scaled
        if self._variant == "reverse":
            return [1 - score for score in scaled]
        tokens = self._classifier.count_tokens([response for _, response in pairs])
        lengths = [_within((count - SHORTEST) / (self._longest + 1 - SHORTEST)) for count in tokens]
        if self._variant == "concise":
            lengths = [1 - length for length in lengths]
        return [(score + length) / 2 for score, length in zip(scaled, lengths, strict=True)]

    def report(self) -> dict[str, Any]:
        """The constants, the pairs that were scored, and those of them that were too long for the model."""
        low, high = self.constants or (None, None)
        return {"low": low, "high": high, "pairs": len(self._known), "truncated": self._classifier.truncated}

    def _text(self, prompt: str, response: str) -> str:
        tokenizer = self._classifier.tokenizer
        if not getattr(tokenizer, "chat_template", None):
            return f"{prompt}\n{response}"
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        return str(tokenizer.apply_chat_template(turns, tokenize=False))


def _within(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _pairs(examples: Sequence[dict[str, Any]], answers: Sequence[Sequence[Answer]]) -> list[Pair]:
    return [(prompt(one), given[0].text.strip()) for one, given in zip(examples, answers, strict=True)]
