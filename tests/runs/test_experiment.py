"""One engine for many searches and evaluations: the same numbers as alone, and nothing is evaluated twice."""

import shutil
from pathlib import Path

import helpers_search
import numpy as np
import pytest
import torch
from helpers_search import arguments_of

from modelswarms_fast.config import SwarmConfig
from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.objectives.utility import mean
from modelswarms_fast.runs.experiment import Experiment
from modelswarms_fast.runs.search import search
from modelswarms_fast.weights.experts import read_experts

tiny = helpers_search.tiny


@pytest.fixture(scope="module", params=["weights", "mixture"])
def experiment(request, tiny):
    with Experiment(**arguments_of(tiny, state=request.param)) as opened:
        yield opened


def test_searches_in_a_session_are_those_alone(experiment, tiny, tmp_path):
    """Also the second, after a first one on the same engine; and the experts are still there."""
    state = experiment.engine_config.state
    experts = experiment.experts.rows.clone()
    for seed, particles in ((5, 5), (6, 3)):
        config = SwarmConfig(particles=particles, iterations=3, seed=seed)
        found = experiment.search(config)
        out = tmp_path / str(seed)
        alone = search(**tiny | {"seed": seed}, out=out, particles=particles, state=state)
        assert found.dev == alone["end"]["dev"]
        assert found.mixture == list(alone["mixture"].values())
        assert found.particle == alone["end"]["particle"]
        assert found.stopped == alone["stopped"]
        assert torch.equal(found.row, read_experts([out / "global_best"], minimum=1).rows[0])
        utilities = [line["utilities"].tolist() for line in found.history]
        assert utilities == [line["utilities"] for line in helpers_search.told(out)]
        assert found.utilities.tolist() == utilities[0]
        assert torch.equal(experiment.experts.rows, experts)


def test_the_experts_are_evaluated_once(experiment):
    initial = experiment.initial
    spent = experiment.evaluator.spent.copy()
    found = experiment.search(SwarmConfig(particles=3, iterations=0))
    assert found.utilities.tolist() == initial.tolist()
    assert experiment.evaluator.spent.evaluations == spent.evaluations
    assert found.spent.reused == 3 * 12
    assert experiment.initial.tolist() == initial.tolist()
    assert experiment.evaluator.spent.prompts == spent.prompts


def test_rows_and_mixtures_have_the_scores_of_evaluate(experiment, tiny):
    mixture = [0.5, 0.8, -0.3]
    row = torch.tensor(mixture) @ experiment.experts.rows
    by_mixture = experiment.score_mixtures([mixture, [0, 1, 0]], "test")
    by_row = experiment.score_rows([lambda: row, lambda: experiment.experts.rows[1]], "test")
    alone = experiment.evaluator.score_model(row.clone(), "test")
    assert by_mixture == by_row
    assert by_row[0] == alone
    assert experiment.rows_on_dev([lambda: experiment.experts.rows[1]])[0] == experiment.initial[1]
    assert experiment.mixtures_on_dev([[0, 1, 0]])[0] == experiment.initial[1]
    assert mean("dev", experiment.score_mixtures([[0, 1, 0]], "dev")[0]) == experiment.initial[1]


def test_an_expert_is_served_bit_by_bit(experiment):
    """A sum would make 0 of -0, and then another position of the expert."""
    expert = experiment.experts.rows[1]
    assert experiment.mix(torch.tensor([0.0, 1.0, 0.0])).data_ptr() == expert.data_ptr()
    assert torch.equal(experiment.mix(torch.tensor([0.0, 2.0, 0.0])), 2 * expert)


def test_a_row_is_made_when_it_is_served(experiment):
    made = []

    def row(number):
        made.append(number)
        return experiment.experts.rows[0] * (1 + number / 7)

    experiment.score_rows([lambda n=n: row(n) for n in range(4)], "dev")
    assert sorted(set(made)) == list(range(4))
    assert len(made) <= 8


def test_a_session_refuses_what_search_refuses(tiny):
    with pytest.raises(InputError, match="stop_early is set"):
        Experiment(**arguments_of(tiny, stop_early=True))
    with pytest.raises(InputError, match="rounding is 'stochastic'"):
        Experiment(**arguments_of(tiny, rounding="stochastic"))


def test_contradictions_with_the_engine_are_refused(experiment):
    if experiment.engine_config.state == "mixture":
        with pytest.raises(InputError, match="coordinate"):
            experiment.search(SwarmConfig(particles=3, randomness="coordinate"))
    else:
        found = experiment.search(SwarmConfig(particles=3, iterations=2, randomness="coordinate"))
        assert found.mixture is None


def test_the_base_of_lora_experts_is_zero(experiment):
    assert experiment.base_row() is None


def test_an_engine_that_does_not_start_is_closed(tiny, monkeypatch):
    from modelswarms_fast.runs import experiment as module

    closed = []
    monkeypatch.setattr(module, "Evaluator", lambda *arguments: 1 / 0)
    start = module.start_engine

    def starting(*arguments):
        engine = start(*arguments)
        engine.close = lambda: closed.append(1)
        return engine

    monkeypatch.setattr(module, "start_engine", starting)
    with pytest.raises(ZeroDivisionError), Experiment(**arguments_of(tiny)):
        pass
    assert closed == [1]


def test_full_checkpoints_have_their_base_as_a_row(tmp_path):
    from helpers_models import make_base

    base = Path(helpers_search.make_tiny(tmp_path)["base"])
    folders = [make_base(tmp_path / "full" / f"e{seed}", seed=seed + 1) for seed in range(2)]
    data = tmp_path / "data.json"
    experiment = Experiment(folders, base=str(base), task="helpers_search:vowels", data=data, engine="transformers")
    row = experiment.base_row()
    assert torch.equal(row, read_experts([base], minimum=1).rows[0])
    assert not np.allclose(row, experiment.experts.rows[0])
    other = make_base(tmp_path / "other", shape={"num_hidden_layers": 3})
    for file in base.glob("tokenizer*"):
        shutil.copy(file, other)
    experiment = Experiment(folders, base=str(other), task="helpers_search:vowels", data=data, engine="transformers")
    with pytest.raises(InputError, match="other has other tensors than the experts; use the base that they share"):
        experiment.base_row()
