"""What an objective is: what it asks of a model, and how the answers become scores and a utility."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from modelswarms_fast.config import Sampling
from modelswarms_fast.errors import InputError, quoted, short
from modelswarms_fast.evaluation.chat import Chat
from modelswarms_fast.evaluation.dataset import Data
from modelswarms_fast.evaluation.padding import Padding

__all__ = ["Answer", "Ask", "Utility", "mean", "mean_error"]


_T = TypeVar("_T")

# So that sums and squares of scores are finite.
NAMED = 8  # examples in one sentence
LARGEST_SCORE = 1e100


class Ask(NamedTuple):
    """One thing asked of the model."""

    prompt: str
    """With a chat template the user's message; an empty one is sent without the template."""
    max_tokens: int
    """New tokens; ignored with a continuation."""
    continuation: str | None = None
    """None: generate; else: the log-probability of this text after the prompt is wanted."""
    stop: tuple[str, ...] = ()
    """A generated text is cut before the first of these."""
    sampling: Sampling | None = None
    """How a text is drawn, with the run's seed; None: greedily."""


class Answer(NamedTuple):
    """What the model answered."""

    text: str
    """Generated, white space kept; the continuation itself for a likelihood."""
    tokens: int = 0
    log_prob: float = math.nan
    """Natural, summed over the continuation's tokens; NaN for a generated text."""
    greedy: bool = True
    """Whether every token of the continuation was the likeliest; True for a generated text."""

    @classmethod
    def of(cls, recorded: Sequence[Any]) -> Answer:
        """An answer as JSON has it, which writes a NaN as null."""
        text, tokens, log_prob, greedy = recorded
        return cls(text, tokens, math.nan if log_prob is None else log_prob, greedy)


def mean(split: str, scores: Sequence[float]) -> float:
    """The mean. `fsum` is correctly rounded and so is the division, so it never falls when a score rises."""
    return math.fsum(scores) / len(scores)


def mean_error(split: str, scores: Sequence[float]) -> float:
    """Standard error of the mean: sqrt(sum (s - mean)² / (n - 1) / n); 0 for one score."""
    middle, count = mean(split, scores), len(scores)
    return math.sqrt(math.fsum((score - middle) ** 2 for score in scores) / max(count - 1, 1) / count)


def in_parts(values: Sequence[_T], count: int) -> list[Sequence[_T]]:
    """So many parts of equal length, one after the other. Raises ValueError where there are none."""
    length, rest = divmod(len(values), count) if count else (0, 0)
    if rest:
        raise ValueError(f"{len(values)} values in {count} equal parts")
    return [values[length * part : length * (part + 1)] for part in range(count)]


def score_of_samples(scores: Sequence[float], k: int | None) -> float:
    """The score of an example from those of its samples: their mean, or pass@k; NaN if one is NaN."""
    if any(math.isnan(score) for score in scores):
        return math.nan
    if k is not None:
        return pass_at_k(len(scores), sum(score >= 1 for score in scores), k)
    return min(max(mean("", scores), min(scores)), max(scores))  # within the range of scores, rounding included


def pass_at_k(n: int, right: int, k: int) -> float:
    """Chance that of k samples one is right, without bias from n of which `right` are (Chen et al., arXiv 2107.03374).

    1 - C(n - right, k) / C(n, k), the share of the sets of k samples that hold a right one.
    """
    return 1 - math.comb(n - right, k) / math.comb(n, k)


