"""The merges of rows against mergekit, on whole small checkpoints that it reads and writes itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers_models import make_base

from modelswarms_fast.ops import mix_
from modelswarms_fast.runs.baselines import dare_ties, lorahub, model_stock, slerp
from modelswarms_fast.weights.experts import read_experts
from modelswarms_fast.weights.layout import Layout

NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base, three experts that are the base and a little noise with a common part, as folders; and as rows."""
    folder = tmp_path_factory.mktemp("models")
    base = make_base(folder / "base", seed=0)
    origin = read_experts([base], minimum=1)
    common = torch.randn(origin.layout.size, generator=torch.Generator().manual_seed(1))
    folders = []
    for seed, name in enumerate(NAMES):
        own = torch.randn(origin.layout.size, generator=torch.Generator().manual_seed(10 + seed))
        folders.append(write(base, folder / name, origin, origin.rows[0] + 0.01 * (common + (1 + seed) * own)))
    return folder, read_experts(folders), origin.rows[0]


def write(base, folder, experts, row):
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(base)
    state = model.state_dict()
    for name, view in experts.layout.views(row).items():
        state[name].copy_(view)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def mergekit(models, tmp_path):
    """merge(method, parameters, models) by mergekit, as a row."""
    config = pytest.importorskip("mergekit.config")
    merging = pytest.importorskip("mergekit.merge")
    folder = models[0]

    def merge(method, models=NAMES, base=True, each=None, **parameters):
        content = {
            "merge_method": method,
            "dtype": "float32",
            "models": [{"model": str(folder / name), "parameters": dict(each or {})} for name in models],
            "parameters": parameters,
        }
        if base:
            content["base_model"] = str(folder / "base") if base is True else str(folder / base)
        options = merging.MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False)
        merging.run_merge(config.MergeConfiguration.model_validate(content), str(tmp_path / "merged"), options)
        return read_experts([tmp_path / "merged"], minimum=1).rows[0]

    return merge


def assert_equal(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-7)


def ones(spec):
    return np.ones(len(NAMES))


def test_lorahub_adds_differences_to_the_base(models, mergekit):
    _, experts, base = models
    ours = lorahub.add(experts, base, np.full(3, 0.4))
    assert_equal(ours, mergekit("task_arithmetic", each={"weight": 0.4}, normalize=False))
    assert torch.equal(lorahub.add(experts, base, np.zeros(3)), base)


def test_a_mixture_is_linear(models, mergekit):
    _, experts, _ = models
    ours = torch.empty_like(experts.rows[:1])
    mix_(ours, experts.rows, torch.full((1, 3), 1 / 3))
    assert_equal(ours[0], mergekit("linear", base=False, each={"weight": 1.0}))


@pytest.mark.parametrize("t", [0.25, 0.5])
def test_slerp(models, mergekit, t):
    _, experts, _ = models
    ours = slerp.fold(experts.layout, list(experts.rows[:2]), [t])
    assert_equal(ours, mergekit("slerp", models=NAMES[:2], base="a", t=t))


def test_slerp_of_parallel_tensors_is_linear():
    a = torch.tensor([3.0, 4.0])
    torch.testing.assert_close(slerp.slerp(a, 2 * a, 0.25), (1.25 * a).double())
    torch.testing.assert_close(slerp.slerp(a, torch.zeros(2), 0.5), (a / 2).double() / np.sqrt(0.5))


def test_model_stock(models, mergekit):
    _, experts, base = models
    ours, ratios = model_stock.merge(experts, base)
    assert 0.1 < min(ratios) < max(ratios) < 0.9, "neither the base nor the mean"
    assert_equal(ours, mergekit("model_stock"))


def test_ties_of_whole_differences(models, mergekit):
    """DARE with nothing dropped."""
    _, experts, base = models
    ours = dare_ties.merge(experts, base, ones, ones, 0, mean=True, scale=0.7)
    theirs = mergekit("dare_ties", each={"weight": 1.0, "density": 1.0}, normalize=True, **{"lambda": 0.7})
    assert_equal(ours, theirs)
    assert not torch.allclose(ours, 0.3 * base + 0.7 * experts.rows.mean(dim=0), atol=1e-4), "some signs lost"


def test_ties_with_weights_that_are_not_normalised(models, mergekit):
    _, experts, base = models
    ours = dare_ties.merge(experts, base, lambda spec: np.full(3, 0.4), ones, 0, mean=False)
    theirs = mergekit("ties", each={"weight": 0.4, "density": 1.0}, normalize=False)
    assert_equal(ours, theirs)


def test_dare_with_the_mask_given(models, mergekit, tmp_path):
    """Mergekit is given experts that are masked and rescaled already: drops and rescaling are as the paper has them."""
    folder, experts, base = models
    density = 0.4
    dropped = []
    for expert, name in enumerate(NAMES):
        row = base.clone()
        for number, spec in enumerate(experts.layout.specs):
            part = slice(spec.offset, spec.end)
            kept = dare_ties.keep(spec.numel, density, 7, number, expert)
            row[part] += (experts.rows[expert, part] - base[part]) * kept / density
        write(folder / "base", folder / f"dropped_{name}", experts, row)
        dropped.append(f"dropped_{name}")
    ours = dare_ties.merge(experts, base, ones, lambda spec: np.full(3, density), 7, mean=True)
    torch.testing.assert_close(
        ours, mergekit("ties", models=dropped, each={"weight": 1.0, "density": 1.0}, normalize=True), rtol=0, atol=1e-6
    )


def test_what_is_kept_depends_on_its_place_alone():
    kept = dare_ties.keep(10_000, 0.3, 5, 2, 1)
    assert torch.equal(kept, dare_ties.keep(10_000, 0.3, 5, 2, 1))
    assert abs(kept.float().mean() - 0.3) < 0.02
    assert bool((dare_ties.keep(10_000, 0.5, 5, 2, 1) | ~kept).all()), "at a larger density no weight is lost"
    for other in ((6, 2, 1), (5, 3, 1), (5, 2, 2)):
        assert not torch.equal(kept, dare_ties.keep(10_000, 0.3, *other))


@pytest.mark.parametrize("merge", ["dare_ties", "model_stock"])
def test_half_types_are_merged_in_float32(models, merge):
    _, experts, _ = models
    half = Layout.of(
        {spec.name: torch.empty(spec.shape, device="meta") for spec in experts.layout.specs}, torch.bfloat16
    )
    assert half.size == experts.layout.size
    rows = experts.rows.bfloat16()

    def merged(experts):
        if merge == "model_stock":
            return model_stock.merge(experts, None)[0]
        return dare_ties.merge(experts, None, ones, ones, 0, mean=True)

    ours = merged(replace(experts, layout=half, rows=rows, room=rows))
    assert torch.equal(ours, merged(replace(experts, rows=rows.float(), room=rows.float())).bfloat16())
