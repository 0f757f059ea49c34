"""Train a small reward model on the skills of the demo, on a CPU, with a plain loop.

    python examples/train_reward.py --out runs/reward

It is the first layers of SmolLM2-135M-Instruct with a head of one number, trained on pairs of answers to the same
question, of which the first is better (Bradley and Terry: loss = -log sigmoid(r_better - r_worse)). What is worse:

    wrong       the answer to another question of the same skill
    off topic   the answer to a question of another skill
    garbled     the right answer with its characters shuffled
    rambling    the right answer, and then another question

At the end the share of held-out pairs in the right order is printed, by kind. The folder is one that
`--task reward --option model=...` takes, with safetensors weights; its input is "prompt\\nresponse".
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import skills
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, logging

from modelswarms_fast.weights.base_model import resolve_base

BASE = "smollm2-135m-instruct"
LAYERS, TRAINED, STEPS, BATCH, LEARNING_RATE, SEED = 8, 4, 120, 8, 3e-4, 0
KINDS = ("wrong", "off topic", "garbled", "rambling")

Pair = tuple[str, str, str, str]  # kind, prompt, better, worse


def pairs(split: str, n: int, rng: random.Random) -> list[Pair]:
    """n pairs of the items of a split ("train", "dev" or "test"), skills and kinds in equal parts, shuffled."""
    items = {skill: skills.splits(skill)[split] for skill in skills.skills()}
    found: list[Pair] = []
    for number in range(n):
        skill = skills.skills()[number % len(items)]
        kind = KINDS[number // len(items) % len(KINDS)]
        one = rng.choice(items[skill])
        right = one["answer"]
        others = [other for other in items[skill] if other["answer"] != right]
        if kind == "wrong":
            worse = rng.choice(others)["answer"]
        elif kind == "off topic":
            worse = rng.choice(items[rng.choice([name for name in items if name != skill])])["answer"]
        elif kind == "garbled":
            worse = "".join(rng.sample(right, len(right)))
        else:
            worse = f"{right}\n{rng.choice(others)['question']}"
        if worse != right:
            found.append((kind, one["question"], right, worse))
    rng.shuffle(found)
    return found


def rewards(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Rewards [n] of n texts, float32."""
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    return model(**batch).logits[:, 0].float()


def difference(model: Any, tokenizer: Any, some: list[Pair]) -> torch.Tensor:
    """By how much the better answer of each pair is above the worse one, [n]."""
    better = [f"{prompt}\n{answer}" for _, prompt, answer, _ in some]
    worse = [f"{prompt}\n{answer}" for _, prompt, _, answer in some]
    both = rewards(model, tokenizer, better + worse)
    return both[: len(some)] - both[len(some) :]


def start(base: Path, layers: int) -> tuple[Any, Any]:
    """The first layers of the base model under a new head, and the tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    tokenizer.chat_template = None  # the experts of the demo are asked in plain text
    torch.manual_seed(SEED)
    model = AutoModelForSequenceClassification.from_pretrained(
        base,
        num_labels=1,
        num_hidden_layers=layers,
        dtype=torch.float32,
        pad_token_id=tokenizer.pad_token_id,
        trust_remote_code=False,
    )
    # Two thirds of the weights stay as they are: known from the base model, and dear to train on a CPU.
    model.get_input_embeddings().weight.requires_grad_(False)
    for layer in model.model.layers[: layers - TRAINED]:
        layer.requires_grad_(False)
    return model, tokenizer


def train(model: Any, tokenizer: Any, steps: int, learning_rate: float) -> list[float]:
    """The loss of every step."""
    rng = random.Random(SEED)
    data = sorted(pairs("train", steps * BATCH, rng), key=lambda pair: sum(map(len, pair)))  # little padding
    batches = [data[place : place + BATCH] for place in range(0, len(data), BATCH)]
    rng.shuffle(batches)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.0)
    losses = []
    model.train()
    for step, some in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 20) * (1 - step / len(batches))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = -torch.nn.functional.logsigmoid(difference(model, tokenizer, some)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
    return losses


def accuracy(model: Any, tokenizer: Any, n: int) -> dict[str, tuple[int, int]]:
    """By kind, how many of n held-out pairs are in the right order, and how many there are."""
    held_out = sorted(pairs("test", n, random.Random(SEED + 1)), key=lambda pair: len(pair[1]))
    found = dict.fromkeys(KINDS, (0, 0))
    model.eval()
    with torch.inference_mode():
        for place in range(0, len(held_out), 32):
            some = held_out[place : place + 32]
            for (kind, *_), above in zip(some, difference(model, tokenizer, some).tolist(), strict=True):
                found[kind] = (found[kind][0] + (above > 0), found[kind][1] + 1)
    return found


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write the classifier in bfloat16 and its tokenizer, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as name:
        written = Path(name) / "model"
        model.to(torch.bfloat16).save_pretrained(written)
        tokenizer.save_pretrained(written)
        shutil.rmtree(folder, ignore_errors=True)
        written.rename(folder)


def main() -> None:
    """Train, save, and print the accuracy of what was saved."""
    parser = argparse.ArgumentParser(description="Train a small reward model on the skills of the demo.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write; replaced if it exists")
    parser.add_argument("--base", default=BASE, help="model whose first layers are taken (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=LAYERS, help="how many (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="(default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE, help="(default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=480, help="held-out pairs to look at (default: %(default)s)")
    arguments = parser.parse_args()
    logging.set_verbosity_error()  # the new head and the layers that are left out are no news
    logging.disable_progress_bar()
    begun = time.perf_counter()
    model, tokenizer = start(resolve_base(arguments.base), arguments.layers)
    losses = train(model, tokenizer, arguments.steps, arguments.learning_rate)
    tenth = max(1, len(losses) // 10)
    means = [sum(losses[i : i + tenth]) / len(losses[i : i + tenth]) for i in range(0, len(losses), tenth)]
    print(f"{time.perf_counter() - begun:.0f} s, loss", " ".join(f"{mean:.3f}" for mean in means), flush=True)
    save(model, tokenizer, arguments.out)
    saved = AutoModelForSequenceClassification.from_pretrained(
        arguments.out, dtype=torch.float32, trust_remote_code=False
    )
    found = accuracy(saved, tokenizer, arguments.pairs)
    for kind, (right, count) in found.items():
        print(f"{kind}: {right} of {count} held-out pairs in the right order")
    right, count = (sum(numbers) for numbers in zip(*found.values(), strict=True))
    print(f"all: {right} of {count}, {right / count:.1%}")


if __name__ == "__main__":
    main()
