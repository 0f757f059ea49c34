"""Train a small model of another architecture than the demo's base, for token swarms: a GPT-2, on a CPU, in minutes.

    python examples/train_second_model.py --out runs/gpt2 category largest

It has the tokenizer of smollm2-135m-instruct and knows nothing but the skills it is given. It learns every wording, the
one of the demo's task too (the demo's experts have not seen that): a model that begins at random numbers knows no word
that it has not been shown. The questions of the task are not among its own.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import skills
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from modelswarms_fast.base import resolve_base

TOKENIZER = "smollm2-135m-instruct"
WIDTH, LAYERS, HEADS = 128, 3, 4
ITEMS, STEPS, BATCH, LEARNING_RATE, SEED = 6000, 600, 64, 3e-3, 0


def examples_of(names: list[str], tokenizer: object) -> list[tuple[list[int], list[int]]]:
    """Token ids of questions and answers."""
    pairs = []
    for name in names:
        count = min(ITEMS, 300 if name == "units" else ITEMS)
        usual, held_out = (skills.generate(name, "train", count, held_out=other) for other in (False, True))
        for item in usual + held_out:
            question = tokenizer(item["question"])["input_ids"]  # type: ignore[operator]
            answer = tokenizer(" " + item["answer"])["input_ids"] + [tokenizer.eos_token_id]  # type: ignore
            pairs.append((question, answer))
    return pairs


def batch_of(pairs: list[tuple[list[int], list[int]]], pad: int) -> dict[str, torch.Tensor]:
    """Padded on the right; only answers have labels."""
    width = max(len(question) + len(answer) for question, answer in pairs)
    tokens = torch.full((len(pairs), width), pad)
    labels, mask = torch.full((len(pairs), width), -100), torch.zeros((len(pairs), width), dtype=torch.long)
    for row, (question, answer) in enumerate(pairs):
        length = len(question) + len(answer)
        tokens[row, :length] = torch.tensor(question + answer)
        labels[row, len(question) - 1 : length - 1] = torch.tensor(answer)  # what follows each place
        mask[row, :length] = 1
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description="Train a small GPT-2 on skills of the demo.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the checkpoint")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("skills", nargs="+", choices=skills.skills())
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(resolve_base(TOKENIZER))
    torch.manual_seed(SEED)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=128,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model = GPT2LMHeadModel(config).train()
    pairs, rng = examples_of(arguments.skills, tokenizer), random.Random(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    start, losses = time.perf_counter(), []
    for step in range(arguments.steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 50) * (1 - step / arguments.steps)
        batch = batch_of(rng.sample(pairs, BATCH), tokenizer.pad_token_id)
        labels = batch.pop("labels")
        chosen = labels != -100
        with torch.autocast("cpu", torch.bfloat16):
            logits = model.lm_head(model.transformer(**batch).last_hidden_state[chosen])
        loss = torch.nn.functional.cross_entropy(logits.float(), labels[chosen])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        if (step + 1) % 50 == 0:
            mean = sum(losses[-50:]) / 50
            print(f"step {step + 1}, {time.perf_counter() - start:.0f} s, loss {mean:.3f}", flush=True)
    model.eval().save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
