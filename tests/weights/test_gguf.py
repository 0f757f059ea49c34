"""A GGUF file becomes the checkpoint it was made of, and its tokenizer that of SentencePiece."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import helpers_gguf
import pytest
import torch
from gguf import GGUFWriter
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelswarms_fast.errors import InputError
from modelswarms_fast.weights.gguf import convert_gguf

ODD = [
    *("", " ", "  ", "     x", "\n", "\n\n1", "a\n\n\n\n b\n", "\t\tx", "\r\n x", " 12345 678"),
    *("😀👩‍👩‍👧 ☃ Zoë naïve", "<b>bold</b>", "a" * 50, "▁▁x ▁", "日本語", "\x00\ufffd\u200b", "<0x0A>", "ababa aaa"),
]


@pytest.fixture(scope="module")
def pieces() -> Any:
    return helpers_gguf.sentencepiece_model()


@pytest.fixture(scope="module")
def model(pieces: Any) -> Any:
    return helpers_gguf.gemma3(pieces.get_piece_size())


def converted(folder: Path, model: Any, pieces: Any, **how: Any) -> Path:
    helpers_gguf.write_gguf(folder / "model.gguf", model, pieces, **how)
    (folder / "checkpoint").mkdir()
    convert_gguf(folder / "model.gguf", folder / "checkpoint")
    return folder / "checkpoint"


def test_gemma_3_is_what_it_was_before_it_became_gguf(tmp_path: Path, model: Any, pieces: Any) -> None:
    read = AutoModelForCausalLM.from_pretrained(converted(tmp_path, model, pieces), dtype=torch.float32)
    assert type(read) is type(model)
    assert all(torch.equal(one, two) for one, two in zip(read.parameters(), model.parameters(), strict=True))
    # Longer than the window, so that layer types and both rotary bases matter.
    tokens = torch.arange(4, 44)[None]
    assert torch.equal(read(tokens).logits, model.float()(tokens).logits)


def test_quantised_tensors_are_dequantised(tmp_path: Path, model: Any, pieces: Any) -> None:
    read = AutoModelForCausalLM.from_pretrained(converted(tmp_path, model, pieces, q8="ffn_up"), dtype=torch.float32)
    for name, weight in read.named_parameters():
        error = (weight - model.state_dict()[name]).abs().max()
        assert 0 < error < 0.01 if "up_proj" in name else error == 0


def test_the_tokenizer_is_sentencepiece_with_a_beginning(tmp_path: Path, model: Any, pieces: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted(tmp_path, model, pieces))
    rng = random.Random(0)
    letters = "ab n\n\t1é😀<>/▁.,日T"
    texts = ODD + ["".join(rng.choice(letters) for _ in range(rng.randint(1, 30))) for _ in range(500)]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert ids == [2, *pieces.encode(text)], repr(text)
        assert tokenizer.decode(ids, skip_special_tokens=True) == text.replace("▁", " ")
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<bos>", "<eos>", "<pad>")
    assert tokenizer("<start_of_turn>a", add_special_tokens=False)["input_ids"][0] == pieces.piece_to_id(
        "<start_of_turn>"
    )


def test_no_beginning_is_added_where_the_file_says_so(tmp_path: Path, model: Any, pieces: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted(tmp_path, model, pieces, add_bos=False))
    assert tokenizer("the cat")["input_ids"] == pieces.encode("the cat")


def test_another_architecture_is_one_sentence(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "model.gguf", "rwkv7")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match=r"model\.gguf is not a Llama or Gemma 3 model .*safetensors"):
        convert_gguf(tmp_path / "model.gguf", tmp_path)
