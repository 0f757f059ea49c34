"""Several searches on one engine: what each finds is what it finds alone, also after a cut; budgets; confirm."""

import json
import shutil
import threading
import time
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers_evaluate import ScriptedEngine, number, utility
from helpers_population import population_of

from modelswarms_fast.config import EngineConfig, SwarmConfig
from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation import evaluator
from modelswarms_fast.evaluation.early_stopping import PartialScores
from modelswarms_fast.evaluation.evaluator import Evaluator
from modelswarms_fast.evaluation.holdout import hold_back
from modelswarms_fast.records.run_folder import Journal, read_history
from modelswarms_fast.runs import trial_folder, trial_queue
from modelswarms_fast.runs.confirm import CANDIDATES, confirm
from modelswarms_fast.runs.loop import SearchLoop
from modelswarms_fast.runs.trial import TrialSpec
from modelswarms_fast.runs.trial_queue import run_searches
from modelswarms_fast.swarm import Swarm
from modelswarms_fast.weights.experts import Experts
from modelswarms_fast.weights.population import Population

PROMPTS = [f"question {index}" for index in range(9)]


class Fake:
    """An experiment whose engine is scripted: the score of a mixture on a prompt depends on the two alone."""

    def __init__(self, slots=6, nan=0.0, **engine):
        self.engine_config = EngineConfig(engine="transformers", state="mixture", **engine)

        def answer(held, prompt):
            if number(held, prompt, "nan") < nan:
                return "nan"
            return str(float(number(held, prompt) < number(held)))

        self.engine = ScriptedEngine(slots, 5, 0, answer)
        self.utility = utility(PROMPTS, score_range=(0.0, 1.0))
        self.evaluator = Evaluator(self.engine, self.utility)
        rows = torch.zeros(3, 1)
        self.names = ("a", "b", "c")
        self.experts = Experts("full", self.names, None, rows, rows, (), {}, ())
        self.base_folder, self.base_digest, self.why_state = None, "the base", "as asked for"
        self.expert_products = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]

    def population(self, swarm):
        return population_of(self.experts, swarm, self.engine_config)

    def loop(self, swarm, population):
        order = self.evaluator.difficulty_order("dev") if self.engine_config.stop_early else None
        return SearchLoop(swarm, population, self.utility, order)

    @property
    def initial_scores(self):
        population = self.population(Swarm(SwarmConfig(particles=3), 3))
        found = self.evaluator.score_population(population.candidates(range(3)), "dev")
        return [found[index].known for index in range(3)]


@pytest.fixture(autouse=True)
def no_export(monkeypatch):
    monkeypatch.setattr(trial_folder, "export", lambda *arguments, **more: None)
    monkeypatch.setattr(trial_folder, "exported_files", lambda *arguments: [])
    monkeypatch.setattr(trial_folder, "check_room", lambda *arguments: None)
    monkeypatch.setattr(Population, "global_best", lambda self: None)


def planned(count=4, **more):
    config = {"particles": 5, "iterations": 4, "patience": 3} | more
    return [TrialSpec(f"{index:03d}", SwarmConfig(seed=index, **config)) for index in range(count)]


def ran(folder, experiment=None, searches=None, **more):
    found = run_searches(
        experiment or Fake(),
        searches or planned(),
        folder,
        inputs={"experts": ["a", "b", "c"], "sources": ["a", "b", "c"]},
        **more,
    )
    # Whether a particle that was stopped early would have had no score depends on what was asked before it was.
    left_out = {"wall_seconds", "without_score"}
    return [{name: value for name, value in one.items() if name not in left_out} for one in found]


def histories(folder):
    return {path.parent.name: path.read_bytes() for path in sorted(folder.glob("searches/*/history.jsonl"))}


