"""Each method on a utility that is known: what it finds, what it spends, and that a seed decides it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modelswarms_fast.errors import InputError
from modelswarms_fast.runs.baselines import METHODS, Choice, load_method
from modelswarms_fast.runs.baselines.evolmerge import layer_of
from modelswarms_fast.runs.baselines.random_search import affine, draw
from modelswarms_fast.runs.baselines.slerp import fold
from modelswarms_fast.swarm import best_of
from modelswarms_fast.weights.layout import Layout, TensorSpec

# Nevergrad's, of budgets that are too small for the optimiser that it takes, and of what NumPy will refuse one day.
pytestmark = [
    pytest.mark.filterwarnings("ignore:COBYLA"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:nevergrad"),
]

COUNT = 4
OF_OUTPUTS = {"vote", "pack", "cbtm", "data_merge"}  # need an engine: test_output_baselines.py
WITHOUT_SWARM = [name for name in METHODS if name not in {"model_swarms", *OF_OUTPUTS}]


class Quadratic:
    """An experiment without an engine: three scores, the higher the nearer a row is to a target."""

    def __init__(self, target=(0.4, 0.5, 0.3, -0.2), nan_at=None):
        tensors = {f"model.layers.{index}.w": torch.empty(16, 2) for index in range(4)}
        self.layout = Layout.of(tensors, torch.float32)
        rows = torch.randn(COUNT, self.layout.size, generator=torch.Generator().manual_seed(0))
        self.experts = SimpleNamespace(names=("a", "b", "c", "d"), rows=rows, layout=self.layout, kind="lora")
        self.target = torch.tensor(target) @ rows
        self.seen, self.tested, self._nan_at = [], [], nan_at
        self.initial = self._values([self.score(row) for row in rows])

    def score(self, row):
        if self._nan_at is not None and len(self.seen) in self._nan_at:
            return [float("nan")] * 3
        distance = float((row - self.target).square().mean())
        return [-distance, -2 * distance, -0.5 * distance]

    def _values(self, scores):
        return np.array([self.utility_of("dev", one) for one in scores])

    def utility_of(self, split, scores):
        return float(np.mean(scores))

    def base_row(self):
        return None

    def score_rows(self, rows, split):
        found = []
        for row in rows:
            (self.seen if split == "dev" else self.tested).append(row().clone())
            found.append(self.score(row()))
        return found

    def score_mixtures(self, mixtures, split):
        rows = torch.as_tensor(np.asarray(mixtures), dtype=torch.float32) @ self.experts.rows
        return self.score_rows([lambda row=row: row for row in rows], split)

    def mixtures_on_dev(self, mixtures):
        return self._values(self.score_mixtures(mixtures, "dev"))

    def rows_on_dev(self, rows):
        return self._values(self.score_rows(rows, "dev"))


def run(name, budget=30, seed=0, experiment=None):
    experiment = experiment or Quadratic()
    return experiment, load_method(name)(experiment, budget, seed)


@pytest.mark.parametrize("name", WITHOUT_SWARM)
@pytest.mark.parametrize("budget", [COUNT, COUNT + 1, 30])
def test_a_budget_is_not_exceeded_and_the_best_is_chosen(name, budget):
    experiment, choice = run(name, budget)
    assert isinstance(choice, Choice)
    assert len(experiment.seen) + COUNT * choice.looks_at_experts == choice.evaluations <= budget
    assert experiment.tested == [], "test is not looked at before the choice"
    scores = choice.test()
    assert len(experiment.tested) == 1
    assert np.mean(scores) == pytest.approx(choice.dev, rel=1e-5), "what is tested is what was chosen"
    seen = [np.mean(experiment.score(row)) for row in experiment.seen]
    if choice.looks_at_experts:
        seen += list(experiment.initial)
    if name != "lorahub":  # which has a penalty
        assert choice.dev == pytest.approx(max(seen))


@pytest.mark.parametrize("name", ["random_search", "cma_es", "lorahub", "evolmerge", "dare_ties"])
def test_a_seed_decides_everything(name):
    first, again, other = (run(name, seed=seed)[0].seen for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    if name != "lorahub":  # at this budget Nevergrad takes an optimiser that draws nothing
        assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("name", ["random_search", "cma_es", "lorahub", "evolmerge"])
def test_optimisers_spend_the_whole_budget(name):
    assert run(name, 37)[1].evaluations == 37


def test_optimisers_find_the_target():
    """At distances of the order of 1 from the experts."""
    start = Quadratic().initial.max()
    assert run("cma_es", 400)[1].dev > 1e-3 * start
    assert run("lorahub", 400)[1].dev > 0.1 * start
    assert run("random_search", 400)[1].dev > 0.5 * start
    assert run("evolmerge", 400)[1].dev > 0.6 * start, "signs are lost"


@pytest.mark.parametrize("name", ["random_search", "cma_es", "lorahub", "evolmerge", "slerp"])
def test_a_nan_is_never_chosen(name):
    _, choice = run(name, experiment=Quadratic(nan_at={1, 2, 5}))
    assert np.isfinite(choice.dev)


def test_affine_mixtures_sum_to_one():
    assert affine(np.array([3.0, 0.0, 0.0])).tolist() == pytest.approx([1 / 3 + 2, -2 / 3, -2 / 3])
    mixtures = draw(200, 5, 1)
    np.testing.assert_allclose(mixtures.sum(axis=1), 1)
    assert (mixtures[::2] >= 0).all()
    assert (mixtures[1::2] < 0).any()


def test_the_greedy_soup_keeps_what_does_not_hurt():
    """Two experts whose mean is the target, and two that spoil it."""
    _, choice = run("greedy_soup", experiment=Quadratic(target=(0.5, 0.5, 0.0, 0.0)))
    assert sorted(choice.recipe["ingredients"]) == ["a", "b"]
    assert choice.recipe["mixture"] == {"a": 0.5, "b": 0.5, "c": 0.0, "d": 0.0}
    assert choice.dev == pytest.approx(0, abs=1e-12)
    assert choice.evaluations == 2 * COUNT - 1


def test_slerp_folds_the_best_first():
    experiment, choice = run("slerp", experiment=Quadratic(target=(0.0, 0.7, 0.7, 0.0)))
    assert choice.recipe == {"experts": choice.recipe["experts"], "share": "equal"}
    assert sorted(choice.recipe["experts"]) == ["b", "c"]
    order = np.argsort(-experiment.initial)
    rows = [experiment.experts.rows[index] for index in order[:2]]
    expected = fold(experiment.layout, rows, [0.5])
    choice.test()
    assert torch.equal(experiment.tested[0], expected)
    three = fold(experiment.layout, [*rows, experiment.experts.rows[order[2]]], [0.5, 1 / 3])
    assert any(torch.equal(row, three) for row in experiment.seen)


def test_evolmerge_begins_at_the_uniform_soup_and_has_blocks_of_layers():
    _, choice = run("evolmerge", 20 * COUNT * 2 + 5)
    blocks = choice.recipe["blocks"]
    assert len(blocks) == 2
    assert set(blocks[0]) == {"weights", "densities"}
    assert blocks[0] != blocks[1]
    assert all(0.1 <= value <= 1 for block in blocks for value in block["densities"].values())
    assert len(run("evolmerge", 10**2)[1].recipe["blocks"]) == 1


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("base_model.model.model.layers.12.self_attn.q_proj.lora_A.weight", 12),
        ("transformer.h.3.attn.weight", 3),
        ("model.embed_tokens.weight", 0),
    ],
)
def test_layers_by_name(name, layer):
    assert layer_of(TensorSpec(name, 0, (1,))) == layer


def test_lorahub_stays_in_its_range_and_is_not_affine():
    _, choice = run("lorahub", 60)
    values = np.array(list(choice.recipe["mixture"].values()))
    assert np.abs(values).max() <= 1.5
    assert choice.recipe["loss"] == pytest.approx(-choice.dev + 0.05 * np.abs(values).mean())


def test_best_of_ignores_nan_and_keeps_the_first():
    assert best_of(np.array([np.nan, 1.0, 2.0, 2.0])) == 2
    assert best_of(np.array([np.nan, np.nan])) == 0


def test_unknown_methods_and_missing_libraries_are_named(monkeypatch):
    with pytest.raises(InputError, match="no method 'nothing'; choose from model_swarms"):
        load_method("nothing")
    import importlib

    def without(name):
        raise ModuleNotFoundError("No module named 'cmaes'", name="cmaes")

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(InputError, match=r"cma_es needs cmaes; pip install 'modelswarms-fast\[baselines\]'"):
        load_method("cma_es")
