"""Who works on what: every request ends once, whoever comes, goes or is slow."""

import random

import pytest

from modelswarms_fast.engines.pool.sharing import LEAST, Sharing


def sharing(engines, each=1, ahead=8):
    made = Sharing(engines)
    made.each, made.ahead = each, ahead
    for engine in range(engines):
        made.up(engine)
    return made


def submit(made, slot, numbers):
    made.load(slot)
    for number in numbers:
        made.submit(number, slot)


def given(made):
    """By engine: what it is given now."""
    found = {}
    for task in made.assign():
        found.setdefault(task.engine, []).extend(task.requests)
    return found


def test_requests_go_home_and_no_further_than_an_engine_has_room():
    made = sharing(2)
    submit(made, 0, range(10))
    submit(made, 1, range(10, 20))
    assert given(made) == {0: list(range(8)), 1: list(range(10, 18))}
    made.ended(3)
    assert given(made) == {0: [8]}
    assert given(made) == {}


def test_a_particle_is_loaded_once_and_again_only_when_it_changes():
    made = sharing(1, ahead=2)
    submit(made, 0, [0, 1, 2])
    (task,) = made.assign()
    assert (task.place, task.slot, task.load, task.requests) == (0, 0, True, [0, 1])
    made.ended(0)
    (task,) = made.assign()
    assert (task.load, task.requests) == (False, [2])
    made.ended(1)
    made.ended(2)
    submit(made, 0, [3])
    (task,) = made.assign()
    assert task.load


def test_engines_with_nothing_to_do_help():
    made = sharing(4, ahead=100)
    submit(made, 0, range(40))
    found = given(made)
    assert {engine: len(some) for engine, some in found.items()} == {0: 10, 1: 10, 2: 10, 3: 10}
    assert sorted(one for some in found.values() for one in some) == list(range(40))


def test_few_requests_are_not_torn_apart():
    made = sharing(4, ahead=100)
    submit(made, 0, range(LEAST + 1))
    assert {engine: len(some) for engine, some in given(made).items()} == {0: LEAST, 1: 1}


def test_what_a_lost_engine_had_goes_to_the_first_with_room():
    made = sharing(2)
    submit(made, 0, range(4))
    submit(made, 1, range(10, 14))
    given(made)
    assert made.down(0) == [0, 1, 2, 3]
    assert given(made) == {}, "the other engine is busy with another particle"
    for number in range(10, 14):
        made.ended(number)
    submit(made, 1, range(20, 24))
    assert given(made) == {1: [0, 1, 2, 3]}, "before what came later"
    made.up(0)
    submit(made, 0, [30])  # never done by the pool while requests run; here it says where they go
    assert given(made)[0] == [30]


def test_dropped_requests_are_nobodys():
    made = sharing(1, ahead=2)
    submit(made, 0, [0, 1, 2, 3])
    given(made)
    assert made.drop([(1, 0), (3, 0)]) == {0: [1]}
    assert given(made) == {0: [2]}
    made.ended(0)
    made.ended(2)
    assert not made.unfinished


@pytest.mark.parametrize("seed", range(60))
def test_every_request_ends_once_under_a_random_fate(seed):
    """Engines come and go, requests end in any order or are dropped, particles are replaced; a model of each engine."""
    draw = random.Random(seed)
    engines, each = draw.randint(1, 5), draw.choice([1, 1, 3])
    made = sharing(engines, each, ahead=draw.choice([3, 8, 50]))
    held, running, up = [{} for _ in range(engines)], {}, set(range(engines))
    wanted, slots, content, number, ended = {}, {}, {}, 0, []
    for _ in range(400):
        what = draw.random()
        free = [slot for slot in range(engines * each) if not any(one == slot for one in wanted.values())]
        if what < 0.25 and free:
            slot = draw.choice(free)
            content[slot] = content.get(slot, 0) + 1
            made.load(slot)
            for _ in range(draw.randint(1, 20)):
                made.submit(number, slot)
                wanted[number] = slot
                number += 1
        elif what < 0.3 and len(up) > 1:
            engine = draw.choice(sorted(up))
            lost = made.down(engine)
            assert sorted(lost) == sorted(one for one, at in running.items() if at == engine)
            running = {one: at for one, at in running.items() if at != engine}
            held[engine], up = {}, up - {engine}
        elif what < 0.38 and len(up) < engines:
            engine = draw.choice(sorted(set(range(engines)) - up))
            up.add(engine)
            made.up(engine)
        elif what < 0.42 and wanted:
            gone = draw.sample(sorted(wanted), draw.randint(1, len(wanted)))
            told = made.drop([(one, wanted[one]) for one in gone])
            assert sorted(one for some in told.values() for one in some) == sorted(set(gone) & running.keys())
            for one in gone:
                running.pop(one, None)
                del wanted[one]
        elif running:
            one = draw.choice(sorted(running))
            made.ended(one)
            del running[one], wanted[one]
            ended.append(one)
        for task in made.assign():
            assert task.engine in up
            if task.load:
                busy = {slots[one] for one, at in running.items() if at == task.engine}
                assert (task.engine, task.place) not in busy, "loaded under running requests"
                held[task.engine][task.place] = (task.slot, content[task.slot])
            assert held[task.engine][task.place] == (task.slot, content[task.slot]), "served another particle"
            for one in task.requests:
                assert one in wanted
                assert one not in running
                running[one], slots[one] = task.engine, (task.engine, task.place)
        if not running:
            assert not wanted, "nobody works, and something is left"
    assert len(ended) == len(set(ended))
