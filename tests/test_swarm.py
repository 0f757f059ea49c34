"""The policy: milliseconds, no tensors."""

import subprocess
import sys

import numpy as np
import pytest

from modelswarms_fast.config import EngineConfig, SwarmConfig
from modelswarms_fast.errors import InputError
from modelswarms_fast.swarm import Swarm


def make(n_experts=3, utilities=None, **settings):
    """A swarm that has been told its initial utilities."""
    swarm = Swarm(SwarmConfig(**({"particles": 4} | settings)), n_experts)
    swarm.tell(np.linspace(0.1, 0.4, swarm.config.particles) if utilities is None else utilities)
    return swarm


@pytest.mark.parametrize("policy", ["swarm", "weights.row_table", "records.analysis.registry"])
def test_policy_does_not_import_torch(policy):
    code = f"import sys, modelswarms_fast.{policy}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_coefficients_are_the_published_ones_for_unit_draws():
    plan = make(randomness="unit").ask()
    expected = np.array([0.4, 0.3, 0.3, 0.3]) / 1.3
    np.testing.assert_allclose(plan.coefficients, np.tile(expected, (4, 1)), rtol=1e-6)
    assert plan.coefficients.dtype == np.float32


def test_coefficients_are_the_bare_weights_where_every_coordinate_draws_its_own():
    """The operator draws, weights and normalises; it minds no factor that all four share."""
    swarm = make(randomness="coordinate")
    for _ in range(3):
        np.testing.assert_array_equal(swarm.ask().coefficients, make(randomness="unit").ask().coefficients)
        swarm.tell(swarm.utilities)


def test_random_coefficients_are_normalised_weighted_uniform_draws():
    swarm = make(inertia=0.1, cognitive_coeff=0.2, social_coeff=0.3, repel_coeff=0.4, particles=2000)
    c = swarm.ask().coefficients.astype(np.float64)
    np.testing.assert_allclose(c.sum(axis=1), 1.0, rtol=1e-6)
    # Undo the weights: what is left is proportional to four independent U(0, 1).
    r = c / np.array([0.1, 0.2, 0.3, 0.4])
    r /= r.max(axis=1, keepdims=True)
    # Of four uniforms divided by their largest, one is 1 and the others are again U(0, 1): mean 0.625.
    np.testing.assert_allclose(r.mean(axis=0), 0.625, atol=0.02)


def test_repel_off_leaves_the_global_worst_out():
    assert (make(repel=False).ask().coefficients[:, 3] == 0).all()


def test_randomness_depends_on_seed_iteration_and_particle_only():
    few, many = make(particles=4), make(particles=9)
    for _ in range(3):
        a, b = few.ask(), many.ask()
        np.testing.assert_array_equal(a.coefficients, b.coefficients[:4])
        few.tell(few.utilities)
        many.tell(many.utilities)
    assert not np.array_equal(make(seed=1).ask().coefficients, make(seed=2).ask().coefficients)
    assert len(np.unique(make(particles=50).ask().coefficients[:, 0])) == 50


def test_coefficients_are_pinned():
    """The stream is part of a run's reproducibility: a change of it is a break, not a detail."""
    coefficients = make(seed=7).ask().coefficients
    np.testing.assert_allclose(coefficients[0], PINNED, rtol=1e-6)


PINNED = [0.06158162280917168, 0.2640010118484497, 0.4399791955947876, 0.23443818092346191]


def test_step_length_decays_to_its_floor():
    swarm = make(step_length=1.0, step_length_factor=0.5, minimum_step_length=0.2, patience=50)
    lengths = []
    for _ in range(5):
        lengths.append(swarm.ask().step_length)
        swarm.tell(swarm.utilities)
    assert lengths == [1.0, 0.5, 0.25, 0.2, 0.2]


def test_bests_and_worst():
    swarm = Swarm(SwarmConfig(particles=3), 3)
    told = swarm.tell([0.2, 0.5, 0.1])
    assert told.improved.all()
    assert (told.global_best, told.global_worst) == (1, 2)
    swarm.ask()
    told = swarm.tell([0.3, 0.5, 0.05])
    assert told.improved.tolist() == [True, False, False], "an equal utility is no new best"
    assert (told.global_best, told.global_worst) == (None, 2)
    swarm.ask()
    told = swarm.tell([0.9, 0.9, 0.06])
    assert (told.global_best, told.global_worst) == (0, None), "the lowest index wins a tie"
    assert swarm.bests()["global_worst"] == {"particle": 2, "utility": 0.05}


