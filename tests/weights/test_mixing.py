"""Mixtures of update matrices: the one adapter that they are, against dense matrices in float64."""

import json
from dataclasses import replace
from pathlib import Path

import helpers_models
import pytest
import torch
from helpers_delta import COUNT, delta_experts, dense, updates
from helpers_models import make_adapter
from helpers_search import write_tokenizer
from peft import PeftModel
from transformers import LlamaForCausalLM

from modelswarms_fast.engines.protocol import Request
from modelswarms_fast.engines.transformers import TransformersEngine
from modelswarms_fast.errors import InputError
from modelswarms_fast.weights.experts import Experts, export, read_experts, read_model
from modelswarms_fast.weights.mixing import mix_row, products_of_updates, ranks_of, row_form, truncate

tiny_base = helpers_models.tiny_base

MIXTURES = torch.tensor([[0.5, 0.75, -0.25], [1.0, 0.0, 0.0], [2.5, -1.5, 0.25], [0.0, 0.0, 0.0]])
TOKENS = torch.arange(12).reshape(2, 6)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def pool(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Experts:
    return delta_experts(tiny_base, tmp_path_factory.mktemp("experts"), request.param)


def distance(ours: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """The largest difference, as a share of the largest number."""
    largest = max(float(one.abs().max()) for one in right.values()) or 1.0
    return max(float((ours[name] - right[name]).abs().max()) for name in right) / largest


@pytest.mark.parametrize("mixture", MIXTURES, ids=lambda mixture: str(mixture.tolist()))
def test_a_row_is_the_sum_of_updates(pool: Experts, mixture: torch.Tensor) -> None:
    form, row = row_form(pool), mix_row(pool, mixture)
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 1e-2}[row.dtype]
    assert distance(updates(form, row), dense(pool, mixture)) < tolerance
    ranks = {module.name.rpartition(".")[2]: module.rank for module in form.modules}
    assert ranks == {name: 12 for name in helpers_models.ALL_LINEAR} | {"v_proj": 6, "q_proj": 8, "down_proj": 6}
    assert torch.equal(mix_row(pool, mixture), row)


def test_factors_have_cross_terms_and_updates_have_none(pool: Experts) -> None:
    mixture = MIXTURES[0]
    mixed = updates(pool, mix_row(replace(pool, combine="factors"), mixture))
    assert distance(mixed, dense(pool, mixture)) > 0.1
    assert row_form(replace(pool, combine="factors")).layout == pool.layout


def test_distances_are_those_of_the_update_matrices(pool: Experts) -> None:
    flat = [torch.cat([one.flatten() for one in updates(pool, row).values()]) for row in pool.rows]
    right = torch.stack(flat) @ torch.stack(flat).t()
    torch.testing.assert_close(torch.tensor(products_of_updates(pool), dtype=torch.float64), right)


@pytest.mark.parametrize("mixture", MIXTURES[[0, 2]], ids=["sums to one", "beyond the experts"])
def test_peft_loads_what_is_exported_and_it_comes_back(
    pool: Experts, mixture: torch.Tensor, tiny_base: Path, tmp_path: Path
) -> None:
    """PEFT adds the same matrices, the file gives the same row, and the base with the dense update the same logits."""
    row = mix_row(pool, mixture)
    export(tmp_path / "best", row, row_form(pool), base=tiny_base, provenance={})
    assert torch.equal(read_model(tmp_path / "best", pool), row)
    loaded = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tiny_base), tmp_path / "best")
    by_hand = LlamaForCausalLM.from_pretrained(tiny_base)
    for name, update in dense(pool, mixture).items():
        by_hand.get_submodule(name).weight.data += update.float()
    with torch.no_grad():
        difference = (loaded(TOKENS).logits - by_hand(TOKENS).logits).abs().max()
        moved = (by_hand(TOKENS).logits - LlamaForCausalLM.from_pretrained(tiny_base)(TOKENS).logits).abs().max()
    assert difference < {torch.float32: 1e-5, torch.bfloat16: 2e-2}[row.dtype] * moved
    config = json.loads((tmp_path / "best" / "adapter_config.json").read_text())
    assert config["r"] == 12
    assert {name.rpartition(".")[2]: rank for name, rank in config["rank_pattern"].items()} == {
        "v_proj": 6,
        "q_proj": 8,
        "down_proj": 6,
    }
    assert read_experts([tmp_path / "best", pool.sources[0]][:1], minimum=1).layout == row_form(pool).layout


