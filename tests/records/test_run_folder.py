"""The run folder: durable lines, whole files, nothing of others removed."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from modelswarms_fast.errors import InputError
from modelswarms_fast.records import run_folder
from modelswarms_fast.records.analysis import read_run
from modelswarms_fast.records.report import write_report
from modelswarms_fast.records.run_folder import (
    Journal,
    begin_run,
    check_links,
    check_run_folder,
    clear_run,
    locked,
    make_folder,
    read_history,
    read_json,
    will_write,
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
    """What a search writes, in part: a log of another library, and a model with a tokenizer."""
    begin_run(folder)
    write_json(folder / "config.json", {"seed": 1})
    with Journal(folder / "history.jsonl") as writer:
        writer.append({"iteration": 0})
    will_write(folder, "tensorboard/", "global_best/model.safetensors", "global_best/README.md")
    for name in ("tensorboard/events.out", "global_best/model.safetensors", "global_best/README.md"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("ours")
    return folder


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}


def test_a_folder_that_is_new_or_empty_is_taken_and_another_refused(tmp_path: Path) -> None:
    check_run_folder(tmp_path / "a" / "b")
    assert names(tmp_path) == set()
    make_folder(tmp_path / "a" / "b")
    check_run_folder(tmp_path / "a" / "b")
    a_run(tmp_path / "a" / "b")
    with pytest.raises(InputError, match="is not empty") as caught:
        check_run_folder(tmp_path / "a" / "b")
    assert str(tmp_path / "a" / "b") in str(caught.value)
    before = tree(tmp_path)
    check_run_folder(tmp_path / "a" / "b", overwrite=True)
    assert tree(tmp_path) == before


def test_what_a_run_wrote_is_removed(tmp_path: Path) -> None:
    a_run(tmp_path / "run")
    (tmp_path / "run" / "empty").mkdir()
    clear_run(tmp_path / "run")
    assert names(tmp_path / "run") == {"empty"}
    clear_run(tmp_path / "run")
    clear_run(tmp_path / "none")


OTHERS = (
    "notes.txt", "report.html", "summary.json", "analysis.json", "test_scores.json", "data.json", "answers.json",
    "global_best/notes.txt", "global_best/vocab.json", "tensorboard.txt", "searches/a/history.jsonl",
    ".config.json.tmp", "files.jsonl.old", ".global_best.new-0123/notes.txt", "a/files.jsonl",
)  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_a_folder_that_holds_a_file_of_others_is_left_as_it_is(tmp_path: Path, name: str) -> None:
    a_run(tmp_path)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    before = tree(tmp_path)
    for refuse in (lambda: check_run_folder(tmp_path, overwrite=True), lambda: clear_run(tmp_path)):
        with pytest.raises(InputError, match="was written by no run; move it away") as caught:
            refuse()
        assert str(tmp_path / name) in str(caught.value)
    assert tree(tmp_path) == before


def test_a_file_of_others_is_not_written_over(tmp_path: Path) -> None:
    begin_run(tmp_path)
    (tmp_path / "report.html").write_text("mine")
    (tmp_path / "history.jsonl").write_text("mine")
    with pytest.raises(InputError, match=r"report\.html is there and no run wrote it"):
        write_json(tmp_path / "report.html", {})
    with pytest.raises(InputError, match=r"history\.jsonl is there and no run wrote it"):
        Journal(tmp_path / "history.jsonl")
    assert {path.read_text() for path in (tmp_path / "report.html", tmp_path / "history.jsonl")} == {"mine"}


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": '{"model_type": "llama"}', "model.safetensors": ""},
        {"config.json": "{}", "history.jsonl": "{}"},
        {"report.html": "mine"},
        {"files.jsonl": '"config.json"\n', "config.json": "{}"},
        {"files.jsonl": "[]\n", "config.json": "{}"},
    ],
)
def test_a_folder_that_no_run_wrote_is_refused(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for refuse in (lambda: check_run_folder(tmp_path, overwrite=True), lambda: clear_run(tmp_path)):
        with pytest.raises(InputError, match="no run wrote it; choose another run folder"):
            refuse()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


@pytest.mark.parametrize("name", ["global_best", "config.json", "files.jsonl", "tensorboard", "other", "new"])
def test_a_link_is_neither_followed_nor_removed(tmp_path: Path, name: str) -> None:
    """In the place of what the run wrote, or beside it."""
    run, kept = a_run(tmp_path / "run"), tmp_path / "kept"
    kept.mkdir()
    for one in ("README.md", "model.safetensors", "events.out"):
        (kept / one).write_text("mine")
    place = run / name
    if place.is_dir():
        shutil.rmtree(place)
        place.symlink_to(kept)
    else:
        place.unlink(missing_ok=True)
        place.symlink_to(kept / "README.md")
    with pytest.raises(InputError, match="no run"):
        clear_run(run)
    assert tree(kept) == {"README.md", "model.safetensors", "events.out"}
    assert {path.read_text() for path in kept.iterdir()} == {"mine"}
    assert place.is_symlink()


@pytest.mark.parametrize("name", ["summary.json", "answers.json", "global_best", "searches/a", "notes"])
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    """Whatever is done with the folder: reports of it would show what the link points to."""
    run = a_run(tmp_path / "run")
    write_json(run / "config.json", {"experts": ["a"]})
    (tmp_path / "secret").write_text('{"key": "sesame"}')
    place = run / name
    if place.is_dir():
        shutil.rmtree(place)
    place.parent.mkdir(exist_ok=True)
    place.symlink_to("../../secret" if "/" in name else "../secret")
    for use in (read_run, check_links, begin_run, write_report):
        with pytest.raises(InputError, match="is a link out of the run folder, which is not followed") as caught:
            use(run)
        assert str(place) in str(caught.value)
    assert not (run / "report.html").exists()
    assert (tmp_path / "secret").read_text() == '{"key": "sesame"}'


def test_a_link_within_the_folder_may_stay_and_the_folder_may_be_reached_by_one(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    (run / "tensorboard" / "latest").symlink_to("events.out")
    (tmp_path / "latest").symlink_to("run")
    check_links(tmp_path / "latest")
    clear_run(tmp_path / "latest")
    assert names(run) == set()


def test_a_model_is_not_written_through_a_link(tmp_path: Path) -> None:
    begin_run(tmp_path / "run")
    (tmp_path / "kept").mkdir()
    (tmp_path / "run" / "global_best").symlink_to(tmp_path / "kept")
    with pytest.raises(InputError, match="global_best is a link"):
        will_write(tmp_path / "run", "global_best/README.md")
    with pytest.raises(InputError, match="global_best is a link"):
        write_json(tmp_path / "run" / "global_best" / "mixture.json", {})
    assert names(tmp_path / "kept") == set()


def test_a_list_that_names_other_folders_removes_nothing_there(tmp_path: Path) -> None:
    """A stranger's list."""
    run, kept = a_run(tmp_path / "run"), tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("mine")
    with (run / "files.jsonl").open("a") as file:
        for name in ("../kept/file", "../kept/", "../", "/", str(kept / "file"), str(kept) + "/", ".", "", 3, None):
            file.write(json.dumps(name) + "\n")
    clear_run(run)
    assert tree(tmp_path) == {"kept/file"}


