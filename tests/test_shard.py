"""Rows of one rank, and the two states beside each other."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modelswarms_fast.config import SwarmConfig
from modelswarms_fast.particles import Particles
from modelswarms_fast.shard import Shard
from modelswarms_fast.swarm import Plan, Swarm, Told

P, D = 5, 100


def plan(restarts=(), step_length=0.7):
    coefficients = np.random.default_rng(1).random((P, 4))
    mask = np.zeros(P, dtype=bool)
    mask[list(restarts)] = True
    coefficients = (coefficients / coefficients.sum(1, keepdims=True)).astype(np.float32)
    return Plan(1, mask, coefficients, step_length, np.ones(P, dtype=bool))


@pytest.fixture
def shard():
    torch.manual_seed(0)
    rows = torch.randn(P, D, dtype=torch.float64)
    shard = Shard(rows, np.eye(P))
    shard.promote(Told(np.ones(P, dtype=bool), 1, 2))
    shard.start(rows, np.roll(np.eye(P), 1, axis=0) - np.eye(P))
    return shard


def test_starts_at_the_given_mixtures():
    rows = torch.randn(2, D)
    shard = Shard(rows, np.array([[1.0, 0.0], [0.0, 1.0], [1.5, -0.5]]))
    torch.testing.assert_close(shard.position[:2], rows, rtol=0, atol=0)
    torch.testing.assert_close(shard.position[2], 1.5 * rows[0] - 0.5 * rows[1])


def test_update_is_the_equation(shard):
    x, v, p = shard.position.clone(), shard.velocity.clone(), shard.personal_best.clone()
    g, w = shard.global_best.clone(), shard.global_worst.clone()
    assert (g == x[1]).all()
    assert (w == x[2]).all()
    move = plan()
    shard.update(move)
    c = torch.from_numpy(move.coefficients).double()[:, :, None]
    expected = c[:, 0] * v + c[:, 1] * (p - x) + c[:, 2] * (g - x) + c[:, 3] * (x - w)
    torch.testing.assert_close(shard.velocity, expected)
    torch.testing.assert_close(shard.position, x + 0.7 * expected)
    torch.testing.assert_close(shard.personal_best, p, rtol=0, atol=0)
    torch.testing.assert_close(shard.global_best, g, rtol=0, atol=0)


def test_a_restart_takes_the_personal_best_and_drops_the_velocity(shard):
    shard.update(plan())  # away from the personal bests
    p, g, w = shard.personal_best.clone(), shard.global_best.clone(), shard.global_worst.clone()
    move = plan(restarts=[3])
    shard.update(move)
    c = move.coefficients[3].astype(np.float64)
    velocity = c[2] * (g - p[3]) + c[3] * (p[3] - w)
    torch.testing.assert_close(shard.velocity[3], velocity)
    torch.testing.assert_close(shard.position[3], p[3] + 0.7 * velocity)


def test_promote_copies_only_what_is_named(shard):
    shard.update(plan())
    before = shard.personal_best.clone()
    improved = np.array([False, True, False, False, True])
    shard.promote(Told(improved, None, 4))
    for particle in range(P):
        expected = shard.position[particle] if improved[particle] else before[particle]
        torch.testing.assert_close(shard.personal_best[particle], expected, rtol=0, atol=0)
    torch.testing.assert_close(shard.global_best, before[1], rtol=0, atol=0)
    torch.testing.assert_close(shard.global_worst, shard.position[4], rtol=0, atol=0)


def test_a_particle_without_a_personal_best_is_drawn_to_its_start():
    """Its first utility was NaN, so nothing was ever promoted for it."""
    shard = Shard(torch.eye(P, dtype=torch.float64), np.eye(P))
    shard.promote(Told(np.array([False] + [True] * (P - 1)), 1, 2))
    shard.update(plan())
    torch.testing.assert_close(shard.personal_best[0], torch.eye(P, dtype=torch.float64)[0], rtol=0, atol=0)
    torch.testing.assert_close(shard.position.sum(dim=1), torch.ones(P, dtype=torch.float64))


def test_nothing_is_allocated_after_construction(shard):
    addresses = {name: tensor.data_ptr() for name, tensor in vars(shard).items()}
    for _ in range(3):
        shard.update(plan(restarts=[0]))
        shard.promote(Told(np.ones(P, dtype=bool), 0, 1))
    assert addresses == {name: tensor.data_ptr() for name, tensor in vars(shard).items()}


def test_both_states_hold_the_same_positions_through_a_search():
    """50 iterations with blends, repel, restarts and decay: a position is its mixture of the experts."""
    torch.manual_seed(0)
    experts = SimpleNamespace(rows=torch.randn(6, D), names=tuple("abcdef"))
    config = SwarmConfig(particles=9, patience=60, restart_patience=0.1, iterations=50, seed=4)
    swarms = [Swarm(config, 6) for _ in range(2)]
    states = [
        Particles(experts, swarm, state, torch.device("cpu"))
        for swarm, state in zip(swarms, ("weights", "mixture"), strict=True)
    ]
    utility = np.random.default_rng(3)
    restarted = 0
    for step in range(51):
        utilities = utility.random(9)
        for swarm, particles in zip(swarms, states, strict=True):
            if step:
                move = swarm.plan()
                restarted += int(move.restarts.sum())
                particles.update(move)
            particles.promote(swarm.tell(utilities))
            if not step:
                particles.start(swarm)
        for particle in range(9):
            torch.testing.assert_close(states[0].row(particle), states[1].row(particle), rtol=0, atol=2e-5)
        torch.testing.assert_close(states[0].global_best(), states[1].global_best(), rtol=0, atol=2e-5)
        assert abs(sum(states[0].global_best_mixture()) - 1) < 1e-12
    assert restarted > 20
