"""CMA-ES as a policy: its first mean, its convergence, and what it makes of missing scores."""

import importlib
import sys

import numpy as np
import pytest
from cmaes import CMA

from modelswarms_fast.errors import InputError
from modelswarms_fast.policies import find_policy, load_policy, problem_of
from modelswarms_fast.policies.cma_es import warm_mean
from modelswarms_fast.policies.space import space_of


def run(space, particles, iterations, utility, seed=0):
    """All mixtures and utilities of a search of the experts and then of cma-es."""
    policy = load_policy("cma-es", problem_of(space, particles, seed))
    mixtures, found = np.eye(space.experts)[np.arange(particles) % space.experts], []
    for _ in range(iterations):
        utilities = np.array([utility(one) for one in mixtures])
        policy.tell(mixtures, utilities)
        found.append((mixtures, utilities))
        mixtures = policy.ask()
    return found


TARGETS = {"affine": [0.6, 0.5, 0.2, -0.3], "scaled": [0.9, 0.8, 0.2, -0.3], "free": [1.0, -0.7, 0.9, 0.8]}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("particles", [4, 10])
def test_it_finds_the_top_of_a_quadratic(name, particles):
    target, space = np.array(TARGETS[name]), space_of(name, 4)
    found = run(space, particles, 800 // particles, lambda one: 1 - ((one - target) ** 2).sum())
    assert max(utilities.max() for _, utilities in found) > 1 - 1e-6
    assert all(space.contains(mixtures).all() for mixtures, _ in found)


@pytest.mark.parametrize(("experts", "particles"), [(2, 2), (3, 3), (2, 5)])
def test_few_experts_and_particles(experts, particles):
    found = run(space_of("affine", experts), particles, 60, lambda one: -((one[0] - 0.7) ** 2))
    assert max(utilities.max() for _, utilities in found) > -1e-4


def test_the_seed_and_what_was_told_decide_all():
    def mixtures(seed):
        return np.array([one for one, _ in run(space_of("affine", 5), 6, 8, lambda one: one[0] - one[1] ** 2, seed)])

    np.testing.assert_array_equal(mixtures(3), mixtures(3))
    assert not np.array_equal(mixtures(3), mixtures(4))
    assert np.isfinite(mixtures(2**63 - 1)).all()


def test_it_begins_at_the_mean_weighted_by_the_scores():
    scores = np.array([0.1, 0.3, 0.2])
    weights = np.exp((scores - 0.3) / scores.std())
    np.testing.assert_allclose(warm_mean(np.eye(3), scores), weights / weights.sum())
    np.testing.assert_allclose(warm_mean(np.eye(3), np.array([0.4, 0.4, 0.4])), 1 / 3)
    np.testing.assert_allclose(warm_mean(np.eye(3), np.array([0.4, np.nan, 0.4])), [0.5, 0, 0.5])
    np.testing.assert_allclose(warm_mean(np.eye(3), np.full(3, np.nan)), 1 / 3)
    # Particles beyond the experts are no experts.
    more = np.concatenate([np.eye(3), [[2.0, -1.0, 0.0], [0.5, 0.5, 0.0]]])
    np.testing.assert_allclose(warm_mean(more, np.array([*scores, 0.9, 0.8])), weights / weights.sum())


def test_positions_without_a_score_count_as_the_worst():
    def utility(one):
        return -((one - np.array([0.2, 0.3, 0.5])) ** 2).sum() if one[0] < 0.5 else np.nan

    found = run(space_of("affine", 3), 6, 80, utility)
    assert np.isnan(found[1][1]).any() or np.isnan(found[0][1]).any()
    assert np.nanmax([utilities for _, utilities in found[-10:]]) > -1e-6
    # A whole generation without any score says nothing, and nothing fails.
    run(space_of("affine", 3), 6, 5, lambda one: np.nan)


def generations(monkeypatch, particles, utility, iterations=8):
    """The losses that the library is told, a generation each."""
    told = []
    tell = CMA.tell
    monkeypatch.setattr(CMA, "tell", lambda self, some: (told.append([loss for _, loss in some]), tell(self, some)))
    run(space_of("affine", 3), particles, iterations, utility)
    return told


@pytest.mark.parametrize(("particles", "size"), [(2, 4), (3, 6), (4, 4), (6, 6)])
def test_a_generation_has_four_positions_or_more(monkeypatch, particles, size):
    assert {len(one) for one in generations(monkeypatch, particles, lambda one: one[0])} == {size}


def test_a_loss_without_a_score_is_worse_than_all_of_its_generation(monkeypatch):
    losses = generations(monkeypatch, 6, lambda one: one[0] if one[0] < 0.5 else np.nan)
    assert np.isfinite(losses).all()
    assert any(max(one) == sorted(set(one))[-2] + 1 for one in losses)


def test_a_missing_library_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "cmaes", None)
    monkeypatch.delitem(sys.modules, "modelswarms_fast.policies.cma_es", raising=False)
    with pytest.raises(InputError, match=r"^policy 'cma-es' needs cmaes; pip install 'modelswarms-fast\[policies\]'"):
        find_policy("cma-es")
    monkeypatch.undo()
    importlib.import_module("modelswarms_fast.policies.cma_es")