@pytest.mark.parametrize("rank", [1, 3, 12, 500])
def test_a_cut_is_the_best_of_its_rank_and_says_its_error(
    pool: Experts, rank: int, tiny_base: Path, tmp_path: Path
) -> None:
    mixture = MIXTURES[0]
    form, row = row_form(pool), mix_row(pool, mixture)
    small, cut, error = truncate(form, row, rank)
    whole, ours = updates(form, row), updates(small, cut)
    tails = [torch.linalg.svdvals(one)[rank:].square().sum() for one in whole.values()]
    norm = float(sum(one.square().sum() for one in whole.values())) ** 0.5
    assert error == pytest.approx(float(sum(tails)) ** 0.5 / norm, abs=1e-7)
    lost = float(sum((whole[name] - ours[name]).square().sum() for name in whole)) ** 0.5 / norm
    assert lost == pytest.approx(error, abs={torch.float32: 1e-6, torch.bfloat16: 1e-2}[row.dtype])
    assert (error < 1e-7) == (rank >= 12)
    export(tmp_path / "cut", cut, small, base=tiny_base, provenance={})
    assert json.loads((tmp_path / "cut" / "adapter_config.json").read_text())["r"] == min(rank, 12)
    back = updates(form, read_model(tmp_path / "cut", pool))
    assert distance(back, ours) < {torch.float32: 1e-6, torch.bfloat16: 1e-2}[row.dtype]


def test_a_row_that_is_not_finite_is_left_to_the_export(pool: Experts, tiny_base: Path, tmp_path: Path) -> None:
    form, row = row_form(pool), mix_row(pool, MIXTURES[0]).clone()
    row[0] = torch.nan
    small, same, error = truncate(form, row, 2)
    assert same is row
    assert error != error
    with pytest.raises(InputError, match="holds NaN or infinity"):
        export(tmp_path / "cut", same, small, base=tiny_base, provenance={})


def test_a_model_that_has_no_place_in_the_mixture_is_refused(pool: Experts, tiny_base: Path, tmp_path: Path) -> None:
    large = make_adapter(tiny_base, tmp_path / "large", seed=7, r=13)
    with pytest.raises(InputError, match=r"large: model\.layers\.0\.mlp\.down_proj has no place in a mixture"):
        read_model(large, pool)


def test_the_exact_engine_serves_the_sum_of_updates(tiny_base: Path, tmp_path: Path) -> None:
    """As a mixture and as a row, and the base model again after them."""
    base = helpers_models.make_base(tmp_path / "base")
    write_tokenizer(base)
    experts = delta_experts(base, tmp_path / "experts", torch.float32)
    engine = TransformersEngine(base, experts, dtype="float32")
    prompt = list(range(1, 9))
    for mixture in MIXTURES[:3]:
        by_hand = LlamaForCausalLM.from_pretrained(base)
        for name, update in dense(experts, mixture).items():
            by_hand.get_submodule(name).weight.data += update.float()
        with torch.no_grad():
            right = torch.log_softmax(by_hand(torch.tensor([prompt])).logits[0, -1], dim=-1)
        for load, given in ((engine.load_mixture, mixture), (engine.load, mix_row(experts, mixture))):
            load(0, given)
            served = engine.log_probs(Request(0, prompt))
            assert max(abs(value - float(right[token])) for token, value in served.items()) < 1e-5
            engine.restore()
    assert ranks_of(experts.modules[0], COUNT) == (4, 0, 2)
