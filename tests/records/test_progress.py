"""What is shown while something takes long."""

import logging
import sys

import pytest

from modelswarms_fast.records.progress import phase, say


def test_a_phase_is_one_line_where_no_terminal_is(capsys):
    with phase("reading 3 experts of [v1]"):
        assert capsys.readouterr().err == "reading 3 experts of [v1]\n"
    assert capsys.readouterr() == ("", "")


def test_a_phase_that_is_not_shown_prints_nothing(capsys):
    with phase("starting", show=False):
        pass
    assert capsys.readouterr() == ("", "")


def test_a_phase_on_a_terminal_moves_and_is_gone_after(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with phase("starting [v1]"):
        pass
    shown = capsys.readouterr().err
    assert "starting [v1] …" in shown
    assert shown.rstrip("\r\n").endswith("\x1b[2K")  # the line is erased


def test_an_error_ends_a_phase(capsys):
    with pytest.raises(ValueError, match="no"), phase("starting"):
        raise ValueError("no")


def test_the_seconds_of_a_phase_are_a_detail(capsys, caplog):
    with caplog.at_level(logging.INFO, logger="modelswarms_fast"), phase("starting", show=False):
        pass
    assert [record.getMessage() for record in caplog.records] == ["starting: 0.0 s"]


def test_no_terminal_obeys_a_line(capsys):
    say("a\x1b]0;title\x07b \x1b[2J\x9bc\u202ed\te")
    assert capsys.readouterr().err.rstrip() == r"ab \x9bc\u202ed e"


def test_a_line_is_no_markup(capsys):
    say("runs/[v1] a[/x]")
    assert capsys.readouterr().err == "runs/[v1] a[/x]\n"
