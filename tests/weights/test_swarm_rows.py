"""Rows of one rank, and the two states beside each other."""

import copy
import random
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers_population import move as apply
from helpers_population import population_of, promote, start
from helpers_rows import DTYPES, HALF_TYPES, assert_same, random_rows
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modelswarms_fast.config import EngineConfig, SwarmConfig
from modelswarms_fast.ops import mix_, reference, swarm_update_rows_
from modelswarms_fast.swarm import Moves, Swarm
from modelswarms_fast.weights.arena import empty_rows
from modelswarms_fast.weights.experts import Experts
from modelswarms_fast.weights.row_table import RowTable, count_rows
from modelswarms_fast.weights.rows import SwarmRows

P, D = 5, 100


def plan(restarts=(), step_length=0.7, iteration=1, seed=1, particles=P):
    coefficients = np.random.default_rng(seed).random((particles, 4))
    mask = np.zeros(particles, dtype=bool)
    mask[list(restarts)] = True
    coefficients = (coefficients / coefficients.sum(1, keepdims=True)).astype(np.float32)
    return Moves(iteration, mask, coefficients, step_length, np.ones(particles, dtype=bool))


def arrays(move):
    return move.restarts, move.coefficients, move.step_length, move.iteration


def make(experts, positions):
    rows = torch.full((count_rows(len(positions)), experts.shape[1]), float("nan"), dtype=experts.dtype)
    return SwarmRows(experts, positions, rows)


@pytest.fixture
def shard():
    experts = random_rows(P, D, torch.float64, 0)
    shard = make(experts, np.eye(P))
    shard.promote(np.ones(P, dtype=bool), 1, 2)
    shard.start(experts, np.roll(np.eye(P), 1, axis=0) - np.eye(P))
    return shard


def positions(shard):
    return torch.stack([shard.position(particle) for particle in range(len(shard.table.x))])


def velocities(shard):
    return shard.rows[shard.table.v]  # a copy


def personal_bests(shard):
    return torch.stack([shard.personal_best(particle) for particle in range(len(shard.table.x))])


