"""The analyses: numbers by hand, exact distances, and run folders that are not whole."""

import json
import math

import numpy as np
import pytest
import torch

from modelswarms_fast.cli import main
from modelswarms_fast.errors import InputError
from modelswarms_fast.records.analysis import (
    composition,
    emergence,
    read_run,
    studies,
    top_k,
    trajectory,
    weak_to_strong,
)
from modelswarms_fast.records.analysis.registry import ANALYSES, analyse, draw
from modelswarms_fast.records.report import write_report
from modelswarms_fast.records.style import svg
from modelswarms_fast.weights.experts import inner_products

NAMES = ["ada", "$bob_", "cyd$"]


def a_line(iteration, mixtures, scores, improved=(), best=0, **more):
    utilities = [None if one is None else sum(one) / len(one) for one in scores]
    return {
        "iteration": iteration,
        "utilities": utilities,
        "scores": scores,
        "mixtures": mixtures,
        "improved": list(improved),
        "bounded": [],
        "global_best": {"particle": best, "utility": 0.5},
        "global_worst": {"particle": 0, "utility": 0.0},
        "global_best_mixture": mixtures[best],
        "restarts": [],
        **more,
    }


HISTORY = [
    a_line(0, np.eye(3).tolist(), [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]], [0, 1, 2]),
    a_line(1, [[0.5, 0.5, 0], [0, 1, 0], [0, 0.25, 0.75]], [[1, 0, 1, 0], None, [0, 1, 1, 0]], [0, 2], best=0),
    a_line(2, [[0.5, 1, -0.5], [0, 1, 0], [0, 0.5, 0.5]], [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 1]], [2], best=2),
]
TEST = {
    "exact": True,
    "groups": {
        "experts": {"scores": [[1, 0], [0, 0], [0, 0]], "labels": [["A", "B"], ["B", "B"], ["B", "B"]]},
        "start": {"scores": [[1, 0], [0, 0], [0, 0]], "labels": [["A", "B"], ["B", "B"], ["B", "B"]]},
        "best": {"scores": [[1, 0], [0, 0], [1, 1]], "labels": [["A", "B"], ["B", "B"], ["A", "D"]]},
        "end": {"scores": [[0, 0], [0, 0], [1, 1]], "labels": [["B", "B"], ["B", "B"], ["A", "D"]]},
    },
}


@pytest.fixture
def run(tmp_path):
    """A run folder of three particles and four dev examples, with test scores."""
    (tmp_path / "config.json").write_text(json.dumps({"experts": NAMES, "task": "exact_match", "dataset": "riddles"}))
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(one) + "\n" for one in HISTORY))
    (tmp_path / "test_scores.json").write_text(json.dumps(TEST))
    return tmp_path


