"""Tiny models as MoCo's users have them: adapters and full models, each with a tokenizer and a chat template."""

import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers_models import make_adapter, make_base
from helpers_search import write_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelswarms_fast.compat import moco
from modelswarms_fast.compat.broker import Broker
from modelswarms_fast.compat.moco import session
from modelswarms_fast.config import EngineConfig

SETTINGS = EngineConfig(engine="transformers", dtype="float32")
TEMPLATE = "{% for one in messages %}{{ one['content'] }}{% endfor %}{% if add_generation_prompt %}Z!{% endif %}"
FAKE = Path(__file__).parent / "fake_moco"
COLD = 1e-6
"""top_p of which only the likeliest token is left."""


def write_chat_tokenizer(folder):
    write_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.model_input_names = ["input_ids", "attention_mask"]  # as Llama has them
    tokenizer.save_pretrained(folder)


def make_expert(base, folder, seed, **lora):
    make_adapter(base, folder, seed=seed, scale=0.5, **lora)
    write_chat_tokenizer(folder)
    return str(folder)


def make_full(folder, seed, **shape):
    """A model whose answers differ: a random one of small weights repeats the prompt's last letter."""
    make_base(folder, seed=seed, shape={"initializer_range": 0.4, "tie_word_embeddings": False} | shape)
    write_chat_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    """Folders: `base`, its adapters `a`, `b` and `c`, and `other`, a full model of another shape."""
    folder = tmp_path_factory.mktemp("zoo")
    base = make_base(folder / "base", shape={"max_position_embeddings": 256})
    write_chat_tokenizer(base)
    other = make_full(folder / "other", 3, hidden_size=48, num_hidden_layers=1)
    a, b, c = (make_expert(base, folder / name, seed) for seed, name in enumerate("abc"))
    return SimpleNamespace(base=str(base), other=str(other), a=a, b=b, c=c, experts=[a, b, c])


@pytest.fixture
def compat():
    """MoCo's functions on the exact engine, in a session of their own."""
    session.configure(SETTINGS)
    moco.update_generation_hyperparameters(6, 0.7, COLD, 2)
    yield moco
    session.close()


@pytest.fixture
def broker(tmp_path):
    """A broker that serves, until the test has ended."""
    over = threading.Event()
    with Broker(tmp_path / "s", SETTINGS) as found:
        thread = threading.Thread(target=found.serve, args=(over.is_set,))
        thread.start()
        yield found
        over.set()
        thread.join()


@pytest.fixture
def fake(monkeypatch):
    """The stand-in of MoCo's package can be imported; nothing of it is left afterwards."""
    monkeypatch.syspath_prepend(FAKE)
    yield
    moco.unpatch()
    for name in [name for name in sys.modules if name.split(".")[0] == "model_collaboration"]:
        del sys.modules[name]


def theirs(folder, inputs, length):
    """Greedy answers as MoCo computes them: transformers' own model and tokenizer of this folder, padded batches."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": one}], tokenize=False, add_generation_prompt=True)
        for one in inputs
    ]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    output = model.generate(**batch, max_new_tokens=length, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    return tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
