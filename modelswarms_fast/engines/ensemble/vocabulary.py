"""One numbering of tokens for several models: the tokens that all of their tokenizers have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from modelswarms_fast.errors import InputError

# Of the smallest vocabulary. Below it, what most experts would say at most places is something that is dropped.
LEAST_SHARED = 0.5
BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # a byte of SentencePiece, for what no token spells


@dataclass(frozen=True)
class Vocabulary:
    """K common tokens: a token's number here, its id in each model."""

    ids: list[torch.Tensor]
    """By model, [K] its ids."""
    ends: frozenset[int]
    """Tokens, by their number here, that end a text."""
    same: bool
    """Whether all models have one tokenizer: a token's number then is its id."""

    @classmethod
    def of(cls, tokenizers: Sequence[Any], widths: Sequence[int], ends: Sequence[Sequence[int]]) -> Vocabulary:
        """The common vocabulary of models with these tokenizers, so many logits, and these ids that end a text.

        Tokens are common if they spell the same bytes, however a tokenizer writes them. The ends of all models are one
        token, whatever they are called. Raises InputError if the models share less than half of the smallest
        vocabulary.
        """
        vocabularies = [tokenizer.get_vocab() for tokenizer in tokenizers]
        if all(vocabulary == vocabularies[0] for vocabulary in vocabularies):
            everything = torch.arange(min(widths))
            stops = frozenset(end for some in ends for end in some if end < len(everything))
            return cls([everything] * len(tokenizers), stops, True)
        texts = [
            {text: token for text, token in spelled(tokenizer).items() if token not in stop and token < width}
            for tokenizer, stop, width in zip(tokenizers, ends, widths, strict=True)
        ]
        common = [text for text in texts[0] if all(text in other for other in texts[1:])]
        smallest = min(len(some) for some in texts)
        if len(common) < LEAST_SHARED * smallest:
            raise InputError(
                f"The experts' tokenizers share {len(common)} tokens, {len(common) / max(smallest, 1):.0%} of the "
                f"smallest vocabulary; token mixtures need {LEAST_SHARED:.0%}: give experts with closer tokenizers."
            )
        if not all(ends):
            raise InputError("An expert has no token that ends a text; set eos_token_id in its generation_config.json.")
        common.sort(key=texts[0].__getitem__)
        ids = [
            torch.tensor([stop[0], *(some[text] for text in common)]) for some, stop in zip(texts, ends, strict=True)
        ]
        return cls(ids, frozenset({0}), False)

    def logits(self, model: int, logits: torch.Tensor) -> torch.Tensor:
        """[..., K] float32: a model's logits [..., width] of the common tokens. A softmax of them is what the model
        says, with all other tokens dropped and the rest renormalised."""
        if self.same:
            return logits[..., : len(self.ids[model])].float()
        return logits[..., self.ids[model].to(logits.device)].float()


def spelled(tokenizer: Any) -> dict[bytes, int]:
    """The bytes that each token of a tokenizer stands for → its id; of several that spell the same, the lowest id
    that is no byte of SentencePiece."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # The decoder says in which letters tokens are written: "Ċ" is a line's end in byte-level ones, else a letter.
    byte_level = "ByteLevel" in repr(getattr(backend, "decoder", None))
    found: dict[bytes, int] = {}
    single: dict[bytes, int] = {}
    for text, token in sorted(tokenizer.get_vocab().items(), key=lambda pair: int(pair[1])):
        if byte_level:
            found.setdefault(b"".join(LETTERS.get(letter, letter.encode()) for letter in text), token)
        elif byte := BYTE.fullmatch(text):
            single.setdefault(bytes.fromhex(byte[1]), token)
        else:
            found.setdefault(text.replace("▁", " ").encode(), token)
    return single | found


def _byte_letters() -> dict[str, bytes]:
    """The letter of each byte in byte-level tokenizers → the byte: printable ones are themselves, others above 255."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): bytes([byte]) for byte in printable}
    return letters | {chr(256 + place): bytes([byte]) for place, byte in enumerate(others)}


LETTERS = _byte_letters()
