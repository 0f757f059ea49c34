"""Tiny random models of two architectures whose tokens are letters."""

import string

import torch
from helpers_models import make_base
from tokenizers import Regex, Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

LETTERS = string.ascii_letters + string.digits  # 62, and the end


def save_tokenizer(folder, letters=LETTERS, end="<end>"):
    vocabulary = {letter: index for index, letter in enumerate([end, *letters])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=end))
    tokenizer.pre_tokenizer, tokenizer.decoder = Split(Regex("."), "isolated"), decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end).save_pretrained(folder)


def llama(folder, seed, letters=LETTERS, end="<end>"):
    """A random Llama whose texts end with token 0."""
    make_base(folder, seed=seed, shape={"eos_token_id": 0, "initializer_range": 0.3})
    save_tokenizer(folder, letters, end)
    return folder


def gpt2(folder, seed, letters=LETTERS, end="<end>"):
    """A random GPT-2 of the same."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=64, n_positions=128, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0,
        initializer_range=0.3,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    save_tokenizer(folder, letters, end)
    return folder