def test_starts_at_the_given_mixtures():
    experts = torch.randn(2, D)
    shard = make(experts, np.array([[1.0, 0.0], [0.0, 1.0], [1.5, -0.5]]))
    torch.testing.assert_close(positions(shard)[:2], experts, rtol=0, atol=0)
    torch.testing.assert_close(shard.position(2), 1.5 * experts[0] - 0.5 * experts[1])
    torch.testing.assert_close(personal_bests(shard), positions(shard), rtol=0, atol=0)
    assert not velocities(shard).any()
    shard.start(experts, np.array([[-1.0, 1.0], [0.0, 0.0], [-0.5, 0.5]]))
    difference = experts[1] - experts[0]
    torch.testing.assert_close(velocities(shard), torch.stack((difference, 0 * difference, difference / 2)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("further", [0, 2])
def test_experts_may_be_the_first_positions(dtype, further):
    """The same rows from experts that lie where the first positions will be as from experts elsewhere."""
    experts = random_rows(3, D, dtype, 0)
    mixtures = np.concatenate((np.eye(3), np.random.default_rng(0).normal(size=(further, 3))))
    elsewhere = make(experts, mixtures)
    rows = torch.full_like(elsewhere.rows, float("nan"))
    rows[:3] = experts
    here = SwarmRows(rows[:3], mixtures, rows)
    assert here.rows.data_ptr() == rows.data_ptr()
    for shard, source in ((elsewhere, experts), (here, rows[:3])):
        shard.start(source, np.roll(mixtures, 1, axis=0) - mixtures)
    assert_same(positions(here), positions(elsewhere))
    assert_same(velocities(here), velocities(elsewhere))
    assert_same(rows[:3], experts)


def test_rows_that_are_not_enough_or_too_short_are_refused():
    experts = torch.zeros(2, D)
    for count, size in ((count_rows(2) - 1, D), (count_rows(2) + 1, D), (count_rows(2), D - 1)):
        with pytest.raises(ValueError, match=r"2 particles need rows \[8, 100\]"):
            SwarmRows(experts, np.eye(2), torch.zeros(count, size))


def test_experts_in_place_must_be_the_first_positions():
    rows = torch.zeros(count_rows(3), D)
    with pytest.raises(ValueError, match="experts in the first rows are the positions of the first particles"):
        SwarmRows(rows[:2], np.array([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]]), rows)


def test_update_is_the_equation(shard):
    x, v, p = positions(shard), velocities(shard), personal_bests(shard)
    g, w = shard.global_best.clone(), shard.global_worst.clone()
    assert (g == x[1]).all()
    assert (w == x[2]).all()
    move = plan()
    shard.update(*arrays(move))
    c = torch.from_numpy(move.coefficients).double()[:, :, None]
    expected = c[:, 0] * v + c[:, 1] * (p - x) + c[:, 2] * (g - x) + c[:, 3] * (x - w)
    torch.testing.assert_close(velocities(shard), expected)
    torch.testing.assert_close(positions(shard), x + 0.7 * expected)
    torch.testing.assert_close(personal_bests(shard), p, rtol=0, atol=0)
    torch.testing.assert_close(shard.global_best, g, rtol=0, atol=0)
    torch.testing.assert_close(shard.global_worst, w, rtol=0, atol=0)


def test_a_restart_takes_the_personal_best_and_drops_the_velocity(shard):
    shard.update(*arrays(plan()))  # away from the personal bests
    p, g, w = personal_bests(shard), shard.global_best.clone(), shard.global_worst.clone()
    shard.rows[shard.table.v[3]] = float("nan")  # nobody reads it
    move = plan(restarts=[3])
    shard.update(*arrays(move))
    c = move.coefficients[3].astype(np.float64)
    velocity = c[2] * (g - p[3]) + c[3] * (p[3] - w)
    torch.testing.assert_close(velocities(shard)[3], velocity)
    torch.testing.assert_close(shard.position(3), p[3] + 0.7 * velocity)
    torch.testing.assert_close(personal_bests(shard), p, rtol=0, atol=0)
    assert not positions(shard).isnan().any()


def test_promote_renames_only_what_is_named(shard):
    shard.update(*arrays(plan()))
    before, rows = personal_bests(shard), shard.rows.clone()
    improved = np.array([False, True, False, False, True])
    shard.promote(improved, None, 4)
    for particle in range(P):
        expected = shard.position(particle) if improved[particle] else before[particle]
        torch.testing.assert_close(shard.personal_best(particle), expected, rtol=0, atol=0)
    torch.testing.assert_close(shard.global_best, before[1], rtol=0, atol=0)
    torch.testing.assert_close(shard.global_worst, shard.position(4), rtol=0, atol=0)
    assert torch.equal(shard.rows.view(torch.int64), rows.view(torch.int64)), "no byte has moved"
    assert shard.global_worst.data_ptr() == shard.position(4).data_ptr()


def test_a_particle_without_a_personal_best_is_drawn_to_its_start():
    """Its first utility was NaN, so nothing was ever promoted for it."""
    shard = make(torch.eye(P, dtype=torch.float64), np.eye(P))
    shard.promote(np.array([False] + [True] * (P - 1)), 1, 2)
    shard.update(*arrays(plan()))
    torch.testing.assert_close(shard.personal_best(0), torch.eye(P, dtype=torch.float64)[0], rtol=0, atol=0)
    torch.testing.assert_close(positions(shard).sum(dim=1), torch.ones(P, dtype=torch.float64))


class Allocations(TorchDispatchMode):
    """The largest tensor that torch makes meanwhile outside of some rows, in bytes."""

    def __init__(self, rows):
        super().__init__()
        self.rows, self.largest = rows.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        storages = [each.untyped_storage() for each in tree_leaves(result) if isinstance(each, torch.Tensor)]
        sizes = [storage.nbytes() for storage in storages if storage.data_ptr() != self.rows]
        self.largest = max(self.largest, *sizes, 0)
        return result


def test_nothing_is_allocated_after_construction():
    """Neither rows nor anything of their size: not by torch, and not by numpy or Python."""
    size = 100_000
    shard = make(random_rows(P, size, torch.float32, 0), np.eye(P))
    address, own = shard.rows.data_ptr(), set(vars(shard))
    told = (np.array([True, False, False, True, True]), 0, 1)
    with Allocations(shard.rows):
        shard.update(*arrays(plan()))  # what it imports when it is first used is not counted
    tracemalloc.start()
    with Allocations(shard.rows) as by_torch:
        for iteration in range(2, 6):
            shard.update(*arrays(plan(restarts=[0, 2], iteration=iteration)))
            shard.promote(*told)
    by_python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert by_torch.largest < 1000
    assert by_python < size
    assert shard.rows.data_ptr() == address
    assert set(vars(shard)) == own


class Copies:
    """The same swarm in numpy float64, which copies rows where the other renames them."""

    def __init__(self, x, v):
        self.x, self.v, self.p = x.copy(), v.copy(), x.copy()
        self.g = self.w = x[0].copy()

    def update(self, restarts, coefficients, step_length, iteration):
        self.x[restarts], self.v[restarts] = self.p[restarts], 0
        x, v, p, c = self.x, self.v, self.p, coefficients.astype(np.float64)[:, :, None]
        self.v = c[:, 0] * v + c[:, 1] * (p - x) + c[:, 2] * (self.g - x) + c[:, 3] * (x - self.w)
        self.x = x + step_length * self.v

    def promote(self, improved, global_best, global_worst):
        self.p[improved] = self.x[improved]
        self.g = self.g if global_best is None else self.x[global_best].copy()
        self.w = self.w if global_worst is None else self.x[global_worst].copy()


@pytest.mark.parametrize("particles", [2, 9])
def test_many_moves_are_exactly_those_of_a_swarm_that_copies(particles):
    """Hundreds of restarts and promotions; a promotion leaves every byte and every address."""
    draw, experts = random.Random(particles), random_rows(particles, 21, torch.float64, 0)
    shard = make(experts, np.eye(particles))
    start = np.roll(np.eye(particles), 1, axis=0) - np.eye(particles)
    shard.start(experts, start)
    copies = Copies(experts.numpy(), shard.rows[shard.table.v].numpy())
    restarts = promotions = 0
    for iteration in range(1, 401):
        often = draw.choice((0.05, 0.3, 1.0))
        mask = [particle for particle in range(particles) if draw.random() < often]
        # Short steps: the rows stay of one size.
        move = plan(mask, 0.3, iteration, seed=iteration, particles=particles)
        improved = np.array([draw.random() < 0.3 for _ in range(particles)])
        told = (improved, *(draw.choice([None, None, draw.randrange(particles)]) for _ in range(2)))
        for swarm in (shard, copies):
            swarm.update(*arrays(move))
        before, addresses = shard.rows.clone(), [shard.position(particle).data_ptr() for particle in range(particles)]
        for swarm in (shard, copies):
            swarm.promote(*told)
        assert torch.equal(shard.rows.view(torch.int64), before.view(torch.int64))
        assert addresses == [shard.position(particle).data_ptr() for particle in range(particles)]
        restarts, promotions = restarts + len(mask), promotions + int(improved.sum())
        np.testing.assert_array_equal(positions(shard).numpy(), copies.x)
        np.testing.assert_array_equal(velocities(shard).numpy(), copies.v)
        np.testing.assert_array_equal(personal_bests(shard).numpy(), copies.p)
        np.testing.assert_array_equal(shard.global_best.numpy(), copies.g)
        np.testing.assert_array_equal(shard.global_worst.numpy(), copies.w)
        assert np.abs(copies.x).max() > 1e-3
    assert np.isfinite(copies.x).all()
    assert min(restarts, promotions) > 200


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
def test_update_hands_on_the_key_of_its_random_numbers(dtype):
    """Rounding, seed, iteration, and where the columns begin: those of the whole rows' update."""
    experts = random_rows(P, 300, dtype, 0)
    move = plan(iteration=9)
    for coordinate in (False, True):
        rows, shards = torch.zeros(count_rows(P), 300, dtype=dtype), []
        for columns in (slice(0, 64), slice(64, 300)):
            shards.append(SwarmRows(experts[:, columns], np.eye(P), rows[:, columns], columns.start))
        expected, table = rows.clone(), RowTable(P)
        lines = torch.from_numpy(table.update(move.restarts))
        arguments = (expected, lines, 0, 0, torch.from_numpy(move.coefficients), 0.7)
        draws = {"rounding": "stochastic", "seed": 2**33 + 1}
        randomness = "coordinate" if coordinate else "particle"
        swarm_update_rows_(*arguments, **draws, randomness=randomness, iteration=9)
        for shard in shards:
            shard.update(*arrays(move), **draws, coordinate=coordinate)
        assert_same(rows, expected)
        assert not torch.equal(rows[lines[:, 1]], experts)


def pool(experts, room=None):
    """As `read_experts` gives them, as far as Population looks."""
    layout = SimpleNamespace(size=experts.shape[1], dtype=experts.dtype)
    room = experts if room is None else room
    return Experts("full", tuple("abcdef"[: len(experts)]), layout, experts, room, (), {}, ())


def search(swarm, particles, steps, before=lambda: None):
    """Move by plans and random utilities; yields the plan once everything of an iteration is done."""
    utility = np.random.default_rng(3)
    promote(particles, swarm.tell(utility.random(swarm.config.particles)))
    start(particles, swarm)
    for _ in range(steps):
        moves = swarm.ask()
        before()
        apply(particles, moves)
        promote(particles, swarm.tell(utility.random(swarm.config.particles)))
        yield moves


def test_both_states_hold_the_same_positions_through_a_search():
    """50 iterations with blends, repel, restarts and decay: a position is its mixture of the experts."""
    experts = pool(random_rows(6, D, torch.float32, 0))
    config = SwarmConfig(particles=9, patience=60, restart_patience=0.1, iterations=50, seed=4)
    swarms = [Swarm(config, 6) for _ in range(2)]
    states = [
        population_of(experts, swarm, EngineConfig(state=state))
        for swarm, state in zip(swarms, ("weights", "mixture"), strict=True)
    ]
    moves = (search(swarm, particles, 50) for swarm, particles in zip(swarms, states, strict=True))
    restarted = 0
    for move, _ in zip(*moves, strict=True):
        restarted += int(move.restarts.sum())
        for particle in range(9):
            torch.testing.assert_close(states[0].row(particle), states[1].row(particle), rtol=0, atol=2e-5)
        torch.testing.assert_close(states[0].global_best(), states[1].global_best(), rtol=0, atol=2e-5)
        assert states[0].global_best_mixture() == states[1].global_best_mixture()
        assert abs(sum(states[0].global_best_mixture()) - 1) < 1e-12
    assert restarted > 20


@pytest.mark.parametrize("state", ["weights", "mixture"])
@pytest.mark.parametrize("spare", [None, 0, 1])
def test_the_swarm_moves_into_the_experts_room_only_if_it_fits(state, spare):
    """What room there is changes no number; and experts in any other room are left as they are."""
    values, config = random_rows(3, 64, torch.bfloat16, 0), SwarmConfig(particles=4, seed=4)
    room = values.clone() if spare is None else torch.zeros(count_rows(4) + spare, 64, dtype=torch.bfloat16)
    room[:3] = values
    experts, alone = pool(room[:3], room), pool(values.clone())
    swarms = [Swarm(config, 3), Swarm(config, 3)]
    both = [
        population_of(which, swarm, EngineConfig(state=state))
        for which, swarm in zip((experts, alone), swarms, strict=True)
    ]
    storages = [particles.row(0).untyped_storage().data_ptr() for particles in both]
    rooms = [one.untyped_storage().data_ptr() for one in (room, alone.room)]
    if state == "weights":
        assert (storages[0] == rooms[0]) == (spare == 0)
        assert storages[1] != rooms[1]
    else:  # an expert's row is not copied
        assert storages == rooms
    moves = (search(swarm, particles, 5) for swarm, particles in zip(swarms, both, strict=True))
    for _ in zip(*moves, strict=True):
        for particle in range(4):
            assert_same(both[0].row(particle), both[1].row(particle))
    assert_same(alone.rows, values)
    assert torch.equal(experts.rows, values) == (not (state == "weights" and spare == 0))


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
@pytest.mark.parametrize("randomness", ["particle", "coordinate"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_particles_move_as_their_settings_say(dtype, randomness, rounding):
    """Every iteration is swarm_update_rows_ with the settings' seed, rounding and randomness."""
    config = SwarmConfig(particles=4, seed=2**34 + 1, randomness=randomness, restart_patience=0.1)
    swarm = Swarm(config, 4)
    experts = pool(random_rows(4, 64, dtype, 0))
    particles = population_of(experts, swarm, EngineConfig(rounding=rounding))
    shard, earlier = particles._weights, []
    for moves in search(swarm, particles, 6, lambda: earlier.append((shard.rows.clone(), copy.copy(shard.table)))):
        rows, table = earlier.pop()
        lines = torch.from_numpy(table.update(moves.restarts))
        swarm_update_rows_(
            *(rows, lines, table.g, table.w, torch.from_numpy(moves.coefficients), moves.step_length),
            **{"rounding": rounding, "randomness": randomness, "seed": 2**34 + 1, "iteration": moves.iteration},
        )
        assert_same(shard.rows, rows)
        assert (particles.global_best_mixture() is None) == (randomness == "coordinate")


def test_with_coordinates_a_position_leaves_the_span_of_the_experts():
    for randomness, inside in (("particle", True), ("coordinate", False)):
        values = random_rows(3, 64, torch.float32, 0)
        swarm = Swarm(SwarmConfig(particles=3, randomness=randomness), 3)
        particles = population_of(pool(values), swarm, EngineConfig())
        assert len(list(search(swarm, particles, 3))) == 3
        left = torch.linalg.lstsq(values.double().T, particles.row(1).double()[:, None])
        residual = (values.double().T @ left.solution - particles.row(1).double()[:, None]).norm()
        assert (residual < 1e-5) == inside


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("count", "size"), [(1, 1), (3, 100), (2, 32), (5, 300_001), (3, 0), (0, 5)])
def test_empty_rows_begin_at_multiples_of_64_bytes(dtype, count, size):
    rows = empty_rows(count, size, dtype)
    assert rows.shape == (count, size)
    assert rows.dtype == dtype
    assert all(row.data_ptr() % 64 == 0 for row in rows if size)
    spare = rows.untyped_storage().nbytes() - rows.stride(0) * count * dtype.itemsize
    lines, rest = divmod(rows.stride(0) * dtype.itemsize, 64)
    assert rest == 0
    assert lines % 2 == 1
    assert size * dtype.itemsize <= 64 * lines < size * dtype.itemsize + 128
    assert spare <= 2 * 1024 * 1024
    rows.fill_(1)  # the memory is there
    assert bool((rows == 1).all())


def test_empty_rows_lie_in_huge_pages():
    rows = empty_rows(3, 1 << 20, torch.float32)
    assert rows.data_ptr() % (2 * 1024 * 1024) == 0
    rows[1] = 2.0
    assert_same(rows[1], torch.full((1 << 20,), 2.0))


def test_mixtures_are_written_into_rows_without_a_copy_of_them():
    """Experts [n, D] in the first rows are read while the rows behind them are written."""
    rows = torch.zeros(5, 10)
    rows[:2] = torch.tensor([[1.0], [2.0]])
    mix_(rows[2:], rows[:2], torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, -1.0]]))
    assert rows[:, 0].tolist() == [1.0, 2.0, 1.0, 1.5, -2.0]


