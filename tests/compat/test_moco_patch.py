"""MoCo's package with this one in it: what is replaced and put back, what is refused, and the command."""

import importlib
import json
import runpy
import sys

import helpers_moco
import pytest
from helpers_moco import COLD, SETTINGS, theirs

from modelswarms_fast.compat import moco
from modelswarms_fast.compat.moco import __main__ as command
from modelswarms_fast.compat.moco import generation, patching, session
from modelswarms_fast.errors import InputError

zoo, fake = helpers_moco.zoo, helpers_moco.fake
INPUTS = ["bad", "dig"]
GENERATE = ["--set", "engine=transformers", "--set", "dtype=float32"]


def module(name):
    return importlib.import_module(f"model_collaboration.{name}")


def everything():
    """Each function that patch replaces, as it is now."""
    return {
        (one.module, one.name): getattr(importlib.import_module(one.module), one.name)
        for one in patching.PLACES
        if one.module != patching.DPO  # the stand-in lacks it
    }


def test_patch_and_unpatch(fake, zoo):
    """Also where a method has imported a name before; and a second patch does not keep the first one's."""
    soup = module("method.weight_greedy_soup")
    original = everything()
    assert soup.lora_merge is original[patching.SWARM, "lora_merge"]
    for _ in range(2):
        moco.patch(SETTINGS)
        now = everything()
        assert not [key for key in now if now[key] is original[key]]
        assert soup.lora_merge is moco.lora_merge
        assert module("utils.swarm").Swarm is moco.Swarm
    theirs_now = module("method.distributed_generation")
    theirs_now.update_generation_hyperparameters(6, 0.7, COLD, 2)
    assert theirs_now.distributed_generation([zoo.a], [INPUTS], [0])[0] == theirs(zoo.a, INPUTS, 6)
    theirs_now.update_generation_hyperparameters(2, 0.7, COLD, 2)
    assert theirs_now.distributed_generation([zoo.a], [INPUTS], [0])[0] == theirs(zoo.a, INPUTS, 2)
    moco.unpatch()
    assert everything() == original
    assert soup.lora_merge is original[patching.SWARM, "lora_merge"]
    moco.update_generation_hyperparameters(None, None, None, None)
    with pytest.raises(InputError, match="is not set"):
        generation.distributed_generation([zoo.a], [INPUTS], [0])


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("method.distributed_generation", "distributed_generation"), ("utils.swarm", "Swarm"),
        ("utils.swarm", "Swarm.update"), ("data.eval", "get_scores"), ("utils.distributed_sft", "distributed_sft"),
    ],
)  # fmt: skip
def test_a_function_with_other_arguments_is_named_and_nothing_is_replaced(fake, monkeypatch, where, name):
    owner, original = module(where), everything()
    *inner, last = name.split(".")
    owner = getattr(owner, inner[0]) if inner else owner
    monkeypatch.setattr(owner, last, lambda self, one, another=None: None)
    changed = everything()
    with pytest.raises(InputError, match=rf"model_collaboration\.{where}\.{name} takes \(self, one, another=None\)"):
        moco.patch(SETTINGS)
    assert everything() == changed
    monkeypatch.delattr(owner, last)
    with pytest.raises(InputError, match=f"has no {name}; nothing was replaced"):
        moco.patch(SETTINGS)
    monkeypatch.undo()
    assert all(everything()[key] is original[key] for key in original)


def test_memory_is_given_back_before_other_models_are_loaded(fake, zoo):
    """Before reward models, verifiers and training; not before scores that load nothing."""
    moco.patch(SETTINGS)
    scores, generate = module("data.eval"), module("method.distributed_generation")
    generate.update_generation_hyperparameters(2, 0.7, COLD, 2)

    def after(call):
        generate.distributed_generation([zoo.a], [INPUTS], [0])
        scores.loaded.clear()
        call()
        return scores.loaded

    names = {"exact_match": 1, "generation_diversity": 0}
    for name, engines in names.items():
        assert after(lambda name=name: scores.get_scores("t", name, "dev", ["a"])) == [(name, engines)]
    assert after(lambda: scores.get_scores("t", "reward_model", "dev", ["a"])) == [("reward_model", 1), ("reward", 0)]
    verifier = [("general_verifier", 1), ("verifier", 0)]
    assert after(lambda: scores.get_scores("t", "general_verifier", "dev", outputs=["a"])) == verifier
    assert after(lambda: generate.batch_generate_text_with_score(zoo.a, 0, ["a"], 2, 0.7, 0.9, 1)) == [("scored", 0)]
    assert after(lambda: module("utils.logit_arithmetic").LogitArithmetic([zoo.a], ["cpu"], None)) == [("logits", 0)]
    train = module("utils.distributed_sft").distributed_sft
    assert after(lambda: train([zoo.a], ["data"], [0], ["out"])) == [("sft", 0)]


def test_workers_of_heterogeneous_swarms_are_threads(fake, zoo):
    moco.patch(SETTINGS)
    found = module("method.text_heterogeneous_swarms").run_method("t", "exact_match", [0], zoo.experts, {})
    assert found == [theirs(one, INPUTS, 4) for one in zoo.experts]


@pytest.fixture
def config(zoo, tmp_path):
    """A config of MoCo for a search with the swarm."""
    content = {
        "method": "weight_model_swarms", "task": "vowels", "task_type": "exact_match", "gpu_ids": [0, 1],
        "model_names": zoo.experts,
        "hyperparameters": {
            "max_response_length": 5, "temperature": 0.7, "top_p": COLD, "batch_size": 2, "max_iterations": 3,
            "swarm_base_path": f"{tmp_path}/swarm/",
        },
    }  # fmt: skip
    file = tmp_path / "config.json"
    file.write_text(json.dumps(content))
    return file


def test_the_command_runs_a_search_of_moco(fake, config, tmp_path):
    (tmp_path / "logs").mkdir()
    command.main(["-c", str(config), "-l", f"{tmp_path}/logs", *GENERATE])
    found = json.loads((tmp_path / "logs" / "vowels.json").read_text())
    assert len(found["scores"]) == 3
    assert len({tuple(one) for one in found["scores"]}) == 3, "models move"
    best = tmp_path / "swarm" / "global_best"
    assert found["test"] == theirs(best, ["hot", "mix", "lap"], 5)
    assert session._session is None
    assert not patching._before


def test_without_moco_the_command_says_so(config, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["moco", "-c", str(config)])
    monkeypatch.delitem(sys.modules, command.__name__)
    with pytest.raises(SystemExit) as end:
        runpy.run_module("modelswarms_fast.compat.moco", run_name="__main__")
    assert end.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "model_collaboration.method.distributed_generation cannot be imported" in said[0]
    assert "install MoCo" in said[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-c", "missing.json"], "missing.json cannot be read as JSON"),
        (["-c", "CONFIG", "-l", "nowhere"], "nowhere is not a folder"),
        (["-c", "CONFIG", "--set", "speed=9"], "'speed=9' is no setting of the engines"),
        (["-c", "CONFIG", "--set", "dtype=[1"], "has a value that is no YAML"),
        (["-c", "CONFIG", "--set", "dtype=int8"], "dtype"),
    ],
)
def test_arguments_that_cannot_be_used(fake, config, arguments, words):
    with pytest.raises(InputError, match=words):
        command.main([str(config) if one == "CONFIG" else one for one in arguments])
    assert not patching._before


def test_a_config_that_lacks_a_key_is_named(fake, config):
    content = json.loads(config.read_text())
    del content["task"]
    config.write_text(json.dumps(content))
    with pytest.raises(InputError, match="has no 'task'"):
        command.main(["-c", str(config)])
