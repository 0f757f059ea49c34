"""Train a pool of LoRA experts until their loss on held-out examples stops falling.

    python -m benchmarks.quality.train_pool --base BASE --out runs/pool --apart eval/*.json -- sft/*.jsonl

Each NAME.jsonl (`{"prompt", "completion"}` a line) gives the expert OUT/NAME, rank 16, alpha 32, all linear layers.
Left out are examples whose text is in a question of an evaluation file (`--apart`), whatever is asked about it. Of the
rest a tenth is held out; no text is in both parts.

Every STEPS steps the loss on the held-out examples is measured. Where it does not fall twice in a row, training goes on
from the best weights with a third of the learning rate; the second time it ends, and the best weights are the expert.
OUT/losses/NAME.json has every loss. Cut at any time, the same command goes on.

By default all experts start from the same A, as those of one team would. With `--independent` each has its own, as
experts from a hub would.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.quality.texts import apart, held_apart
from benchmarks.quality.train import completion_loss, save
from modelswarms_fast.records.run_folder import read_json, write_json
from modelswarms_fast.runs.baselines.data_merge import BATCH, Example, encode
from modelswarms_fast.runs.training_data import read_training_data
from modelswarms_fast.weights.base_model import resolve_base

RANK, ALPHA, SEED = 16, 32, 0
LEARNING_RATE, WARMUP = 1e-3, 20
STEPS, PATIENCE, PHASES, DECAY = 45, 2, 2, 1 / 3
"""Steps between two measurements, of which so many without a fall end a phase; phases; a later one's rate."""
FALL = 0.002
"""Less is no fall of the loss: an expert that makes no mistake could be trained for ever."""


@dataclass
class Progress:
    """Where the training of one expert is."""

    step: int = 0
    phase: int = 0
    failed: int = 0
    """Measurements since the best one."""
    best: float = float("inf")
    best_step: int = 0
    held_out: list[tuple[int, float]] = field(default_factory=list)
    """Step and loss on the held-out examples."""
    seconds: float = 0.0


