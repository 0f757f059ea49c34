"""Train the demo's experts: one LoRA adapter a skill, on a CPU, with peft and a plain loop.

    python examples/train_experts.py --out examples/experts             # all skills, one after the other
    python examples/train_experts.py --out examples/experts path units  # only these

Every expert starts from the same LoRA weights (one seed), so that their A matrices stay near each other: a
search mixes A and B separately, and B of one expert only works with an A that is close to its own.
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

import skills
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelswarms_fast.weights.base_model import resolve_base

BASE = "smollm2-135m-instruct"
TARGETS = ["k_proj", "o_proj", "q_proj", "v_proj"]
RANK, ALPHA = 4, 8
STEPS, BATCH, LEARNING_RATE, SEED = 80, 8, 2e-3, 0


def batches(lengths: list[int], size: int, steps: int, rng: random.Random) -> list[list[int]]:
    """Indices of the examples of each step: batches of nearly equal lengths in random order."""
    result: list[list[int]] = []
    while len(result) < steps:
        order = sorted(range(len(lengths)), key=lambda i: (lengths[i], rng.random()))
        groups = [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
        rng.shuffle(groups)
        result += groups
    return result[:steps]


def loss_of(model: Any, batch: list[tuple[list[int], list[int]]], pad: int) -> torch.Tensor:
    """Mean cross entropy of the completion tokens; the head is computed at those positions only."""
    width = max(len(p) + len(c) for p, c in batch)
    tokens = torch.full((len(batch), width), pad)
    targets = torch.full((len(batch), width), -100)
    mask = torch.zeros(len(batch), width, dtype=torch.long)
    for row, (prompt, completion) in enumerate(batch):
        n = len(prompt) + len(completion)
        tokens[row, :n] = torch.tensor(prompt + completion)
        targets[row, len(prompt) - 1 : n - 1] = torch.tensor(completion)
        mask[row, :n] = 1
    causal = model.get_base_model()
    hidden = causal.model(input_ids=tokens, attention_mask=mask).last_hidden_state
    chosen = targets != -100
    logits = causal.lm_head(hidden[chosen]).float()
    return torch.nn.functional.cross_entropy(logits, targets[chosen])


def train(
    skill: str,
    base: Path,
    *,
    steps: int = STEPS,
    learning_rate: float = LEARNING_RATE,
    rank: int = RANK,
    alpha: int = ALPHA,
) -> tuple[Any, list[float]]:
    """One expert: the model with its adapter, and the loss of every step."""
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.bfloat16, attn_implementation="eager", trust_remote_code=False
    )
    torch.manual_seed(SEED)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS, task_type="CAUSAL_LM", lora_dropout=0.0)
    model = get_peft_model(model, config)  # LoRA weights are float32 on a bfloat16 base
    model.train()
    examples = [
        (
            tokenizer(e["question"])["input_ids"],
            tokenizer(" " + e["answer"])["input_ids"] + [tokenizer.eos_token_id],
        )
        for e in skills.splits(skill)["train"]
    ]
    order = batches([len(p) + len(c) for p, c in examples], BATCH, steps, random.Random(f"{skill}/order"))
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.99))
    losses = []
    for step, indices in enumerate(order):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 10) * (1 - step / steps)
        loss = loss_of(model, [examples[i] for i in indices], tokenizer.pad_token_id)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
    return model, losses


def save(model: Any, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors (bfloat16), nothing that names this machine."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(torch.bfloat16)
    model.peft_config["default"].base_model_name_or_path = BASE
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as name:
        written = Path(name)
        model.save_pretrained(written, save_embedding_layers=False)  # else peft asks the hub about the base
        config = json.loads((written / "adapter_config.json").read_text(encoding="utf-8"))
        config["target_modules"].sort()  # peft writes a set, whose order changes from run to run
        (written / "adapter_config.json").write_text(
            json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
        folder.mkdir(exist_ok=True)
        for file in ("adapter_model.safetensors", "adapter_config.json"):
            (written / file).chmod(0o644)
            os.replace(written / file, folder / file)


def main() -> None:
    """Train the skills named on the command line, or all, and print one line on each."""
    parser = argparse.ArgumentParser(description="Train one LoRA expert a skill.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="each expert is written to DIR/SKILL")
    parser.add_argument("skill", nargs="*", choices=[[], *skills.skills()], help="skills to train (default: all)")
    arguments = parser.parse_args()
    base = resolve_base(BASE)
    for skill in arguments.skill or skills.skills():
        start = time.perf_counter()
        model, losses = train(skill, base)
        save(model, arguments.out / skill)
        tenth = max(1, len(losses) // 10)
        means = [sum(losses[i : i + tenth]) / tenth for i in range(0, len(losses), tenth)]
        print(
            f"{skill}: {time.perf_counter() - start:.0f} s, loss",
            " ".join(f"{mean:.3f}" for mean in means),
            flush=True,
        )


if __name__ == "__main__":
    main()
