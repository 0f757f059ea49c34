"""Votes of the best particles, and how model_swarm breaks their ties."""

import pytest

from modelswarms_fast.compat.ensembles import best_particles, mean_of_best, vote_of_best


@pytest.mark.parametrize(
    ("answers", "utilities", "winner"),
    [
        ("AB", (0.9, 0.1), "A"),
        ("BA", (0.1, 0.9), "B"),  # not the answer of the better particle: the last utility counts for both
        ("AABBC", (0.3, 0.3, 0.3, 0.3, -0.2), "C"),
        ("AABBC", (0.3, 0.3, 0.3, 0.3, 0.0), "A"),
        ("CAABB", (0.3, 0.3, 0.3, 0.3, 0.0), "C"),  # of all answers the first, not of the most frequent
        ("CAABB", (0.3, 0.3, 0.3, 0.3, 0.1), "A"),
        ("CBBAA", (0.3, 0.3, 0.3, 0.3, 0.1), "B"),
        ("ABB", (0.3, 0.3, -0.2), "B"),  # no tie: the most frequent, whatever the utilities are
    ],
)
def test_ties(answers, utilities, winner):
    assert vote_of_best([[answer] for answer in answers], utilities) == [winner]


def test_the_best_are_the_first_that_reach_the_bar():
    assert best_particles([0.1, 0.9, 0.5, 0.7, 0.4], 3) == [1, 2, 3]
    assert best_particles([0.5, 0.9, 0.5, 0.7, 0.5], 3) == [0, 1, 2]  # not the one of 0.7
    assert best_particles([0.1, 0.5, 0.5, 0.5], 2) == [1, 2]
    assert best_particles([0.2, 0.1]) == [0, 1]  # fewer than ten
    assert best_particles([]) == []


def test_only_the_best_vote_and_the_last_of_them_breaks_ties():
    answers = [["A", "x"], ["B", "y"], ["C", "y"], ["B", "x"]]
    assert vote_of_best(answers, [0.9, 0.1, 0.8, 0.2], k=2) == ["A", "x"]
    assert vote_of_best(answers, [-0.1, -0.9, -0.2, -0.9], k=2) == ["A", "x"]
    assert vote_of_best(answers, [0.9, 0.1, 0.8, 0.2], k=4) == ["B", "x"]


def test_scores_are_voted_on_by_value():
    assert vote_of_best([[0.25, 1.0], [0.5, 0.0], [0.5, 1.0]], [0.3, 0.2, 0.1]) == [0.5, 1.0]


def test_the_mean_of_the_best_may_be_of_more_than_k():
    scores = [[1.0, 0.0], [0.5, 0.5], [0.0, 0.5], [0.0, 0.0]]
    assert mean_of_best(scores, [0.4, 0.4, 0.4, 0.1], k=2) == (0.5 + 0.5 + 0.25) / 3
    assert mean_of_best(scores, [0.4, 0.3, 0.2, 0.1], k=2) == 0.5
