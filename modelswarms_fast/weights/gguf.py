"""Turns a GGUF file of a Llama or a Gemma 3 (text) into an ordinary checkpoint.

transformers 5.19 reads the same weights by `gguf_file`, but its tokenizers differ. So this is done here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelswarms_fast.errors import InputError
from modelswarms_fast.weights.gguf_tokenizer import byte_level_tokenizer, sentencepiece_tokenizer

if TYPE_CHECKING:
    import torch

# GGUF name of a tensor in one block -> name in the checkpoint.
LINEAR = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NORMS = {
    "llama": {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"},
    "gemma3": {
        "attn_norm": "input_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
    },
}
OTHER_TENSORS = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
# Of Gemma 3, not in the file: every sixth layer sees the whole context, the others a window with this rotary base.
GEMMA3_PATTERN, GEMMA3_LOCAL_BASE = 6, 10_000.0


def convert_gguf(source: Path, folder: Path) -> None:
    """Write a GGUF file (Llama or Gemma 3 text, tied embeddings) as a bfloat16 checkpoint into a folder.

    Files: model.safetensors, config.json, generation_config.json, tokenizer.json, tokenizer_config.json.
    Raises InputError for another architecture, or without the package gguf.
    """
    try:
        from gguf import GGUFReader
    except ImportError:
        raise InputError("reading a GGUF file needs the package gguf: pip install gguf") from None
    import torch
    from safetensors.torch import save_file

    reader = GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    architecture = fields["general.architecture"]
    if architecture not in NORMS or any(t.name == "output.weight" for t in reader.tensors):
        raise InputError(
            f"{source} is not a Llama or Gemma 3 model with tied embeddings; give its safetensors checkpoint instead"
        )
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in _gguf_weights(reader, fields).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    ends = {
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }
    shape = _gemma3_config(fields) if architecture == "gemma3" else _llama_config(fields)
    _write_json(folder / "config.json", shape | ends)
    _write_json(folder / "generation_config.json", {"_from_model_config": True, **ends})
    _write_tokenizer(folder, fields)


def _gguf_weights(reader: Any, fields: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Float32 weights by checkpoint name. GGUF lists the innermost dimension first."""
    import torch
    from gguf import dequantize

    architecture = fields["general.architecture"]
    norms = NORMS[architecture]
    heads = {
        "attn_q": fields[f"{architecture}.attention.head_count"],
        "attn_k": fields[f"{architecture}.attention.head_count_kv"],
    }
    weights = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).reshape(tuple(int(n) for n in reversed(tensor.shape)))
        name = OTHER_TENSORS.get(tensor.name)
        if name is None:
            _, layer, kind, _ = tensor.name.split(".")
            if kind in heads and architecture == "llama":
                # GGUF interleaves the two halves of each head for llama.cpp's rotary embedding; undone here.
                rows, columns = values.shape
                values = values.reshape(heads[kind], rows // heads[kind] // 2, 2, columns).swapaxes(1, 2)
                values = values.reshape(rows, columns)
            name = f"model.layers.{layer}.{(LINEAR | norms)[kind]}.weight"
        if architecture == "gemma3" and name.endswith("norm.weight"):
            values = values - 1  # Gemma's norms multiply by 1 + weight; GGUF stores the sum
        weights[name] = torch.from_numpy(values.copy())
    return weights


def _config(fields: dict[str, Any]) -> dict[str, Any]:
    """What both architectures name alike."""
    prefix = fields["general.architecture"]
    return {
        "torch_dtype": "bfloat16",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": fields[f"{prefix}.embedding_length"],
        "intermediate_size": fields[f"{prefix}.feed_forward_length"],
        "num_hidden_layers": fields[f"{prefix}.block_count"],
        "num_attention_heads": fields[f"{prefix}.attention.head_count"],
        "num_key_value_heads": fields[f"{prefix}.attention.head_count_kv"],
        "max_position_embeddings": fields[f"{prefix}.context_length"],
        "rope_theta": fields[f"{prefix}.rope.freq_base"],
        # The file holds the float32 nearest to the number that was meant, 1e-05.
        "rms_norm_eps": float(f"{fields[f'{prefix}.attention.layer_norm_rms_epsilon']:.6g}"),
        "attention_bias": False,
        "tie_word_embeddings": True,
    }


def _llama_config(fields: dict[str, Any]) -> dict[str, Any]:
    return _config(fields) | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "head_dim": fields["llama.embedding_length"] // fields["llama.attention.head_count"],
        "hidden_act": "silu",
        "mlp_bias": False,
    }


def _gemma3_config(fields: dict[str, Any]) -> dict[str, Any]:
    layers = range(1, fields["gemma3.block_count"] + 1)
    return _config(fields) | {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "head_dim": fields["gemma3.attention.key_length"],
        "query_pre_attn_scalar": fields["gemma3.attention.key_length"],
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": fields["gemma3.attention.sliding_window"],
        "layer_types": ["sliding_attention" if i % GEMMA3_PATTERN else "full_attention" for i in layers],
        "rope_local_base_freq": GEMMA3_LOCAL_BASE,
    }


def _write_tokenizer(folder: Path, fields: dict[str, Any]) -> None:
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    kinds: list[int] = fields["tokenizer.ggml.token_type"]
    if fields["tokenizer.ggml.model"] == "llama":  # so GGUF calls a SentencePiece model
        begin = tokens[fields["tokenizer.ggml.bos_token_id"]] if fields["tokenizer.ggml.add_bos_token"] else None
        unknown = tokens[fields["tokenizer.ggml.unknown_token_id"]]
        tokenizer = sentencepiece_tokenizer(tokens, kinds, fields["tokenizer.ggml.scores"], unknown, begin)
    else:
        tokenizer = byte_level_tokenizer(tokens, kinds, fields["tokenizer.ggml.merges"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[fields["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[fields["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[fields["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[fields["tokenizer.ggml.unknown_token_id"]],
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": fields[f"{fields['general.architecture']}.context_length"],
    }
    if template := fields.get("tokenizer.chat_template"):
        settings["chat_template"] = template
    _write_json(folder / "tokenizer_config.json", settings)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
