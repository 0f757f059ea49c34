"""heterogeneous_swarm's evaluation beside itself on our engine: only with `pytest --heterogeneous-swarm CLONE`."""

import shutil

import numpy as np
import pytest
from helpers_models import make_adapter
from helpers_run import by_itself, modules_of, serving
from helpers_search import write_tokenizer
from transformers import AutoTokenizer

from modelswarms_fast.config import EngineConfig

BASE = "google/gemma-7b-it"
"""What it reads its tokenizer from, whatever its flags say."""


@pytest.fixture(scope="module")
def place(request, tmp_path_factory):
    """A copy of its scripts, three experts and a graph."""
    from helpers_model_swarm import make_place, write_questions

    clone = request.config.getoption("--heterogeneous-swarm").resolve()
    folder = make_place(tmp_path_factory.mktemp("user"), max_position_embeddings=1500)
    for file in clone.glob("*.py"):
        shutil.copy(file, folder)
    text = (clone / "evaluate.py").read_text()  # in bfloat16 answers depend on the order of sums
    (folder / "evaluate.py").write_text(text.replace("torch.bfloat16", "torch.float32"))
    (folder / "google").mkdir()
    (folder / "base").rename(folder / BASE)
    tokenizer = AutoTokenizer.from_pretrained(folder / BASE)
    tokenizer.chat_template = "{% for one in messages %}{{ one['content'] }}{% endfor %}Z"
    tokenizer.pad_token, tokenizer.padding_side = "<end>", "left"
    tokenizer.save_pretrained(folder / BASE)
    for seed, name in enumerate(("ada", "bob", "cyd")):
        shutil.rmtree(folder / "initial_experts" / name)
        make_adapter(folder / BASE, folder / "initial_experts" / name, seed=seed, scale=0.5)
        write_tokenizer(folder / "initial_experts" / name)
    write_questions(folder, "own", 12)
    graph = np.random.default_rng(0).random((3, 3))
    np.fill_diagonal(graph, 0)
    np.save(folder / "adjacency.npy", graph)
    return folder


@pytest.mark.parametrize(
    ("kind", "dataset"), [("multiple_choice", "quiz"), ("exact_match", "own"), ("exact_match", "nlgraph")]
)
def test_an_evaluation_is_that_of_heterogeneous_swarm(place, tmp_path, monkeypatch, kind, dataset):
    """Three nodes, of which each reads the answers of others; with nlgraph in a chat template."""
    experts = [str(place / "initial_experts" / name) for name in ("ada", "bob", "cyd")]

    def ask(load):
        module = load("evaluate")
        texts, generate = [], module.graph_generate
        module.graph_generate = lambda *given, **more: texts.append(generate(*given, **more)) or texts[-1]
        return module.evaluate(str(place), [0, 2, 1], experts, kind, dataset, "dev", 0), texts

    with by_itself(place) as load:
        expected = ask(load)
    with serving(tmp_path / "s", EngineConfig(engine="transformers")) as broker, modules_of(place) as load:
        assert ask(load) == expected
        assert str(next(iter(broker.fleet._engines.values())).engine.dtype) == "torch.float32"
    assert len(set(expected[1][0])) > 3