def test_nan_is_never_a_best_nor_the_worst():
    swarm = Swarm(SwarmConfig(particles=3), 3)
    told = swarm.tell([np.nan, 0.5, 0.4])
    assert told.improved.tolist() == [False, True, True]
    assert (told.global_best, told.global_worst) == (1, 2)
    swarm.ask()
    told = swarm.tell([np.nan, np.nan, np.inf])
    assert not told.improved.any()
    assert (told.global_best, told.global_worst) == (None, None)
    swarm.ask()
    assert swarm.tell([0.1, 0.5, 0.4]).improved.tolist() == [True, False, False]


def test_all_initial_utilities_nan_is_refused():
    with pytest.raises(InputError, match="finite utility"):
        Swarm(SwarmConfig(particles=2), 2).tell([np.nan, np.nan])


def test_stops_after_patience_iterations_without_a_new_global_best():
    swarm = make(patience=3, utilities=[0.1, 0.2, 0.3, 0.4])
    better = [0.1, 0.2, 0.3, 0.5]
    stops = []
    for utilities in (swarm.utilities, better, better, better, better):
        swarm.ask()
        swarm.tell(utilities)
        stops.append(swarm.stopped())
    assert stops == [None, None, None, None, "patience"], "the new best of iteration 2 is three iterations old at 5"


def test_stops_at_the_last_iteration():
    swarm = make(iterations=2)
    swarm.ask()
    swarm.tell(swarm.utilities)
    assert swarm.stopped() is None
    swarm.ask()
    swarm.tell(swarm.utilities)
    assert swarm.stopped() == "iterations"


def test_restarts_after_restart_patience_and_again_until_it_improves():
    swarm = make(patience=4, restart_patience=0.5, utilities=[0.1, 0.2, 0.3, 0.4], iterations=50)
    restarts = []
    level = 0.4
    for iteration in range(1, 7):
        restarts.append(swarm.ask().restarts.tolist())
        level += 0.1
        third = 0.35 if iteration == 4 else 0.0
        swarm.tell([0.0, 0.0, third, level])
    # Nobody but the last improves; two iterations without a best restart a particle, and every one after.
    column = [row[0] for row in restarts]
    assert column == [False, False, True, True, True, True]
    assert [row[2] for row in restarts] == [False, False, True, True, False, False]
    assert not any(row[3] for row in restarts)
    assert not any(make(restart=False, patience=1).ask().restarts)


def test_initial_positions_are_the_experts_then_pairwise_blends():
    swarm = Swarm(SwarmConfig(particles=400, seed=3), 4)
    positions = swarm.initial_positions()
    np.testing.assert_array_equal(positions[:4], np.eye(4))
    np.testing.assert_allclose(positions.sum(axis=1), 1.0, rtol=0, atol=1e-9)
    # The fifth has only the experts to choose from: t and 1 - t of two of them, t ~ U(0, 2).
    first = [Swarm(SwarmConfig(particles=5, seed=seed), 4).initial_positions()[4] for seed in range(2000)]
    assert all(np.count_nonzero(row) == 2 for row in first)
    t = np.array([row[np.nonzero(row)[0]] for row in first])
    np.testing.assert_allclose(t.sum(axis=1), 1.0)
    assert -1 <= t.min() < -0.95
    assert 1.95 < t.max() <= 2
    assert abs((t.max(axis=1) > 1).mean() - 0.5) < 0.05, "half interpolate, half extrapolate"


@pytest.mark.parametrize("mode", ["random", "zero", "best"])
def test_initial_velocities(mode):
    swarm = make(start_velocity=mode, particles=40, n_experts=10)
    positions = swarm.initial_positions()
    velocities = swarm.initial_velocities(positions)
    np.testing.assert_allclose(velocities.sum(axis=1), 0.0, atol=1e-9)
    target = velocities + positions
    for particle in range(40):
        same = [other for other in range(40) if np.allclose(target[particle], positions[other])]
        if mode == "zero":
            assert not velocities[particle].any()
        elif mode == "best":
            assert swarm.global_best_particle in same
        else:
            assert same, "it points at another particle"
            assert particle not in same


def test_drops():
    swarm = make(drop_n=0.5, particles=400, patience=1000, iterations=1000)
    share = []
    for _ in range(20):
        share.append(swarm.ask().evaluate.mean())
        swarm.tell(swarm.utilities)
    assert abs(np.mean(share) - 0.5) < 0.03
    swarm = make(drop_k=0.3, patience=1000, iterations=1000)
    whole = []
    for _ in range(400):
        evaluate = swarm.ask().evaluate
        assert evaluate.all() or not evaluate.any()
        whole.append(bool(evaluate.any()))
        swarm.tell(swarm.utilities)
    assert abs(np.mean(whole) - 0.7) < 0.07