class Training:
    """The training of one expert, kept in a file after every measurement."""

    def __init__(self, base: Path, examples: list[Example], held_out: list[Example], seed: int, file: Path) -> None:
        self._examples, self._held_out, self._file = examples, held_out, file
        model: Any = AutoModelForCausalLM.from_pretrained(
            base,
            dtype=torch.bfloat16,
            trust_remote_code=False,
            attn_implementation="eager",  # on a CPU a step of short examples takes a quarter less than with sdpa
        )
        torch.manual_seed(seed)
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
        self.model = get_peft_model(model, config).train()  # A and B in float32
        self._weights = {name: one for name, one in self.model.named_parameters() if one.requires_grad}
        self._best = {name: one.detach().clone() for name, one in self._weights.items()}
        self._optimizer = torch.optim.AdamW(self._weights.values(), lr=LEARNING_RATE, weight_decay=0.0)
        self.progress = Progress()
        if file.exists():
            self._read()

    def run(self) -> None:
        """Train to the end; the model then has the best weights."""
        while self.progress.phase < PHASES:
            start = time.perf_counter()
            for _ in range(STEPS):
                self._step()
            self._measure()
            self.progress.seconds += time.perf_counter() - start
            self._write()
            print(json.dumps(asdict(self.progress) | {"held_out": self.progress.held_out[-1]}), flush=True)
        self._go_back()

    def _step(self) -> None:
        now, per_pass = self.progress, -(-len(self._examples) // BATCH)
        with bfloat16(self.model):
            loss = completion_loss(self.model, batches_of(self._examples, now.step // per_pass)[now.step % per_pass])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._weights.values(), 1.0)
        for group in self._optimizer.param_groups:
            group["lr"] = LEARNING_RATE * DECAY**now.phase * min(1.0, (now.step + 1) / WARMUP)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        now.step += 1

    @torch.no_grad()
    def _measure(self) -> None:
        """The mean loss of a held-out token, and what follows from it."""
        now, total, tokens = self.progress, 0.0, 0
        some = sorted(self._held_out, key=length)
        for first in range(0, len(some), BATCH):
            batch = some[first : first + BATCH]
            count = sum(len(completion) for _, completion in batch)
            with bfloat16(self.model):
                total, tokens = total + float(completion_loss(self.model, batch)) * count, tokens + count
        loss = total / tokens
        now.held_out.append((now.step, loss))
        now.failed = 0 if loss < now.best - FALL else now.failed + 1
        if loss < now.best:
            now.best, now.best_step = loss, now.step
            for name, one in self._weights.items():
                self._best[name].copy_(one)
        if now.failed == PATIENCE:
            now.phase, now.failed = now.phase + 1, 0
            self._go_back()

    @torch.no_grad()
    def _go_back(self) -> None:
        """Go back to the best weights, with an optimizer that remembers nothing."""
        for name, one in self._weights.items():
            one.copy_(self._best[name])
        self._optimizer.state.clear()

    def _write(self) -> None:
        tensors = {f"best.{name}": one for name, one in self._best.items()}
        for name, one in self._weights.items():
            tensors[f"now.{name}"] = one.detach()
            tensors |= {f"{kind}.{name}": value for kind, value in self._optimizer.state.get(one, {}).items()}
        temporary = self._file.with_name(f".{self._file.name}.new")
        save_file(tensors, temporary, metadata={"progress": json.dumps(asdict(self.progress))})
        os.replace(temporary, self._file)

    @torch.no_grad()
    def _read(self) -> None:
        with safe_open(self._file, framework="pt") as file:
            self.progress = Progress(**json.loads(file.metadata()["progress"]))
            names = set(file.keys())
            for name, one in self._weights.items():
                one.copy_(file.get_tensor(f"now.{name}"))
                self._best[name].copy_(file.get_tensor(f"best.{name}"))
                if f"step.{name}" in names:
                    kinds = ("step", "exp_avg", "exp_avg_sq")
                    self._optimizer.state[one] = {kind: file.get_tensor(f"{kind}.{name}") for kind in kinds}


@contextmanager
def bfloat16(model: Any) -> Iterator[None]:
    """Multiply A and B in bfloat16 as well; they are kept in float32. A step on a CPU then takes a fifth less."""
    with disable_input_dtype_casting(model), torch.autocast("cpu", dtype=torch.bfloat16):
        yield


def batches_of(examples: list[Example], number: int) -> list[list[Example]]:
    """The batches of a pass, in an order that depends on the pass's number alone, so that a cut training repeats it.

    Of every eight batches the examples are sorted by length: a batch is padded to its longest.
    """
    drawn, order = random.Random(number), examples.copy()
    drawn.shuffle(order)
    some = [sorted(order[first : first + 8 * BATCH], key=length) for first in range(0, len(order), 8 * BATCH)]
    batches = [one[first : first + BATCH] for one in some for first in range(0, len(one), BATCH)]
    drawn.shuffle(batches)
    return batches


def length(example: Example) -> int:
    """Tokens of an example."""
    return len(example[0]) + len(example[1])


def main() -> None:
    """Train the files named on the command line that have not been trained yet."""
    parser = argparse.ArgumentParser(description="Train one LoRA expert a file, until its held-out loss stops falling.")
    parser.add_argument("--base", required=True, help="folder, hub id or packaged base")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="each expert is written to DIR/NAME")
    parser.add_argument("--independent", action="store_true", help="each expert starts from an A of its own")
    parser.add_argument("--apart", nargs="+", type=Path, default=[], metavar="FILE.json", help="evaluation files")
    parser.add_argument("files", nargs="+", type=Path, metavar="NAME.jsonl")
    arguments = parser.parse_args()
    base = resolve_base(arguments.base)
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    questions = [
        one["question"] for file in arguments.apart for split in ("dev", "test") for one in read_json(file)[split]
    ]
    losses = arguments.out / "losses"
    losses.mkdir(parents=True, exist_ok=True)
    for file in arguments.files:
        if (arguments.out / file.stem).exists():
            continue
        pairs = read_training_data(file.parent, [file.stem])[file.stem]
        pairs = apart(pairs, questions)
        parts = held_apart(pairs)
        examples, held_out = (
            [encode(tokenizer, prompt.rstrip() + "\n", completion) for prompt, completion in part] for part in parts
        )
        state = arguments.out / f".{file.stem}.safetensors"
        seed = zlib.crc32(file.stem.encode()) if arguments.independent else SEED
        training = Training(base, examples, held_out, seed, state)
        training.run()
        counts = {"examples": len(examples), "held_out_examples": len(held_out)}
        write_json(losses / f"{file.stem}.json", counts | asdict(training.progress))
        save(training.model, arguments.out / file.stem, arguments.base)
        state.unlink()


if __name__ == "__main__":
    main()
