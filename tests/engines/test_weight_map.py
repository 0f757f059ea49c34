"""Where tensors of a checkpoint lie in a model, on layers that stand for vLLM's."""

import pytest
import torch

from modelswarms_fast.errors import InputError

pytest.importorskip("vllm")

from vllm.model_executor.layers.linear import ColumnParallelLinear, QKVParallelLinear, RowParallelLinear

from modelswarms_fast.engines.vllm.weight_map import WeightMap

pytestmark = pytest.mark.vllm

INPUTS = 8
FUSED_BY_NAME = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
FUSED_BY_ITSELF = {"qkv_proj": ["qkv_proj"]}


def make_layer(kind, sizes, columns=INPUTS, *, ranks=1, rank=0, copies=1):
    layer = kind.__new__(kind)
    torch.nn.Module.__init__(layer)
    layer.tp_size, layer.tp_rank, layer.num_kv_head_replicas = ranks, rank, copies
    layer.output_partition_sizes = list(sizes)
    layer.weight = torch.nn.Parameter(torch.randn(sum(sizes), columns), requires_grad=False)
    return layer


def make_map(packed, **layers):
    model = torch.nn.Module()
    model.packed_modules_mapping = packed
    model.attn = torch.nn.Module()
    for name, layer in layers.items():
        setattr(model.attn, name, layer)
    return WeightMap(model)


def test_a_part_of_a_layer_that_vllm_fuses():
    layer = make_layer(QKVParallelLinear, (16, 4, 4))
    weight = make_map(FUSED_BY_NAME, qkv_proj=layer).resolve("attn.k_proj.weight", (4, INPUTS))
    assert weight.part.start is None
    assert torch.equal(weight.part.live, layer.weight[16:20])
    assert (weight.module, weight.row) == ("attn.qkv_proj", 16)


def test_a_layer_that_the_checkpoint_fuses_as_vllm_does():
    """Such as Phi-3's: it is packed of itself, and of three parts nevertheless."""
    layer = make_layer(QKVParallelLinear, (16, 4, 4))
    weight = make_map(FUSED_BY_ITSELF, qkv_proj=layer).resolve("attn.qkv_proj.weight", (24, INPUTS))
    assert weight.part.start is None
    assert torch.equal(weight.part.live, layer.weight)
    assert weight.row == 0


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("packed", [FUSED_BY_NAME, FUSED_BY_ITSELF], ids=["by name", "by itself"])
def test_the_parts_of_all_ranks_are_the_checkpoint(packed, copies):
    """Query, key and value of each rank come from other rows; few key-value heads lie on several ranks."""
    ranks, sizes = 2, (8, 4, 4)
    names = {"q_proj": 16, "k_proj": 8 // copies, "v_proj": 8 // copies}
    if packed is FUSED_BY_ITSELF:
        names = {"qkv_proj": sum(names.values())}
    for name, rows in names.items():
        whole, seen = torch.randn(rows, INPUTS), torch.zeros(rows, INPUTS)
        for rank in range(ranks):
            layer = make_layer(QKVParallelLinear, sizes, ranks=ranks, rank=rank, copies=copies)
            weight = make_map(packed, qkv_proj=layer).resolve(f"attn.{name}.weight", (rows, INPUTS))
            for live, (row, column) in weight.parts:
                assert column == 0
                live.copy_(whole[row : row + len(live)])
                seen[row : row + len(live)] += live
                assert live.data_ptr() >= layer.weight.data_ptr()
            if len(weight.parts) > 1:
                with pytest.raises(InputError, match="a rank has a part of each"):
                    _ = weight.part
                assert torch.equal(layer.weight[:8], whole[8 * rank : 8 * rank + 8]), "the rank's own queries"
        wanted = whole.clone()
        if copies == 2:
            twice = slice(16, None) if name == "qkv_proj" else slice(None if name != "q_proj" else rows, None)
            wanted[twice] *= 2
        assert torch.equal(seen, wanted)


def test_columns_of_a_rank():
    layer = make_layer(RowParallelLinear, (6,), 4, ranks=2, rank=1)
    weight = make_map({}, o_proj=layer).resolve("attn.o_proj.weight", (6, 8))
    assert weight.part.start == (0, 4)


def test_names_through_loras_wrapping():
    wrapper = torch.nn.Module()
    wrapper.base_layer = make_layer(ColumnParallelLinear, (6,))
    found = make_map({}, o_proj=wrapper).resolve("attn.o_proj.weight", (6, INPUTS))
    assert torch.equal(found.part.live, wrapper.base_layer.weight)
    assert found.module == "attn.o_proj", "the wrapper is what computes the layer"


def test_what_is_not_there_is_refused():
    weights = make_map(FUSED_BY_NAME, qkv_proj=make_layer(QKVParallelLinear, (16, 4, 4)))
    with pytest.raises(InputError, match=r"adapt attn\.o_proj\.weight, which the base model does not have"):
        weights.resolve("attn.o_proj.weight", (6, INPUTS))
    with pytest.raises(InputError, match=r"adapt attn\.q_proj\.bias, which"):
        weights.resolve("attn.q_proj.bias", (16,))
    with pytest.raises(InputError, match=r"shape \[8, 8\] by the experts but \[16, 8\] in the base model"):
        weights.resolve("attn.q_proj.weight", (8, INPUTS))
    with pytest.raises(InputError, match="in a way that is not known"):
        make_map({"qkv_proj": ["qk", "v"]}, qkv_proj=make_layer(QKVParallelLinear, (16, 4, 4))).resolve(
            "attn.v.weight", (4, INPUTS)
        )


def test_tensors_that_a_checkpoint_lacks():
    weights = make_map(
        FUSED_BY_NAME,
        qkv_proj=make_layer(QKVParallelLinear, (16, 4, 4)),
        o_proj=make_layer(ColumnParallelLinear, (6,)),
    )
    qkv = {f"attn.{part}_proj.weight" for part in "qkv"}
    assert weights.missing({*qkv, "attn.o_proj.weight"}) is None
    assert weights.missing({"attn.qkv_proj.weight", "attn.o_proj.weight"}) is None
    assert weights.missing(qkv) == "attn.o_proj.weight"
    assert weights.missing({"attn.q_proj.weight", "attn.v_proj.weight", "attn.o_proj.weight"}) == "attn.k_proj.weight"
