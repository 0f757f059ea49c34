"""The policy of model_swarm against its runs, bit for bit, and each way in which it is not ours."""

import random
from dataclasses import dataclass

import numpy as np
import pytest
from helpers_golden import DTYPES, config_of, golden, injected_r

from modelswarms_fast.compat.published import PublishedSwarm
from modelswarms_fast.config import SwarmConfig
from modelswarms_fast.errors import InputError, NoScoreError
from modelswarms_fast.swarm import Swarm


def make(utilities, r=None, experts=2, **settings):
    """A published swarm that has been told its initial utilities."""
    swarm = PublishedSwarm(SwarmConfig(**{"particles": len(utilities)} | settings), experts, r)
    swarm.tell(utilities)
    return swarm


def go_on(swarm, *rounds):
    """Tell rounds of utilities; the particles that restarted in each, as they are asked for."""
    restarts = []
    for utilities in rounds:
        restarts.append(np.flatnonzero(swarm.ask().restarts).tolist())
        swarm.tell(utilities)
    return restarts


@dataclass
class Arrays:
    """Positions of any number type, moved as files are: each product and each sum rounded."""

    x: np.ndarray
    v: np.ndarray
    p: np.ndarray
    g: np.ndarray | None = None
    w: np.ndarray | None = None

    def promote(self, update):
        self.p = np.where(update.improved[:, None], self.x, self.p)
        self.g = self.g if update.global_best is None else self.x[update.global_best]
        self.w = self.w if update.global_worst is None else self.x[update.global_worst]

    def move(self, moves, coefficients):
        again = moves.restarts[:, None]
        self.x, self.v = np.where(again, self.p, self.x), np.where(again, 0, self.v).astype(self.v.dtype)
        for i, (inertia, cognitive, social, repel) in enumerate(coefficients.tolist()):
            x, v = self.x[i].copy(), self.v[i]
            self.v[i] = inertia * v + cognitive * (self.p[i] - x) + social * (self.g - x) + repel * (-self.w + x)
            self.x[i] = x + moves.step_length * self.v[i]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_whole_search_is_that_of_model_swarm(dtype):
    """Its trajectory, its restarts and bests in each iteration, its scratchpad, and where it stops."""
    run = golden(f"model_swarm_{dtype}")
    swarm = PublishedSwarm(config_of(run["settings"]), 3, injected_r)
    x = np.eye(3, dtype=DTYPES[dtype])
    arrays = Arrays(x, swarm.initial_velocities(x).astype(DTYPES[dtype]), x)
    history, events = [np.array(run["scores"][0])], []
    arrays.promote(swarm.tell(run["scores"][0]))
    snapshots = [run["snapshots"][0]["iteration"]]
    assert swarm.partners == run["partners"]
    while not swarm.stopped():
        for key, got in (("position", arrays.x), ("velocity", arrays.v)):
            assert got.tolist() == run["snapshots"][swarm.iteration][key], (swarm.iteration, key)
        moves = swarm.ask()
        arrays.move(moves, swarm.coefficients)
        update = swarm.tell(run["scores"][swarm.iteration])
        arrays.promote(update)
        history.append(swarm.utilities)
        events += [[swarm.iteration, f"particle_{i} restarted!"] for i in np.flatnonzero(moves.restarts)]
        improved = np.flatnonzero(update.improved)
        events += [[swarm.iteration, f"new personal best for particle_{i}: {swarm.utilities[i]}"] for i in improved]
        if update.global_best is not None:
            events.append([swarm.iteration, f"new global best: {swarm.global_best}"])
        snapshots.append(swarm.iteration)
    assert (swarm.stopped(), snapshots) == ("patience", [one["iteration"] for one in run["snapshots"]])
    assert arrays.x.tolist() == run["snapshots"][-1]["position"]
    assert events == run["events"][:-2]
    assert (arrays.g.tolist(), arrays.w.tolist()) == (run["global_best"], run["global_worst"])
    pad = run["scratchpad"]
    assert (swarm.global_best, swarm.global_worst) == (pad["g"], pad["g_worst"])
    assert [swarm.personal_best[i] for i in range(3)] == [pad[f"particle_{i}_best"] for i in range(3)]
    assert np.array(history).T.tolist() == [pad[f"particle_{i}_history"] for i in range(3)]


