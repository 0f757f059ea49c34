"""The policies of MoCo's swarms against their runs, bit for bit, and each way in which they are not model_swarm's."""

import random

import numpy as np
import pytest
from helpers_golden import DTYPES, golden, injected_r

from modelswarms_fast.compat.moco_numeric import MocoNumericSwarm
from modelswarms_fast.compat.moco_swarm import MocoConfig, MocoSwarm
from modelswarms_fast.errors import InputError


def moco_config(settings):
    words = {"cognitive": "cognitive_coeff", "social": "social_coeff", "repel": "repel_coeff"}
    return MocoConfig(**{words.get(name, name): value for name, value in settings.items()})


def make(*rounds, **settings):
    """A swarm of 2 models that was told these utilities; the models that restarted in each round."""
    swarm, restarts = MocoSwarm(MocoConfig(**settings), 2, random.Random(0), injected_r), []
    for utilities in rounds:
        swarm.tell(utilities)
        restarts.append(np.flatnonzero(swarm.ask().restarts).tolist())
    return swarm, restarts


@pytest.mark.parametrize("draws", ["injected_r", "python_random"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_whole_search_is_that_of_moco(dtype, draws):
    """Trajectory, restarts, rest, step length, bests and end."""
    file = golden(f"moco_swarm_{dtype}")
    run, kind = file[draws], DTYPES[dtype]
    source = random.Random(file["random.seed before construction"])
    swarm = MocoSwarm(moco_config(file["settings"]), 3, source, injected_r if draws == "injected_r" else None)
    x = np.eye(3, dtype=kind)
    v, p = swarm.initial_velocities(x).astype(kind), x.copy()
    g, w = x[swarm.global_best_particle].copy(), x[swarm.global_worst_particle].copy()
    first, *snapshots = run["snapshots"]
    assert [x.tolist(), v.tolist(), g.tolist(), w.tolist()] == [
        first[key] for key in ("position", "velocity", "global_best", "global_worst")
    ]
    for number, (snapshot, scores) in enumerate(zip(snapshots, file["scores"], strict=False), 1):
        update = swarm.tell(scores)
        p[update.improved] = x[update.improved]
        g = g if update.global_best is None else x[update.global_best].copy()
        w = w if update.global_worst is None else x[update.global_worst].copy()
        assert (swarm.stopped() == "patience") == snapshot["terminated"]
        restarts = []
        if not snapshot["terminated"]:
            moves = swarm.ask()
            restarts = np.flatnonzero(moves.restarts).tolist()
            x[restarts], v[restarts] = p[restarts], 0
            for i, (a, b, c, d) in enumerate(swarm.coefficients.tolist()):
                v[i] = a * v[i] + b * p[i] + c * g + -d * w + (-b - c + d) * x[i]
                x[i] = x[i] + moves.step_length * v[i]
        got = [restarts, swarm.restart_counter, swarm.step_length, x.tolist(), v.tolist()]
        keys = ("restarts", "restart_counter", "step_length", "position", "velocity")
        assert got == [snapshot[key] for key in keys], number
    assert swarm.stopped() == "patience"
    assert g.tolist() == run["global_best"]
    pad = run["scratchpad"]
    assert (swarm.global_history, swarm.global_worst) == (pad["g_history"], pad["g_worst"])
    assert swarm.histories == [pad[f"model_{i}_history"] for i in range(3)]


def test_numbers_move_as_those_of_moco():
    run = golden("moco_numeric_swarm")
    source = random.Random(run["random.seed before construction"])
    swarm = MocoNumericSwarm(run["dimension"], run["population"], MocoConfig(), source)

    def state():
        return [np.array(rows, dtype=np.float64).tolist() for rows in (swarm.positions, swarm.velocities)]

    first, *snapshots = run["snapshots"]
    assert state() == [first["position"], first["velocity"]]
    for snapshot, scores in zip(snapshots, run["scores"], strict=False):
        assert swarm.update(scores) == snapshot["terminated"]
        assert state() == [snapshot["position"], snapshot["velocity"]], snapshot["update"]
        assert swarm.step_length == snapshot["step_length"]
    assert swarm.global_best_position.tolist() == run["global_best"]


def test_a_model_rests_for_three_moves_after_it_restarted():
    flat = [[0.5, 0.4]] * 9
    _, restarts = make(*flat, restart_patience=2)
    assert restarts == [[], [], [0, 1], [], [], [], [0, 1], [], []]


def test_a_restart_compares_two_utilities_and_no_best():
    _, restarts = make([0.9, 0.1], [0.2, 0.1], [0.3, 0.1], restart_patience=2)
    assert restarts == [[], [], [1]]  # the first is below its best, and above the one before


def test_the_end_is_where_the_global_best_has_not_risen():
    swarm, _ = make([0.5, 0.4], [0.5, 0.4], [0.5, 0.4], patience=4, iterations=9)
    swarm.tell([0.5, 0.4])
    assert swarm.stopped() is None  # four utilities are no more than its patience
    swarm.ask()
    swarm.tell([0.5, 0.4])
    assert swarm.stopped() == "patience"
    assert make([0.1, 0.2], [0.2, 0.3], iterations=2)[0].stopped() == "iterations"


def test_of_several_worst_the_first_is_the_global_one():
    swarm, _ = make([0.5, 0.4])
    update = swarm.tell([0.1, 0.1])
    assert (update.global_worst, update.global_best) == (0, None)


def test_partners_and_first_bests_are_drawn_from_the_given_source():
    source = random.Random(3)
    swarm = MocoSwarm(MocoConfig(), 4, source)
    again = random.Random(3)
    partners = []
    for model in range(4):
        while (partner := again.randint(0, 3)) == model:
            pass
        partners.append(partner)
    assert swarm.partners == partners
    assert [swarm.global_best_particle, swarm.global_worst_particle] == [again.randint(0, 3), again.randint(0, 3)]
    swarm.tell([0.1, 0.2, 0.3, 0.4])
    swarm.ask()
    for _ in range(16):
        again.random()
    assert source.random() == again.random()  # four draws a model


def test_what_is_not_drawn_is_one():
    swarm = MocoSwarm(MocoConfig(weight_randomness=False, repel_term=False, inertia=0.3), 2, random.Random(0))
    swarm.tell([0.1, 0.2])
    swarm.ask()
    np.testing.assert_allclose(swarm.coefficients, [[0.3, 0.3, 0.4, 0.0]] * 2)


def test_bad_numbers_are_refused():
    with pytest.raises(InputError, match="There is 1 model"):
        MocoSwarm(MocoConfig(), 1)
    with pytest.raises(InputError, match="population is 1; a swarm needs at least 2"):
        MocoNumericSwarm(3, 1, MocoConfig())
    for settings, match in (
        ({"patience": 0}, "patience is 0; give a number from 1 to"),
        ({"step_length": -1.0}, "step_length is -1.0; give a number from 0"),
        ({"inertia": "much"}, "inertia is 'much'; give a number"),
        ({"inertia": 0, "cognitive_coeff": 0, "social_coeff": 0, "repel_term": False}, "are all 0; nothing would move"),
    ):
        with pytest.raises(InputError, match=match):
            MocoConfig(**settings)
    with pytest.raises(ValueError, match="give one for each of 2 models"):
        make([0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="3 utilities are given; give one for each of 2 vectors"):
        MocoNumericSwarm(3, 2, MocoConfig()).update([0.1, 0.2, 0.3])
    with pytest.raises(RuntimeError, match=r"tell\(\) the utilities"):
        MocoSwarm(MocoConfig(), 2).ask()