@pytest.mark.parametrize("stop_early", [False, True])
@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_a_search_finds_beside_others_what_it_finds_alone(tmp_path, at_once, stop_early):
    searches = planned(drop_n=0.3, drop_k=0.3)
    together = ran(tmp_path / "together", Fake(stop_early=stop_early), searches, at_once=at_once)
    for one, found in zip(searches, together, strict=True):
        alone = ran(tmp_path / one.name, Fake(slots=1), [one])
        assert alone == [found]
    if not stop_early:
        for one in searches:
            assert histories(tmp_path / one.name)[one.name] == histories(tmp_path / "together")[one.name]


def test_early_stopping_learns_from_the_particles_of_the_own_search(tmp_path, monkeypatch):
    """A particle's last low scores come first, whatever number it has among those of all searches."""
    lasts, checked = defaultdict(dict), []
    tell, move = SearchLoop.tell, SearchLoop.move

    def told(steps, all_scored):
        for particle, scored in all_scored.items():
            known = {example: score for example, score in enumerate(scored.scores) if score is not None}
            lasts[steps][particle] = lasts[steps].get(particle, {}) | known
        return tell(steps, all_scored)

    def moved(steps, recorded):
        move(steps, recorded)
        for particle in steps.wanted:
            order, last = steps.limits[particle].order, lasts[steps][particle]
            scores = [last.get(example, 0.0) for example in order]
            checked.append(sorted(order) == list(range(len(PROMPTS))) and scores == sorted(scores))

    monkeypatch.setattr(SearchLoop, "tell", told)
    monkeypatch.setattr(SearchLoop, "move", moved)
    ran(tmp_path, Fake(stop_early=True), at_once=3)
    assert len(checked) > 40
    assert all(checked)


def test_particles_of_two_searches_share_a_batch(tmp_path, monkeypatch):
    of_slot, together, waited = {}, set(), [False] + [True] * 3000
    experiment = Fake()
    initial = experiment.initial_scores
    monkeypatch.setattr(Fake, "initial_scores", initial)
    load, step = evaluator.load, experiment.engine.step
    served = {}
    position = Population.position

    def given(population, particle, best=False):
        found = position(population, particle, best)
        served[id(found)] = population
        return found

    def noted(engine, slot, found):
        of_slot[slot] = id(served[id(found)])
        load(engine, slot, found)

    def stepped():
        running = experiment.engine.running.values()
        together.add(frozenset(of_slot.get(request.slot) for request in running) - {None})
        if of_slot and max(map(len, together)) < 2 and waited.pop():
            time.sleep(0.001)  # nothing ends until both are there
            return []
        return step()

    monkeypatch.setattr(Population, "position", given)
    monkeypatch.setattr(evaluator, "load", noted)
    experiment.engine.step = stepped
    ran(tmp_path, experiment, at_once=2)
    assert max(map(len, together)) == 2


def test_the_experts_are_evaluated_once_and_positions_as_often_as_is_said(tmp_path):
    experiment = Fake()
    found = ran(tmp_path, experiment, at_once=3)
    assert experiment.evaluator.spent.evaluations == 3 + sum(one["evaluations"] for one in found)
    assert experiment.evaluator.spent.reused == 0


@pytest.mark.parametrize("nan", [0.0, 0.02])
@pytest.mark.parametrize("stop_early", [False, True])
@pytest.mark.parametrize("lines", [1, 4, 9, 14])
def test_after_a_cut_it_goes_on_as_if_there_had_been_none(tmp_path, monkeypatch, lines, stop_early, nan):
    expected = ran(tmp_path / "uncut", Fake(stop_early=stop_early, nan=nan), planned(drop_n=0.2))
    written, append = 0, Journal.append

    def cut(journal, line):
        nonlocal written
        written += 1
        if written > lines:
            journal._file.write(b'{"iteration": 1, "utili')  # a line that a crash cuts off
            raise KeyboardInterrupt
        append(journal, line)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", cut)
        with pytest.raises(KeyboardInterrupt):
            ran(tmp_path / "cut", Fake(stop_early=stop_early, nan=nan), planned(drop_n=0.2))
    whole = sum(len(read_history(path)) for path in tmp_path.glob("cut/searches/*/history.jsonl"))
    assert whole == lines
    experiment = Fake(stop_early=stop_early, nan=nan)
    assert ran(tmp_path / "cut", experiment, planned(drop_n=0.2)) == expected
    if not stop_early:
        assert histories(tmp_path / "cut") == histories(tmp_path / "uncut")
    evaluations = 3 + sum(one["evaluations"] for one in expected)
    assert experiment.evaluator.spent.evaluations < evaluations  # what was known was not asked again


