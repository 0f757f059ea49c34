"""Mixtures served token by token, on modules of our own: equal to adding each particle's B A to the weights."""

from dataclasses import replace

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
from modelswarms_fast.weights.mixing import mix_row

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


def make_delta(dtype=torch.float32):
    """The same, of update matrices; in q and v the experts have ranks of their own."""
    model, experts, _ = make(dtype)
    own = {"q": (4, 1, 0, 4, 2), "v": (3, 3, 1, 2, 3), "o": (4,) * COUNT}
    modules = tuple(replace(module, ranks=own[module.name]) for module in experts.modules)
    for row, ranks in zip(experts.rows, zip(*own.values(), strict=True), strict=True):
        views = experts.layout.views(row)
        for module, rank in zip(modules, ranks, strict=True):
            views[module.a][rank:] = 0
            views[module.b][:, rank:] = 0
    experts = replace(experts, modules=modules, combine="delta")
    return model, experts, MixtureServer(experts, model.places(), torch.device("cpu"), dtype)


def expected_update(model, experts, x, coefficients):
    """Base outputs, and the sum of what the experts add to them, each with its coefficient, in float64."""
    outputs = expected(model, experts, x, None)
    for share, row in zip(coefficients.tolist(), experts.rows, strict=True):
        alone = expected(model, experts, x, row)
        for name, y in model(x).items():
            outputs[name] += share * (alone[name] - y.double())
    return outputs


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_each_token_gets_its_own_sum_of_updates(dtype, tolerance, compiled, monkeypatch):
    """Coefficients of any sign and sum, the base model, a row that no mixture here gives, and padding, in one step."""
    if not compiled:
        monkeypatch.setattr(low_rank, "_C", None)
    model, experts, server = make_delta(dtype)
    mixtures = {slot: torch.randn(COUNT) * 2 for slot in (0, 7, 2, 900)} | {-1: torch.zeros(COUNT)}
    slots, tokens = [7, -1, 0, 900, 2, 7], np.array([3, 2, 1, 4, 2, 1])
    x = torch.randn(tokens.sum() + 3, INPUTS).to(dtype)
    base, right, start = model(x), [], 0
    for slot, count in [*zip(slots, tokens, strict=True), (-1, 3)]:
        right.append(expected_update(model, experts, x[start : start + count], mixtures[slot]))
        start += count
    for slot in (0, 7, 2):
        server.load_mixture(slot, mixtures[slot])
    server.load(900, mix_row(experts, mixtures[900]))
    server.switch(on=True)
    server.begin(slots, tokens)
    assert all((part.groups is not None) == compiled for part in server._step)
    served = model(x)
    for name in ("qkv", "o"):
        wanted = torch.cat([part[name] for part in right])
        assert (served[name].double() - wanted).abs().max() <= tolerance * wanted.abs().max()
        assert torch.equal(served[name][-3:], base[name][-3:]), "padding is left alone"
        assert torch.equal(served[name][3:5], base[name][3:5]), "and so is the base model"
    server.begin([7, 7], np.array([2, 1]))
    assert server._step[1] is None, "the row is entered only in steps that have tokens of it"
    server.begin([900, -1], np.array([2, 1]))
    assert server._step[0] is None


@pytest.mark.parametrize("compiled", [True, False])
def test_parts_of_the_inputs_are_added_up_before_the_coefficients(compiled, monkeypatch):
    """As on ranks of a tensor-parallel engine: each has half of A's columns, and what they see is summed."""
    if not compiled:
        monkeypatch.setattr(low_rank, "_C", None)
    model, experts, _ = make_delta()
    x, half, mixture = torch.randn(6, INPUTS), INPUTS // 2, torch.randn(COUNT)
    seen: list[torch.Tensor] = []

    class Part(torch.nn.Module):
        def forward(self, x):
            return torch.zeros(len(x), SIZES["o"])

    only = replace(experts, modules=tuple(module for module in experts.modules if module.name == "o"))

    def keep(low):
        seen.append(low.clone())
        return torch.zeros_like(low)

    for column, add_up in ((0, keep), (half, lambda low: low + seen[0])):
        part = Part()
        place = OutputSlice(part, 0, SIZES["o"], half, (SIZES["o"], INPUTS), (0, column), add_up)
        server = MixtureServer(only, {"o": place}, torch.device("cpu"), torch.float32)
        server.load_mixture(0, mixture)
        server.switch(on=True)
        server.begin([0], np.array([6]))
        found = part(x[:, column : column + half].contiguous())
    right = expected_update(model, experts, x, mixture)["o"] - model(x)["o"].double()
    torch.testing.assert_close(found.double(), right, rtol=1e-4, atol=1e-4)
