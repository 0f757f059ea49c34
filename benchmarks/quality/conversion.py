"""Is the packaged Gemma 3 270M what its GGUF file says? Needs the extra `gemma` and sentencepiece.

    python -m benchmarks.quality.conversion [TEXT_FILE ...]

Weights are compared with transformers' own reading of the file, tokens with SentencePiece's, on odd texts and on the
lines of the files. Prints what differs, the perplexity of a text, and a greedy continuation.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

import sentencepiece
import torch
from gguf import GGUFReader
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelswarms_fast.weights.base_model import resolve_base
from modelswarms_fast.weights.packaged import GEMMA3, packaged_gguf

ODD = [
    *("", " ", "     x", "\n\n1", "a\n\n\n b\n", "\t\tx", "\r\n x", " 12345 678", "y" + " " * 70 + "\n" * 40),
    *(
        "😀👩‍👩‍👧 ☃ Zoë naïve",
        "<b>bold</b> <table>x",
        "a" * 100,
        "▁▁x ▁",
        "مرحبا 日本語 한국어",
        "<0x0A>",
        "\x00\ufffd",
    ),
]
LETTERS = "ab \n\t1é😀<b>/▁.,日ßA"
PROSE = (
    "The city lies on the river Seine and has been an important centre of finance, diplomacy, commerce, culture and "
    "fashion since the seventeenth century. Birds are warm-blooded animals with feathers, and most of them can fly."
)


def reference(file: Path) -> sentencepiece.SentencePieceProcessor:
    """SentencePiece itself with the pieces of a GGUF file."""
    fields = GGUFReader(file).fields
    tokens, kinds, scores = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type", "scores"))
    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.model_type, model.trainer_spec.byte_fallback = 2, True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = model.normalizer_spec.remove_extra_whitespaces = False
    unknown = fields["tokenizer.ggml.unknown_token_id"].contents()
    for number, (token, kind, score) in enumerate(zip(tokens, kinds, scores, strict=True)):
        piece = model.pieces.add()
        piece.piece, piece.score, piece.type = token.replace(" ", "▁"), score, 2 if number == unknown else kind
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


def main() -> None:
    """Compare, and print."""
    folder = resolve_base(GEMMA3)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, trust_remote_code=False)
    rng = random.Random(0)
    texts = ODD + ["".join(rng.choice(LETTERS) for _ in range(rng.randint(1, 40))) for _ in range(5000)]
    texts += [line for file in sys.argv[1:] for line in Path(file).read_text(encoding="utf-8").split("\n")]
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "model.gguf"
        packaged_gguf(GEMMA3, file)
        other = AutoModelForCausalLM.from_pretrained(
            place, gguf_file=file.name, dtype=torch.bfloat16, trust_remote_code=False
        ).state_dict()
        pieces = reference(file)
    differing = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, other[name])]
    print(f"weights: {len(differing)} of {len(other)} tensors differ from transformers' reading", *differing)
    wrong = [text for text in texts if tokenizer(text)["input_ids"] != [tokenizer.bos_token_id, *pieces.encode(text)]]
    print(f"tokens: {len(wrong)} of {len(texts)} texts differ from SentencePiece's", *map(repr, wrong[:5]))
    ids = tokenizer(PROSE, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1].float(), ids[0, 1:])
    print(f"perplexity of {ids.shape[1] - 1} tokens of prose: {loss.exp():.2f}")
    start = tokenizer("Paris is the capital of", return_tensors="pt")
    print(repr(tokenizer.decode(model.generate(**start, max_new_tokens=12, do_sample=False)[0])))


if __name__ == "__main__":
    main()
