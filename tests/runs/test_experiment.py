"""One engine for many searches and evaluations: the same numbers as alone, and nothing is evaluated twice."""

import shutil
from pathlib import Path

import helpers_search
import numpy as np
import pytest
import torch

from modelswarms_fast.config import SwarmConfig
from modelswarms_fast.errors import InputError
from modelswarms_fast.weights.experts import read_experts
from modelswarms_fast.runs.search import search
from modelswarms_fast.runs.experiment import Session
from modelswarms_fast.evaluation.objectives.utility import mean

tiny = helpers_search.tiny


def arguments_of(tiny, **more):
    """Of a session: what `tiny` has without the swarm's settings."""
    return {name: value for name, value in tiny.items() if name not in ("iterations", "seed")} | more


@pytest.fixture(scope="module", params=["weights", "mixture"])
def session(request, tiny):
    with Session(**arguments_of(tiny, state=request.param)) as opened:
        yield opened


def test_searches_in_a_session_are_those_alone(session, tiny, tmp_path):
    """Also the second, after a first one on the same engine; and the experts are still there."""
    state = session.engine_config.state
    experts = session.experts.rows.clone()
    for seed, particles in ((5, 5), (6, 3)):
        config = SwarmConfig(particles=particles, iterations=3, seed=seed)
        found = session.swarm(config)
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
        assert torch.equal(session.experts.rows, experts)


def test_the_experts_are_evaluated_once(session):
    initial = session.initial
    spent = session.evaluator.spent.copy()
    found = session.swarm(SwarmConfig(particles=3, iterations=0))
    assert found.utilities.tolist() == initial.tolist()
    assert session.evaluator.spent.evaluations == spent.evaluations
    assert found.spent.reused == 3 * 12
    assert session.initial.tolist() == initial.tolist()
    assert session.evaluator.spent.prompts == spent.prompts


def test_rows_and_mixtures_have_the_scores_of_evaluate(session, tiny):
    mixture = [0.5, 0.8, -0.3]
    row = torch.tensor(mixture) @ session.experts.rows
    by_mixture = session.score_mixtures([mixture, [0, 1, 0]], "test")
    by_row = session.score_rows([lambda: row, lambda: session.experts.rows[1]], "test")
    alone = session.evaluator.one(row.clone(), "test")
    assert by_mixture == by_row
    assert by_row[0] == alone
    assert session.rows_on_dev([lambda: session.experts.rows[1]])[0] == session.initial[1]
    assert session.mixtures_on_dev([[0, 1, 0]])[0] == session.initial[1]
    assert mean("dev", session.score_mixtures([[0, 1, 0]], "dev")[0]) == session.initial[1]


def test_an_expert_is_served_bit_by_bit(session):
    """A sum would make 0 of -0, and then another position of the expert."""
    expert = session.experts.rows[1]
    assert session.mix(torch.tensor([0.0, 1.0, 0.0])).data_ptr() == expert.data_ptr()
    assert torch.equal(session.mix(torch.tensor([0.0, 2.0, 0.0])), 2 * expert)


def test_a_row_is_made_when_it_is_served(session):
    made = []

    def row(number):
        made.append(number)
        return session.experts.rows[0] * (1 + number / 7)

    session.score_rows([lambda n=n: row(n) for n in range(4)], "dev")
    assert sorted(set(made)) == list(range(4))
    assert len(made) <= 8


def test_a_session_refuses_what_search_refuses(tiny):
    with pytest.raises(InputError, match="stop_early is set"):
        Session(**arguments_of(tiny, stop_early=True))
    with pytest.raises(InputError, match="rounding is 'stochastic'"):
        Session(**arguments_of(tiny, rounding="stochastic"))


def test_contradictions_with_the_engine_are_refused(session):
    if session.engine_config.state == "mixture":
        with pytest.raises(InputError, match="coordinate"):
            session.swarm(SwarmConfig(particles=3, randomness="coordinate"))
    else:
        found = session.swarm(SwarmConfig(particles=3, iterations=2, randomness="coordinate"))
        assert found.mixture is None


def test_the_base_of_lora_experts_is_zero(session):
    assert session.base_row() is None


def test_an_engine_that_does_not_start_is_closed(tiny, monkeypatch):
    from modelswarms_fast.runs import experiment as module

    closed = []
    monkeypatch.setattr(module, "make_canary", lambda *arguments: 1 / 0)
    start = module.start_engine

    def starting(*arguments):
        engine = start(*arguments)
        engine.close = lambda: closed.append(1)
        return engine

    monkeypatch.setattr(module, "start_engine", starting)
    with pytest.raises(ZeroDivisionError), Session(**arguments_of(tiny)):
        pass
    assert closed == [1]


def test_full_checkpoints_have_their_base_as_a_row(tmp_path):
    from helpers_models import make_base

    base = Path(helpers_search.make_tiny(tmp_path)["base"])
    folders = [make_base(tmp_path / "full" / f"e{seed}", seed=seed + 1) for seed in range(2)]
    data = tmp_path / "data.json"
    session = Session(folders, base=str(base), task="helpers_search:vowels", data=data, engine="transformers")
    row = session.base_row()
    assert torch.equal(row, read_experts([base], minimum=1).rows[0])
    assert not np.allclose(row, session.experts.rows[0])
    other = make_base(tmp_path / "other", shape={"num_hidden_layers": 3})
    for file in base.glob("tokenizer*"):
        shutil.copy(file, other)
    session = Session(folders, base=str(other), task="helpers_search:vowels", data=data, engine="transformers")
    with pytest.raises(InputError, match="other has other tensors than the experts; use the base that they share"):
        session.base_row()
