"""What a search prints at its end."""

from pathlib import Path

import pytest

from modelswarms_fast.cli.options import log_details
from modelswarms_fast.cli.summary import show

SUMMARY = {
    "start": {"particle": 1, "expert": "a[/x]", "dev": 0.25, "test": 0.5},
    "end": {"particle": 2, "dev": 0.75, "test": 0.625},
    "test_standard_error": {"start": 0.125, "end": 0.0625},
    "mixture": {"bob": -0.25, "cy": 0.004, "a[/x]": 1.25},
    "dev_examples": 4,
    "test_examples": 8,
    "iterations": 3,
    "stopped": "patience",
    "prompts_per_second": 12.5,
    "seconds": {"setup": 1.25, "total": 9.0},
    "objective": {"threshold": 0.5},
}


@pytest.fixture(autouse=True)
def quiet():
    yield
    log_details(False)


def test_the_end_is_short_and_names_are_no_markup(capsys):
    show(SUMMARY, Path("runs/[v1]"), "global_best")
    shown, errors = capsys.readouterr()
    assert [line.split() for line in shown.splitlines() if line.strip()] == [
        ["dev", "test", "±", "standard", "error"],
        ["best", "expert", "a[/x]", "0.2500", "0.5000", "±", "0.1250"],
        ["winner", "particle", "2", "0.7500", "0.6250", "±", "0.0625"],
        ["winner", "=", "+1.25", "a[/x]", "-0.25", "bob"],
        ["Open", "runs/[v1]/report.html", "first;", "the", "winner", "is", "runs/[v1]/global_best."],
    ]
    assert errors == ""


def test_what_a_cut_has_lost_is_said(capsys):
    show(SUMMARY | {"export_rank": 4, "export_error": 0.2709}, Path("runs/demo"), "global_best")
    assert "cut to rank 4; the relative error of its update matrices is 0.271." in capsys.readouterr().out


def test_details_are_shown_where_they_are_asked_for(capsys):
    log_details(True)
    show(SUMMARY | {"mixture": None}, Path("runs/demo"), "global_best")
    shown, errors = capsys.readouterr()
    assert "winner =" not in shown
    assert errors.splitlines() == [
        "4 dev and 8 test examples; 3 iterations, stopped by patience; 12.5 prompts/s",
        "seconds: setup 1.2, total 9.0",
        "objective: threshold 0.5",
    ]
