"""Searches among sums of update matrices, on the exact engine: what they find is exported and read back."""

import json
import shutil
from pathlib import Path

import helpers_search
import numpy as np
import pytest
import torch
from helpers_delta import delta_experts, dense
from helpers_models import make_base
from helpers_search import arguments_of, told
from peft import PeftModel
from transformers import LlamaForCausalLM

from modelswarms_fast.errors import InputError
from modelswarms_fast.records.run_folder import Journal, read_json
from modelswarms_fast.runs import evaluate
from modelswarms_fast.runs.baselines import METHODS, OF_FACTORS
from modelswarms_fast.runs.compare import compare
from modelswarms_fast.runs.experiment import Experiment
from modelswarms_fast.runs.final_test import evaluate_run
from modelswarms_fast.runs.search import search
from modelswarms_fast.runs.sweep import sweep
from modelswarms_fast.weights.experts import inner_products, read_experts, read_model
from modelswarms_fast.weights.mixing import mix_row, products_of_updates, row_form

tiny = helpers_search.tiny
DELTA = {"combine": "delta", "particles": 4}
TOKENS = torch.arange(10)[None]


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """One finished search: its folder and summary."""
    out = tmp_path_factory.mktemp("run") / "search"
    return out, search(**tiny, **DELTA, out=out, confirm=3, final_test=True, parity_check="all")


def test_the_winner_is_the_sum_of_updates_that_the_summary_names(run, tiny):
    out, summary = run
    assert (summary["state"], summary["combine"]) == ("mixture", "delta")
    coefficients = list(summary["mixture"].values())
    experts = read_experts(tiny["experts"])
    right = LlamaForCausalLM.from_pretrained(tiny["base"])
    for share, row in zip(coefficients, experts.rows, strict=True):
        views = experts.layout.views(row)
        for module in experts.modules:
            update = share * module.scaling * views[module.b] @ views[module.a]
            right.get_submodule(module.name).weight.data += update
    loaded = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tiny["base"]), out / "global_best")
    with torch.no_grad():
        torch.testing.assert_close(loaded(TOKENS).logits, right(TOKENS).logits, atol=1e-4, rtol=1e-4)
    where = {name: tiny[name] for name in ("base", "task", "data", "engine", "dtype")}
    assert evaluate.evaluate(str(out / "global_best"), **where)["score"] == summary["end"]["test"]


def test_the_run_folder_says_what_it_is(run, tiny):
    out, _ = run
    config = read_json(out / "config.json")
    assert (config["combine"], config["state_reason"]) == ("delta", "combine is 'delta'")
    experts = read_experts(tiny["experts"])
    assert config["expert_products"] == products_of_updates(experts) != inner_products(experts.rows)
    groups = read_json(out / "test_scores.json")["groups"]
    assert {name: len(found["scores"]) for name, found in groups.items()} == {
        "experts": 3, "start": 4, "best": 4, "end": 4,
    }  # fmt: skip
    assert groups["experts"]["scores"] == groups["start"]["scores"][:3]


def test_the_report_finds_the_same_test_scores_again(run, tmp_path):
    out, _ = run
    shutil.copytree(out, tmp_path / "run")
    evaluate_run(tmp_path / "run", {"task": read_json(out / "config.json")["task"]})
    assert read_json(tmp_path / "run" / "test_scores.json") == read_json(out / "test_scores.json")


def test_adapters_that_differ_in_ranks_alphas_and_modules(tiny, tmp_path):
    delta_experts(Path(tiny["base"]), tmp_path / "pool", torch.float32)
    settings = tiny | DELTA | {"experts": tmp_path / "pool", "iterations": 2}
    summary = search(**settings, out=tmp_path / "run", start_velocity="zero")
    experts = read_experts(tmp_path / "pool")
    right = LlamaForCausalLM.from_pretrained(tiny["base"])
    for name, update in dense(experts, torch.tensor(list(summary["mixture"].values()))).items():
        right.get_submodule(name).weight.data += update.float()
    loaded = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tiny["base"]), tmp_path / "run/global_best")
    with torch.no_grad():
        torch.testing.assert_close(loaded(TOKENS).logits, right(TOKENS).logits, atol=1e-4, rtol=1e-4)