def test_a_search_that_has_ended_is_not_run_again(tmp_path):
    expected = ran(tmp_path)
    experiment = Fake()
    told = []
    assert ran(tmp_path, experiment, ended=told.append) == expected
    assert experiment.evaluator.spent.evaluations == 3
    assert len(told) == 4


def test_a_history_that_does_not_repeat_is_refused(tmp_path):
    ran(tmp_path, searches=planned(1))
    path = tmp_path / "searches" / "000"
    (path / "summary.json").unlink()
    lines = (path / "history.jsonl").read_text().splitlines()
    changed = json.loads(lines[1])
    changed["mixtures"][0][0] += 1e-12
    (path / "history.jsonl").write_text("\n".join([lines[0], json.dumps(changed)]) + "\n")
    with pytest.raises(InputError, match="does not repeat"):
        ran(tmp_path, searches=planned(1))


def test_a_folder_of_another_search_is_refused(tmp_path):
    ran(tmp_path, searches=planned(1))
    (tmp_path / "searches" / "000" / "summary.json").unlink()
    with pytest.raises(InputError, match="other settings"):
        ran(tmp_path, searches=planned(1, inertia=0.9))


@pytest.mark.parametrize("budget", [13, 40, 61, 75, 200])
def test_a_budget_is_kept_and_decides_alone_what_is_run(tmp_path, budget):
    found = [ran(tmp_path / str(n), Fake(n), at_once=n, budget=budget) for n in (1, 2, 4)]
    assert found[0] == found[1] == found[2]
    total = 3 + sum(one["evaluations"] for one in found[0])
    assert total <= budget
    # What is left is less than an iteration of the next search: two blends and five particles.
    assert budget - total < 7 or len(found[0]) == 4 or budget == 200


def test_a_budget_is_kept_over_a_cut(tmp_path):
    expected = ran(tmp_path / "uncut", budget=61)
    ran(tmp_path / "cut", budget=61)
    last = expected[-1]["name"]
    (tmp_path / "cut" / "searches" / last / "summary.json").unlink()
    assert ran(tmp_path / "cut", budget=61) == expected
    shutil.rmtree(tmp_path / "cut" / "searches" / "000")
    assert ran(tmp_path / "cut", budget=61) == expected


@pytest.mark.parametrize("cut", [False, True])
def test_a_search_that_its_budget_ended_goes_on_with_a_larger_one(tmp_path, cut):
    expected = ran(tmp_path / "enough", budget=100)
    first = ran(tmp_path / "little", budget=40)
    assert first[-1]["stopped"] == "budget"
    if cut:
        (tmp_path / "little" / "searches" / first[-1]["name"] / "summary.json").unlink()
    assert ran(tmp_path / "little", budget=100) == expected
    assert histories(tmp_path / "little") == histories(tmp_path / "enough")


def test_a_budget_for_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="the budget is 9 evaluations"):
        ran(tmp_path, budget=9)


