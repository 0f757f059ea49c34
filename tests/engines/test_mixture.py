"""Mixtures served token by token, on modules of our own: equal to adding each particle's B A to the weights."""

import numpy as np
import pytest
import torch

from modelswarms_fast.engines.vllm import low_rank
from modelswarms_fast.engines.vllm.low_rank import TokenGroups
from modelswarms_fast.engines.vllm.mixture import MixtureServer, OutputSlice
from modelswarms_fast.errors import InputError
from modelswarms_fast.weights.adapters import LoraModule
from modelswarms_fast.weights.experts import Experts
from modelswarms_fast.weights.layout import Layout

INPUTS, SIZES, COUNT = 24, {"q": 40, "k": 8, "v": 8, "o": 24}, 5
MODULES = (
    LoraModule("q", "q.a", "q.b", 4, 2.0),
    LoraModule("v", "v.a", "v.b", 3, 0.5),
    LoraModule("o", "o.a", "o.b", 4, 1.0),
)


class Fused(torch.nn.Module):
    """Returns an output and no bias, as a serving engine's layers do."""

    def __init__(self, outputs):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(outputs, INPUTS))

    def forward(self, x):
        return x @ self.weight.t().to(x.dtype), None


class Model(torch.nn.Module):
    """q, k and v fused, of which k is not adapted; o alone."""

    def __init__(self):
        super().__init__()
        self.qkv, self.o = Fused(sum(SIZES[part] for part in "qkv")), Fused(SIZES["o"])

    def places(self):
        return {
            "q": OutputSlice(self.qkv, 0, 40, INPUTS), "k": OutputSlice(self.qkv, 40, 8, INPUTS),
            "v": OutputSlice(self.qkv, 48, 8, INPUTS), "o": OutputSlice(self.o, 0, 24, INPUTS),
        }  # fmt: skip

    def forward(self, x):
        return {"qkv": self.qkv(x)[0], "o": self.o(x)[0]}


def make(dtype=torch.float32):
    """A model, random experts for it, and the server of their mixtures."""
    torch.manual_seed(3)
    tensors = {m.a: torch.empty(m.rank, INPUTS) for m in MODULES} | {
        m.b: torch.empty(SIZES[m.name], m.rank) for m in MODULES
    }
    layout = Layout.of(tensors, dtype)
    rows = torch.zeros((COUNT, layout.size), dtype=dtype)
    for row in rows:
        for view in layout.views(row).values():
            view.copy_(torch.randn(view.shape) / 4)
    names = tuple("abcde")
    experts = Experts("lora", names, layout, rows, rows, MODULES, {}, names)
    model = Model()
    return model, experts, MixtureServer(experts, model.places(), torch.device("cpu"), dtype)


def expected(model, experts, x, row):
    """Base outputs, and what this row [D] of any dtype adds to them (None: nothing), in float64."""
    outputs = {name: y.double() for name, y in model(x).items()}
    for module in MODULES if row is not None else ():
        views = {spec.name: row[spec.offset : spec.end].view(spec.shape).double() for spec in experts.layout.specs}
        added = module.scaling * (x.double() @ views[module.a].t()) @ views[module.b].t()
        place = model.places()[module.name]
        outputs["o" if module.name == "o" else "qkv"][:, place.start : place.start + place.size] += added
    return outputs


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_each_token_gets_its_own_mixture(dtype, tolerance, compiled, monkeypatch):
    """Population, the base model, a row that is no mixture, and padding behind them, in one step; in either order."""
    if not compiled:
        monkeypatch.setattr(low_rank, "_C", None)
    model, experts, server = make(dtype)
    mixtures = {slot: torch.randn(COUNT) for slot in (0, 7, 2)}
    alien = torch.randn(experts.layout.size).to(dtype) / 4
    slots, tokens = [7, -1, 0, 900, 2, 7], np.array([3, 2, 1, 4, 2, 1])
    rows = {slot: (coefficients @ experts.rows.float()) for slot, coefficients in mixtures.items()} | {
        -1: None,
        900: alien,
    }
    x = torch.randn(tokens.sum() + 3, INPUTS).to(dtype)
    base, right, start = model(x), [], 0
    for slot, count in [*zip(slots, tokens, strict=True), (-1, 3)]:
        right.append(expected(model, experts, x[start : start + count], rows[slot]))
        start += count
    for slot, coefficients in mixtures.items():
        server.load_mixture(slot, coefficients)
    server.load(900, alien)
    server.switch(on=True)
    server.begin(slots, tokens)
    assert isinstance(server._step, TokenGroups) == compiled
    served = model(x)
    for name in ("qkv", "o"):
        wanted = torch.cat([part[name] for part in right])
        assert (served[name].double() - wanted).abs().max() <= tolerance * wanted.abs().max()
        assert torch.equal(served[name][-3:], base[name][-3:]), "padding is left alone"


def test_base_requests_keep_their_bits_and_switching_off_ends_it():
    model, _, server = make()
    x = torch.randn(6, INPUTS)
    base = model(x)
    server.load_mixture(0, torch.ones(COUNT))
    server.switch(on=True)
    server.begin([0, -1], np.array([2, 4]))
    served = model(x)
    assert torch.equal(served["qkv"][2:], base["qkv"][2:])
    assert not torch.equal(served["qkv"][:2], base["qkv"][:2])
    server.begin([-1, -1], np.array([2, 4]))
    assert torch.equal(model(x)["o"], base["o"])
    server.begin([0], np.array([6]))
    server.switch(on=False)
    assert torch.equal(model(x)["o"], base["o"])


def test_one_row_that_is_no_mixture_at_a_time():
    _, experts, server = make()
    row = experts.rows[1] * 2
    server.load(3, row)
    with pytest.raises(RuntimeError, match="slot 3 serves a row already"):
        server.load(4, row)
    server.load(3, row)
    server.load_mixture(3, torch.ones(COUNT))
    server.load(4, row)
    server.restore()
    server.load(5, row)


def test_modules_that_the_model_lacks_or_has_otherwise_are_refused():
    model, experts, _ = make()
    places = model.places()
    where = (torch.device("cpu"), torch.float32)
    with pytest.raises(InputError, match="no linear layer v"):
        MixtureServer(experts, {name: place for name, place in places.items() if name != "v"}, *where)
    with pytest.raises(InputError, match=r"o has shape \[24, 24\] by the experts but \[24, 32\]"):
        MixtureServer(experts, places | {"o": places["o"]._replace(inputs=32)}, *where)
