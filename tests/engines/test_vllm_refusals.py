"""What the worker inside vLLM refuses, on models that stand for those which vLLM keeps in another form."""

from types import SimpleNamespace

import helpers_models
import pytest
import torch
from helpers_models import make_adapter
from safetensors.torch import load_file

from modelswarms_fast.errors import InputError
from modelswarms_fast.weights.adapters import LoraModule
from modelswarms_fast.weights.experts import Experts, read_experts
from modelswarms_fast.weights.layout import Layout

pytestmark = pytest.mark.vllm

pytest.importorskip("vllm")

tiny_base = helpers_models.tiny_base

LINEAR = {"self_attn.qkv_proj": [32, 16, 16], "self_attn.o_proj": [32]}


@pytest.fixture(scope="module")
def experts(tiny_base, tmp_path_factory) -> Experts:
    folder = tmp_path_factory.mktemp("experts")
    for seed in range(2):
        make_adapter(tiny_base, folder / f"expert-{seed}", seed=seed, target_modules=["q_proj", "o_proj"])
    return read_experts(folder)


class Loader(torch.nn.Module):
    """Has a loader as vLLM's models have."""

    def load_weights(self, weights):
        for name, weight in weights:
            first, size = 0, len(weight)
            for leaf, (begin, count) in {"q_proj": (0, 32), "k_proj": (32, 16), "v_proj": (48, 16)}.items():
                if f".{leaf}." in name:
                    name, first, size = name.replace(leaf, "qkv_proj"), begin, count
            live = self.get_parameter(name).data[first : first + size]
            assert live.shape == weight.shape
            live.copy_(weight)


@pytest.fixture
def worker(tiny_base):
    """Over the linear layers of the tiny base, as vLLM fuses and names them."""
    from modelswarms_fast.engines.vllm.worker import SwarmWorker

    model = Loader()
    for layer in range(2):
        for name, sizes in LINEAR.items():
            parent = model
            for step in f"model.layers.{layer}.{name}".split("."):
                if not hasattr(parent, step):
                    parent.add_module(step, torch.nn.Module())
                parent = getattr(parent, step)
            parent.weight = torch.nn.Parameter(torch.zeros(sum(sizes), 32), requires_grad=False)
    tensors = load_file(tiny_base / "model.safetensors")
    model.load_weights((name, one) for name, one in tensors.items() if "self_attn" in name)
    worker = SwarmWorker()
    worker._swarm_modes, worker._swarm_weights = {}, None
    config = SimpleNamespace(
        model=str(tiny_base), use_mla=False, dtype=torch.float32, hf_config=SimpleNamespace(vocab_size=64)
    )
    worker.model_runner = SimpleNamespace(get_model=lambda: model, model_config=config)
    return worker


def test_weights_as_loaded_are_written(worker, experts):
    live = worker.model_runner.get_model().get_parameter("model.layers.0.self_attn.qkv_proj.weight")
    before = live.clone()
    worker.swarm_attach("merged", experts)
    assert torch.equal(live, before)
    worker.swarm_serve("merged").load(0, experts.rows[0])
    assert not torch.equal(live[:32], before[:32]), "q is adapted"
    assert torch.equal(live[32:], before[32:]), "k and v are not"


PACKED = {"weight": torch.empty(0)}
FP8 = {
    "weight": torch.zeros(32, 32).to(torch.float8_e4m3fn),
    "weight_scale": torch.ones(3),
    "input_scale": torch.ones(1),
}
AWQ = {
    "qweight": torch.zeros(32, 8, dtype=torch.int32),
    "qzeros": torch.zeros(1, 8, dtype=torch.int32),
    "scales": torch.ones(1, 64).half(),
}


@pytest.mark.parametrize("serve", ["merged", "mixture"])
@pytest.mark.parametrize("layer", ["self_attn.qkv_proj", "self_attn.o_proj"])
@pytest.mark.parametrize("form", [PACKED, FP8, AWQ], ids=["packed", "fp8", "awq"])
def test_weights_in_another_form_are_refused(worker, experts, layer, form, serve):
    """Packed, as zentorch does, the tensor is empty; quantized, there are scales, which are no weights."""
    worker.model_runner._prepare_inputs, worker.model_runner.device = None, torch.device("cpu")
    module = worker.model_runner.get_model().get_submodule(f"model.layers.1.{layer}")
    del module.weight
    for name, tensor in form.items():
        module.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=False))
    with pytest.raises(InputError, match=r"keeps model\.layers\.1\.self_attn\.[qo]_proj\.weight packed or quantized"):
        worker.swarm_attach(serve, experts)


@pytest.mark.parametrize("serve", ["merged", "slots", "mixture"])
def test_a_copy_that_would_keep_old_weights_is_refused(worker, serve):
    spec = SimpleNamespace(name="model.layers.0.self_attn.kv_b_proj.weight")
    changed = SimpleNamespace(layout=SimpleNamespace(specs=[spec]), modules=(), whole=())
    worker.model_runner.model_config.use_mla = True
    with pytest.raises(InputError, match="kv_b_proj"):
        worker.swarm_attach(serve, changed)


def test_a_head_that_would_be_written_over_the_embeddings_is_refused(worker, tiny_base):
    """Two tensors of a checkpoint with one place, where the last would win."""
    tensors = {"model.embed_tokens.weight": torch.ones(64, 32), "lm_head.weight": torch.zeros(64, 32)}
    changed = SimpleNamespace(layout=Layout.of(tensors), modules=(), whole=())
    model = Loader()
    model.model = torch.nn.Module()
    own = load_file(tiny_base / "model.safetensors")["model.embed_tokens.weight"]
    model.model.embed_tokens = model.lm_head = torch.nn.Embedding.from_pretrained(own)
    worker.model_runner.get_model = lambda: model
    with pytest.raises(InputError, match="tied"):
        worker.swarm_attach("merged", changed)


def a_head(*, tied):
    """A model whose embeddings are not model.embed_tokens, and LoRA on its head."""
    model = Loader()
    model.transformer = torch.nn.Module()
    model.transformer.wte = torch.nn.Embedding(64, 32)
    model.lm_head = torch.nn.Linear(32, 64, bias=False)
    if tied:
        model.lm_head.weight = model.transformer.wte.weight
    model.requires_grad_(False)
    layout = Layout.of({"a": torch.empty(4, 32), "b": torch.empty(64, 4)}, torch.float32)
    module = LoraModule("lm_head", "a", "b", 4, 2.0)
    rows = torch.ones(2, layout.size)
    experts = Experts("lora", ("x", "y"), layout, rows, rows, (module,), {}, ())
    return model, experts


def test_a_head_is_adapted_where_the_embeddings_have_another_name(worker):
    model, experts = a_head(tied=False)
    worker.model_runner.get_model = lambda: model
    before = model.lm_head.weight.clone()
    worker.swarm_attach("merged", experts)
    worker.swarm_serve("merged").load(0, experts.rows[0])
    torch.testing.assert_close(model.lm_head.weight, before + 8.0)


def test_a_tied_head_is_not_merged_into_the_embeddings(worker):
    model, experts = a_head(tied=True)
    worker.model_runner.get_model = lambda: model
    with pytest.raises(InputError, match=r"lm_head\.weight is tied to transformer\.wte\.weight"):
        worker.swarm_attach("merged", experts)
