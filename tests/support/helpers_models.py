"""Tiny real models for tests: a random Llama, adapters that PEFT itself writes, and full checkpoints."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


SHAPE: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": True,
}  # fmt: skip


def make_base(
    folder: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    shape: dict[str, Any] | None = None,
    **save: Any,
) -> Path:
    """A random Llama (hidden 32, 2 layers, 64 tokens, or as `shape` says), without tokenizer."""
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(**SHAPE | (shape or {}))).to(dtype).save_pretrained(folder, **save)
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of one such base model."""
    return make_base(tmp_path_factory.mktemp("base") / "tiny-llama")


def make_adapter(
    base: Path,
    folder: Path,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
    scale: float = 0.1,
    **lora: Any,
) -> Path:
    """A LoRA adapter with random A and B (normal, times `scale`), by PEFT; `lora` goes to LoraConfig."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ALL_LINEAR, "task_type": "CAUSAL_LM"} | lora
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base), LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = (torch.randn(parameter.shape, generator=generator) * scale).to(dtype)
    model.save_pretrained(folder)
    return folder


def edit_config(folder: Path, **fields: Any) -> None:
    """Change fields of the folder's adapter_config.json or config.json; a field set to ... is removed."""
    file = folder / "adapter_config.json"
    file = file if file.exists() else folder / "config.json"
    config = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def edit_tensors(folder: Path, **tensors: Any) -> None:
    """Replace tensors of the folder's weights (dots in names as "__"); a tensor set to ... is removed."""
    file = next(folder.glob("*.safetensors"))
    content = load_file(file) | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file({name: tensor for name, tensor in content.items() if tensor is not ...}, file, {"format": "pt"})
