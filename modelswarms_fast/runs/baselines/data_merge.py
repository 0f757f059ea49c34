"""Data merge: one adapter like the experts, trained on the union of what they were trained on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.chat import Chat
from modelswarms_fast.runs.baselines import Choice
from modelswarms_fast.runs.experiment import Experiment
from modelswarms_fast.runs.training_data import Pairs, read_training_data
from modelswarms_fast.weights.base_model import cap_attention
from modelswarms_fast.weights.experts import Experts, export, read_model

STEPS = 10  # for each expert: less than most experts have had, for a CPU has to be done with it
BATCH = 8
LEARNING_RATE = 1e-3
LONGEST = 256  # tokens of a prompt and its completion; a longer prompt loses its beginning
LONGEST_COMPLETION = 64


def run(experiment: Experiment, budget: int, seed: int, steps: int | None = None) -> Choice:
    """Train for `steps` batches, STEPS for each expert without it; one evaluation.

    The adapter is in the folder data_merge beside the results; what is scored is read back from there.
    """
    experts = experiment.experts
    if experiment.train is None:
        raise InputError("data_merge needs what the experts were trained on; give it with --train, or leave it out.")
    if experts.kind != "lora":
        raise InputError("data_merge trains an adapter, but the experts are full checkpoints; leave it out.")
    pairs = [pair for some in read_training_data(experiment.train, experts.names).values() for pair in some]
    count = steps or STEPS * len(experts.names)
    chat = experiment.utility.chat
    row, losses = train(experiment.base_folder, experts, pairs, steps=count, seed=seed, chat=chat)
    folder = Path(experiment.out) / "data_merge"
    provenance: dict[str, Any] = {"method": "data_merge", "training examples": len(pairs), "steps": count, "seed": seed}
    export(folder, row, experts, base=experiment.base_folder, provenance=provenance)
    row = read_model(folder, experts)
    scores = experiment.score_rows([lambda: row], "dev")[0]
    tenth = max(1, count // 10)
    recipe = {
        "examples": len(pairs),
        "steps": count,
        "batch": BATCH,
        "learning_rate": LEARNING_RATE,
        "loss": [sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth],
        "adapter": str(folder),
    }
    return Choice(
        recipe,
        experiment.utility_of("dev", scores),
        1,
        lambda: experiment.score_rows([lambda: row], "test")[0],
        looks_at_experts=False,
    )


def train(
    base: Path, experts: Experts, pairs: Pairs, *, steps: int, seed: int, chat: Chat | None = None
) -> tuple[torch.Tensor, list[float]]:
    """A row [D] in the experts' layout, and the loss of every step.

    Rank, alpha and modules are the experts'; A and B begin as PEFT makes them. AdamW with a linear warm-up of a tenth
    of the steps and a linear decay to 0; the loss is the cross entropy of completions and the end that follows them.
    With a chat template prompts are read in the form in which the task's are sent.
    """
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype="auto", trust_remote_code=False, use_safetensors=True)
    fields = {key: value for key, value in experts.config.items() if key in LoraConfig.__dataclass_fields__}
    fields |= {"inference_mode": False, "base_model_name_or_path": str(base), "lora_dropout": 0.0}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(cap_attention(model), LoraConfig(**fields)).to(device).train()  # A and B in float32
    examples = [encode(tokenizer, *pair, chat) for pair in pairs]
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    optimizer = torch.optim.AdamW(weights.values(), lr=LEARNING_RATE, weight_decay=0.0)
    losses = []
    for step, batch in enumerate(batches(examples, steps, random.Random(seed))):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / max(1, steps // 10)) * (1 - step / steps)
        loss = _loss(model, batch, device)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
    trained = {name.replace(".default.", "."): weight.detach().cpu() for name, weight in weights.items()}
    row = torch.zeros(experts.layout.size, dtype=experts.layout.dtype)
    experts.layout.flatten(trained, row)
    return row, losses


Example = tuple[list[int], list[int]]


def encode(tokenizer: Any, prompt: str, completion: str, chat: Chat | None = None) -> Example:
    """Token ids of a prompt, and of its completion and the end."""
    if chat is not None:
        completion = completion.lstrip()
    elif not prompt[-1:].isspace() and not completion[0].isspace():
        completion = " " + completion
    end = tokenizer(completion, add_special_tokens=False)["input_ids"][: LONGEST_COMPLETION - 1]
    end = [*end, tokenizer.eos_token_id]
    start = tokenizer(prompt)["input_ids"] if chat is None else chat.encode(tokenizer, prompt)
    return list(start)[len(end) - LONGEST :], end


def batches(examples: Sequence[Example], steps: int, rng: random.Random) -> list[list[Example]]:
    """Batches of nearly equal lengths in random order, so that little of them is padding."""
    result: list[list[Example]] = []
    while len(result) < steps:
        order = sorted(examples, key=lambda example: (len(example[0]) + len(example[1]), rng.random()))
        groups = [order[first : first + BATCH] for first in range(0, len(order), BATCH)]
        rng.shuffle(groups)
        result += groups
    return result[:steps]


def _loss(model: Any, batch: Sequence[Example], device: torch.device) -> torch.Tensor:
    """Mean cross entropy of the completions' tokens; padded on the left, so that only the last logits are needed."""
    width = max(len(prompt) + len(completion) for prompt, completion in batch)
    last = max(len(completion) for _, completion in batch)
    tokens = torch.zeros((len(batch), width), dtype=torch.long)
    mask, targets = torch.zeros_like(tokens), torch.full((len(batch), last), -100)
    for row, (prompt, completion) in enumerate(batch):
        length = len(prompt) + len(completion)
        tokens[row, width - length :] = torch.tensor(prompt + completion)
        mask[row, width - length :] = 1
        targets[row, last - len(completion) :] = torch.tensor(completion)
    inputs = {"input_ids": tokens.to(device), "attention_mask": mask.to(device)}
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0).to(device)
    logits = model(**inputs, position_ids=positions, logits_to_keep=last + 1, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.to(device).flatten())
