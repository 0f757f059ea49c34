"""Ways to choose the winner of a search, on the exact engine: what is chosen is what is exported, tested and named."""

import os
from dataclasses import replace

import helpers_search
import numpy as np
import pytest
from helpers_resume import Cut, cut_at, found
from typer.testing import CliRunner

from modelswarms_fast.cli.main import app
from modelswarms_fast.errors import InputError
from modelswarms_fast.policies.surrogate import fit
from modelswarms_fast.records.run_folder import read_history, read_json
from modelswarms_fast.runs import evaluate
from modelswarms_fast.runs.choose import Visited, by_posterior, by_shrinking, visited, way_to_choose
from modelswarms_fast.runs.resume import resume
from modelswarms_fast.runs.search import search
from modelswarms_fast.runs.shrinkage import shrink

tiny = helpers_search.tiny
SMALL = {"particles": 5, "iterations": 2, "parity_check": "off"}


def dev_of(out, tiny):
    where = {name: tiny[name] for name in ("base", "task", "data", "engine", "dtype")}
    return evaluate.evaluate(str(out / "global_best"), split="dev", **where)["score"]


@pytest.mark.parametrize(
    ("way", "more"),
    [
        ("posterior", {"state": "weights"}),
        ("posterior", {"state": "mixture"}),
        ("shrink", {"state": "mixture"}),
        ("posterior", {"combine": "delta"}),
    ],
)
def test_the_winner_is_exported_and_named_whichever_position_it_is(tiny, tmp_path, way, more, monkeypatch):
    """One that is not the best on dev is exported like any other."""
    picked = {}
    more_state = more.get("state", "mixture")  # which delta has

    def pick(known, allowed, *more):
        at = int(np.flatnonzero(allowed & (known.utilities < known.utilities.max()))[-1])
        picked["known"], picked["at"] = known, at
        assert (allowed == (np.ones_like(allowed) if more_state == "mixture" else known.bests)).all()
        if way == "posterior":
            assert not np.allclose(more[0], np.eye(len(more[0])))  # distances are those of the weights
        return lambda utilities: np.full(utilities.shape[1], at)

    monkeypatch.setattr(f"modelswarms_fast.runs.choose.by_{'posterior' if way == 'posterior' else 'shrinking'}", pick)
    out = tmp_path / "run"
    summary = search(**tiny | SMALL | more, out=out, choose=way)
    known, at, end = picked["known"], picked["at"], summary["end"]
    assert (end["iteration"], end["particle"]) == (known.iterations[at], known.particles[at])
    assert end["dev"] == known.utilities[at] < known.utilities.max()
    assert end["chosen_by"] == way
    assert list(summary["mixture"].values()) == pytest.approx(known.mixtures[at].tolist())
    assert dev_of(out, tiny) == pytest.approx(end["dev"], abs=1e-9)
    card = (out / "global_best" / "README.md").read_text()
    assert f"| chosen\\_by | {way} |" in card or f"| chosen_by | {way} |" in card
    assert read_json(out / "summary.json") == summary


def test_with_weights_only_what_still_has_weights_can_win(tiny, tmp_path):
    out = tmp_path / "run"
    search(**tiny | SMALL, out=out, state="weights")
    known = visited(read_history(out / "history.jsonl"))
    assert sorted(known.particles[known.bests]) == [0, 1, 2, 3, 4]
    for particle in range(5):
        mine = known.particles == particle
        assert known.utilities[mine & known.bests] == known.utilities[mine].max()


def test_an_expert_wins_where_no_gain_is_more_than_chance(tiny, tmp_path, monkeypatch):
    """With state="weights" its row belongs to a particle by then; what is exported is the expert."""
    out = tmp_path / "run"

    def keep_expert(known, allowed, experts):
        return lambda utilities: utilities[:experts].argmax(axis=0)

    monkeypatch.setattr("modelswarms_fast.runs.choose.by_shrinking", keep_expert)
    summary = search(**tiny | SMALL, out=out, state="weights", choose="shrink")
    assert summary["end"]["iteration"] == 0
    assert summary["end"]["dev"] == summary["start"]["dev"]
    assert summary["end"]["test"] == summary["start"]["test"]
    assert summary["mixture"][summary["start"]["expert"]] == 1
    assert dev_of(out, tiny) == pytest.approx(summary["start"]["dev"], abs=1e-9)


def made(scores):
    """Positions of some scores [m, E], an iteration each."""
    scores = np.array(scores, dtype=float)
    count = len(scores)
    return Visited(np.arange(count), np.zeros(count, int), scores.mean(axis=1), None, scores, np.ones(count, bool))


def winner(rule, known):
    return int(rule(known.utilities[:, None])[0])


def test_shrinking_keeps_a_gain_and_gives_up_chance():
    random = np.random.default_rng(1)
    difficulty = random.random(400)
    expert = (difficulty < 0.3).astype(float)
    better = (difficulty < 0.45).astype(float)
    luck = [np.where(random.random(400) < 0.1, random.integers(0, 2, 400), expert) for _ in range(30)]
    every = np.ones(32, dtype=bool)
    good, alike = made([expert, *luck, better]), made([expert, *luck])
    assert winner(by_shrinking(good, every, 1), good) == 31
    assert alike.utilities.argmax() != 0
    assert winner(by_shrinking(alike, every[:31], 1), alike) == 0
    assert winner(by_shrinking(good, every & (np.arange(32) != 31), 1), good) != 31


