"""MoCo's swarm with its weights in memory: the same bits and files as by merging files, and answers without files."""

import json
import os
import random
import shutil
from pathlib import Path

import helpers_moco
import pytest
import torch
from helpers_golden import golden
from helpers_moco import COLD, SETTINGS, make_expert, make_full, theirs
from safetensors.torch import load_file, save_file

from modelswarms_fast.compat.moco import session
from modelswarms_fast.compat.tensors import merge_states
from modelswarms_fast.errors import InputError

zoo, compat = helpers_moco.zoo, helpers_moco.compat
INPUTS = ["bad", "dig", "fun"]
WEIGHTS = "adapter_model.safetensors"
GOLDEN = golden("moco_swarm_float32")


def make_swarm(compat, base, models, fast=True, **more):
    settings = {
        "weight_randomness": True, "inertia": 0.2, "cognitive_coeff": 0.3, "social_coeff": 0.4, "repel_coeff": 0.05,
        "step_length": 0.5, "repel_term": True, "step_length_factor": 0.95, "minimum_step_length": 0.1,
        "patience": 5, "restart_patience": 3,
    }  # fmt: skip
    return compat.Swarm(
        swarm_base_path=f"{base}/", model_paths=models, base_model=None, fast_merge=fast,
        starting_velocity_mode="random", gpus=[0, 1], **settings | more,
    )  # fmt: skip


def by_files(models, scores):
    """Positions and velocities after each update, by MoCo's rules and order, from state dicts and `random`."""
    n, states = len(models), [load_file(Path(model, WEIGHTS)) for model in models]
    x, p, counters, step = list(states), list(states), [0] * n, 0.5
    partners = []
    for i in range(n):
        while (j := random.randint(0, n - 1)) == i:
            pass
        partners.append(j)
    v = [merge_states([-1, 1], [x[i], x[j]]) for i, j in enumerate(partners)]
    g, w = (states[random.randint(0, n - 1)] for _ in range(2))
    history, best, top, low = [[] for _ in range(n)], [None] * n, None, None
    tops, found = [], []
    for now in scores:
        for i, score in enumerate(now):
            history[i].append(score)
            if best[i] is None or score > best[i]:
                best[i], p[i] = score, x[i]
        if top is None or max(now) > top:
            top, g = max(now), x[now.index(max(now))]
        if low is None or min(now) < low:
            low, w = min(now), x[now.index(min(now))]
        tops.append(top)
        if len(tops) > 5 and tops[-1] <= tops[-5]:
            break
        for i in range(n):
            if len(history[i]) > 3 and history[i][-1] <= history[i][-3] and counters[i] == 0:
                counters[i], x[i] = 3, p[i]
                v[i] = merge_states([0], [x[i]])
            else:
                counters[i] = max(0, counters[i] - 1)
            terms = [random.uniform(0, 1) * weight for weight in (0.2, 0.3, 0.4, 0.05)]
            a, b, c, d = (term / (terms[0] + terms[1] + terms[2] + terms[3]) for term in terms)
            v[i] = merge_states([a, b, c, -d, -b - c + d], [v[i], p[i], g, w, x[i]])
            x[i] = merge_states([1, step], [x[i], v[i]])
        step = max(step * 0.95, 0.1)
        found.append((list(x), list(v)))
    return found, g


