"""What the benchmarks of the operators count and compare with, without timing anything."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.operators import bench_growth, bench_rows, bench_update, torch_baselines
from modelswarms_fast.ops import swarm_update_


def make_swarm(particles=3, size=200, dtype=torch.float32):
    torch.manual_seed(4)
    return bench_update.make_swarm(particles, size, dtype)


def test_bytes_of_an_update():
    assert bench_update.bytes_of(10, 1000, torch.bfloat16) == 52 * 1000 * 2


def test_rows_moved_with_promotions_and_restarts():
    particles = bench_rows.PARTICLES
    moved = {case: bench_rows.rows_moved(table) for case, table in bench_rows.tables().items()}
    assert moved == {
        "nobody improved": 5 * particles + 2,
        "all improved": 4 * particles + 2,  # p is x
        "all restart": 3 * particles + 2,  # and v is 0
    }


def test_a_straight_line_has_no_worst_point():
    points = [1, 2, 5, 10]
    line = bench_growth.line_through(points, [3 + 2 * x for x in points])
    assert line["worst_deviation"] == pytest.approx(0, abs=1e-12)
    assert (line["fixed"], line["each"]) == (pytest.approx(3), pytest.approx(2))
    bent = bench_growth.line_through(points, [3 + 2 * x * (1.2 if x == 5 else 1) for x in points])
    assert 0.05 < bent["worst_deviation"] < 0.2


@pytest.mark.parametrize("name", ["eager", "foreach", "numpy"])
def test_a_baseline_moves_particles_as_ours_does(name):
    theirs, ours = make_swarm(), make_swarm()
    getattr(torch_baselines, name)(theirs)()
    swarm_update_(*ours.all)
    torch.testing.assert_close(theirs.velocity, ours.velocity, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(theirs.position, ours.position, rtol=1e-5, atol=1e-5)
    assert not torch.equal(ours.position, make_swarm().position)


def test_the_baseline_with_random_numbers_for_every_coordinate():
    """All four terms alike: whatever is drawn, the velocity is that term."""
    swarm = make_swarm()
    for rows in (swarm.velocity, swarm.personal_best, swarm.global_best):
        rows.zero_()
    swarm.position.fill_(-1)  # p - x and g - x are 1
    swarm.velocity.fill_(1)
    swarm.global_worst.fill_(-2)  # x - w is 1
    torch_baselines.eager(swarm, torch_baselines.formula_coordinate)()
    torch.testing.assert_close(swarm.velocity, torch.ones_like(swarm.velocity))
    torch.testing.assert_close(swarm.position, torch.full_like(swarm.position, -0.5))


def test_pyswarms_without_anything_to_go_to():
    swarm = make_swarm()
    swarm.personal_best.copy_(swarm.position)
    swarm.position[:] = swarm.personal_best[:] = swarm.global_best
    start, velocity = swarm.position.clone(), swarm.velocity.clone()
    torch_baselines.pyswarms(swarm)()
    expected = velocity * swarm.coefficients[0, 0]
    torch.testing.assert_close(swarm.velocity, expected)
    torch.testing.assert_close(swarm.position, start + expected)


@pytest.mark.slow
def test_benchmarks_that_call_inside_the_package_still_run():
    """What they call is no public name, and they are run by hand alone."""
    root = Path(__file__).parents[2]
    files = [str(root / "benchmarks" / "operators" / f"bench_{name}.py") for name in ("overhead", "rows")]
    command = [sys.executable, "-m", "pytest", *files, "-k", "overhead or promote", "--quick", "--benchmark-disable"]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-3000:]
