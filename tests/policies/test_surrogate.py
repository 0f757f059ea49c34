"""The Gaussian process over mixtures: against one in plain numpy, and what must hold of any."""

import sys

import numpy as np
import pytest

from modelswarms_fast.errors import InputError
from modelswarms_fast.policies import find_policy
from modelswarms_fast.policies.surrogate import FITTED, fit, metric_of

RANDOM = np.random.default_rng(3)
ROOT = RANDOM.standard_normal((4, 6))
PRODUCTS = ROOT @ ROOT.T


def mixtures(count, seed=0):
    drawn = np.random.default_rng(seed).normal(0, 0.5, (count, 4))
    return drawn - drawn.mean(axis=1, keepdims=True) + 0.25


def smooth(points):
    return 0.3 - 0.1 * ((points - [0.7, 0.5, -0.2, 0.0]) ** 2).sum(axis=1)


def distances(a, b, products):
    apart = a[:, None] - b[None]
    return np.sqrt(np.maximum(np.einsum("ijn,nm,ijm->ij", apart, products, apart), 0))


def plain(surrogate, told, utilities, points, noise):
    """Mean and covariance by the textbook, with the hyperparameters that were found."""
    scale, length, nugget = surrogate.found
    pairs = distances(np.eye(4), np.eye(4), PRODUCTS)[np.triu_indices(4, 1)]
    unit = np.sqrt((pairs**2).mean())

    def k(a, b):
        scaled = np.sqrt(5) * distances(a, b, PRODUCTS) / unit / length
        return scale * (1 + scaled + scaled**2 / 3) * np.exp(-scaled)

    gram = k(told, told) + np.diag(nugget + noise)
    cross, mean = k(points, told), utilities.mean()
    return mean + cross @ np.linalg.solve(gram, utilities - mean), k(points, points) - cross @ np.linalg.solve(
        gram, cross.T
    )


@pytest.mark.parametrize("noise", [None, np.linspace(0, 1e-3, 30)])
def test_the_posterior_is_that_of_a_plain_process(noise):
    told, points = mixtures(30), mixtures(7, seed=1)
    utilities = smooth(told) + RANDOM.normal(0, 0.02, 30)
    found = fit(told, utilities, PRODUCTS, noise)
    mean, covariance = plain(found, told, utilities, points, np.zeros(30) if noise is None else noise)
    got, sd = found.posterior(points)
    np.testing.assert_allclose(got, mean, atol=1e-8)
    np.testing.assert_allclose(sd, np.sqrt(covariance.diagonal()), rtol=1e-4)
    both = found.smoothed(np.stack([utilities, utilities[::-1]], axis=1))
    np.testing.assert_allclose(both[:, 0], found.posterior(told)[0], atol=1e-8)
    assert np.abs(both[:, 1] - both[:, 0]).max() > 0.01
    drawn = found.sample(points, 20000, seed=4)
    np.testing.assert_allclose(drawn.mean(axis=0), mean, atol=5 * sd.max() / np.sqrt(20000))
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=0.05 * covariance.max())


def test_a_smooth_utility_is_interpolated_and_told_apart_from_noise():
    told = mixtures(60)
    mean, sd = fit(told, smooth(told), PRODUCTS).posterior(told)
    np.testing.assert_allclose(mean, smooth(told), atol=3e-3)
    rough = smooth(told) + RANDOM.normal(0, 0.05, 60)
    flat, _ = fit(told, rough, PRODUCTS).posterior(told)
    assert np.abs(flat - smooth(told)).mean() < 0.7 * np.abs(rough - smooth(told)).mean()
    far = fit(told, smooth(told), PRODUCTS).posterior(50 * mixtures(3, seed=2))[1]
    assert far.min() > 3 * sd.max()


def test_distances_are_those_of_the_experts_weights_in_units_of_their_own():
    points = mixtures(5)
    inside = points @ metric_of(PRODUCTS)
    expected = distances(points, points, PRODUCTS)
    found = np.sqrt(((inside[:, None] - inside[None]) ** 2).sum(axis=2))
    np.testing.assert_allclose(found / found[0, 1], expected / expected[0, 1])
    experts = metric_of(PRODUCTS)
    squares = ((experts[:, None] - experts[None]) ** 2).sum(axis=2)[np.triu_indices(4, 1)]
    assert squares.mean() == pytest.approx(1)
    np.testing.assert_allclose(metric_of(PRODUCTS), metric_of(1e6 * PRODUCTS), atol=1e-9)


def test_experts_that_are_all_the_same_have_a_metric():
    np.testing.assert_array_equal(metric_of(np.ones((3, 3))), np.eye(3))


def test_the_same_told_gives_the_same_bits():
    told = mixtures(FITTED + 20)
    utilities = smooth(told)
    one, two = (fit(told, utilities, PRODUCTS).sample(mixtures(50, seed=5), 3, seed=7) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, fit(told, utilities, PRODUCTS).sample(mixtures(50, seed=5), 3, seed=8))


def test_positions_that_are_told_twice_or_all_equal_do_not_break_it():
    told = np.repeat(mixtures(10), 3, axis=0)
    for utilities in (smooth(told), np.full(30, 0.5)):
        found = fit(told, utilities, PRODUCTS)
        assert np.isfinite(found.sample(told, 4, seed=0)).all()
        assert np.isfinite(found.posterior(told)[0]).all()


def test_without_the_library_there_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.gaussian_process", None)
    for name in ("guided", "surrogate"):
        monkeypatch.delitem(sys.modules, f"modelswarms_fast.policies.{name}", raising=False)
    with pytest.raises(
        InputError, match=r"^policy 'guided' needs sklearn.*; pip install 'modelswarms-fast\[policies\]'"
    ):
        find_policy("guided")