def same(folder, state):
    found = load_file(Path(folder, WEIGHTS))
    return found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_search_has_the_bits_of_moco(compat, zoo, tmp_path, dtype):
    """Of each position and velocity, with restarts, and the scratchpad's text; random numbers in MoCo's order."""
    models = [shutil.copytree(model, tmp_path / Path(model).name) for model in zoo.experts]
    for model in models:
        state = {key: one.to(getattr(torch, dtype)) for key, one in load_file(model / WEIGHTS).items()}
        save_file(state, model / WEIGHTS)
    scores = GOLDEN["scores"]
    random.seed(7)
    expected, best = by_files(models, scores)
    after = random.random()
    random.seed(7)
    swarm = make_swarm(compat, tmp_path / "swarm", [str(model) for model in models])
    done = []
    for number, now in enumerate(scores):
        done.append(swarm.update(now))
        if done[-1]:
            break
        session.session().models.write(tmp_path / "swarm")
        for i, path in enumerate(swarm.get_model_paths()):
            assert same(path, expected[number][0][i]), (number, i)
            assert same(Path(path).parent / "velocity", expected[number][1][i]), (number, i)
    assert done == [False] * len(expected) + [True]
    assert random.random() == after
    assert json.loads((tmp_path / "swarm" / "utility_scratchpad.json").read_text()) == swarm.utility_scratchpad
    assert json.dumps(swarm.utility_scratchpad) == json.dumps(GOLDEN["injected_r"]["scratchpad"])
    assert swarm.restart_counter == GOLDEN["injected_r"]["snapshots"][-1]["restart_counter"]
    assert swarm.step_length == GOLDEN["injected_r"]["snapshots"][-1]["step_length"]
    assert swarm.get_global_best_path() == f"{tmp_path}/swarm/global_best"
    swarm.clean_up()
    assert sorted(os.listdir(tmp_path / "swarm")) == ["global_best", "utility_scratchpad.json"]
    assert same(tmp_path / "swarm" / "global_best", best)


def test_positions_answer_without_files(compat, zoo, tmp_path):
    random.seed(1)
    swarm = make_swarm(compat, tmp_path / "swarm", zoo.experts)
    paths = swarm.get_model_paths()
    assert paths == [f"{tmp_path}/swarm/model_{i}/now" for i in range(3)]
    assert compat.distributed_generation(paths, [INPUTS] * 3, [0]) == [theirs(one, INPUTS, 6) for one in zoo.experts]
    for scores in ([0.1, 0.3, 0.2], [0.2, 0.1, 0.4]):
        assert swarm.update(scores) is False
    answers = compat.distributed_generation(paths, [INPUTS] * 3, [0])
    assert not list((tmp_path / "swarm").rglob("*.safetensors"))
    small = {file.name for file in Path(zoo.a).iterdir()} - {WEIGHTS}
    folders = [*(tmp_path / "swarm").glob("model_*/*"), *(tmp_path / "swarm").glob("global_*")]
    assert len(folders) == 11
    assert all({file.name for file in folder.iterdir()} == small for folder in folders)
    compat.write(tmp_path / "swarm" / "model_1")
    assert len(list((tmp_path / "swarm").rglob("*.safetensors"))) == 3
    assert answers[1] == theirs(paths[1], INPUTS, 6)
    swarm.clean_up()
    best = swarm.get_global_best_path()
    assert compat.distributed_generation([best], [INPUTS], [0])[0] == theirs(best, INPUTS, 6)
    with pytest.raises(InputError, match="does not exist"):
        compat.distributed_generation(paths[:1], [INPUTS], [0])


def test_weights_are_written_at_the_end_or_at_every_move(zoo, tmp_path, compat):
    session.configure(SETTINGS, files="every")
    compat.update_generation_hyperparameters(6, 0.7, COLD, 2)
    swarm = make_swarm(compat, tmp_path / "every", zoo.experts)
    assert len(list((tmp_path / "every").rglob(WEIGHTS))) == 11
    swarm.update([0.1, 0.3, 0.2])
    paths = swarm.get_model_paths()
    assert compat.distributed_generation(paths, [INPUTS] * 3, [0]) == [theirs(one, INPUTS, 6) for one in paths]
    session.configure(SETTINGS)
    make_swarm(compat, tmp_path / "end", zoo.experts)
    assert not list((tmp_path / "end").rglob(WEIGHTS))
    session.close()
    assert len(list((tmp_path / "end").rglob(WEIGHTS))) == 11