def test_after_its_minutes_nothing_begins_and_what_runs_stops(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(trial_queue.time, "perf_counter", lambda: clock[0])
    append = Journal.append

    def later(journal, line):
        append(journal, line)
        clock[0] += 20

    monkeypatch.setattr(Journal, "append", later)
    found = ran(tmp_path, minutes=1, at_once=1)
    assert [one["stopped"] for one in found] == ["budget"]
    assert found[0]["iterations"] == 2


def test_what_goes_wrong_in_a_move_ends_all_and_drops_what_runs(tmp_path, monkeypatch):
    experiment, tell, failing = Fake(slots=2), SearchLoop.tell, threading.Event()
    step = experiment.engine.step

    def fails(steps, all_scored):
        if steps.swarm.iteration == 1 and steps.swarm.config.seed == 2:
            failing.set()  # from now on no request ends
            for _ in range(5000):
                if experiment.engine.running:
                    break
                time.sleep(0.001)
            raise OSError("no room")
        return tell(steps, all_scored)

    monkeypatch.setattr(SearchLoop, "tell", fails)
    experiment.engine.step = lambda: [] if failing.is_set() else step()
    with pytest.raises(OSError, match="no room"):
        ran(tmp_path, experiment, at_once=3)
    assert "drop" in {entry[0] for entry in experiment.engine.log}
    assert not experiment.engine.running


def test_first_particles_may_be_some_experts_several_times(tmp_path):
    searches = [TrialSpec("copies", SwarmConfig(particles=4, iterations=2), (2, 0, 2))]
    found = ran(tmp_path, searches=searches)
    lines = read_history(tmp_path / "searches" / "copies" / "history.jsonl")
    assert lines[0]["mixtures"][:3] == [[0, 0, 1], [1, 0, 0], [0, 0, 1]]
    assert lines[0]["utilities"][0] == lines[0]["utilities"][2]
    assert found[0]["start"]["expert"] in ("a", "c")
    with pytest.raises(InputError, match="particles is 2 but there are 3 experts"):
        Swarm(SwarmConfig(particles=2), 3, (0, 0, 1))


@pytest.mark.parametrize(("total", "count"), [(9, 1), (9, 4), (9, 8), (200, 50)])
def test_examples_are_kept_back_evenly_and_none_is_in_both(total, count):
    before = utility([f"q{index}" for index in range(total)])
    after = hold_back(before, count)
    dev, back = ([asks[0].prompt for asks in after.asks[split]] for split in ("dev", "confirm"))
    assert len(back) == count
    assert sorted(dev + back) == sorted(f"q{index}" for index in range(total))
    assert [one["prompt"] for one in after.examples["confirm"]] == back
    numbers = [int(one[1:]) for one in back]
    assert max(np.diff([-1, *numbers, total])) <= total / count + 1
    assert after.asks["test"] == before.asks["test"]


@pytest.mark.parametrize("count", [-1, 9, 10])
def test_all_of_dev_cannot_be_kept_back(count):
    with pytest.raises(InputError, match=f"confirm is {count} but there are 9 dev examples"):
        hold_back(utility(PROMPTS), count)


def test_a_utility_that_is_no_mean_keeps_nothing_back():
    with pytest.raises(InputError, match="is the mean of its scores"):
        hold_back(utility(PROMPTS, reduce=lambda split, scores: max(scores)), 2)


def test_the_last_candidates_are_chosen_by_what_was_kept_back():
    swarm = SimpleNamespace(personal_best=np.array([0.2, 0.5, -np.inf, 0.9, 0.9, 0.4, 0.3]), global_best_particle=4)
    known = {4: 0.5, 3: 0.7, 1: 0.7, 5: np.nan, 6: 0.1}

    def score(particles, split):
        assert split == "confirm"
        assert list(particles) == [4, 3, 1, 5, 6]  # not 0: there are CANDIDATES
        all_scored = {one: PartialScores(1, lambda scores: scores[0]) for one in particles}
        for one, scored in all_scored.items():
            scored.scores = [known[one]]
        return all_scored

    judged = SimpleNamespace(
        score_population=score, utility=SimpleNamespace(utility_of=lambda split, scores: scores[0])
    )
    found = confirm(judged, swarm, SimpleNamespace(candidates=lambda some, best: dict.fromkeys(some)))
    assert (found.particle, found.dev, found.confirm) == (3, 0.9, 0.7)  # of equals the better on dev
    assert len(found.candidates) == CANDIDATES
