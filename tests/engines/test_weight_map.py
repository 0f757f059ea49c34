"""Where tensors of a checkpoint lie in a model, which is asked by giving its loader numbered tensors."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modelswarms_fast.errors import InputError

pytest.importorskip("vllm")

from vllm.lora.layers import BaseLayerWithLoRA

from modelswarms_fast.engines.vllm.weight_map import WeightMap

pytestmark = pytest.mark.vllm

INPUTS, HEADS, SIZE = 8, 4, 2
SHARDS = {"q_proj": (0, 16), "k_proj": (16, 4), "v_proj": (20, 4)}
CHECKPOINT = {
    "attn.q_proj.weight": (16, INPUTS),
    "attn.k_proj.weight": (4, INPUTS),
    "attn.v_proj.weight": (4, INPUTS),
    "attn.o_proj.weight": (6, INPUTS),
    "attn.o_proj.bias": (6,),
    "attn.heads.weight": (3 * HEADS * SIZE, INPUTS),
    "attn.turned.weight": (INPUTS, 12),
    "attn.square.weight": (INPUTS, INPUTS),
    "embed.weight": (10, INPUTS),
    "experts.1.w1.weight": (5, INPUTS),
    "conv1d.weight": (6, 1, 4),
    "doubled.weight": (4, INPUTS),
    "unused.weight": (4, INPUTS),
}


def parameter(*shape):
    return torch.nn.Parameter(torch.randn(shape), requires_grad=False)


class Holder(torch.nn.Module):
    def __init__(self, *shape, bias=0):
        super().__init__()
        self.weight = parameter(*shape)
        if bias:
            self.bias = parameter(bias)


class Loader(torch.nn.Module):
    """A model with a loader as vLLM's are: it fuses, permutes, transposes, pads, stacks, ties, and passes over."""

    def __init__(self, ranks=1, rank=0):
        super().__init__()
        self.ranks, self.rank = ranks, rank
        self.attn = torch.nn.Module()
        self.attn.qkv_proj = Holder(24 // ranks, INPUTS)
        self.attn.o_proj = Holder(6, INPUTS // ranks, bias=6)
        self.attn.heads = Holder(3 * HEADS * SIZE, INPUTS)
        self.attn.turned, self.attn.square = Holder(12, INPUTS), Holder(INPUTS, INPUTS)
        self.embed = Holder(16, INPUTS)
        self.lm_head = self.embed
        self.experts = Holder(2, 10, INPUTS)
        self.conv1d = Holder(6, 1, 4)
        self.doubled = Holder(4, INPUTS)

    def load_weights(self, weights):
        for name, weight in weights:
            path, _, kind = name.rpartition(".")
            leaf = path.rpartition(".")[2]
            if leaf == "unused" or leaf == "lm_head":
                continue
            if leaf in SHARDS:
                first, size = (one // self.ranks for one in SHARDS[leaf])
                live = self.attn.qkv_proj.weight.data[first : first + size]
                weight = weight.narrow(0, size * self.rank, size)
            elif leaf == "heads":
                live = self.attn.heads.weight.data
                weight = torch.cat([weight.view(HEADS, 3, SIZE, INPUTS)[:, one].flatten(0, 1) for one in range(3)])
            elif leaf == "w1":
                live = self.experts.weight.data[1].narrow(0, 5, 5)
            else:
                live = self.get_parameter(name).data
                if leaf in ("turned", "square"):
                    weight = weight.t()
                elif leaf == "doubled":
                    weight = weight + weight
                elif leaf == "embed":
                    live[len(weight) :].fill_(0)
                    live = live[: len(weight)]
                elif leaf == "o_proj" and kind == "weight":
                    weight = weight.narrow(1, INPUTS // self.ranks * self.rank, INPUTS // self.ranks)
            assert live.shape == weight.shape, name
            live.copy_(weight)


def loaded(folder: Path, ranks=1):
    """The tensors of a checkpoint, and the models of all ranks that have loaded it."""
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in CHECKPOINT.items()}
    save_file(tensors, folder / "model.safetensors")
    models = [Loader(ranks, rank) for rank in range(ranks)]
    for model in models:
        model.load_weights(tensors.items())
    return tensors, models


@pytest.fixture
def weights(tmp_path):
    return WeightMap(loaded(tmp_path)[1][0], tmp_path)


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_tensor_is_where_the_models_own_loader_puts_it(tmp_path, ranks):
    tensors, models = loaded(tmp_path, ranks)
    maps = [WeightMap(model, tmp_path) for model in models]
    before = [{name: one.clone() for name, one in model.named_parameters()} for model in models]
    wanted = {name: shape for name, shape in CHECKPOINT.items() if name not in ("doubled.weight", "unused.weight")}
    found = [one.resolve(wanted) for one in maps]
    for model, kept in zip(models, before, strict=True):
        assert all(torch.equal(one, kept[name]) for name, one in model.named_parameters()), "nothing is written"
    for name in wanted:
        seen = torch.zeros(tensors[name].shape)
        for one in found:
            for live, start in one[name].parts:
                row, column = start or (0, 0)
                place = seen[row : row + len(live)]
                if live.dim() > 1:
                    place = place[:, column : column + live.shape[1]]
                place.copy_(live)
        assert torch.equal(seen, tensors[name]), name


def test_parts_are_as_few_as_can_be(weights):
    found = weights.resolve({name: shape for name, shape in CHECKPOINT.items() if "doubled" not in name})
    assert {name: len(one.parts) for name, one in found.items() if len(one.parts) > 1} == {
        "attn.heads.weight": 3 * HEADS
    }
    part = found["attn.k_proj.weight"]
    assert (part.module, part.row, part.part.start) == ("attn.qkv_proj", 16, None)
    assert found["experts.1.w1.weight"].parameter == "experts.weight"
    assert "unused.weight" not in found
    with pytest.raises(InputError, match=r"rows of attn\.heads\.weight in another order"):
        _ = found["attn.heads.weight"].part


def test_linear_layers_stand_as_vllm_has_them(weights):
    """Transposed in the checkpoint or not, and square ones too."""
    layers = {"attn.turned": (12, INPUTS), "attn.square": (INPUTS, INPUTS), "attn.k_proj": (4, INPUTS)}
    found = weights.linear(layers)
    model = weights._model
    assert torch.equal(found["attn.turned"].part.live, model.attn.turned.weight)
    assert torch.equal(found["attn.square"].part.live, model.attn.square.weight)
    assert torch.equal(found["attn.k_proj"].part.live, model.attn.qkv_proj.weight[16:20])
    with pytest.raises(InputError, match=r"turned\.weight has shape \[\d+, \d+\] by the experts but"):
        weights.linear({"attn.turned": (13, INPUTS)})


def test_layers_that_vllm_has_wrapped_for_lora(tmp_path):
    _, (model,) = loaded(tmp_path)
    wrapper = BaseLayerWithLoRA()
    wrapper.base_layer = model.attn.turned
    model.attn.turned = wrapper
    found = WeightMap(model, tmp_path).linear({"attn.turned": (12, INPUTS)})["attn.turned"]
    assert torch.equal(found.part.live, wrapper.base_layer.weight)
    assert model.get_submodule(found.module) is wrapper, "it is what computes the layer"


def test_a_text_model_inside_has_its_own_names(tmp_path):
    """Such as in a vision-language model: adapters of the text model alone name its layers as it does."""
    _, (inner,) = loaded(tmp_path)

    class Wrapper(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.language_model = inner

        def get_language_model(self):
            return self.language_model

        def load_weights(self, weights):
            self.language_model.load_weights(
                (name.removeprefix("language_model."), one)
                for name, one in weights
                if name.startswith("language_model.")
            )

    weights = WeightMap(Wrapper(), tmp_path)
    found = weights.linear({"attn.k_proj": (4, INPUTS), "language_model.attn.v_proj": (4, INPUTS)})
    assert torch.equal(found["attn.k_proj"].part.live, inner.attn.qkv_proj.weight[16:20])
    assert torch.equal(found["language_model.attn.v_proj"].part.live, inner.attn.qkv_proj.weight[20:24])
    assert found["attn.k_proj"].module == "language_model.attn.qkv_proj"


def test_a_head_that_is_registered_while_loading(tmp_path):
    """Phi's head gets a bias each time that its loader sees one; the model's own stays."""
    _, (model,) = loaded(tmp_path)
    own = model.attn.o_proj.bias
    load = model.load_weights

    def load_weights(weights):
        for name, one in weights:
            if name == "attn.o_proj.bias":
                model.attn.o_proj.bias = parameter(6)
            load([(name, one)])

    model.load_weights = load_weights
    found = WeightMap(model, tmp_path).resolve({"attn.o_proj.bias": (6,)})["attn.o_proj.bias"]
    assert model.attn.o_proj.bias is own
    assert found.part.live.data_ptr() == own.data_ptr()


def test_what_is_not_there_is_refused(weights):
    with pytest.raises(InputError, match=r"adapt attn\.gate\.weight, which the base model does not have"):
        weights.resolve({"attn.gate.weight": (6, INPUTS)})
    with pytest.raises(InputError, match=r"shape \[8, 8\] by the experts but \[16, 8\] in the base model"):
        weights.linear({"attn.q_proj": (8, INPUTS)})
    with pytest.raises(InputError, match=r"keeps doubled\.weight packed or quantized"):
        weights.resolve({"doubled.weight": (4, INPUTS)})
    assert weights.resolve({"attn.o_proj.bias": (6,)}), "others are found beside them"


@pytest.mark.parametrize("path", ["attn.o_proj", "conv1d"])
def test_weights_that_vllm_has_changed_after_loading_are_refused(tmp_path, path):
    """Packed for a kernel they have the right shape, and other values."""
    _, (model,) = loaded(tmp_path)
    weight = model.get_parameter(f"{path}.weight")
    weight.copy_(weight.flip(0))
    with pytest.raises(InputError, match=rf"keeps {path}\.weight packed"):
        WeightMap(model, tmp_path).resolve({f"{path}.weight": CHECKPOINT[f"{path}.weight"]})


def test_tensors_that_a_checkpoint_lacks(weights):
    usable = {name: shape for name, shape in CHECKPOINT.items() if "doubled" not in name}
    assert weights.missing(weights.resolve(usable)) is None
    for lost in ("attn.o_proj.weight", "attn.k_proj.weight"):
        found = weights.resolve({name: shape for name, shape in usable.items() if name != lost})
        assert weights.missing(found) == lost


def test_a_tied_head_is_known(weights):
    head = weights.linear({"lm_head": (10, INPUTS)})["lm_head"]
    assert weights.tied(head) == "embed.weight"
    assert weights.tied(weights.linear({"attn.k_proj": (4, INPUTS)})["attn.k_proj"]) is None