def test_a_search_that_was_cut_is_resumed(tiny, tmp_path, monkeypatch):
    uncut = search(**tiny, **DELTA, out=tmp_path / "uncut")
    append = Journal.append

    def cut(journal, line):
        if line["iteration"] == 2:
            raise KeyboardInterrupt
        append(journal, line)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", cut)
        with pytest.raises(KeyboardInterrupt):
            search(**tiny, **DELTA, out=tmp_path / "cut")
    with pytest.raises(InputError, match=r"other settings \(combine differs\)"):
        search(**tiny, particles=4, state="mixture", out=tmp_path / "cut", resume=True)
    summary = search(**tiny, **DELTA, out=tmp_path / "cut", resume=True)
    assert told(tmp_path / "cut") == told(tmp_path / "uncut")
    assert (summary["end"], summary["mixture"]) == (uncut["end"], uncut["mixture"])
    weights = [tmp_path / which / "global_best" / "adapter_model.safetensors" for which in ("cut", "uncut")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_winner_of_lower_rank_is_tested_as_it_is_exported(run, tiny, tmp_path):
    _, whole = run
    summary = search(**tiny, **DELTA, out=tmp_path / "run", confirm=3, export_rank=2)
    assert summary["mixture"] == whole["mixture"]
    assert summary["export_rank"] == 2
    assert 0.1 < summary["export_error"] < 1
    assert json.loads((tmp_path / "run" / "global_best" / "adapter_config.json").read_text())["r"] == 2
    card = (tmp_path / "run" / "global_best" / "README.md").read_text()
    assert "cut to rank 2 by SVD" in card
    assert f"relative error of {summary['export_error']:.3g}" in card
    where = {name: tiny[name] for name in ("base", "task", "data", "engine", "dtype")}
    score = evaluate.evaluate(str(tmp_path / "run" / "global_best"), **where)["score"]
    assert score == summary["end"]["test"] != whole["end"]["test"]
    assert "export_rank" not in whole


def test_methods_that_score_mixtures_do_so_in_this_space(tiny, tmp_path):
    content = compare(**arguments_of(tiny), out=tmp_path / "all", budget=6, seed=3, combine="delta", parity_check="off")
    assert list(content["methods"]) == [name for name in METHODS if name not in OF_FACTORS]
    recipe = content["methods"]["uniform_soup"]["recipe"]["mixture"]
    with Experiment(**arguments_of(tiny), combine="delta") as experiment:
        mixture = torch.tensor(list(recipe.values()))
        row = mix_row(experiment.experts, mixture)
        assert experiment.score_rows([lambda: row], "test")[0] == content["methods"]["uniform_soup"]["test_scores"]
    with pytest.raises(InputError, match=r"^slerp makes .* use combine='factors'"):
        compare(**arguments_of(tiny), out=tmp_path / "some", budget=6, seed=3, combine="delta", methods=["slerp"])


def test_a_sweep_reads_its_winner_back(tiny, tmp_path):
    given = arguments_of(tiny, combine="delta", parity_check="off")
    content = sweep(**given, out=tmp_path / "sweep", searches=2, swarm={"iterations": 1})
    best = tmp_path / "sweep" / content["best"]["model"]
    experts = read_experts(tiny["experts"])
    mixture = torch.tensor(list(content["searches"][0]["mixture"].values()), dtype=torch.float64)
    delta = Experiment(**given).experts
    assert torch.equal(read_model(best, delta), mix_row(delta, mixture))
    assert row_form(delta).layout.size > experts.layout.size
    assert np.isfinite(content["best"]["test"])


def test_what_delta_cannot_be_is_one_sentence(tiny, tmp_path):
    with pytest.raises(InputError, match=r"^randomness is 'coordinate' but combine='delta'"):
        search(**tiny, **DELTA, out=tmp_path / "run", randomness="coordinate")
    for seed in range(2):
        make_base(tmp_path / "full" / f"{seed}", seed=seed)
    with pytest.raises(InputError, match=r"^combine is 'delta' but full checkpoints .* leave combine out"):
        search(**tiny | {"experts": tmp_path / "full"}, **DELTA, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