def test_shrinking_is_against_an_expert_and_not_a_particle_that_was_drawn():
    """What a drawn particle has by luck at the start is a gain like any other."""
    expert = np.tile([1.0, 0.0], 50)
    drawn = expert.copy()
    drawn[1] = 1.0
    known = replace(made([expert, drawn]), iterations=np.zeros(2, int), particles=np.arange(2))
    assert winner(by_shrinking(known, np.ones(2, bool), 1), known) == 0


def test_a_gain_below_its_error_is_given_up():
    expert = np.tile([1.0, 0.0], 50)
    more, less = expert.copy(), expert.copy()
    more[[*range(1, 24, 2), *range(0, 16, 2)]] = [*[1.0] * 12, *[0.0] * 8]
    less[[*range(1, 16, 2), *range(0, 24, 2)]] = [*[1.0] * 8, *[0.0] * 12]
    known = made([expert, more, less])
    found = shrink(known.scores, expert)
    assert 0 < found.differences[1] < found.errors[1]
    assert winner(by_shrinking(known, np.ones(3, bool), 1), known) == 0


def test_a_position_that_was_not_evaluated_on_every_example_cannot_win():
    line = {"iteration": 0, "improved": [0], "utilities": [0.5, 0.9, None], "mixtures": [[1, 0], [0, 1], [0.5, 0.5]]}
    known = visited([line | {"scores": [[0, 1], [None, 1], None]}])
    assert known.particles.tolist() == [0]


def test_the_posterior_prefers_good_company_to_one_lucky_position():
    random = np.random.default_rng(2)
    points = random.normal(0, 0.3, (80, 3)) + np.eye(3)[0]
    true = 0.5 - 0.5 * ((points - np.eye(3)[0]) ** 2).sum(axis=1)
    noisy = true + random.normal(0, 0.05, 80)
    noisy[np.argsort(true)[50]] = noisy.max() + 0.05  # luck, among others that have none
    known = Visited(np.arange(80), np.zeros(80, int), noisy, points, noisy[:, None], np.ones(80, bool))
    at = winner(by_posterior(known, np.ones(80, bool), np.eye(3)), known)
    assert at == fit(points, noisy, np.eye(3)).posterior(points)[0].argmax()
    assert true[at] > true[int(noisy.argmax())]
    assert winner(by_posterior(known, np.arange(80) == 7, np.eye(3)), known) == 7


def test_what_contradicts_or_cannot_be_is_refused_before_anything_is_written(tiny, tmp_path):
    refused = [
        ({"choose": "confirm"}, "say how many with confirm"),
        ({"choose": "shrink", "confirm": 3}, "confirm keeps 3 dev examples back"),
        ({"choose": "posterior", "randomness": "coordinate"}, "leaves no mixtures to fit"),
        ({"choose": "luck"}, "choose"),
    ]
    for given, sentence in refused:
        with pytest.raises(InputError, match=sentence):
            search(**tiny | SMALL | given, out=tmp_path / "run")
        assert not (tmp_path / "run").exists()
    assert way_to_choose(None, 0) == "best"
    assert way_to_choose(None, 3) == "confirm"


def test_shrinking_is_refused_where_the_utility_is_no_mean(tiny, tmp_path):
    data = [tiny["data"], tiny["data"]]
    several = tiny | SMALL | {"task": "multitask", "data": data, "options": {"tasks": tiny["task"]}}
    with pytest.raises(InputError, match="not the mean of its scores; use choose='posterior'"):
        search(**several, out=tmp_path / "run", choose="shrink")
    summary = search(**several, out=tmp_path / "run", choose="posterior")
    assert summary["end"]["chosen_by"] == "posterior"
    assert "expected_test" not in summary


@pytest.fixture(scope="module")
def uncut(tiny, tmp_path_factory):
    """A search with a choice: its settings, its folder, and how often the disk was waited for."""
    settings = tiny | SMALL | {"state": "mixture", "choose": "posterior", "limit_dev": 6}
    out, fsync, count = tmp_path_factory.mktemp("uncut") / "run", os.fsync, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: count.append(fsync(handle)))
        search(**settings, out=out)
    return settings, out, len(count)


@pytest.mark.parametrize("share", [0.5, 0.75, 0.95])
def test_a_choice_survives_a_cut(uncut, tmp_path, monkeypatch, share):
    settings, out, count = uncut
    with pytest.raises(Cut), cut_at(monkeypatch, round(share * count)):
        search(**settings, out=tmp_path / "run")
    resume(tmp_path / "run")
    assert found(tmp_path / "run") == found(out)


def test_the_expected_test_score_is_said(tiny, tmp_path):
    out = tmp_path / "run"
    words = ["search", str(tiny["experts"]), "--out", str(out), "--choose", "shrink", "--parity-check", "off"]
    for name in ("base", "data", "task", "engine", "dtype", "iterations", "seed"):
        words += [f"--{name}", str(tiny[name])]
    ended = CliRunner().invoke(app, words)
    assert ended.exit_code == 0, ended.output
    expected = read_json(out / "summary.json")["expected_test"]
    assert expected["low"] < expected["score"] < expected["high"]
    assert expected["level"] == 0.9
    assert f"{expected['low']:.4f} to {expected['high']:.4f}" in (out / "report.html").read_text()
    assert f"{expected['low']:.4f} to {expected['high']:.4f}" in ended.output
