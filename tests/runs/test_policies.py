"""Searches by other policies than the swarm's moves: in the same loop, run folder and resume."""

import json
import shutil

import helpers_search
import numpy as np
import pytest
from helpers_ensemble import llama
from helpers_models import make_base
from helpers_resume import Cut, cut_at, found
from helpers_search import arguments_of, told

from modelswarms_fast.config import EngineConfig, SwarmConfig
from modelswarms_fast.errors import InputError
from modelswarms_fast.records.run_folder import read_history, read_json, to_line
from modelswarms_fast.runs.compare import compare
from modelswarms_fast.runs.experiment import Experiment, check_together, choose_state
from modelswarms_fast.runs.report import report
from modelswarms_fast.runs.resume import resume
from modelswarms_fast.runs.search import search
from modelswarms_fast.runs.study import study
from modelswarms_fast.runs.sweep import sweep
from modelswarms_fast.runs.token_swarm import token_swarm
from modelswarms_fast.runs.trust import check_trusted, to_confirm

tiny = helpers_search.tiny
CLIMBER = "helpers_policies:Climber"


@pytest.fixture(scope="module")
def settings(tiny, tmp_path_factory):
    data = tmp_path_factory.mktemp("data") / "data.json"
    helpers_search.write_data(data, 6)
    return tiny | {"data": data, "particles": 4, "iterations": 3, "parity_check": "off"}


@pytest.fixture(scope="module")
def uncut(settings, tmp_path_factory):
    """A search by CMA-ES."""
    out = tmp_path_factory.mktemp("uncut") / "run"
    return out, search(**settings, policy="cma-es", out=out)


@pytest.fixture(scope="module")
def engine(settings):
    """An experiment whose searches write nothing."""
    with Experiment(**{name: settings[name] for name in shared_of(settings)}, state="mixture") as experiment:
        yield experiment


def shared_of(settings):
    return settings.keys() - {"particles", "iterations", "seed"}


def searched(engine, **swarm):
    """Positions [iterations + 1, P, n] of a search, and its utilities."""
    history = engine.search(SwarmConfig(**{"particles": 4, "iterations": 3, "seed": 5} | swarm)).history
    return np.array([line["mixtures"] for line in history]), np.array([line["utilities"] for line in history])


def mixtures_of(run):
    return np.array([line["mixtures"] for line in read_history(run / "history.jsonl")])


def test_a_search_by_cma_es_says_so_everywhere(uncut):
    out, summary = uncut
    assert (summary["policy"], summary["space"], summary["state"]) == ("cma-es", "affine", "mixture")
    config = read_json(out / "config.json")
    assert (config["policy"], config["space"]) == ("cma-es", "affine")
    assert config["state_reason"] == "policy is 'cma-es'"
    assert config["versions"]["cmaes"]
    mixtures = mixtures_of(out)
    assert mixtures.shape == (4, 4, 3)
    np.testing.assert_allclose(mixtures.sum(axis=2), 1, atol=1e-12)
    lines = told(out)
    assert [line["step_length"] for line in lines] == [None] * 4
    assert [line["restarts"] for line in lines] == [[]] * 4
    seconds = [line["seconds"] for line in read_history(out / "history.jsonl")]
    assert all(one["policy"] > 0 for one in seconds)
    assert summary["seconds"]["policy"] == pytest.approx(sum(one["policy"] for one in seconds))
    page = (out / "report.html").read_text()
    assert "policy cma-es, space affine" in page


def test_what_is_exported_is_the_best_position(uncut, settings):
    out, summary = uncut
    best = mixtures_of(out).reshape(-1, 3)
    utilities = np.array([line["utilities"] for line in told(out)]).ravel()
    assert list(summary["mixture"].values()) == best[utilities.argmax()].tolist()


@pytest.mark.parametrize("number", [9, 16])
def test_a_cut_search_by_cma_es_ends_as_one_that_was_not(settings, uncut, tmp_path, monkeypatch, number):
    with cut_at(monkeypatch, number), pytest.raises(Cut):
        search(**settings, policy="cma-es", out=tmp_path / "run")
    resume(tmp_path / "run")
    assert found(tmp_path / "run") == found(uncut[0])