@dataclass(frozen=True)
class Utility:
    """What a search maximises: what is asked for each example, and the rules that score the answers.

    A score depends on its own example and answers alone, never on what shared a batch with it.
    """

    name: str
    dataset: str
    examples: dict[str, list[dict[str, Any]]]
    """By split."""
    asks: dict[str, list[tuple[Ask, ...]]]
    """By split, what each example asks first."""
    score_examples: Callable[[Sequence[dict[str, Any]], Sequence[Sequence[Answer]]], Sequence[float]]
    """Scores of any number of examples from their answers: finite, or NaN for no score."""
    follow_up: Callable[[dict[str, Any], Sequence[Answer]], Ask | None] | None = None
    """Asked after the first answers of an example; its answer is appended to them."""
    batch: int | None = None
    """Examples that `score_examples` gets at once, fewer when no request runs; None: as many as have ended."""
    reduce: Callable[[str, Sequence[float]], float] = mean
    """(split, scores) → utility. It must never fall when a score rises, rounding included: early stopping relies on it.
    It gets no NaN: the utility of scores with a NaN is NaN."""
    standard_error: Callable[[str, Sequence[float]], float] = mean_error
    """(split, scores) → standard error of `reduce`."""
    score_range: tuple[float, float] | None = None
    """Lowest and highest score there is, if that is known; NaN aside."""
    calibrate: Callable[[Sequence[dict[str, Any]], Sequence[Sequence[Answer]]], None] | None = None
    """Fixes what the scores are measured with; called once, before the first score is asked for, with all that the
    initial experts answer on dev."""
    report: Callable[[], dict[str, Any]] = dict
    """What a run should tell about its scoring: constants, counts, costs."""
    parts: tuple[Utility, ...] = ()
    """The utilities that this one is made of."""
    of_parts: Callable[[Sequence[Utility]], Utility] | None = None
    """Makes this utility of others in their place."""
    choice: Callable[[dict[str, Any], Sequence[Answer]], Hashable] | None = None
    """What the answers to an example name, as its score sees it: votes count that; None where nothing is to choose."""
    data: tuple[Data, ...] = ()
    """How the examples were read, a file or folder each; none where a task brings its own."""
    chat: Chat | None = None
    """The chat template that all prompts are sent in; None: as they are."""
    samples: int = 1
    """How often each example is asked the same. Each sample has a score; that of the example is their mean."""
    pass_k: int | None = None
    """In place of the mean, the chance that of so many samples one has the score 1."""
    padding: Padding | None = None
    """How prompts are made longer by tokens that the model reads, where each example asks once; None: not at all."""

    @property
    def prompts(self) -> dict[str, list[str]]:
        """The prompt of each example's first ask, by split."""
        return {split: [asks[0].prompt for asks in asked] for split, asked in self.asks.items()}

    @property
    def max_tokens(self) -> int:
        """The most new tokens that a first ask may take; 1 where all want a likelihood."""
        every = (ask for asked in self.asks.values() for asks in asked for ask in asks)
        return max((ask.max_tokens for ask in every if ask.continuation is None), default=1)

    def data_facts(self) -> dict[str, Any]:
        """What a record of a run says of its data."""
        read = [one.line for one in self.data]
        return {"data_read": read, "data_warnings": [warning for one in self.data for warning in one.warnings]}

    def digests(self) -> dict[str, str]:
        """Names of the content of `examples` and `asks`, so that results of another file are not taken for these."""
        asks: Any = self.asks if self.chat is None else [self.asks, self.chat.template, self.chat.system]
        named = {"examples": self.examples, "asks": asks}
        # By default=str: a document of lm-eval may hold dates and the like.
        data = {name: json.dumps(content, sort_keys=True, default=str).encode() for name, content in named.items()}
        return {name: hashlib.blake2b(one, digest_size=16).hexdigest() for name, one in data.items()}

    def utility_of(self, split: str, scores: Sequence[float]) -> float:
        """The utility of the scores of all examples of a split, in order; NaN if one is NaN."""
        if any(math.isnan(score) for score in scores):
            return math.nan
        return self.reduce(split, scores)

    def error_of(self, split: str, scores: Sequence[float]) -> float:
        """Its standard error; NaN if a score is NaN."""
        if any(math.isnan(score) for score in scores):
            return math.nan
        return self.standard_error(split, scores)

    def score(self, split: str, numbers: Sequence[int], answers: Sequence[Sequence[Answer]]) -> list[float]:
        """Scores of the examples of `split` with these numbers, from their answers; at most `batch` at a time.

        The answers of an example are those of its samples, one sample after the other.

        Raises InputError when `score_examples` raises, or returns anything else than one number in `score_range`, NaN
        or infinity for each; ValueError when the number of answers is not that of the examples.
        """
        if len(answers) != len(numbers):
            raise ValueError(f"answers to {len(answers)} examples for {len(numbers)} of {split}")
        if self.samples == 1 and self.pass_k is None:
            return self._score(split, numbers, answers)
        each = [number for number in numbers for _ in range(self.samples)]
        found = self._score(split, each, [part for given in answers for part in in_parts(given, self.samples)])
        return [score_of_samples(one, self.pass_k) for one in in_parts(found, len(numbers))]

    def _score(self, split: str, numbers: Sequence[int], answers: Sequence[Sequence[Answer]]) -> list[float]:
        """Scores of samples of examples with these numbers."""
        lowest, highest = self.score_range or (-LARGEST_SCORE, LARGEST_SCORE)
        scores: list[float] = []
        size = self.batch or max(len(numbers), 1)
        for first in range(0, len(numbers), size):
            end = first + size
            some = numbers[first:end]
            for number, value in zip(some, self._returned(split, some, answers[first:end]), strict=True):
                good = type(value) is float and lowest <= value <= highest
                scores.append(value if good else self._checked(value, split, number, lowest, highest))
        return scores

    def _returned(self, split: str, numbers: Sequence[int], answers: Sequence[Sequence[Answer]]) -> Sequence[Any]:
        examples = self.examples[split]
        try:
            returned = list(self.score_examples([examples[number] for number in numbers], answers))
        except (InputError, KeyboardInterrupt):
            raise
        except BaseException as error:  # whatever a function of the user raises, SystemExit among it
            self._each_alone(split, numbers, answers)
            where = self._where(split, *numbers)
            raise InputError(f"{where} raised {type(error).__name__}: {short(error)}; correct the function") from error
        if len(returned) != len(numbers):
            self._each_alone(split, numbers, answers)
            raise InputError(f"{self._where(split, *numbers)} returned {len(returned)} scores; return one for each")
        return returned

    def _each_alone(self, split: str, numbers: Sequence[int], answers: Sequence[Sequence[Answer]]) -> None:
        """Of several that failed together: raises the InputError of one that fails by itself, if there is one."""
        for number, given in zip(numbers, answers, strict=True) if len(numbers) > 1 else ():
            self._returned(split, [number], [given])

    def _checked(self, returned: Any, split: str, number: int, lowest: float, highest: float) -> float:
        what = f"{self._where(split, number)} returned {quoted(returned)}"
        try:
            score = LARGEST_SCORE * 10 if isinstance(returned, (str, bytes)) else float(returned)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            score = LARGEST_SCORE * 10
        if not math.isfinite(score):
            return math.nan
        if abs(score) > LARGEST_SCORE:
            raise InputError(f"{what}; return a number of at most {LARGEST_SCORE:g}, or NaN")
        if score < lowest or score > highest:
            raise InputError(f"{what}; its score_range says {lowest:g} to {highest:g}, correct it")
        return score

    def _where(self, split: str, *numbers: int) -> str:
        more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
        named = ", ".join(map(str, numbers[:NAMED])) + more
        return f'"{self.name}" on {split} example{"s" * (len(numbers) > 1)} {named}'
