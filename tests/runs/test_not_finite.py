"""NaN and infinity: a particle that gives them has no score, and a base model that does is named."""

import math
import shutil
from functools import partial
from pathlib import Path

import helpers_search
import pytest
import torch
from helpers_search import told
from safetensors.torch import load_file, save_file

from modelswarms_fast.engines.protocol import Request, complete
from modelswarms_fast.engines.transformers import TransformersEngine
from modelswarms_fast.errors import InputError
from modelswarms_fast.runs.evaluate import evaluate
from modelswarms_fast.runs.search import search
from modelswarms_fast.weights.experts import read_experts
from modelswarms_fast.weights.population import Population

tiny = helpers_search.tiny


def changed_base(tiny, folder, change):
    """The tiny base with other weights."""
    base = shutil.copytree(tiny["base"], folder)
    weights = load_file(base / "model.safetensors")
    change(weights)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    return base


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_particle_that_overflows_has_no_score_and_the_search_goes_on(tiny, tmp_path, monkeypatch, caplog, value):
    move = Population.update

    def overflowing(self, restarts, coefficients, step_length, iteration):
        move(self, restarts, coefficients, step_length, iteration)
        if iteration == 1:
            self.row(1).fill_(value)

    monkeypatch.setattr(Population, "update", overflowing)
    summary = search(**tiny, out=tmp_path / "run", state="weights")
    history = told(tmp_path / "run")
    assert [line["without_score"] for line in history] == [[], [1], [1], [1]]
    assert all((line["utilities"][1] is None) == (line["iteration"] > 0) for line in history)
    assert summary["iterations"] == 3
    assert summary["without_score"] == [{"iteration": iteration, "particle": 1} for iteration in (1, 2, 3)]
    assert "Iteration 1: particle 1 has no score, since 12 of its 12 answers gave NaN or infinity." in caplog.messages
    assert read_experts([tmp_path / "run" / "global_best"], minimum=1).rows.isfinite().all()


def test_an_engine_says_which_answers_are_none(tiny):
    experts = read_experts(tiny["experts"])
    engine = TransformersEngine(Path(tiny["base"]), experts, dtype="float32")
    requests = [Request(0, [1, 2, 3]), Request(0, [4, 5]), Request(0, [1, 2, 3], [4, 5])]
    engine.load(0, experts.rows[0])
    good = complete(engine, requests, 4)
    engine.load(0, torch.full_like(experts.rows[0], math.nan))
    bad = complete(engine, requests, 4)
    assert [one.finite and math.isfinite(one.log_prob) for one in bad] == [False] * 3
    engine.load(0, experts.rows[0])
    assert complete(engine, requests, 4) == good
    assert all(one.finite for one in good)


@pytest.mark.parametrize("run", ["search", "evaluate"])
def test_a_base_that_holds_nan_is_named_before_anything_is_scored(tiny, tmp_path, run):
    def change(weights):
        weights["model.layers.0.mlp.up_proj.weight"][3, 4] = math.nan

    base = changed_base(tiny, tmp_path / "base", change)
    given = {"base": str(base), "task": tiny["task"], "data": tiny["data"], "engine": "transformers"}
    sentence = rf"^{base / 'model.safetensors'}: tensor model.layers.0.mlp.up_proj.weight of the base model holds NaN"
    act = partial(search, **tiny, out=tmp_path / "run") if run == "search" else partial(evaluate, str(base))
    with pytest.raises(InputError, match=sentence):
        act(**given)
    assert not (tmp_path / "run" / "history.jsonl").exists()


def test_a_base_whose_nan_is_met_late_is_named_as_well(tiny, tmp_path):
    """In the embedding of a letter that the first prompt lacks."""

    def change(weights):
        letter = helpers_search.string.printable.index("m") + 1
        weights["model.embed_tokens.weight"][letter] = math.inf

    base = changed_base(tiny, tmp_path / "base", change)
    with pytest.raises(InputError, match=r"model\.embed_tokens\.weight of the base model holds NaN or infinity"):
        search(**tiny | {"base": str(base)}, out=tmp_path / "run")


def test_a_base_too_large_for_a_dtype_is_told_so(tiny, tmp_path):
    def change(weights):
        for name in ("gate", "up", "down"):  # of both signs, so that one overflows whatever comes in
            weight = weights[f"model.layers.0.mlp.{name}_proj.weight"]
            weight.fill_(30_000.0)
            weight[::2] = -30_000.0

    base = changed_base(tiny, tmp_path / "base", change)
    with pytest.raises(InputError, match=r"computes NaN in float16, though all its weights are numbers; use another"):
        search(**tiny | {"base": str(base), "dtype": "float16"}, out=tmp_path / "run")
