"""Guided search: what it proposes, that it repeats, and that it finds more than chance does."""

import numpy as np
import pytest

from modelswarms_fast.policies import Problem
from modelswarms_fast.policies.guided import SWARM_MOVES, Guided
from modelswarms_fast.policies.space import space_of

N = 5
NOTHING = np.empty((0, N)), np.empty(0)
TOP = {"affine": [0.9, 0.5, -0.4, 0.0, 0.0], "scaled": [1.2, 0.6, -0.4, 0.2, 0.1], "free": [1.2, 0.8, -0.4, 0.3, -0.6]}


def problem(space="affine", particles=5, seed=1, known=NOTHING):
    return Problem(N, particles, seed, space_of(space, N), np.eye(N), known)


def quadratic(mixtures, space="affine"):
    return 0.5 - 0.2 * ((mixtures - np.array(TOP[space])) ** 2).sum(axis=1)


def random_moves(one, count):
    """Positions of the space, as a swarm that goes nowhere would tell them."""
    drawn = np.random.default_rng(7).normal(0, 0.3, (count, one.particles, one.space.size))
    return [one.space.decode(one.space.clip(one.space.encode(np.full(N, 1 / N)) + some)) for some in drawn]


def searched(one, moves, space="affine"):
    """All positions of a search of so many proposals, and the policy."""
    policy, found = Guided(one), []
    own = random_moves(one, moves + SWARM_MOVES + 1)
    mixtures = own.pop()
    for _ in range(moves + SWARM_MOVES):
        policy.tell(mixtures, quadratic(mixtures, space))
        found.append(mixtures)
        asked = policy.ask()
        mixtures = own.pop() if asked is None else asked
    return np.concatenate([*found, mixtures]), policy


@pytest.mark.parametrize("space", ["affine", "scaled", "free"])
def test_it_finds_more_than_chance_in_every_space_and_stays_inside(space):
    one = problem(space)
    found, _ = searched(one, 8, space)
    assert one.space.contains(found).all()
    random = np.concatenate(random_moves(one, len(found) // one.particles))
    assert quadratic(found, space).max() > 0.49
    assert quadratic(found, space).max() > quadratic(random, space).max() + 0.02


def test_it_begins_with_moves_of_the_swarm():
    policy = Guided(problem())
    for mixtures in random_moves(problem(), SWARM_MOVES):
        policy.tell(mixtures, quadratic(mixtures))
        assert policy.ask() is None
    policy.tell(random_moves(problem(), 9)[-1], np.linspace(0, 1, 5))
    assert policy.ask().shape == (5, N)


@pytest.mark.parametrize("particles", [2, 7, 70])
def test_any_number_of_particles_gets_positions_of_its_own(particles):
    found, policy = searched(problem(particles=particles), 2)
    assert policy.ask().shape == (particles, N)
    assert len(np.unique(found.round(9), axis=0)) == len(found)


def test_the_same_seed_and_utilities_give_the_same_positions_and_others_do_not():
    one, again, other = (searched(problem(seed=seed), 3)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_what_has_no_score_is_left_out_and_nothing_is_guided_by_one_value():
    policy = Guided(problem())
    for mixtures in random_moves(problem(), SWARM_MOVES + 2):
        policy.tell(mixtures, np.full(5, 0.25))
        assert policy.ask() is None  # all are equally good
    utilities = quadratic(mixtures)
    utilities[1] = np.nan
    policy.tell(mixtures + np.array([0.1, -0.1, 0, 0, 0]), utilities)
    assert np.isfinite(policy.ask()).all()


def test_positions_of_earlier_runs_guide_the_first_move():
    known = np.concatenate(random_moves(problem(), 6))
    policy = Guided(problem(known=(known, quadratic(known))))
    policy.tell(np.eye(N), quadratic(np.eye(N)))
    asked = policy.ask()
    assert quadratic(asked).max() > quadratic(known).max()
    few = Guided(problem(known=(known[:5], quadratic(known[:5]))))
    few.tell(np.eye(N), quadratic(np.eye(N)))
    assert few.ask() is None


def test_no_position_is_proposed_twice():
    found, _ = searched(problem(particles=8), 6)
    proposed = found[(SWARM_MOVES + 1) * 8 :]
    assert len(np.unique(proposed.round(8), axis=0)) == len(proposed)
