"""The run folder: durable lines, whole files, nothing of others removed."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from modelswarms_fast.errors import InputError
from modelswarms_fast.records import run_folder
from modelswarms_fast.records.run_folder import (
    Journal,
    check_run_folder,
    clear_run,
    locked,
    make_folder,
    read_history,
    read_json,
    write_json,
)

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full, a device without room")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_lines_come_back_in_order(tmp_path: Path) -> None:
    lines = [{"iteration": i, "utilities": [0.5, 0.25 * i], "restarts": [], "text": "é\n"} for i in range(3)]
    with Journal(tmp_path / "history.jsonl") as writer:
        for line in lines:
            writer.append(line)
    assert read_history(tmp_path / "history.jsonl") == lines
    assert (tmp_path / "history.jsonl").read_bytes().count(b"\n") == 3


def test_a_line_is_synced_before_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "history.jsonl"
    writer = Journal(path)
    on_disk: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda handle: on_disk.append(path.read_bytes()))
    writer.append({"iteration": 0})
    assert on_disk == [b'{"iteration": 0}\n']
    writer.append({"iteration": 1})
    assert on_disk[1:] == [b'{"iteration": 0}\n{"iteration": 1}\n']
    writer.close()


def test_appending_keeps_what_is_there(tmp_path: Path) -> None:
    for i in range(2):
        with Journal(tmp_path / "history.jsonl") as writer:
            writer.append({"iteration": i})
    assert [line["iteration"] for line in read_history(tmp_path / "history.jsonl")] == [0, 1]


def test_what_is_not_finite_is_null_and_numpy_is_plain(tmp_path: Path) -> None:
    content = {
        "utilities": [float("nan"), float("inf"), np.float64("nan"), 1.5],
        "array": np.array([0.5, np.nan], dtype=np.float32),
        "flags": np.array([True, False]),
        "count": np.int64(3),
        "shape": (1, 2),
        "path": Path("a") / "b",
        "nested": {"deep": [{"worst": -float("inf")}], 7: None},
    }
    expected = {
        "utilities": [None, None, None, 1.5],
        "array": [0.5, None],
        "flags": [True, False],
        "count": 3,
        "shape": [1, 2],
        "path": "a/b",
        "nested": {"deep": [{"worst": None}], "7": None},
    }
    write_json(tmp_path / "x.json", content)
    with Journal(tmp_path / "history.jsonl") as writer:
        writer.append(content)
    assert read_json(tmp_path / "x.json") == expected
    assert read_history(tmp_path / "history.jsonl") == [expected]
    for path in tmp_path.iterdir():
        json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def test_names_that_are_no_utf8_come_back(tmp_path: Path) -> None:
    """As Python has them: with half characters."""
    content = {"data": os.fsdecode(b"/a/\xff.json"), "\udc80": ["\\\udcff", "é"]}
    write_json(tmp_path / "x.json", content)
    with Journal(tmp_path / "history.jsonl") as writer:
        writer.append(content)
    assert read_json(tmp_path / "x.json") == content
    assert read_history(tmp_path / "history.jsonl") == [content]


# Reading


@pytest.mark.parametrize("tail", [b'{"iteration": 2, "utili', b'{"iteration": 2, "name": "\xc3', b"\0\0\0\n", b"{"])
def test_cut_off_last_line_is_left_out(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "history.jsonl"
    path.write_bytes(b'{"iteration": 0}\n{"iteration": 1}\n' + tail)
    assert [line["iteration"] for line in read_history(path)] == [0, 1]


def test_every_cut_of_a_history_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    whole = b'{"iteration": 0}\n{"iteration": 1, "x": {}}\n'
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        complete = (length >= 16) + (length >= len(whole) - 1)
        assert [line["iteration"] for line in read_history(path)] == [0, 1][:complete]


@pytest.mark.parametrize("middle", [b'{"iteration": 1', b"[1]", b"", b"\xff", b"3"])
def test_damage_in_the_middle_is_refused(tmp_path: Path, middle: bytes) -> None:
    path = tmp_path / "history.jsonl"
    path.write_bytes(b'{"iteration": 0}\n' + middle + b'\n{"iteration": 2}\n')
    with pytest.raises(InputError, match="line 2 is not a JSON object") as caught:
        read_history(path)
    assert str(path) in str(caught.value)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    for read in (read_history, read_json):
        with pytest.raises(InputError, match=r"cannot read .*none\.json"):
            read(tmp_path / "none.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(InputError, match=r"list\.json is not a JSON object"):
        read_json(tmp_path / "list.json")
    (tmp_path / "cut.json").write_text('{"a": ')
    with pytest.raises(InputError, match=r"cut\.json is not JSON \(.*\); correct it$"):
        read_json(tmp_path / "cut.json", "correct it")


# The folder of a run


def a_run(folder: Path) -> Path:
    write_json(folder / "config.json", {"seed": 1})
    with Journal(folder / "history.jsonl") as writer:
        writer.append({"iteration": 0})
    return folder


def test_a_folder_that_is_new_or_empty_is_taken_and_another_refused(tmp_path: Path) -> None:
    check_run_folder(tmp_path / "a" / "b")
    assert names(tmp_path) == set()
    make_folder(tmp_path / "a" / "b")
    check_run_folder(tmp_path / "a" / "b")
    a_run(tmp_path / "a" / "b")
    with pytest.raises(InputError, match="is not empty") as caught:
        check_run_folder(tmp_path / "a" / "b")
    assert str(tmp_path / "a" / "b") in str(caught.value)
    check_run_folder(tmp_path / "a" / "b", overwrite=True)
    assert names(tmp_path / "a" / "b") == {"config.json", "history.jsonl"}


def test_what_a_run_writes_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (a_run(tmp_path) / "global_best").mkdir()
    for name in ("summary.json", "report.html", "answers.json", "global_best/model.safetensors", "notes.txt"):
        (tmp_path / name).write_text("old")
    (tmp_path / "data").mkdir()
    clear_run(tmp_path)
    assert names(tmp_path) == {"notes.txt", "data"}


def test_a_link_is_removed_and_not_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("x")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "global_best").symlink_to(tmp_path / "kept")
    clear_run(tmp_path / "run")
    assert names(tmp_path / "kept") == {"file"}
    assert names(tmp_path / "run") == set()


def test_the_folder_of_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match="no run wrote it"):
        check_run_folder(tmp_path, overwrite=True)


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match="cannot write") as caught:
            make_folder(folder)
        assert str(folder) in str(caught.value)


def test_two_processes_do_not_fill_one_folder(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "run"),
        pytest.raises(InputError, match="another process is at work"),
        locked(tmp_path / "run"),
    ):
        pytest.fail("the folder was given twice")


# Disks that refuse


def test_read_only_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **keywords: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # the superuser may write to any real folder
    with pytest.raises(InputError, match=r"cannot write .*history\.jsonl: Permission denied"):
        Journal(tmp_path / "history.jsonl")


@needs_full
def test_full_disk_is_named_by_the_journal(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").symlink_to(FULL)
    writer = Journal(tmp_path / "history.jsonl")
    with pytest.raises(InputError, match=r"cannot write .*history\.jsonl: No space left"):
        writer.append({"iteration": 0})
    writer.close()


@needs_full
def test_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"old": 1})
    (tmp_path / ".x.json.tmp").symlink_to(FULL)
    with pytest.raises(InputError, match=r"cannot write .*x\.json: No space left"):
        write_json(tmp_path / "x.json", {"new": 1})
    assert read_json(tmp_path / "x.json") == {"old": 1}
    assert names(tmp_path) == {"x.json"}


def test_file_appears_only_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})
    seen: list[dict[str, int]] = []
    synced: list[int] = []
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        seen.extend([json.loads(path.read_text()), json.loads(Path(source).read_text())])
        assert synced, "renamed before the disk had the content"
        assert Path(source).parent == Path(target).parent
        real(source, target)

    monkeypatch.setattr(os, "fsync", synced.append)
    monkeypatch.setattr(os, "replace", replace)
    write_json(path, {"new": 1})
    assert seen == [{"old": 1}, {"new": 1}]
    assert read_json(path) == {"new": 1}
    assert names(tmp_path) == {"x.json"}


def test_what_json_cannot_hold_changes_no_file(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"new": object()})
    assert read_json(tmp_path / "x.json") == {"old": 1}
    assert names(tmp_path) == {"x.json"}


def test_names_of_the_run_folder() -> None:
    folder = (run_folder.CONFIG, run_folder.HISTORY, run_folder.SUMMARY, run_folder.REPORT, run_folder.GLOBAL_BEST)
    assert folder == ("config.json", "history.jsonl", "summary.json", "report.html", "global_best")
