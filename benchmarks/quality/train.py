"""Train LoRA experts of a base model on files of prompts and completions: the pools of these benchmarks.

    python -m benchmarks.quality.train --base gemma-3-270m --out runs/experts sentiment.jsonl topic.jsonl

Each NAME.jsonl (`{"prompt", "completion"}` a line) gives the expert OUT/NAME: rank 8, alpha 16, all linear layers. All
start from the same A, as a search mixes A and B separately. A completion follows its prompt on a line of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelswarms_fast.runs.baselines.data_merge import Example, batches, encode
from modelswarms_fast.runs.training_data import Pairs, read_training_data
from modelswarms_fast.weights.base_model import resolve_base

RANK, ALPHA, SEED = 8, 16, 0


def completion_loss(model: Any, batch: list[Example]) -> torch.Tensor:
    """Mean cross entropy of the completions' tokens; a vocabulary of 262,144 allows logits at those positions only."""
    width = max(len(prompt) + len(completion) for prompt, completion in batch)
    tokens, targets = torch.zeros((len(batch), width), dtype=torch.long), torch.full((len(batch), width), -100)
    mask = torch.zeros_like(tokens)
    for row, (prompt, completion) in enumerate(batch):
        length = len(prompt) + len(completion)
        tokens[row, :length] = torch.tensor(prompt + completion)
        targets[row, len(prompt) - 1 : length - 1] = torch.tensor(completion)
        mask[row, :length] = 1
    causal = model.get_base_model()
    hidden = causal.get_decoder()(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
    chosen = targets != -100
    logits = causal.get_output_embeddings()(hidden[chosen]).float()
    return torch.nn.functional.cross_entropy(logits, targets[chosen])


def train(base: Path, pairs: Pairs, *, steps: int, learning_rate: float) -> tuple[Any, list[float]]:
    """The model with its adapter, and the loss of every step."""
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, trust_remote_code=False)
    torch.manual_seed(SEED)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config).train()  # A and B in float32
    examples = [encode(tokenizer, prompt.rstrip() + "\n", completion) for prompt, completion in pairs]
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.0)
    losses = []
    for step, batch in enumerate(batches(examples, steps, random.Random(SEED))):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 10) * (1 - step / steps)
        loss = completion_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        if step % 10 == 9:
            print(f"step {step + 1}: {sum(losses[-10:]) / 10:.3f}", flush=True)
    return model, losses


def save(model: Any, folder: Path, base: str) -> None:
    """Write adapter_config.json and adapter_model.safetensors in bfloat16; the folder appears when it is whole."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(torch.bfloat16)
    model.peft_config["default"].base_model_name_or_path = base
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as name:
        written = Path(name) / folder.name
        model.save_pretrained(written, save_embedding_layers=False)  # else peft asks the hub about the base
        config = json.loads((written / "adapter_config.json").read_text(encoding="utf-8"))
        config["target_modules"].sort()  # peft writes a set, whose order changes from run to run
        (written / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (written / "README.md").unlink(missing_ok=True)
        os.replace(written, folder)


def main() -> None:
    """Train the files named on the command line, and print one line on each."""
    parser = argparse.ArgumentParser(description="Train one LoRA expert a file.")
    parser.add_argument("--base", required=True, help="folder, hub id or packaged base")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="each expert is written to DIR/NAME")
    parser.add_argument("--steps", type=int, default=60, help="batches of 8 (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="at its highest (default: %(default)s)")
    parser.add_argument("files", nargs="+", type=Path, metavar="NAME.jsonl")
    arguments = parser.parse_args()
    base = resolve_base(arguments.base)
    for file in arguments.files:
        start = time.perf_counter()
        pairs = read_training_data(file.parent, [file.stem])[file.stem]
        model, losses = train(base, pairs, steps=arguments.steps, learning_rate=arguments.learning_rate)
        save(model, arguments.out / file.stem, arguments.base)
        tenth = max(1, len(losses) // 10)
        ends = [sum(some) / tenth for some in (losses[:tenth], losses[-tenth:])]
        print(f"{file.stem}: {time.perf_counter() - start:.0f} s, loss {ends[0]:.3f} to {ends[1]:.3f}", flush=True)


if __name__ == "__main__":
    main()