@pytest.mark.parametrize("case", range(3))
def test_its_random_stream(case):
    """Children, then partners, then in each iteration one draw for all and one for each particle."""
    case = golden("model_swarm_random_stream")[case]
    config = SwarmConfig(particles=case["particles"], drop_k=0.5, drop_n=0.25, patience=9)
    swarm = PublishedSwarm(config, case["experts"])
    assert [list(child) for child in swarm.children] == case["populated [parent_1,parent_2,w_1]"]
    assert swarm.partners == case["partners"]
    swarm.tell(np.linspace(0, 1, case["particles"]))
    for draws in case["drop_draws_first_3_iterations"]:
        dropped = np.array(draws["N"]) < 0.25
        np.testing.assert_array_equal(swarm.ask().evaluate, ~dropped & (draws["K"] >= 0.5))
        swarm.tell(swarm.utilities)


@pytest.mark.parametrize("drops", [{"drop_n": 0.4}, {"drop_k": 0.4}])
def test_drops_are_drawn_also_where_nothing_is_dropped_by_them(drops):
    """Else the ones that are would be others from the second iteration on."""
    one, both = make([0.0, 1.0, 2.0], **drops), make([0.0, 1.0, 2.0], drop_k=0.4, drop_n=0.4)
    for _ in range(20):
        evaluated = one.ask().evaluate
        assert (evaluated | ~both.ask().evaluate).all()
        one.tell(one.utilities)
        both.tell(both.utilities)


def test_children_are_mixtures_of_two_before_them_and_may_have_children():
    case = golden("model_swarm_random_stream")[0]
    positions = PublishedSwarm(SwarmConfig(particles=20), 10).initial_positions()
    np.testing.assert_array_equal(positions[:10], np.eye(10))
    first, second, share = case["populated [parent_1,parent_2,w_1]"][2]
    assert (first, second) == (10, 11)  # both are children
    np.testing.assert_array_equal(positions[12], share * positions[10] + (1 - share) * positions[11])
    np.testing.assert_allclose(positions.sum(axis=1), 1)


def test_it_stops_one_iteration_before_ours():
    rounds = [[0.5, 0.4]] * 4
    published = make([0.3, 0.2], patience=3)
    ours = Swarm(published.config, 2)
    ours.tell([0.3, 0.2])
    stops = {"published": 0, "ours": 0}
    for name, swarm in (("published", published), ("ours", ours)):
        for utilities in rounds:
            if swarm.stopped():
                break
            go_on(swarm, utilities)
        stops[name] = swarm.iteration
        assert swarm.stopped() == "patience"
    assert stops == {"published": 3, "ours": 4}


@pytest.mark.parametrize(("last", "moves"), [(0, 4), (1, 4), (2, 5), (3, 6)])
def test_moves_until_it_stops(last, moves):
    """As many as its patience, or one fewer after the last new global best, whatever is more."""
    swarm, done = make([0.0, 0.0], patience=4), 0
    while not swarm.stopped():
        done += 1
        go_on(swarm, [float(min(done, last)), 0.0])
    assert done == moves


def test_a_particle_restarts_one_iteration_before_ours_and_again_until_it_improves():
    rounds = [[0.3, 0.2], [0.3, 0.2], [0.3, 0.9], [0.3, 0.2]]
    settings = {"patience": 4, "restart_patience": 0.5}
    ours = Swarm(SwarmConfig(particles=2, **settings), 2)
    ours.tell([0.3, 0.2])
    assert go_on(make([0.3, 0.2], **settings), *rounds) == [[], [0, 1], [0, 1], [0]]
    assert go_on(ours, *rounds) == [[], [], [0, 1], [0]]
    assert go_on(make([0.3, 0.2], restart=False, **settings), *rounds) == [[]] * 4


def test_of_several_worst_the_last_is_the_global_one_but_the_first_at_the_start():
    swarm = PublishedSwarm(SwarmConfig(particles=3), 2)
    start = swarm.tell([0.4, 0.2, 0.2])
    assert (start.global_worst, start.global_best) == (1, 0)
    swarm.ask()
    update = swarm.tell([0.1, 0.1, 0.4])
    assert (update.global_worst, swarm.global_worst_particle, update.global_best) == (1, 1, None)
    swarm.ask()
    assert swarm.tell([0.5, 0.1, 0.5]).global_best == 0  # of several best the first
    swarm.ask()
    assert swarm.tell([0.1, 0.1, 0.1]).global_worst is None  # no lower than before


