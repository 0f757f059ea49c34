"""Tiny random checkpoints of the families of models that users have, with experts, made of real config classes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from helpers_search import write_tokenizer
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

RANK = 4
LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_BASIC: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": True,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
_HEADS: dict[str, Any] = {"head_dim": 32}
_ROPE = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 64}  # fmt: skip
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32,
         "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
         "llama_4_scaling_beta": 0.1}  # fmt: skip
_GPT2: dict[str, Any] = {"n_embd": 128, "n_inner": 96, "n_layer": 2, "n_head": 4, "n_positions": 128}


@dataclass(frozen=True)
class Family:
    """A family: the name of its config class, that of its model class, and what makes it tiny."""

    config: str
    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    targets: list[str] | str = field(default_factory=lambda: LLAMA)
    """Names or a regular expression, as in PEFT."""
    build: Callable[[Family], Any] | None = None
    dtype: str = "float32"
    """What vLLM computes it in."""

    def config_of(self) -> Any:
        """The tiny config."""
        if self.build is not None:
            return self.build(self)
        given = {name: value for name, value in (_BASIC | self.settings).items() if value is not ...}
        return getattr(transformers, self.config)(**given)

    def model_class(self) -> Any:
        """The class that has its checkpoint."""
        return getattr(transformers, self.model)


def _causal(stem: str, targets: list[str] = LLAMA, config: str | None = None, **settings: Any) -> Family:
    return Family(config or f"{stem}Config", f"{stem}ForCausalLM", settings, targets)


_SEES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1,
                         "image_size": 28, "patch_size": 14}  # fmt: skip
_SEES_QWEN: dict[str, Any] = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 1,
                              "out_hidden_size": 128}  # fmt: skip


def _whole(family: Family, text: dict[str, Any], vision: dict[str, Any], settings: dict[str, Any]) -> Any:
    tied = {"tie_word_embeddings": (_BASIC | text)["tie_word_embeddings"]}
    return getattr(transformers, family.config)(text_config=_BASIC | text, vision_config=vision, **tied, **settings)


def _wrapped(
    stem: str, text: dict[str, Any], vision: dict[str, Any], dtype: str = "float32", **settings: Any
) -> Family:
    """A vision-language model; its text model alone is adapted."""
    build = partial(_whole, text=text, vision=vision, settings=settings)
    targets = rf".*\.language_model\..*\.({'|'.join(LLAMA)})"
    return Family(f"{stem}Config", f"{stem}ForConditionalGeneration", targets=targets, build=build, dtype=dtype)


FAMILIES: dict[str, Family] = {
    "Llama 2": _causal("Llama", tie_word_embeddings=False, num_key_value_heads=4),
    "Llama 3": _causal("Llama", rope_parameters=_ROPE),
    "Mistral": _causal("Mistral", tie_word_embeddings=False, sliding_window=32),
    "Qwen2": _causal("Qwen2"),
    "Qwen2.5": _causal("Qwen2", tie_word_embeddings=False),
    "Qwen3": _causal("Qwen3", **_HEADS),
    "Gemma": _causal("Gemma", **_HEADS),
    "Gemma 2": _causal("Gemma2", **_HEADS, query_pre_attn_scalar=32, sliding_window=32),
    "Gemma 3": _causal("Gemma3", config="Gemma3TextConfig", **_HEADS, query_pre_attn_scalar=32, sliding_window=32),
    "Phi": _causal("Phi", ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"], tie_word_embeddings=False),
    "Phi-3": _causal("Phi3", ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"], tie_word_embeddings=False,
                     original_max_position_embeddings=128),
    "OLMo 2": _causal("Olmo2", tie_word_embeddings=False),
    "Granite": _causal("Granite", attention_multiplier=0.25, residual_multiplier=0.5, embedding_multiplier=3.0),
    "StarCoder2": _causal("Starcoder2", ["q_proj", "k_proj", "v_proj", "o_proj", "c_fc", "c_proj"]),
    "SmolLM3": _causal("SmolLM3"),
    "GPT-NeoX": _causal("GPTNeoX", ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
                        tie_word_embeddings=False, num_key_value_heads=..., rotary_pct=0.5),
    "GPT-2": Family("GPT2Config", "GPT2LMHeadModel", _GPT2, ["c_attn", "c_proj", "c_fc"]),
    "OPT": _causal("OPT", ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"], ffn_dim=96, word_embed_proj_dim=128,
                   num_key_value_heads=...),
    "Falcon 7B": _causal("Falcon", ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"], ffn_hidden_size=512,
                      num_key_value_heads=...),
    "Falcon 40B": _causal("Falcon", ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
                          ffn_hidden_size=512, num_key_value_heads=..., num_kv_heads=2, new_decoder_architecture=True,
                          tie_word_embeddings=False),
    "Mixtral": _causal("Mixtral", LLAMA[:4], num_local_experts=4, num_experts_per_tok=2, tie_word_embeddings=False),
    "Qwen3-MoE": _causal("Qwen3Moe", LLAMA[:4], **_HEADS, num_experts=4, num_experts_per_tok=2,
                         moe_intermediate_size=32, tie_word_embeddings=False),
    "Gemma 3 (images)": _wrapped(
        "Gemma3", _HEADS | {"query_pre_attn_scalar": 32, "sliding_window": 32}, _SEES,
        mm_tokens_per_image=4, boi_token_index=61, eoi_token_index=62, image_token_index=63),
    "Qwen2.5-VL": _wrapped(
        "Qwen2_5_VL", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}},
        _SEES_QWEN, image_token_id=60, video_token_id=61, vision_start_token_id=62, vision_end_token_id=63),
    "Mistral 3": _wrapped(
        "Mistral3", {"model_type": "mistral", "head_dim": 32, "tie_word_embeddings": False},
        {"model_type": "pixtral", **_SEES}, image_token_index=63),
    "Ministral 3": _wrapped(
        "Mistral3", {"model_type": "ministral3", **_HEADS, "tie_word_embeddings": False, "rope_parameters": _YARN},
        {"model_type": "pixtral", **_SEES}, image_token_index=63),
    "Qwen3-VL": _wrapped(
        "Qwen3VL", _HEADS | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                                                 "mrope_section": [6, 5, 5]}},
        _SEES_QWEN | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        image_token_id=60, video_token_id=61, vision_start_token_id=62, vision_end_token_id=63),
    "Qwen3.5": _wrapped(
        "Qwen3_5", _HEADS | {"layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 128,
                             "linear_value_head_dim": 128, "linear_num_key_heads": 1, "linear_num_value_heads": 2,
                             "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1],
                                                 "partial_rotary_factor": 0.25, "mrope_interleaved": True}},
        _SEES_QWEN | {"num_position_embeddings": 16}, "bfloat16",  # vLLM's linear attention on a CPU
        image_token_id=60, video_token_id=61, vision_start_token_id=62, vision_end_token_id=63),
    "Gemma 4": _wrapped(
        "Gemma4", _HEADS | {"global_head_dim": 64, "sliding_window": 32, "vocab_size_per_layer_input": 64,
                            "hidden_size_per_layer_input": 16, "layer_types": ["sliding_attention", "full_attention"]},
        {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1,
         "num_key_value_heads": 1, "head_dim": 32, "position_embedding_size": 16},
        boi_token_id=58, eoi_token_id=59, image_token_id=60, video_token_id=61, boa_token_id=57, eoa_token_index=56,
        audio_token_id=55),
}  # fmt: skip


def make_model(family: Family, folder: Path, seed: int = 0) -> Any:
    """A random model of the family, saved with a tokenizer of 64 letters; biases and norms are random too."""
    torch.manual_seed(seed)
    model = family.model_class()(family.config_of()).float()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise, alpha=0.1 if parameter.dim() == 1 else 0.03)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model.eval()


def make_full(family: Family, base: Any, folder: Path, seed: int) -> None:
    """A whole checkpoint near the base model: its parameters, and the buffers that a checkpoint has."""
    generator = torch.Generator().manual_seed(100 + seed)
    live = list({one.data_ptr(): one for one in base.state_dict().values() if one.is_floating_point()}.values())
    kept = [one.clone() for one in live]
    for one in live:
        one.add_(torch.randn(one.shape, generator=generator), alpha=0.02)
    base.save_pretrained(folder)
    for one, own in zip(live, kept, strict=True):
        one.copy_(own)


def make_lora(family: Family, base: Path, folder: Path, seed: int, targets: Any = None) -> None:
    """A LoRA adapter on all linear layers, by PEFT."""
    lora = LoraConfig(r=RANK, lora_alpha=8, target_modules=targets or family.targets, task_type="CAUSAL_LM")
    model = get_peft_model(family.model_class().from_pretrained(base), lora)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    model.save_pretrained(folder)


def respell(adapter: Path, folder: Path, old: str, new: str) -> Path:
    """A copy of an adapter whose modules' names begin in another way: as other trainers leave them."""
    shutil.copytree(adapter, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    prefix = "base_model.model."
    save_file({prefix + new + name.removeprefix(prefix + old): one for name, one in tensors.items()},
              folder / "adapter_model.safetensors")  # fmt: skip
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"target_modules": LLAMA}))
    return folder


def make_family(family: Family, folder: Path) -> None:
    """A base model, three LoRA experts and two whole checkpoints: base, experts/0, full/0."""
    base = make_model(family, folder / "base")
    for seed in range(2):
        make_full(family, base, folder / "full" / str(seed), seed)
    for seed in range(3):
        make_lora(family, folder / "base", folder / "experts" / str(seed), seed)


def answers(family: Family, base: Path, adapter: Path | None, prompt: list[int]) -> list[float]:
    """Log-probabilities of the next token by transformers, with an adapter by PEFT."""
    model = family.model_class().from_pretrained(base, attn_implementation="eager")  # others leave out Gemma 2's cap
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        logits = model.eval()(torch.tensor([prompt])).logits[0, -1]
    chances: list[float] = torch.log_softmax(logits.float(), dim=-1).tolist()
    return chances
