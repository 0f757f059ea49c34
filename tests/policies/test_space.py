"""Spaces of mixtures: their coordinates, bounds and members."""

import numpy as np
import pytest

from modelswarms_fast.policies.space import basis, space_of

SPACES = ("affine", "scaled", "free")


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("experts", [2, 3, 10])
def test_coordinates_and_mixtures_are_each_other_s_inverse(name, experts):
    space, random = space_of(name, experts), np.random.default_rng(experts)
    z = space.clip(random.normal(0, 0.5, (50, space.size)))
    mixtures = space.decode(z)
    assert mixtures.shape == (50, experts)
    assert space.contains(mixtures).all()
    np.testing.assert_allclose(space.encode(mixtures), z, atol=1e-12)
    np.testing.assert_allclose(space.decode(space.encode(mixtures)), mixtures, atol=1e-12)
    np.testing.assert_allclose(space.decode(z[3]), mixtures[3], atol=1e-12)


@pytest.mark.parametrize("name", SPACES)
def test_experts_and_their_mean_are_in_every_space(name):
    space = space_of(name, 4)
    assert space.size == (3 if name == "affine" else 4)
    assert space.bounds.shape == (space.size, 2)
    for mixture in (*np.eye(4), np.full(4, 0.25)):
        assert space.contains(mixture)
        np.testing.assert_allclose(space.decode(space.encode(mixture)), mixture, atol=1e-12)


def test_affine_coordinates_keep_distances():
    found = basis(7)
    np.testing.assert_allclose(found.T @ found, np.eye(6), atol=1e-12)
    np.testing.assert_allclose(found.sum(axis=0), 0, atol=1e-12)
    space, z = space_of("affine", 7), np.random.default_rng(0).normal(size=(2, 6))
    a, b = space.decode(z)
    assert np.linalg.norm(a - b) == pytest.approx(np.linalg.norm(z[0] - z[1]))


@pytest.mark.parametrize(
    ("name", "mixture", "nearest"),
    [
        ("affine", [1.0, 0.5, 0.0], [5 / 6, 1 / 3, -1 / 6]),
        ("scaled", [3.0, 0.0, 0.0], None),
        ("scaled", [0.1, 0.1, 0.1], None),
        ("scaled", [-1.0, 0.0, 0.0], None),
        ("free", [2.0, 0.0, -1.6], [1.5, 0.0, -1.5]),
    ],
)
def test_what_is_outside_has_coordinates_inside(name, mixture, nearest):
    space, mixture = space_of(name, 3), np.array(mixture)
    assert not space.contains(mixture)
    inside = space.decode(space.clip(space.encode(mixture)))
    assert space.contains(inside)
    if nearest is not None:
        np.testing.assert_allclose(inside, nearest, atol=1e-12)


def test_no_space_holds_what_is_not_finite():
    for name in SPACES:
        for value in (np.nan, np.inf, 1e200):
            assert not space_of(name, 2).contains(np.array([value, 0.5]))


def test_bounds_are_kept():
    assert space_of("scaled", 3).clip(np.array([9.0, 9.0, 9.0])).tolist() == [9.0, 9.0, np.log(2.0)]
    assert space_of("free", 2).clip(np.array([9.0, -9.0])).tolist() == [1.5, -1.5]