def test_dev_scores_are_those_of_the_start_the_end_and_the_bests(run):
    scores = read_run(run).dev_scores()
    np.testing.assert_array_equal(scores["start"], [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(scores["end"], [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 1]])
    np.testing.assert_array_equal(scores["best"], [[1, 0, 1, 0], [0, 1, 0, 0], [0, 1, 1, 1]])


def test_a_particle_that_was_not_evaluated_keeps_its_last_scores(run):
    lines = (run / "history.jsonl").read_text().splitlines()[:2]
    (run / "history.jsonl").write_text("\n".join(lines) + "\n")
    np.testing.assert_array_equal(read_run(run).dev_scores()["end"][1], [0, 1, 0, 0])


def test_emergence_by_hand(run):
    found = emergence.of_run(read_run(run))
    dev = found["dev"]
    # Levels of the four questions: 1 1 0 0 before, 0 2 1 1 after.
    assert dev["c_surge"] == 3 / 4
    assert dev["c_fall"] == 1 / 4
    assert (dev["level_before"], dev["level_after"]) == ([2, 2, 0, 0], [1, 2, 1, 0])
    assert dev["missed_by_all_experts"] == 2
    assert dev["c_emerge"] == 1.0
    assert dev["per_particle"] == 1 / 3
    # ada alone answers one of the three that bob and cyd miss, so does bob, and cyd none of the two that are left.
    assert dev["one_more_expert"] == pytest.approx((1 / 3 + 1 / 3 + 0) / 3)
    assert dev["as_many_experts"] == pytest.approx(1 - (7 / 9) ** 3)
    test = found["test"]
    assert test["missed_by_all_experts"] == 1
    assert test["c_emerge"] == 1.0
    assert test["per_particle"] == 1 / 3


def test_emergence_of_nothing_missed_says_so_and_graded_scores_have_none():
    everything = np.ones((2, 3))
    found = emergence.emergence(everything, everything, everything)
    assert found["c_emerge"] is None
    assert found["c_surge"] == 0
    assert emergence.emergence(everything, everything, everything * 0.5) is None


def test_a_wrong_answer_and_none_and_nan_are_not_right():
    """Effective reliability scores a wrong answer -1 and no answer 0; a NaN is what a function gives for no score."""
    before = np.array([[-1.0, 0.0, np.nan]])
    assert emergence.emergence(before, before, np.array([[1.0, -1.0, np.nan]]))["c_emerge"] == pytest.approx(1 / 3)


def test_evaluations_that_stopped_early_have_no_emergence_on_dev(run):
    """What was not asked would count as wrong."""
    bound = {"particle": 0, "lower": 0.0, "upper": 0.5, "examples": 2}
    last = a_line(2, HISTORY[2]["mixtures"], [[0, 0, 1, 0], [0, 1, 0, 0], [0, 1, 1, 1]], [2], best=2, bounded=[bound])
    last["scores"][0] = [0, 0, None, None]
    (run / "history.jsonl").write_text("".join(json.dumps(one) + "\n" for one in [*HISTORY[:2], last]))
    assert set(analyse(read_run(run))["emergence"]) == {"test"}
    assert "On dev" not in write_report(run).read_text()


def test_distances_are_those_of_the_rows():
    generator = torch.Generator().manual_seed(0)
    experts = torch.randn(5, 700_001, generator=generator, dtype=torch.float64)  # three parts of products
    mixtures = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    mixtures /= mixtures.sum(1, keepdim=True)
    points = trajectory.coordinates(mixtures.numpy(), np.array(inner_products(experts)))
    rows = mixtures @ experts
    for a in range(6):
        for b in range(a):
            distance = float((rows[a] - rows[b]).norm())
            assert np.linalg.norm(points[a] - points[b]) == pytest.approx(distance, rel=1e-9)


def test_products_of_equal_experts_give_distance_zero():
    row = torch.randn(1, 999, generator=torch.Generator().manual_seed(1))
    experts = torch.cat([row, row, -row])
    points = trajectory.coordinates(np.eye(3), np.array(inner_products(experts)))
    assert np.linalg.norm(points[0] - points[1]) == pytest.approx(0, abs=1e-5)
    assert np.linalg.norm(points[0] - points[2]) == pytest.approx(2 * float(row.norm()))


def test_the_plane_of_three_experts_holds_all_distances(run):
    config = json.loads((run / "config.json").read_text())
    experts = torch.randn(3, 50, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (run / "config.json").write_text(json.dumps(config | {"expert_products": inner_products(experts)}))
    found = trajectory.of_run(read_run(run))
    assert found["exact"]
    assert sum(found["variance"]) == pytest.approx(1)  # affine mixtures of three points lie in a plane
    ways = np.array(found["particles"])
    rows = torch.tensor([line["mixtures"] for line in HISTORY], dtype=torch.float64) @ experts
    for a, b in (((0, 0), (2, 2)), ((1, 2), (2, 0)), ((0, 1), (2, 1))):
        expected = float((rows[a] - rows[b]).norm())
        assert np.linalg.norm(ways[a] - ways[b]) == pytest.approx(expected, abs=1e-9)
    np.testing.assert_allclose(found["winner"], ways[2, 2])
    np.testing.assert_allclose(found["experts"], ways[0])


def test_without_products_distances_are_those_of_coefficients(run):
    found = trajectory.of_run(read_run(run))
    assert not found["exact"]
    assert np.linalg.norm(np.subtract(*found["experts"][:2])) == pytest.approx(math.sqrt(2))


def test_the_rank_of_equals_is_their_mean_and_nan_is_last():
    utilities = [0.5, None, 0.5, 0.9, 0.1]
    found = [weak_to_strong.standing(utilities, particle) for particle in range(5)]
    assert [one["rank"] for one in found] == [2.5, 5, 2.5, 1, 4]
    assert [one["above"] for one in found] == [1, 4, 1, 0, 3]


def test_weak_to_strong_of_a_study(run):
    found = weak_to_strong.of_run(read_run(run))
    assert found == {
        "particle": 2,
        "rank": 3,
        "above": 2,
        "of": 3,
        "start": [0.25, 0.25, 0.0],
        "best": [0.5, 0.25, 0.75],
    }
    starts = [[0.9, 0.5, 0.1, 0.0], [0.5, 0.9, 0.1, 0.0], [0.1, 0.9, 0.5, 0.0], [0.0, 0.9, 0.5, 0.1]]
    runs = [a_run(0, 0.5, 0.4) | weak_to_strong.standing(start, 0) for start in starts]
    found = weak_to_strong.summarise(runs)
    assert found["ranks"] == [1, 2, 3, 4]
    assert found["not_the_best"] == 3 / 4
    assert found["from_the_lower_half"] == 1 / 2


def test_one_of_several_that_are_the_best_is_the_best():
    """Its rank of 1.5, or of 2 among three, is not that of a particle with a better one beside it."""
    runs = [a_run(0, 0.5, 0.4) | weak_to_strong.standing(start, 0) for start in ([0.5, 0.5, 0, 0], [0.5, 0.5, 0.5, 0])]
    assert weak_to_strong.summarise(runs)["not_the_best"] == 0


@pytest.mark.parametrize(
    ("labels", "utilities", "winner"),
    [
        (["A", "B", "B"], [0.9, 0.1, 0.1], 1),  # the most votes
        (["A", "B"], [0.1, 0.2], 1),  # as many: the larger sum
        (["A", "B", "B", "A"], [0.1, 0.3, 0.3, 0.1], 1),
        (["A", "B"], [0.2, 0.2], 0),  # as much: the first
    ],
)
def test_a_vote(labels, utilities, winner):
    assert top_k.vote(labels, utilities) == winner


def test_ensembles_by_hand(run):
    found = top_k.of_run(read_run(run))
    # Bests on dev: particle 2 (0.75), 0 (0.5), 1 (0.25). Their answers: A D, A B, B B.
    assert found["end"] == [1.0, 1.0, 0.5]
    # At the start ada and bob are equal, the first of them is asked first: A B, B B, B B.
    assert found["start"] == [0.5, 0.5, 0.0]


def test_composition_is_that_of_the_global_best(run):
    assert composition.of_run(read_run(run))["mixtures"] == [line["global_best_mixture"] for line in HISTORY]


def test_a_history_that_was_cut_is_analysed_as_far_as_it_is_whole(run):
    whole = (run / "history.jsonl").read_bytes()
    (run / "history.jsonl").write_bytes(whole[:-20])
    found = analyse(read_run(run))
    assert np.array(found["trajectory"]["particles"]).shape == (2, 3, 2)
    assert found["emergence"]["dev"]["c_emerge"] == 0.5
    write_report(run)
    (run / "history.jsonl").write_bytes(whole.replace(b'{"iteration": 1', b'{"iteration" 1'))
    with pytest.raises(InputError, match="line 2 is not a JSON object"):
        read_run(run)


def test_a_run_without_the_new_files_has_fewer_sections(run):
    (run / "test_scores.json").unlink()
    lines = [{k: v for k, v in line.items() if k not in ("mixtures", "scores")} for line in HISTORY]
    (run / "history.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    assert set(analyse(read_run(run))) == {"composition", "weak_to_strong"}


def test_a_run_of_coordinates_has_no_mixtures(run):
    lines = [line | {"mixtures": None, "global_best_mixture": None} for line in HISTORY]
    (run / "history.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    assert set(analyse(read_run(run))) == {"emergence", "weak_to_strong", "top_k"}


def test_the_report_has_every_analysis(run):
    page = write_report(run).read_text()
    for one in ANALYSES.values():
        assert f"<h2>{one.title}</h2>" in page
    assert "Of the 2 that all experts miss, the final particles answer 100.0% (C-emerge)." in page
    assert json.loads((run / "analysis.json").read_text()) == analyse(read_run(run))


def test_plots_that_cannot_be_are_one_sentence(run):
    (run / "plots").write_text("a letter")
    with pytest.raises(InputError, match=r"^cannot make .*/plots: File exists; choose another folder for --plots\.$"):
        main.app(["report", str(run), "--plots", str(run / "plots")])


@pytest.mark.parametrize("name", sorted(ANALYSES))
def test_a_plot_repeats_to_the_byte(run, name):
    numbers = analyse(read_run(run))[name]
    assert draw(name, numbers) == draw(name, json.loads(json.dumps(numbers)))


def a_run(seed, dev, test, evaluations=10):
    return {"seed": seed, "dev": dev, "test": test, "evaluations": evaluations, "rank": 1, "above": 0, "particles": 4}


def test_variants_are_compared_by_equal_seeds():
    found = studies.summarise({"all": [a_run(0, 0.5, 0.4), a_run(1, 0.7, 0.6)], "one": [a_run(1, 0.6, 0.5, 4)]})
    assert found["all"]["test"]["mean"] == pytest.approx(0.5)
    assert found["all"]["test"]["deviation"] == pytest.approx(math.sqrt(0.02))
    assert found["all"]["test"]["error"] == pytest.approx(0.1)
    assert found["one"]["test_beside_the_first"]["mean"] == pytest.approx(-0.1)
    assert found["one"]["test"]["deviation"] is None
    assert found["one"]["dev_test_gap"]["mean"] == pytest.approx(0.1)


@pytest.mark.parametrize("kind", ["ablation", "drop"])
def test_a_study_is_drawn(kind):
    study = {"kind": kind, "task": "t", "dataset": "d", "variants": {"all": [a_run(0, 0.5, 0.4)], "none": []}}
    assert b"<svg" in svg(studies.plot, study | {"best_expert": {"test": 0.3}})