def test_coefficients_are_products_divided_by_their_sum_in_double_precision():
    swarm = make([0.1, 0.2], injected_r, inertia=0.4, cognitive_coeff=0.3, social_coeff=0.2, repel_coeff=0.1)
    moves = swarm.ask()
    for particle in range(2):
        a, b, c, d = (r * phi for r, phi in zip(injected_r(1, particle), (0.4, 0.3, 0.2, 0.1), strict=True))
        total = a + b + c + d
        assert swarm.coefficients[particle].tolist() == [a / total, b / total, c / total, d / total]
    np.testing.assert_array_equal(moves.coefficients, swarm.coefficients.astype(np.float32))


def test_without_repel_the_other_three_are_normalised():
    swarm = make([0.1, 0.2], randomness="unit", repel=False, inertia=0.2, cognitive_coeff=0.3, social_coeff=0.5)
    swarm.ask()
    np.testing.assert_allclose(swarm.coefficients, [[0.2, 0.3, 0.5, 0.0]] * 2)


def test_own_random_factors_depend_on_the_seed_and_not_on_the_stream():
    one, two, other = (make([0.1, 0.2], seed=seed) for seed in (42, 42, 43))
    for swarm in (one, two, other):
        swarm.ask()
    np.testing.assert_array_equal(one.coefficients, two.coefficients)
    assert not np.array_equal(one.coefficients, other.coefficients)
    assert one.partners == other.partners  # model_swarm's seed is always the same
    stream = random.Random(42)
    assert one._own.random() not in [stream.random() for _ in range(1000)]


@pytest.mark.parametrize("mode", ["zero", "best"])
def test_other_first_velocities_draw_no_partner(mode):
    swarm = make([0.1, 0.3, 0.2], start_velocity=mode, experts=3, drop_n=0.5)
    assert swarm.partners == []
    velocities = swarm.initial_velocities(swarm.initial_positions())
    expected = np.zeros((3, 3)) if mode == "zero" else np.eye(3)[[1, 1, 1]] - np.eye(3)
    np.testing.assert_array_equal(velocities, expected)
    stream = random.Random(42)
    stream.random()
    np.testing.assert_array_equal(swarm.ask().evaluate, [stream.random() >= 0.5 for _ in range(3)])


def test_what_is_no_number_is_never_a_best():
    swarm = make([np.nan, 0.2, 0.1], experts=3)
    assert (swarm.global_best_particle, swarm.global_worst_particle) == (1, 2)
    swarm.ask()
    update = swarm.tell([np.inf, np.nan, 0.05])
    assert (update.global_best, update.global_worst, update.improved.tolist()) == (None, 2, [False] * 3)
    with pytest.raises(NoScoreError, match="No initial particle has a finite utility"):
        make([np.nan, np.nan])


def test_bad_settings_are_refused():
    with pytest.raises(InputError, match="There is 1 expert"):
        PublishedSwarm(SwarmConfig(particles=2), 1)
    with pytest.raises(InputError, match="particles is 2 but there are 3 experts"):
        PublishedSwarm(SwarmConfig(particles=2), 3)
    with pytest.raises(InputError, match="randomness is 'coordinate' but model_swarm draws a factor a term"):
        PublishedSwarm(SwarmConfig(particles=2, randomness="coordinate"), 2)
    with pytest.raises(InputError, match="r times the weights is 0 for all four terms"):
        make([0.1, 0.2], lambda iteration, particle: (0, 0, 0, 0)).ask()
    with pytest.raises(ValueError, match=r"utilities has shape \(2,\); give one for each of 3 particles"):
        make([0.1, 0.2], particles=3)


def test_moves_are_asked_for_once_they_are_told():
    swarm = PublishedSwarm(SwarmConfig(particles=2), 2)
    with pytest.raises(RuntimeError, match=r"tell\(\) the utilities"):
        swarm.ask()
    swarm.tell([0.1, 0.2])
    assert not swarm.waiting
    swarm.ask()
    assert swarm.waiting
