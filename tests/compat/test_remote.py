"""MoCo's functions by a broker: the answers of engines in this process, also from weights that have no file yet."""

import random

import helpers_moco
import pytest
from helpers_moco import COLD, SETTINGS, theirs
from test_moco_class import INPUTS, make_swarm

from modelswarms_fast.compat import moco
from modelswarms_fast.compat.client import PATH
from modelswarms_fast.compat.moco import __main__ as command
from modelswarms_fast.compat.moco import session
from modelswarms_fast.compat.remote import RemoteFleet
from modelswarms_fast.errors import InputError

zoo, broker, fake = helpers_moco.zoo, helpers_moco.broker, helpers_moco.fake


@pytest.fixture
def remote(broker, monkeypatch):
    """MoCo's functions in a session whose engines are the broker's."""
    monkeypatch.setenv(PATH, str(broker.path))
    session.configure()
    moco.update_generation_hyperparameters(6, 0.7, COLD, 2)
    yield moco
    session.close()


def test_answers_are_those_of_the_models(remote, broker, zoo):
    models = [zoo.a, zoo.other, zoo.a]
    found = remote.distributed_generation(models, [INPUTS, ["bad"], []], [0])
    assert isinstance(session.session().fleet, RemoteFleet)
    assert found == [theirs(zoo.a, INPUTS, 6), theirs(zoo.other, ["bad"], 6), []]
    assert len(broker.fleet._engines) == 2
    moco.release()
    assert not broker.fleet._engines


def test_a_swarm_that_has_moved_answers_from_its_new_weights(remote, zoo, tmp_path):
    random.seed(3)
    swarm = make_swarm(remote, tmp_path / "swarm", zoo.experts)
    paths = swarm.get_model_paths()
    before = remote.distributed_generation(paths, [INPUTS] * 3, [0])
    swarm.update([0.1, 0.3, 0.2])
    after = remote.distributed_generation(paths, [INPUTS] * 3, [0])
    assert after != before
    assert after == [theirs(path, INPUTS, 6) for path in paths]


def test_drawn_answers_are_those_of_this_process(remote, monkeypatch, zoo):
    """The session draws the seeds, whoever has the engines."""
    found = remote.batch_generate_text(zoo.a, 0, INPUTS, 5, 1.5, 1.0, 2)
    monkeypatch.delenv(PATH)
    session.configure(SETTINGS)
    assert remote.batch_generate_text(zoo.a, 0, INPUTS, 5, 1.5, 1.0, 2) == found


def test_a_broker_that_is_gone_or_refuses_is_one_sentence(remote, monkeypatch, zoo, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"none has no tokenizer"):
        remote.distributed_generation([str(tmp_path / "none")], [["bad"]], [0])
    monkeypatch.setenv(PATH, str(tmp_path / "nobody"))
    session.configure()
    with pytest.raises(InputError, match=r"No broker answers at .*; start one with: modelswarms-fast serve"):
        remote.distributed_generation([zoo.a], [["bad"]], [0])
    moco.release()


def test_settings_of_engines_are_the_brokers(remote, fake, tmp_path):
    config = tmp_path / "config.json"
    config.write_text("{" + ", ".join(f'"{key}": 1' for key in command.KEYS) + "}")
    with pytest.raises(InputError, match=f"{PATH} names a broker, which has its own; unset one"):
        command.main(["-c", str(config), "--set", "dtype=float32"])
