"""Writing a particle into a model's own weights, as vLLM keeps them."""

import pytest
import torch
from safetensors.torch import save_file

from modelswarms_fast.weights.experts import Experts
from modelswarms_fast.weights.layout import Layout

pytest.importorskip("vllm")

from modelswarms_fast.engines.vllm.live_weights import full_weights
from modelswarms_fast.engines.vllm.weight_map import WeightMap

pytestmark = pytest.mark.vllm


class Model(torch.nn.Module):
    """One whose decay stays in float32, as that of Qwen3.5's linear attention in vLLM."""

    def __init__(self):
        super().__init__()
        self.decay = torch.nn.Parameter(torch.zeros(8), requires_grad=False)
        self.weight = torch.nn.Parameter(torch.zeros(4, 8, dtype=torch.bfloat16), requires_grad=False)

    def load_weights(self, weights):
        for name, one in weights:
            self.get_parameter(name).data.copy_(one)


def test_weights_of_several_number_types(tmp_path):
    whole = {"decay": torch.randn(8).bfloat16(), "weight": torch.randn(4, 8).bfloat16()}
    save_file(whole, tmp_path / "model.safetensors")
    model = Model()
    model.load_weights(whole.items())
    layout = Layout.of(whole)
    rows = torch.randn(2, layout.size).bfloat16()
    served = full_weights(
        WeightMap(model, tmp_path), Experts("full", ("a", "b"), layout, rows, rows, (), {}, ("a", "b"))
    )
    mixture = torch.tensor([0.5, 0.25])
    mixed = (0.5 * rows[0].float() + 0.25 * rows[1].float()).bfloat16()
    for load, row in ((lambda: served.load(0, rows[1]), rows[1]), (lambda: served.load_mixture(0, mixture), mixed)):
        load()
        for spec in layout.specs:
            live = model.get_parameter(spec.name)
            assert torch.equal(live, row[spec.offset : spec.end].view(live.shape).to(live.dtype)), spec.name
    served.restore()
    for name, one in whole.items():
        assert torch.equal(model.get_parameter(name), one.to(model.get_parameter(name).dtype))
