"""The loop of a search with the policies of others: the whole trajectory of model_swarm in rows, by the operators."""

from statistics import fmean
from types import SimpleNamespace

import pytest
import torch
from helpers_golden import config_of, golden, injected_r
from helpers_population import population_of
from helpers_rows import assert_same

from modelswarms_fast.compat.moco_swarm import MocoConfig, MocoSwarm
from modelswarms_fast.compat.published import PublishedSwarm
from modelswarms_fast.compat.tensors import merge_states
from modelswarms_fast.config import EngineConfig
from modelswarms_fast.evaluation.early_stopping import PartialScores
from modelswarms_fast.runs.loop import SearchLoop
from modelswarms_fast.weights.experts import Experts
from modelswarms_fast.weights.population import Population


def found(utilities, wanted):
    """One score a particle."""
    scores = {particle: PartialScores(1, fmean) for particle in wanted}
    for particle, one in scores.items():
        one.scores = [utilities[particle]]
    return scores


def experts_of(dtype):
    """The rows of an identity matrix."""
    rows = torch.eye(3, dtype=dtype)
    return Experts("full", tuple("abc"), SimpleNamespace(size=3, dtype=dtype), rows, rows, (), {}, ())


def test_rows_move_as_the_files_of_model_swarm():
    run = golden("model_swarm_float32")
    swarm = PublishedSwarm(config_of(run["settings"]), 3, injected_r)
    population = population_of(experts_of(torch.float32), swarm, EngineConfig(state="weights"))
    loop = SearchLoop(swarm, population, None)
    weights = population._weights
    for snapshot, utilities in zip(run["snapshots"], run["scores"], strict=False):
        line = loop.tell(found(utilities, loop.wanted))
        if swarm.iteration:  # rows of velocities are set once there are utilities
            restarted = [event for number, event in run["events"] if number == swarm.iteration and "restarted" in event]
            assert [f"particle_{particle} restarted!" for particle in line["restarts"]] == restarted
        assert weights.rows[weights.table.x].tolist() == snapshot["position"]
        assert weights.rows[weights.table.v].tolist() == snapshot["velocity"]
        assert swarm.stopped() == ("patience" if snapshot is run["snapshots"][-1] else None)
        if not swarm.stopped():
            loop.move()
    assert population.global_best().tolist() == run["global_best"]
    assert weights.global_worst.tolist() == run["global_worst"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_moves_are_those_of_merged_state_dicts(dtype):
    """Five moves with restarts, each difference, velocity and position a merge of its own, as model_swarm has it."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 501, generator=generator).to(dtype)
    experts = Experts("full", tuple("abc"), SimpleNamespace(size=501, dtype=dtype), rows, rows, (), {}, ())
    swarm = PublishedSwarm(config_of({}, patience=4), 3, injected_r)
    population = population_of(experts, swarm, EngineConfig(state="weights", rounding="published"))
    loop, weights = SearchLoop(swarm, population, None), population._weights

    def merge(*terms):
        return merge_states([weight for weight, _ in terms], [{"row": row} for _, row in terms])["row"]

    x = list(rows.clone())
    p, v = list(x), [merge((1, x[partner]), (-1, x[i])) for i, partner in enumerate(swarm.partners)]
    restarts, lowest = 0, 1.0
    for utilities in ([0.5, 0.3, 0.4], [0.4, 0.3, 0.4], [0.4, 0.9, 0.2], [0.6, 0.3, 0.2], [0.1, 0.1, 0.1]):
        line = loop.tell(found(utilities, range(3)))
        for i in line["improved"]:
            p[i] = x[i]
        if swarm.global_best_iteration == swarm.iteration:
            g = x[swarm.global_best_particle]
        if utilities[swarm.global_worst_particle] == swarm.global_worst < lowest:
            w, lowest = x[swarm.global_worst_particle], swarm.global_worst
        loop.move()
        moves = loop._moves
        for i, (a, b, c, d) in enumerate(swarm.coefficients.tolist()):
            if moves.restarts[i]:
                x[i], v[i], restarts = p[i], 0 * x[i], restarts + 1
            away = [merge((1, p[i]), (-1, x[i])), merge((1, g), (-1, x[i])), merge((-1, w), (1, x[i]))]
            v[i] = merge((a, v[i]), *zip((b, c, d), away, strict=True))
            x[i] = merge((1, x[i]), (moves.step_length, v[i]))
        for expected, numbers in ((x, weights.table.x), (v, weights.table.v)):
            for row, number in zip(expected, numbers.tolist(), strict=True):
                assert_same(weights.rows[number], row)
    assert restarts > 3


def test_a_swarm_of_moco_is_one_too():
    """Decisions bit for bit; positions to the rounding of a sum in another order."""
    run = golden("moco_swarm_float64")["injected_r"]
    words = {"cognitive": "cognitive_coeff", "social": "social_coeff", "repel": "repel_coeff"}
    settings = {words.get(name, name): value for name, value in golden("moco_swarm_float64")["settings"].items()}
    swarm = MocoSwarm(MocoConfig(**settings), 3, r=injected_r)
    partners = [row.index(1.0) for row in run["snapshots"][0]["velocity"]]
    swarm.partners = partners
    config = EngineConfig(state="weights")
    population = Population(experts_of(torch.float64), swarm.initial_positions(), config, torch.device("cpu"))
    loop = SearchLoop(swarm, population, None)
    for snapshot, utilities in zip(run["snapshots"][1:], golden("moco_swarm_float64")["scores"], strict=False):
        loop.tell(found(utilities, loop.wanted))
        assert (swarm.stopped() == "patience") == snapshot["terminated"]
        if not snapshot["terminated"]:
            loop.move()
        weights = population._weights
        torch.testing.assert_close(
            weights.rows[weights.table.x], torch.tensor(snapshot["position"], dtype=torch.float64), rtol=0, atol=1e-6
        )
        assert swarm.restart_counter == snapshot["restart_counter"]


def test_what_is_dropped_is_not_scored():
    swarm = PublishedSwarm(config_of({}, drop_n=0.5), 3, injected_r)
    population = population_of(experts_of(torch.float32), swarm, EngineConfig(state="weights"))
    loop = SearchLoop(swarm, population, None)
    loop.tell(found([0.1, 0.2, 0.3], loop.wanted))
    loop.move()
    assert loop.wanted != [0, 1, 2]
    line = loop.tell(found([0.9] * 3, loop.wanted))
    assert line["utilities"].tolist() == [0.9 if i in loop.wanted else u for i, u in enumerate((0.1, 0.2, 0.3))]
