"""The simulation of many engines: the real driver, engines that are a clock."""

import pytest

from benchmarks.cluster.simulate import Times, simulate


def test_engines_share_the_last_particles():
    """Without stragglers and chance: 12 particles by 8 engines leave half of them idle, unless they help."""
    exact = Times(spread=0.0, stragglers=0.0)
    found = simulate(8, 12, 64, exact, iterations=1, experts=3)
    busy = 12 * 64 * exact.prompt
    assert found["idle share"] < 0.15
    assert found["seconds an iteration"] == pytest.approx(busy / 8, rel=0.2)
