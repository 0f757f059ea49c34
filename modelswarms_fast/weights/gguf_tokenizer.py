"""Builds the tokenizer that a GGUF file describes, from its tokens, their kinds, and its merges or scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Token types of GGUF.
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4


def byte_level_tokenizer(tokens: Sequence[str], kinds: Sequence[int], merges: Sequence[str]) -> Tokenizer:
    """Byte-level BPE of SmolLM2: every digit on its own ("smollm" in GGUF), then words as in GPT-2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pairs = [(left, right) for left, _, right in (pair.partition(" ") for pair in merges)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    _add_control(tokenizer, tokens, kinds)
    return tokenizer


def sentencepiece_tokenizer(
    tokens: Sequence[str], kinds: Sequence[int], scores: Sequence[float], unknown: str, begin: str | None
) -> Tokenizer:
    """BPE of SentencePiece with byte fallback and without a space put before a text, as Gemma has it.

    begin: the token that begins every text; None: nothing does.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    # llama.cpp writes runs of spaces, which are user-defined, as spaces.
    pieces = [token.replace(" ", "▁") for token in tokens]
    ids = {piece: i for i, piece in enumerate(pieces)}
    merges = _merges(pieces, kinds, scores)
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    # User-defined pieces are cut out first, the longest one, and never merged. `normalized`: where spaces are "▁".
    defined = [piece for piece, kind in zip(pieces, kinds, strict=True) if kind == USER_DEFINED]
    tokenizer.add_tokens([AddedToken(piece, special=False, normalized=True) for piece in defined])
    _add_control(tokenizer, pieces, kinds)
    if begin is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[begin, "$A"], pair=[begin, "$A", begin, "$B:1"], special_tokens=[(begin, ids[begin])]
        )
    return tokenizer


def _merges(pieces: Sequence[str], kinds: Sequence[int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """All ways to make a normal piece of two others, the best score first: what SentencePiece tries."""
    normal = {piece for piece, kind in zip(pieces, kinds, strict=True) if kind == NORMAL}
    ranked = sorted(
        ((score, piece) for piece, kind, score in zip(pieces, kinds, scores, strict=True) if kind == NORMAL),
        key=lambda pair: -pair[0],
    )
    return [
        (piece[:cut], piece[cut:])
        for _, piece in ranked
        for cut in range(len(piece) - 1, 0, -1)
        if piece[:cut] in normal and piece[cut:] in normal
    ]


def _add_control(tokenizer: Tokenizer, tokens: Sequence[str], kinds: Sequence[int]) -> None:
    from tokenizers import AddedToken

    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
