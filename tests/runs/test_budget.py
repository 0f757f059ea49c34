"""A search that has a budget: where it ends, and how it goes on with more."""

import helpers_search
import pytest
from helpers_resume import Cut, cut_at, found
from helpers_search import told

from modelswarms_fast.config import Budget, parse_budget
from modelswarms_fast.errors import InputError
from modelswarms_fast.records.run_folder import read_json
from modelswarms_fast.runs.resume import resume
from modelswarms_fast.runs.search import search

tiny = helpers_search.tiny
PARTICLES = 4


@pytest.fixture(scope="module")
def settings(tiny):
    return tiny | {"particles": PARTICLES, "iterations": 5, "patience": 9, "parity_check": "off"}


def summary_of(run):
    return read_json(run / "summary.json")


def test_the_budget_is_never_passed_in_evaluations(settings, tmp_path):
    for budget, iterations in ((PARTICLES, 0), (3 * PARTICLES - 1, 1), (3 * PARTICLES, 2)):
        run = tmp_path / str(budget)
        summary = search(**settings, out=run, budget=budget)
        assert (summary["iterations"], summary["stopped"]) == (iterations, "budget")
        assert sum(sum(line["evaluated"]) for line in told(run)) == PARTICLES * (iterations + 1)
    assert search(**settings, out=tmp_path / "all", budget=1000)["stopped"] == "iterations"


def test_what_is_not_evaluated_takes_nothing(settings, tmp_path):
    """An iteration is begun if all of its particles fit."""
    search(**settings | {"iterations": 50, "patience": 50}, out=tmp_path / "run", budget=20, drop_n=0.5)
    lines = told(tmp_path / "run")
    assert 20 - PARTICLES < sum(sum(line["evaluated"]) for line in lines) <= 20
    assert len(lines) > 20 // PARTICLES


def test_it_ends_after_the_iteration_in_which_the_prompts_are_reached(settings, tmp_path):
    whole = search(**settings, out=tmp_path / "whole")
    counts = [line["prompts"] for line in told(tmp_path / "whole")]
    assert sum(counts) == whole["prompts"]
    summary = search(**settings, out=tmp_path / "run", budget=f"{counts[0] + 1}p")
    assert (summary["iterations"], summary["stopped"]) == (1, "budget")
    assert summary["prompts"] == sum(counts[:2])


def test_minutes_are_those_of_all_iterations(settings, tmp_path):
    assert search(**settings, out=tmp_path / "run", budget="0.000001m")["iterations"] == 0
    summary = resume(tmp_path / "run", budget="1000m")[1]
    assert (summary["iterations"], summary["stopped"]) == (5, "iterations")


@pytest.mark.parametrize("budgets", [(2 * PARTICLES, 4 * PARTICLES), ("30p", "60p")])
def test_a_search_goes_on_with_more(settings, tmp_path, monkeypatch, budgets):
    """Cut and resumed it ends where an uncut one does, and with more where one does that had more at once."""
    less, more = budgets
    for out, budget in ((tmp_path / "less", less), (tmp_path / "more", more)):
        assert search(**settings, out=out, budget=budget)["stopped"] == "budget"
    with cut_at(monkeypatch, 14), pytest.raises(Cut):
        search(**settings, out=tmp_path / "run", budget=less)
    resume(tmp_path / "run")
    assert found(tmp_path / "run") == found(tmp_path / "less")
    with pytest.raises(InputError, match="has ended; there is nothing to resume unless"):
        resume(tmp_path / "run")
    resume(tmp_path / "run", budget=more)
    assert found(tmp_path / "run") == found(tmp_path / "more")


@pytest.mark.parametrize("budget", [0, -1, "", "p", "30s", "1.5", "0.5p", "1e3", "nan", "m", 10**12, "٣", "3 pm"])
def test_a_budget_that_is_none_is_one_sentence(settings, tmp_path, budget):
    with pytest.raises(InputError, match=r"^budget is .*; give evaluations, prompts or minutes: 200, 20000p or 30m\.$"):
        search(**settings, out=tmp_path / "run", budget=budget)
    assert not (tmp_path / "run").exists()


def test_budgets_that_are_too_small_or_less_than_before_are_refused(settings, tmp_path):
    with pytest.raises(InputError, match="budget is 3 evaluations, less than the 4 particles take; give more"):
        search(**settings, out=tmp_path / "run", budget=3)
    search(**settings, out=tmp_path / "run", budget=8)
    for budget in (7, "900p", "900m"):
        with pytest.raises(InputError, match=r"other settings \(budget differs\)"):
            resume(tmp_path / "run", budget=budget)


def test_units():
    assert parse_budget(" 30 m ") == Budget(30, "minutes")
    assert parse_budget("0.5m") == Budget(0.5, "minutes")
    assert parse_budget("20000p") == Budget(20000, "prompts")
    assert parse_budget(200) == parse_budget("200") == Budget(200, "evaluations")
