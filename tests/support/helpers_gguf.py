"""A small random Gemma 3 as llama.cpp writes it: a GGUF file, and the model and tokenizer that it is made of."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

DEFINED = ["\n", "\n\n", "\n\n\n", "▁▁", "▁▁▁", "▁▁▁▁", "\t", "<b>"]
TEXT = ["The cat sat on the mat.", "banana bandana ababa aaaa", "In 1984 there were 12345 birds", "naïve Zoë, été"]
WINDOW = 4
NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


def sentencepiece_model() -> Any:
    """Trained, with what Gemma's has: byte fallback, user-defined pieces, no space put before a text."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 8),
        model_writer=model,
        model_type="bpe",
        vocab_size=380,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        user_defined_symbols=DEFINED,
        control_symbols=["<start_of_turn>"],
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def gemma3(vocabulary: int) -> Gemma3ForCausalLM:
    """Seven layers, so that one of them sees the whole context; every number is exact in bfloat16 and plus one."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=7,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=WINDOW,
        max_position_embeddings=128,
    )
    model = Gemma3ForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_((torch.randn_like(weight) * (0.25 if "norm" in name else 0.2)).bfloat16())
            if "norm" in name:
                weight.copy_((weight * 64).round() / 64)
    return model


def write_gguf(path: Path, model: Gemma3ForCausalLM, pieces: Any, *, add_bos: bool = True, q8: str = "") -> None:
    """Norms plus one, spaces in user-defined tokens, and tensors whose name has `q8` in it as Q8_0."""
    config = model.config
    writer = GGUFWriter(path, "gemma3")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["full_attention"]["rope_theta"])
    writer.add_sliding_window(config.sliding_window)
    count = pieces.get_piece_size()
    kinds = [6 if pieces.is_byte(i) else 3 if pieces.is_control(i) or pieces.is_unknown(i) else 1 for i in range(count)]
    tokens = [pieces.id_to_piece(i) for i in range(count)]
    for i, token in enumerate(tokens):
        if token in DEFINED:
            kinds[i], tokens[i] = 4, token.replace("▁", " ")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([pieces.get_score(i) for i in range(count)])
    writer.add_token_types(kinds)
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(add_bos)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        values = tensor.float().numpy() + np.float32("norm" in name)
        parts = name.split(".")
        kind = NAMES[parts[-2]]
        name = f"blk.{parts[2]}.{kind}.weight" if "layers" in parts else f"{kind}.weight"
        if q8 and q8 in name:
            writer.add_tensor(name, quantize(values, GGMLQuantizationType.Q8_0), raw_dtype=GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