@pytest.mark.parametrize("state", ["weights", "mixture"])
def test_experts_that_were_brought_to_a_device_are_let_go(state):
    """In state weights the rows are all there is, from the beginning. `to` stands for a copy to a GPU."""
    values = random_rows(3, 64, torch.bfloat16, 0)
    experts = pool(values)
    if state == "mixture":
        experts = replace(experts, rows=SimpleNamespace(to=lambda device: values.clone()))
    swarm = Swarm(SwarmConfig(particles=4), 3)
    particles = population_of(experts, swarm, EngineConfig(state=state))
    if particles._weights is not None:
        assert particles._weights.rows.data_ptr() == particles._experts.data_ptr() != values.data_ptr()
        assert_same(particles._weights.rows[:3], values)
    assert len(list(search(swarm, particles, 2))) == 2
    tensors = [each for each in vars(particles).values() if isinstance(each, torch.Tensor)]
    storages = [each.untyped_storage() for each in tensors if each.dtype == torch.bfloat16]
    held = {storage.data_ptr(): storage.nbytes() for storage in storages}
    assert sum(held.values()) == (0 if state == "weights" else 3 * 64 * 2)


def moved_by_hand(rows, table, moves, seed, space):
    """x' and v' [P, n] of a move that draws a factor for each expert, in plain numpy."""
    numbers, n = rows.numpy(), rows.shape[1]
    draw = reference._draw(torch.arange(n), len(table.x), seed, moves.iteration, reference.FOR_COEFFICIENTS)
    c = reference.uniform(draw).numpy().astype(np.float64) * moves.coefficients.astype(np.float64).T[:, :, None]
    x, p = numbers[table.x].copy(), numbers[table.p]
    v = np.where(moves.restarts[:, None], 0.0, numbers[table.v])
    x[moves.restarts] = p[moves.restarts]
    v = (c[0] * v + c[1] * (p - x) + c[2] * (numbers[table.g] - x) + c[3] * (x - numbers[table.w])) / c.sum(axis=0)
    if space == "free":
        return np.clip(x + np.float64(moves.step_length) * v, -1.5, 1.5), v
    v -= v.mean(axis=1, keepdims=True)
    return x + np.float64(moves.step_length) * v, v