def test_full_models_move_by_the_intended_formula(compat, tmp_path, capfd):
    """Where MoCo's own weights become NaN: in float32, kept in float16, and written as models that load."""
    models = [str(make_full(tmp_path / f"{seed}", seed)) for seed in range(3)]
    random.seed(2)
    swarm = make_swarm(compat, tmp_path / "swarm", models, fast=False, weight_randomness=False)
    assert capfd.readouterr().err.count("fast_merge is off") == 1
    random.seed(2)
    states = [{k: t.half() for k, t in load_file(Path(one, "model.safetensors")).items()} for one in models]
    partner = next(j for j in iter(lambda: random.randint(0, 2), None) if j != 0)
    swarm.update([0.1, 0.3, 0.2])
    paths = swarm.get_model_paths()
    answers = compat.distributed_generation(paths, [INPUTS] * 3, [0])
    compat.write(tmp_path / "swarm")
    found = load_file(Path(paths[0], "model.safetensors"))
    assert json.loads(Path(paths[0], "config.json").read_text())["dtype"] == "float16"
    assert answers == [theirs(one, INPUTS, 6) for one in paths]
    a, b, c, d = (weight / 0.95 for weight in (0.2, 0.3, 0.4, 0.05))
    for key, one in found.items():
        x, g, w = (states[i][key].float() for i in (0, 1, 0))
        v = (states[partner][key].float() - x).half().float()
        v = a * v + b * x + c * g - d * w + (-b - c + d) * x
        torch.testing.assert_close(one.float(), (x + 0.5 * v), rtol=2e-3, atol=2e-3)


def test_what_does_not_fit_is_refused_before_anything_changes(compat, zoo, tmp_path):
    wide = make_expert(zoo.base, tmp_path / "wide", 1, r=8)
    place = tmp_path / "swarm"
    inner = shutil.copytree(zoo.b, place / "b")
    for models, fast, words in (
        ([zoo.a, wide], True, r"wide has rank 8, but \S+ has rank 4 .*give adapters of one rank"),
        ([zoo.a, zoo.other], True, "are an adapter and a full model"),
        ([zoo.other, zoo.other], True, "fast_merge merges adapters, and .*other is a full model"),
        ([zoo.a, str(inner)], True, "is emptied first"),
        ([zoo.a], True, "needs at least 2"),
    ):
        with pytest.raises(InputError, match=words):
            make_swarm(compat, place, models, fast)
    with pytest.raises(InputError, match="step_length"):
        make_swarm(compat, place, zoo.experts, step_length=-1.0)
    with pytest.raises(InputError, match="does not exist; make it"):
        make_swarm(compat, tmp_path / "none" / "swarm", zoo.experts)
    with pytest.raises(NotImplementedError):
        compat.Swarm(f"{place}/", zoo.experts, None, True, "zero", *[None] * 12)
    assert os.listdir(place) == ["b"]
    swarm = make_swarm(compat, place, zoo.experts)
    assert not (place / "b").exists()
    with pytest.raises(InputError, match="2 scores are given for 3 models"):
        swarm.update([0.1, 0.2])


def test_a_merge_of_positions_needs_no_files(compat, zoo, tmp_path):
    """Its output is served as its files say, also where weights were held for it."""
    swarm = make_swarm(compat, tmp_path / "swarm", zoo.experts)
    paths = swarm.get_model_paths()
    out = swarm.get_global_best_path()
    merged = compat.lora_merge([0.3, 0.7], paths[:2], out, 0, True)
    parts = [load_file(Path(one, WEIGHTS)) for one in zoo.experts[:2]]
    expected = merge_states([0.3, 0.7], parts)
    assert same(out, expected)
    assert all(torch.equal(merged[key], expected[key]) for key in expected)
    assert compat.distributed_generation([out], [INPUTS], [0])[0] == theirs(out, INPUTS, 6)


def test_full_models_are_merged_without_mergekit(compat, tmp_path):
    """As it computes them where weights sum to 1: in float32, kept in float16, with config and tokenizer."""
    models = [str(make_full(tmp_path / f"{seed}", seed)) for seed in range(2)]
    assert compat.lora_merge([1.3, -0.3], models, str(tmp_path / "out"), 0) is None
    found = load_file(tmp_path / "out" / "model.safetensors")
    parts = [load_file(Path(one, "model.safetensors")) for one in models]
    assert all(torch.equal(found[key], (1.3 * parts[0][key] - 0.3 * parts[1][key]).half()) for key in parts[0])
    out = str(tmp_path / "out")
    assert compat.distributed_generation([out], [INPUTS], [0])[0] == theirs(out, INPUTS, 6)
    make_full(tmp_path / "other", 3, hidden_size=48)
    with pytest.raises(InputError, match=r"other: tensor lm_head\.weight is"):
        compat.lora_merge([0.5, 0.5], [models[0], str(tmp_path / "other")], str(tmp_path / "bad"), 0)
    assert not (tmp_path / "bad").exists()