def test_an_ended_search_goes_on_with_more_iterations(engine, uncut, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(uncut[0], out)
    resume(out, iterations=5)
    longer = searched(engine, policy="cma-es", iterations=5)
    np.testing.assert_array_equal(mixtures_of(out), longer[0])
    np.testing.assert_array_equal([line["utilities"] for line in told(out)], longer[1])


def test_positions_that_were_evaluated_stand(uncut, tmp_path, caplog):
    """Another processor may round a policy's arithmetic otherwise: the run goes on with what its history has."""
    out = tmp_path / "run"
    shutil.copytree(uncut[0], out)
    lines = read_history(out / "history.jsonl")
    before = np.array([line["mixtures"] for line in lines])
    before[1:] += np.array([1e-13, -1e-13, 0])
    for line, mixtures in zip(lines, before, strict=True):
        line["mixtures"] = mixtures.tolist()
        line["global_best_mixture"] = before.reshape(-1, 3)[
            np.array([one["utilities"] for one in lines[: line["iteration"] + 1]]).argmax()
        ].tolist()
    (out / "history.jsonl").write_text("".join(to_line(line) for line in lines))
    resume(out, iterations=5)
    np.testing.assert_array_equal(mixtures_of(out)[:4], before)
    assert len(told(out)) == 6
    warned = [one.message for one in caplog.records if "those that were evaluated stand" in one.message]
    assert len(warned) == 3


def test_a_class_of_a_user_in_turn_with_the_swarm(settings, engine, tmp_path):
    """A placed particle has no velocity, so where the swarm moves it next follows from bests alone."""
    policy = "helpers_policies:Alternate"
    summary = search(**settings, policy=policy, out=tmp_path / "run")
    assert summary["policy"] == policy
    lines = told(tmp_path / "run")
    assert [line["step_length"] for line in lines] == [None, None, 0.95, None]
    mixtures = mixtures_of(tmp_path / "run")
    np.testing.assert_allclose(mixtures.sum(axis=2), 1, atol=1e-9)
    resume(tmp_path / "run", iterations=4)
    np.testing.assert_array_equal(mixtures_of(tmp_path / "run"), searched(engine, policy=policy, iterations=4)[0])


def test_what_earlier_runs_found_is_told_and_kept(settings, uncut, tmp_path):
    earlier, out = tmp_path / "earlier", tmp_path / "run"
    shutil.copytree(uncut[0], earlier)
    policy = "helpers_policies:Remembers"
    search(**settings, policy=policy, reuse=[earlier], out=out)
    lines = told(earlier)
    known = read_json(out / "known.json")
    positions = [one for line in lines for one in line["mixtures"]]
    assert known["mixtures"] == [one for number, one in enumerate(positions) if one not in positions[:number]]
    best = max(utility for line in lines for utility in line["utilities"])
    assert max(known["utilities"]) == best
    leader = known["mixtures"][known["utilities"].index(best)]
    first = (mixtures_of(out)[0] + leader) / 2
    assert abs(mixtures_of(out)[1] - first).max() < 0.5, "half of the way there, and a step"
    # An earlier run that goes on changes nothing of what was told.
    resume(earlier, iterations=5)
    resume(out, iterations=4)
    assert read_json(out / "known.json") == known
    (out / "known.json").write_text(json.dumps(known | {"utilities": [0.0]}))
    with pytest.raises(InputError, match=r"known.json.*3 experts; restore a good copy"):
        resume(out, iterations=5)


def test_a_class_that_errs_ends_the_search_with_a_sentence(settings, tmp_path):
    with pytest.raises(InputError, match=r'^policy "helpers_policies:Outside": ask\(\) returned') as error:
        search(**settings, policy="helpers_policies:Outside", out=tmp_path / "run")
    assert any("The best so far" in note for note in error.value.__notes__)
    with pytest.raises(InputError, match="has no class None"):
        search(**settings, policy="helpers_policies:None", out=tmp_path / "other")
    assert not (tmp_path / "other" / "config.json").exists()


def test_a_class_that_asks_for_nothing_leaves_the_published_swarm(engine):
    swarm = {"restart_patience": 0.1, "iterations": 5}
    published, left = searched(engine, **swarm), searched(engine, **swarm, policy="helpers_policies:Nothing")
    np.testing.assert_array_equal(published[0], left[0])
    np.testing.assert_array_equal(published[1], left[1])


@pytest.mark.parametrize("space", ["scaled", "free"])
def test_other_sums(engine, space):
    mixtures, _ = searched(engine, policy="cma-es", space=space)
    assert abs(mixtures.sum(axis=2) - 1).max() > 0.01


def test_the_swarm_with_a_draw_for_each_expert(engine):
    found = {name: searched(engine, randomness="expert", **more) for name, more in (("affine", {}), ("again", {}))}
    np.testing.assert_allclose(found["affine"][0].sum(axis=2), 1, atol=1e-12)
    np.testing.assert_array_equal(found["affine"][0], found["again"][0])
    free, _ = searched(engine, randomness="expert", space="free")
    assert abs(free.sum(axis=2) - 1).max() > 0.01
    assert abs(free[1:]).max() <= 1.5
    assert abs(free[1] - searched(engine)[0][1]).max() > 0.01


REFUSED = [
    ({"policy": "cmaes"}, {}, r"^policy is 'cmaes'; choose swarm, cma-es, guided, or give a class as module:Class"),
    ({"space": "scaled"}, {}, r"^space is 'scaled' but policy='swarm' moves"),
    ({"space": "free"}, {}, r"^space is 'free' but policy='swarm' leaves a sum of 1 only with randomness='expert'"),
    ({"policy": "cma-es", "randomness": "coordinate"}, {}, r"^randomness is 'coordinate' but policy='cma-es'"),
    ({"policy": "cma-es", "drop_n": 0.1}, {}, r"^drop_n is 0.1 but policy='cma-es' needs the utility of every"),
    ({"policy": "cma-es", "drop_k": 0.1}, {}, r"^drop_k is 0.1 but"),
    ({"policy": "cma-es"}, {"state": "weights"}, r"^policy is 'cma-es' but state='weights'"),
    ({"policy": "cma-es"}, {"rounding": "stochastic"}, r"^policy is 'cma-es' but rounding='stochastic'"),
    ({"policy": "cma-es"}, {"stop_early": True}, r"^policy is 'cma-es' but stop_early"),
    ({"randomness": "expert"}, {"state": "weights"}, r"^randomness is 'expert' but state='weights'"),
    ({"randomness": "expert"}, {"rounding": "stochastic"}, r"^randomness is 'expert' but rounding"),
    ({"randomness": "expert"}, {"rounding": "published"}, r"^randomness is 'expert' but rounding='published'"),
    ({"randomness": "coordinate"}, {"rounding": "published"}, r"^randomness is 'coordinate' but rounding='published'"),
    ({"policy": "no_such_module_here:A"}, {}, r"^cannot import the module of policy"),
]


@pytest.mark.parametrize(("swarm", "engine", "words"), REFUSED)
def test_refused_together(tiny, tmp_path, swarm, engine, words):
    with pytest.raises(InputError, match=words):
        check_together(SwarmConfig(particles=3, **swarm), EngineConfig(**engine))
    with pytest.raises(InputError, match=words):
        search(**tiny, **swarm, **engine, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_swarm_may_stop_early_with_a_draw_for_each_expert():
    check_together(SwarmConfig(particles=3, randomness="expert", space="free"), EngineConfig(stop_early=True))


def test_policies_choose_the_state():
    assert choose_state(EngineConfig(), "particle", "cma-es") == ("mixture", "policy is 'cma-es'")
    assert choose_state(EngineConfig(), "expert") == ("mixture", "randomness is 'expert'")


def test_whole_weights_are_not_scaled(tmp_path, tiny):
    experts = [make_base(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    settings = arguments_of(tiny, experts=experts, base=str(experts[0]), swarm={"policy": "cma-es", "space": "free"})
    helpers_search.write_tokenizer(experts[0])
    with pytest.raises(InputError, match=r"^space is 'free' but full checkpoints hold the base model's own weights"):
        Experiment(**settings)


def test_other_commands(settings, tmp_path):
    shared = {name: settings[name] for name in shared_of(settings)}
    swarm = {"policy": "cma-es", "iterations": 2, "particles": 4}
    with pytest.raises(InputError, match=r"^policy is 'cma-es', which has none of the settings that a sweep draws"):
        sweep(**shared, swarm=swarm, out=tmp_path / "sweep")
    with pytest.raises(InputError, match=r"^policy is 'cma-es', but the study ablation is of the swarm's own moves"):
        study("ablation", **shared, swarm=swarm, out=tmp_path / "study")
    content = study("seeds", **shared, swarm=swarm, seeds=2, out=tmp_path / "study")
    assert len(content["variants"]["all"]) == 2
    again = read_json(tmp_path / "study" / "searches" / "all-0" / "summary.json")
    assert again["policy"] == "cma-es"
    with pytest.raises(InputError, match=r"^policy is 'cma-es' but state='weights'"):
        compare(**shared, swarm=swarm, state="weights", budget=9, methods=["model_swarms"], out=tmp_path / "compare")
    content = compare(**shared, swarm=swarm, budget=9, methods=["model_swarms", "cma_es"], out=tmp_path / "compare")
    assert content["methods"]["model_swarms"]["evaluations"] == 8
    mixture = content["methods"]["cma_es"]["recipe"]["mixture"]
    assert sum(mixture.values()) == pytest.approx(1)
    assert content["methods"]["cma_es"]["evaluations"] == 9


def test_a_token_swarm_by_cma_es(tmp_path):
    members = [llama(tmp_path / name, seed) for seed, name in enumerate("ab")]
    data = tmp_path / "data.json"
    examples = [{"question": letter, "answer": letter} for letter in "abcd"]
    data.write_text(json.dumps({"dev": examples, "test": examples}))
    shared = {"task": "exact_match", "data": data, "max_tokens": 1, "max_model_len": 64, "iterations": 2}
    summary = token_swarm(members, **shared, policy="cma-es", out=tmp_path / "run")
    assert summary["policy"] == "cma-es"
    assert sum(summary["position"].values()) == pytest.approx(1)
    with pytest.raises(InputError, match="what is served sums to 1"):
        token_swarm(members, **shared, policy="cma-es", space="free", out=tmp_path / "free")


def test_a_policy_of_a_stranger_is_given_again():
    for config in ({"policy": CLIMBER}, {"swarm": {"policy": CLIMBER}}):
        config = {"task": "exact_match"} | config
        assert to_confirm(config) == {("policy", ""): CLIMBER}
        with pytest.raises(InputError, match=f"--policy {CLIMBER}.*if you trust it, give these options again"):
            check_trusted(config, "run")
        with pytest.raises(InputError, match=f"--policy other:Thing is not what run has, which is '{CLIMBER}'"):
            check_trusted(config, "run", {"policy": "other:Thing"})
        check_trusted(config, "run", {"policy": CLIMBER})
    assert to_confirm({"task": "exact_match", "policy": "cma-es"}) == {}


def test_a_dry_run_names_policy_and_space(settings, tmp_path):
    plan = search(**settings, policy="cma-es", space="free", dry_run=True, out=tmp_path / "run")["plan"]
    assert (plan["policy"], plan["space"]) == ("cma-es", "free")


def test_a_run_of_somebody_else_does_not_import_its_policy(settings, uncut, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(uncut[0], folder)
    (folder / "payload.py").write_text("from pathlib import Path\nPath('was_run').write_text('')\n")
    config = read_json(folder / "config.json") | {"policy": "payload:Policy"}
    (folder / "config.json").write_text(json.dumps(config | {"directory": str(folder)}))
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match="--policy payload:Policy"):
        resume(folder, iterations=5)
    with pytest.raises(InputError, match="--policy payload:Policy"):
        report(folder, evaluate=True)
    assert not (folder / "was_run").exists()
