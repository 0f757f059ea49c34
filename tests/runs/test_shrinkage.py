"""What dev says of the test score of a winner: shrinking, and the interval of the expected score."""

import numpy as np
import pytest

from modelswarms_fast.runs.shrinkage import LEVEL, expected_test, shrink


def test_shrinking_is_by_the_share_of_the_spread_that_is_not_chance():
    scores = np.array([[1, 0, 0, 1], [1, 1, 0, 1], [0, 0, 0, 1], [1, 1, 1, 1.0]])
    found = shrink(scores, scores[0])
    differences = np.array([0, 0.25, -0.25, 0.5])
    squares = np.array([0, 1 / 16, 1 / 16, 1 / 12])
    spread = differences.var(ddof=1) - squares.mean()
    shares = spread / (spread + squares)
    np.testing.assert_allclose(found.shares, shares)
    np.testing.assert_allclose(found.differences, differences * shares)
    np.testing.assert_allclose(found.errors, np.sqrt(spread * squares / (spread + squares)))


def test_differences_that_are_all_chance_are_shrunken_to_nothing():
    scores = (np.random.default_rng(0).random((20, 50)) < 0.3).astype(float)
    scores[:] = scores[:, np.random.default_rng(1).permutation(50)]
    assert shrink(scores, scores[0]).shares.max() < 0.5
    assert (shrink(np.repeat(scores[:1], 5, axis=0), scores[0]).differences == 0).all()


def chosen_among(count, seed):
    """Scores of positions that are all equally good, right by chance on each example."""
    return (np.random.default_rng(seed).random((count, 100)) < 0.4).astype(float)


@pytest.mark.parametrize("count", [1, 30])
def test_the_expected_score_is_without_the_luck_of_the_choice(count):
    found, held = [], []
    for seed in range(300):
        scores = chosen_among(count, seed)
        winner = int(scores.mean(axis=1).argmax())
        one = expected_test(scores, winner, 400)
        test = np.random.default_rng(10_000 + seed).random(400) < 0.4
        found.append((one["score"], scores[winner].mean()))
        held.append(one["low"] <= test.mean() <= one["high"])
    score, dev = np.mean(found, axis=0)
    if count > 1:
        assert dev > 0.48
    assert abs(score - 0.4) < 0.02
    assert np.mean(held) > LEVEL - 0.06


def test_a_larger_test_split_makes_a_narrower_interval_about_the_same_score():
    scores = chosen_among(10, 0)
    small, large = (expected_test(scores, 3, tests) for tests in (20, 2000))
    assert small["score"] == large["score"]
    assert large["low"] - small["low"] == pytest.approx(small["high"] - large["high"])
    assert large["low"] - small["low"] > 0.05


def test_one_example_says_something():
    found = expected_test(np.array([[1.0], [0.0]]), 0, 10)
    assert found["score"] == 1


def test_the_interval_holds_no_score_that_cannot_be():
    scores = (np.random.default_rng(0).random((20, 8)) < 0.2).astype(float)
    found = expected_test(scores, int(scores.mean(axis=1).argmax()), 8)
    assert found["low"] == 0 < found["score"] < found["high"] <= 1