@pytest.mark.parametrize("torn", ["", '"config.js', '{"files of": "a run of mod'])
def test_a_run_that_was_killed_while_it_began_can_be_begun_again(tmp_path: Path, torn: str) -> None:
    """Its list is whole or cut, and what it wrote first has a temporary name."""
    begin_run(tmp_path)
    if torn.startswith("{"):
        (tmp_path / "files.jsonl").write_text(torn)
    else:
        with (tmp_path / "files.jsonl").open("a") as file:
            file.write(torn)
    (tmp_path / ".modelswarms-0123456789abcdef.tmp").write_text("{")
    check_run_folder(tmp_path)
    begin_run(tmp_path)
    write_json(tmp_path / "config.json", {})
    check_run_folder(tmp_path, overwrite=True)
    clear_run(tmp_path)
    assert names(tmp_path) == set()


def test_a_winner_that_was_being_written_is_removed(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    for state in ("new", "old"):
        (run / f".global_best.{state}-01ab").mkdir()
        (run / f".global_best.{state}-01ab" / "model.safetensors").write_text("half")
    check_run_folder(run, overwrite=True)
    clear_run(run)
    assert tree(run) == set()


def test_clearing_that_was_cut_can_be_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, unlink, calls = a_run(tmp_path / "run"), Path.unlink, []

    def cut(path: Path, missing_ok: bool = False) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", cut)
        with pytest.raises(KeyboardInterrupt):
            clear_run(run)
    clear_run(run)
    assert names(run) == set()


@pytest.mark.parametrize("name", [".config.json.tmp", ".modelswarms-0123456789abcdef.tmp"])
def test_a_link_under_a_temporary_name_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda count: "0123456789abcdef")  # nobody can foresee it
    (tmp_path / "mine").write_text("mine")
    begin_run(tmp_path / "run")
    (tmp_path / "run" / name).symlink_to(tmp_path / "mine")
    with suppress(InputError):
        write_json(tmp_path / "run" / "config.json", {})
    assert (tmp_path / "mine").read_text() == "mine"


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


def test_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"old": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5, limits[1]))
    try:
        with pytest.raises(InputError, match=r"cannot write .*x\.json: File too large"):
            write_json(tmp_path / "x.json", {"new": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
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