@pytest.mark.parametrize("space", ["affine", "free"])
def test_a_draw_for_each_expert(space):
    config = SwarmConfig(particles=6, seed=7, randomness="expert", space=space, restart_patience=0.1)
    swarm = Swarm(config, 4)
    population = population_of(pool(random_rows(4, 64, torch.float32, 0)), swarm, EngineConfig(state="mixture"))
    held, earlier = population._mixtures, []
    for moves in search(swarm, population, 12, lambda: earlier.append((held.rows.clone(), copy.copy(held.table)))):
        positions, velocities = moved_by_hand(*earlier.pop(), moves, 7, space)
        np.testing.assert_allclose(population.mixtures(), positions, atol=1e-12)
        np.testing.assert_allclose(held.rows[held.table.v], velocities, atol=1e-12)
        sums = population.mixtures().sum(axis=1)
        assert (abs(sums - 1).max() < 1e-12) == (space == "affine")


def test_placed_particles_stand_still_and_bests_stay():
    config = SwarmConfig(particles=4, seed=7)
    swarm = Swarm(config, 3)
    population = population_of(pool(random_rows(3, 64, torch.float32, 0)), swarm, EngineConfig(state="mixture"))
    for _ in search(swarm, population, 3):
        pass
    bests = [population.best_mixture(particle) for particle in range(4)]
    placed = np.random.default_rng(0).dirichlet(np.ones(3), 4)
    for shift in (0.0, 0.125):
        population.place(placed + shift)
        np.testing.assert_array_equal(population.mixtures(), placed + shift)
        assert not population._mixtures.rows[population._mixtures.table.v].any()
        assert [population.best_mixture(particle) for particle in range(4)] == bests
    promote(population, SimpleNamespace(improved=np.array([True, False, False, False]), global_best=0, global_worst=2))
    population.place(placed)
    assert population.best_mixture(0) == population.global_best_mixture() == (placed[0] + 0.125).tolist()