def test_plan_before_tell_is_refused():
    swarm = Swarm(SwarmConfig(particles=2), 2)
    with pytest.raises(RuntimeError, match="tell"):
        swarm.ask()
    swarm.tell([0.1, 0.2])
    swarm.ask()
    with pytest.raises(RuntimeError, match="tell"):
        swarm.ask()


def test_tell_wants_one_utility_a_particle():
    with pytest.raises(ValueError, match="one for each of 2 particles"):
        Swarm(SwarmConfig(particles=2), 2).tell([0.1])


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("particles", 1),
        ("seed", -1),
        ("inertia", -0.1),
        ("cognitive_coeff", float("nan")),
        ("step_length", float("inf")),
        pytest.param("repel_coeff", 10**400, id="no float"),
        pytest.param("minimum_step_length", 10**400, id="no float either"),
        ("iterations", -1),
        ("iterations", 1.5),
        ("seed", 0.5),
        ("particles", 10**20),
        ("step_length", 1e200),
        ("step_length_factor", 1e100),
        ("patience", 0),
        ("drop_k", 1.0),
        ("drop_n", -0.1),
        ("randomness", "gaussian"),
        ("start_velocity", "fast"),
    ],
)
def test_bad_settings_are_refused_by_name(setting, value):
    with pytest.raises(InputError, match=setting):
        SwarmConfig(**({"particles": 4} | {setting: value}))


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(InputError, match="nothing would move"):
        SwarmConfig(particles=2, inertia=0, cognitive_coeff=0, social_coeff=0, repel=False)
    with pytest.raises(InputError, match="at least 5"):
        Swarm(SwarmConfig(particles=4), 5)
    with pytest.raises(InputError, match="at least 2"):
        Swarm(SwarmConfig(particles=4), 1)
    with pytest.raises(InputError, match="slots"):
        EngineConfig(engine="transformers", serve="slots")
    with pytest.raises(InputError, match="rounding is 'stochastic' but state='mixture'"):
        EngineConfig(rounding="stochastic", state="mixture")
    with pytest.raises(InputError, match="rounding is 'published' but state='mixture'"):
        EngineConfig(rounding="published", state="mixture")
    for settings, sentence in (
        ({"state": "weights"}, "combine is 'delta' but state='weights'"),
        ({"rounding": "stochastic"}, "rounding is 'stochastic' but combine='delta'"),
        ({"serve": "slots"}, "serve is 'slots' but combine='delta' .* use serve='merged' or serve='mixture'"),
        ({"export_rank": 0}, "export_rank is 0; give a number from 1 to 1,000,000"),
    ):
        with pytest.raises(InputError, match=sentence):
            EngineConfig(**{"combine": "delta"} | settings)
    with pytest.raises(InputError, match="export_rank is 4 but combine='factors'"):
        EngineConfig(export_rank=4)
    with pytest.raises(InputError, match="rounding is 'up'; choose one of 'nearest', 'stochastic', 'published'"):
        EngineConfig(rounding="up")


def minimise_distance(seed):
    """Let someone else's positions move by ask() and tell(); how much of the squared distance is left."""
    rng = np.random.default_rng(seed)
    target, n = rng.normal(size=8), 12
    x = rng.normal(size=(n, 8))
    swarm = Swarm(SwarmConfig(particles=n, iterations=80, patience=80, seed=seed), n)
    told = swarm.tell(-((x - target) ** 2).sum(axis=1))
    first = swarm.global_best
    p, v = x.copy(), swarm.initial_velocities(np.eye(n)) @ x
    g, w = x[told.global_best].copy(), x[told.global_worst].copy()
    while swarm.stopped() is None:
        plan = swarm.ask()
        x[plan.restarts], v[plan.restarts] = p[plan.restarts], 0
        c = plan.coefficients[:, :, None]
        v = c[:, 0] * v + c[:, 1] * (p - x) + c[:, 2] * (g - x) + c[:, 3] * (x - w)
        x = x + plan.step_length * v
        told = swarm.tell(-((x - target) ** 2).sum(axis=1))
        p[told.improved] = x[told.improved]
        g = x[told.global_best].copy() if told.global_best is not None else g
        w = x[told.global_worst].copy() if told.global_worst is not None else w
    return swarm.global_best / first


def test_swarm_alone_converges():
    left = [minimise_distance(seed) for seed in range(20)]
    assert np.median(left) < 0.4
    assert max(left) < 1
