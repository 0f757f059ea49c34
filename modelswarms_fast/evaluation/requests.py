"""Examples put to an engine: what each asks, as tokens, until its last answer has come."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modelswarms_fast.engines.protocol import Completion, Engine, Request
from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.objectives import Answer, Ask, Utility


@dataclass(frozen=True)
class EncodedAsk:
    """An ask in token ids."""

    ask: Ask
    prompt: list[int]
    """With its chat template, if there is one."""
    continuation: list[int] | None

    @property
    def tokens(self) -> list[int]:
        """Prompt and continuation."""
        return self.prompt + (self.continuation or [])


@dataclass(eq=False, slots=True)
class PendingExample:
    """An example that is being asked, and its answers so far."""

    split: str
    example: int
    slot: int | None
    name: bytes | None
    """Of the position that the slot serves."""
    answers: list[Answer | None]
    names: dict[int, tuple[int, EncodedAsk]]
    """Of its requests under way → which answer, and what was asked."""
    followed: bool = False
    finite: bool = True
    """Whether all that the model computed for its answers were numbers."""
    prompts: int = 0
    """Of its answers that have come, and `tokens`."""
    tokens: int = 0

    @property
    def given(self) -> list[Answer]:
        """Its answers, once it has ended."""
        return [answer for answer in self.answers if answer is not None]


class RequestTracker:
    """Puts the asks of examples to an engine, and what follows up on their answers.

    What is asked first is tokenised once, here; a follow-up when it arises.

    Raises:
        InputError: an ask does not fit the engine; the message names the example.
    """

    def __init__(self, engine: Engine, utility: Utility, splits: Sequence[str]) -> None:
        self._engine, self._utility = engine, utility
        self._names = itertools.count()
        self._under_way: dict[int, PendingExample] = {}
        self._waiting: dict[tuple[Any, ...], list[PendingExample]] = {}  # for their batch, with their first answers
        self._first = {split: self._encode_split(split) for split in splits}

    @property
    def idle(self) -> bool:
        """Whether no request runs."""
        return not self._under_way

    def count(self, split: str) -> int:
        """Examples of a split."""
        return len(self._first[split])

    def lengths(self, split: str) -> list[int]:
        """Tokens of each example's first asks together."""
        return [sum(len(one.tokens) for one in asks) for asks in self._first[split]]

    def prompts(self, split: str) -> list[list[int]]:
        """Token ids of all first asks of a split, continuations included."""
        return [one.tokens for asks in self._first[split] for one in asks]

    def asked(self, split: str) -> list[list[EncodedAsk]]:
        """What each example of a split asks first."""
        return self._first[split]

    def sent(self, split: str, example: int) -> str:
        """The text of an example's first prompt as it is sent, with its chat template if there is one."""
        ask = self._utility.asks[split][example][0]
        return self._texts([ask])[0][0]

    def submit(self, split: str, example: int, slot: int | None, name: bytes | None) -> PendingExample:
        """Ask a slot the first asks of an example; `name` of the position that it serves, None where it has none."""
        first = self._first[split][example]
        asked = PendingExample(split, example, slot, name, [None] * len(first), {})
        for index, encoded in enumerate(first):
            self._submit(asked, index, encoded)
        return asked

    def collect(self, ended: Sequence[tuple[int, Completion]]) -> list[PendingExample]:
        """Take in what has ended; the examples of which that was the last."""
        last = []
        under_way = self._under_way
        for name, completion in ended:  # all, before a follow-up can fail
            asked = under_way.pop(name)
            names = asked.names
            index, encoded = names.pop(name)
            asked.answers[index] = _answer(encoded.ask, completion)
            asked.finite &= completion.finite and math.isfinite(completion.log_prob)
            asked.prompts += 1
            asked.tokens += completion.tokens
            if not names:
                last.append(asked)
        if self._utility.follow_up is None:
            return last
        complete = [asked for asked in last if asked.followed]
        for batch in self._batches([asked for asked in last if not asked.followed]):
            complete += self._follow(batch)
        return complete

    def _batches(self, last: Sequence[PendingExample]) -> Iterator[list[PendingExample]]:
        """Examples with their first answers, each alone or, with padding, once all of its batch have theirs."""
        padding = self._utility.padding
        if padding is None:
            yield from ([asked] for asked in last)
            return
        for asked in last:
            batch = padding.batch_of(asked.split, asked.example)
            key = (asked.split, asked.slot if asked.name is None else asked.name, batch)
            waiting = self._waiting.setdefault(key, [])
            waiting.append(asked)
            if len(waiting) == len(batch):
                yield self._waiting.pop(key)

    def _follow(self, batch: Sequence[PendingExample]) -> list[PendingExample]:
        """Ask what follows up on the first answers; the examples of which there is no such thing."""
        assert self._utility.follow_up is not None
        ended, asking = [], []
        for asked in batch:
            asked.followed = True
            example = self._utility.examples[asked.split][asked.example]
            ask = self._utility.follow_up(example, asked.given) if asked.finite else None
            if ask is None:
                ended.append(asked)
            else:
                asking.append((asked, ask))
        encoded = self._padded(self._encode([ask for _, ask in asking]))
        for (asked, _), one in zip(asking, encoded, strict=True):
            self._check(one, f"The follow-up of {asked.split} example {asked.example}")
            asked.answers.append(None)
            self._submit(asked, len(asked.answers) - 1, one)
        return ended

    def drop(self, given_up: Sequence[PendingExample]) -> None:
        """Give up examples; the engine need not answer what they still ask."""
        for waiting in self._waiting.values():
            waiting[:] = [asked for asked in waiting if asked not in given_up]
        names = [name for asked in given_up for name in asked.names]
        for name in names:
            del self._under_way[name]
        if names:
            self._engine.drop(names)

    def _submit(self, asked: PendingExample, index: int, encoded: EncodedAsk) -> None:
        name = next(self._names)
        asked.names[name], self._under_way[name] = (index, encoded), asked
        message = encoded.ask.prompt if self._in_chat(encoded.ask) else None
        sampling = encoded.ask.sampling
        if sampling is not None:
            sampling = sampling._replace(seed=seed_of(sampling.seed, asked.split, asked.example, index, asked.name))
        request = Request(asked.slot, encoded.prompt, encoded.continuation, sampling, message)
        self._engine.submit(name, request, encoded.ask.max_tokens)

    # tokens

    def _encode_split(self, split: str) -> list[list[EncodedAsk]]:
        asks = self._utility.asks[split]
        encoded = iter(self._encode([ask for some in asks for ask in some]))
        first = [[next(encoded) for _ in some] for some in asks]
        if self._utility.padding is not None:
            for batch in self._utility.padding.batches[split]:
                padded = self._padded([one for number in batch for one in first[number]])
                for number, one in zip(batch, padded, strict=True):
                    first[number] = [one]
        for number, some in enumerate(first):
            for one in some:
                self._check(one, f"Prompt {number} of the {split} split")
            self._check_follow_up(split, number, some)
        return first

    def _padded(self, batch: Sequence[EncodedAsk]) -> list[EncodedAsk]:
        """The asks of one batch as they are sent, with padding if there is to be some."""
        padding = self._utility.padding
        if padding is None:
            return list(batch)
        prompts = padding.padded([one.prompt for one in batch])
        return [replace(one, prompt=prompt) for one, prompt in zip(batch, prompts, strict=True)]

    def _check_follow_up(self, split: str, number: int, first: Sequence[EncodedAsk]) -> None:
        """That a follow-up will have room, judged by the one that empty answers would call for."""
        if self._utility.follow_up is None:
            return
        empty = [Answer("" if one.ask.continuation is None else one.ask.continuation, 0) for one in first]
        if (ask := self._utility.follow_up(self._utility.examples[split][number], empty)) is not None:
            answers = sum(one.ask.max_tokens for one in first if one.continuation is None)
            where = f"The follow-up of {split} example {number}"
            self._check(self._encode([ask])[0], where, answers)

    def _encode(self, asks: Sequence[Ask]) -> list[EncodedAsk]:
        """As lm-eval does it: a continuation is what its prompt with it has more tokens than the prompt alone; white
        space at the end of the prompt belongs to it. After a chat template it begins without white space."""
        pairs, special = self._texts(asks), [not self._in_chat(ask) for ask in asks]
        prompts = self._tokenize([prompt for prompt, _ in pairs], special)
        scored = [place for place, (_, more) in enumerate(pairs) if more is not None]
        texts = [f"{pairs[place][0]}{pairs[place][1]}" for place in scored]
        wholes = dict(zip(scored, self._tokenize(texts, [special[place] for place in scored]), strict=True))
        encoded = []
        for place, (ask, prompt) in enumerate(zip(asks, prompts, strict=True)):
            continuation = wholes[place][len(prompt) :] if place in wholes else None
            if continuation is not None and not prompt:
                prompt = [self._first_token()]
            encoded.append(EncodedAsk(ask, prompt, continuation))
        return encoded

    def _in_chat(self, ask: Ask) -> bool:
        """Whether the prompt goes into a chat template: a text without a prompt is nobody's message."""
        return self._utility.chat is not None and bool(ask.prompt)

    def _texts(self, asks: Sequence[Ask]) -> list[tuple[str, str | None]]:
        """Prompt and continuation of each ask as they are sent."""
        messages = list(dict.fromkeys(ask.prompt for ask in asks if self._in_chat(ask)))
        if self._utility.chat is None or not messages:
            return [_split(ask) for ask in asks]
        sent = dict(zip(messages, self._utility.chat.render(self._engine.tokenizer, messages), strict=True))
        return [
            (sent[ask.prompt], None if ask.continuation is None else ask.continuation.lstrip())
            if self._in_chat(ask)
            else _split(ask)
            for ask in asks
        ]

    def _tokenize(self, texts: Sequence[str], special: Sequence[bool]) -> list[list[int]]:
        """Token ids of each text; `special`: with the tokens that the tokenizer adds to a text."""
        found: list[list[int]] = [[] for _ in texts]
        for added in sorted(set(special)):
            places = [place for place, one in enumerate(special) if one == added]
            settings = {} if added else {"add_special_tokens": False}
            ids = self._engine.tokenizer([texts[place] for place in places], **settings)["input_ids"]
            for place, tokens in zip(places, ids, strict=True):
                found[place] = list(tokens)
        return found

    def _first_token(self) -> int:
        """What a text begins after that has no prompt."""
        tokenizer = self._engine.tokenizer
        token = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        if token is None:
            raise InputError("The tokenizer has no token that begins a text; give every likelihood a prompt.")
        return int(token)

    def _check(self, encoded: EncodedAsk, where: str, more: int = 0) -> None:
        """Raise InputError if the engine has no room for it and as many tokens more."""
        longest = self._engine.max_model_len
        if encoded.continuation is not None:
            if not encoded.continuation:
                raise InputError(f"{where} asks for the likelihood of no tokens; give its continuation a text.")
            if len(encoded.tokens) + 1 + more > longest:
                raise InputError(
                    f"{where} has {len(encoded.tokens)} tokens with its continuation; it must have at most "
                    f"{longest - 1 - more}: raise max_model_len or leave the example out."
                )
            return
        room = longest - encoded.ask.max_tokens - more
        if not 0 < len(encoded.prompt) <= room:
            raise InputError(
                f"{where} has {len(encoded.prompt)} tokens; with {encoded.ask.max_tokens + more} new "
                f"tokens it must have from 1 to {room}: raise max_model_len or leave the example out."
            )


def seed_of(seed: int, split: str, example: int, ask: int, name: bytes | None) -> int:
    """The seed, below 2**63, of one answer: of the run's seed, what is asked, and the position that is asked.

    Neither the order nor the number of requests is in it, so that a repeat repeats: another search, a resumed one, or a
    search that skips examples.
    """
    what = f"{seed} {split} {example} {ask} ".encode() + (name or b"")
    return int.from_bytes(hashlib.blake2b(what, digest_size=8).digest(), "little") >> 1


def _split(ask: Ask) -> tuple[str, str | None]:
    """Prompt and continuation, white space at the end of the prompt moved to the continuation."""
    if ask.continuation is None:
        return ask.prompt, None
    prompt = ask.prompt.rstrip()
    return prompt, ask.prompt[len(prompt) :] + ask.continuation


def _answer(ask: Ask, completion: Completion) -> Answer:
    if ask.continuation is not None:
        return Answer(ask.continuation, completion.tokens, completion.log_prob, completion.greedy)
    text = completion.text
    if ask.stop:
        ends = [place for stop in ask.stop if stop and (place := text.find(stop)) >= 0]
        text = text[: min(ends, default=None)]
    return Answer(text, completion.tokens, math.nan, True)
