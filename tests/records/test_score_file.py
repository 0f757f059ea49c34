"""Lines of scores: found again, whole or not at all, and only those of the same experts, base and data."""

import json
import math
import os
import zlib

import pytest

from modelswarms_fast.errors import InputError
from modelswarms_fast.records.score_file import Cost, ScoreFile

NAME, OTHER = b"\1" * 16, b"\2" * 16
COST = Cost(1, 3, 12, 0)


def opened(folder, of="these", **more):
    file = ScoreFile(folder, of, **more)
    return file


@pytest.fixture
def written(tmp_path):
    """A file with a position, a particle's visit that was stopped early, and answers."""
    file = opened(tmp_path)
    file.append("scores", "dev", NAME, [1.0, math.nan, 0.1 + 0.2], COST, "experts")
    file.append("scores", "dev", OTHER, [0.5, None, None], COST, "", ("search", 2, 5))
    file.append("answers", "test", NAME, [[("é\n", 2, math.nan, True)], [("b", 1, -0.25, False)]], COST)
    file.close()
    return tmp_path


def test_what_was_written_is_found(written):
    file = opened(written)
    scores = file.position("scores", "dev", NAME)
    assert (scores[0], math.isnan(scores[1]), scores[2]) == (1.0, True, 0.1 + 0.2)
    assert file.position("scores", "test", NAME) is None
    assert file.position("answers", "test", NAME) == [[("é\n", 2, None, True)], [("b", 1, -0.25, False)]]
    assert file.visit(("search", 2, 5)) == ([0.5, None, None], COST, "search")
    assert file.visit(("search", 2, 4)) is None
    assert file.holds("scores", "dev", NAME)
    assert not file.holds("scores", "dev", OTHER), "two scores are missing"
    file.close()


def test_positions_of_something_else_are_not_found(written):
    file = opened(written, of="others")
    assert file.position("scores", "dev", NAME) is None
    assert file.visit(("search", 2, 5)) is not None, "what was told stays told"
    file.close()


def test_a_cost_is_told_once_to_who_has_paid_it(written):
    file = opened(written)
    assert file.unpaid("scores", "dev", NAME, "slerp") is None
    file.close()
    file = opened(written)
    assert file.unpaid("scores", "dev", NAME, "experts") == COST
    assert file.unpaid("scores", "dev", NAME, "experts") is None
    file.append("scores", "dev", b"\3" * 16, [1.0], COST, "experts")
    assert file.unpaid("scores", "dev", b"\3" * 16, "experts") is None, "it is counted already"
    file.close()


def test_of_several_lines_of_a_position_the_last_counts(written):
    file = opened(written)
    file.append("scores", "dev", OTHER, [0.5, 1.0, None], COST)
    assert file.position("scores", "dev", OTHER) == [0.5, 1.0, None]
    file.append("scores", "dev", OTHER, [0.5, 1.0, 0.0], COST)
    file.append("scores", "dev", OTHER, [0.5, None, None], COST)
    assert file.position("scores", "dev", OTHER) == [0.5, 1.0, 0.0], "but for one that knows less"
    file.close()


def test_every_cut_is_dropped_and_what_comes_after_is_whole(written):
    path = written / "scores.jsonl"
    whole = path.read_bytes()
    ends = [end + 1 for end, byte in enumerate(whole) if byte == 10]
    for length in [*range(0, len(whole), 7), len(whole) - 1, len(whole)]:
        for tail in (b"", b"\0" * 9, b"\0\0\n"):
            path.write_bytes(whole[:length] + tail)
            file = opened(written)
            assert path.stat().st_size == max([end for end in ends if end <= length], default=0)
            file.append("scores", "dev", b"\4" * 16, [1.0], COST)
            file.close()
            file = opened(written)
            assert file.position("scores", "dev", b"\4" * 16) == [1.0]
            file.close()


def test_a_damaged_line_before_others_is_named_and_left_out(written, capsys):
    path = written / "scores.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0].replace(b"1.0", b"0.0") + lines[1] + lines[2])
    file = opened(written)
    assert "line 1 of" in " ".join(capsys.readouterr().err.split())
    assert file.position("scores", "dev", NAME) is None
    assert file.visit(("search", 2, 5)) is not None
    file.close()


@pytest.mark.parametrize(
    "change",
    [
        {"of": 3}, {"split": None}, {"position": 1}, {"scores": "x"}, {"scores": [[]]}, {"cost": [1]}, {"for": []},
        {"iteration": "x", "particle": 0}, {"iteration": 1}, {"cost": None},
    ],
)  # fmt: skip
def test_a_line_of_other_types_is_damaged(tmp_path, change):
    line = {"of": "these", "split": "dev", "position": NAME.hex(), "scores": [1.0], "cost": [1, 1, 1, 0], "for": ""}
    body = json.dumps(line | change)[:-1].encode()
    (tmp_path / "scores.jsonl").write_bytes(body + b', "crc": "%08x"}\n' % zlib.crc32(body))
    file = opened(tmp_path)
    assert file.position("scores", "dev", NAME) is None
    file.close()


def test_a_line_is_synced_before_append_returns(tmp_path, monkeypatch):
    file, seen = opened(tmp_path), []
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append((tmp_path / "scores.jsonl").read_bytes()))
    file.append("scores", "dev", NAME, [1.0], COST)
    assert seen[-1].count(b"\n") == 1
    file.close()


def test_scores_of_other_runs_are_found_and_not_counted_as_its_own(written, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    file = opened(own, reuse=[written])
    assert file.position("scores", "dev", NAME)[0] == 1.0
    assert not file.holds("scores", "dev", NAME)
    assert file.visit(("search", 2, 5)) is None
    assert file.unpaid("scores", "dev", NAME, "experts") is None
    assert file.position("scores", "dev", OTHER) is None, "it has not all of its scores"
    file.close()
    with pytest.raises(InputError, match="give a run folder with its files whole"):
        opened(own, reuse=[tmp_path / "none"])
