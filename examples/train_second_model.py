"""Make a small model of another architecture than the demo's base, for token swarms, on a CPU in minutes.

    python examples/train_second_model.py --out runs/qwen2 largest path

The demo has one pretrained model, and a small GPT-2 that began at random numbers had learned little after minutes. So
this is a Qwen2 with 24 layers that begins with what it can take from the demo's base, a Llama with 30: layers 18 to 23
are left out, and Qwen2's biases begin at 0. Low-rank updates of all linear layers are trained on some of the demo's
skills, in the wordings that the demo's experts have seen, and merged. Its weights have other names, shapes and numbers
than any adapter of the base, so that they cannot be mixed with one; its tokenizer is the same.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import skills
import torch
from peft import LoraConfig, get_peft_model
from train_experts import BASE, BATCH, LEARNING_RATE, SEED, batches, loss_of
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from modelswarms_fast.weights.base_model import resolve_base

KEPT = [*range(18), *range(24, 30)]
RANK, ALPHA, STEPS = 8, 16, 100
FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def qwen2_of(base: Path) -> Qwen2ForCausalLM:
    """A Qwen2 in bfloat16 with the layers KEPT of a Llama."""
    llama = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, trust_remote_code=False)
    fields = {name: getattr(llama.config, name) for name in FIELDS}
    model = Qwen2ForCausalLM(Qwen2Config(num_hidden_layers=len(KEPT), **fields)).to(torch.bfloat16)
    model.model.embed_tokens.load_state_dict(llama.model.embed_tokens.state_dict())
    model.model.norm.load_state_dict(llama.model.norm.state_dict())
    for layer, source in zip(model.model.layers, KEPT, strict=True):
        unknown = layer.load_state_dict(llama.model.layers[source].state_dict(), strict=False)
        assert not unknown.unexpected_keys
        for name in unknown.missing_keys:  # the biases
            layer.get_parameter(name).data.zero_()
    model.generation_config.eos_token_id = llama.generation_config.eos_token_id
    return model


def main() -> None:
    """Make, train and save the model."""
    parser = argparse.ArgumentParser(description="A small Qwen2 that has some skills of the demo.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the checkpoint")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("skills", nargs="+", choices=skills.skills())
    arguments = parser.parse_args()
    base = resolve_base(BASE)
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    torch.manual_seed(SEED)
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(qwen2_of(base), lora).train()
    examples = [
        (
            tokenizer(item["question"])["input_ids"],
            tokenizer(" " + item["answer"])["input_ids"] + [tokenizer.eos_token_id],
        )
        for name in arguments.skills
        for item in skills.splits(name)["train"]
    ]
    rng = random.Random(SEED)
    order = batches([len(question) + len(answer) for question, answer in examples], BATCH, arguments.steps, rng)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE / 2, weight_decay=0.0)
    start, losses = time.perf_counter(), []
    for step, indices in enumerate(order):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE / 2 * min(1.0, (step + 1) / 10) * (1 - step / arguments.steps)
        loss = loss_of(model, [examples[index] for index in indices], tokenizer.pad_token_id)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        if (step + 1) % 10 == 0:
            print(
                f"step {step + 1}, {time.perf_counter() - start:.0f} s, loss {sum(losses[-10:]) / 10:.3f}", flush=True
            )
    model.merge_and_unload().to(torch.bfloat16).save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
