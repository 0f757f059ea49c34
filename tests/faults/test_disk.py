"""Disks that are full, folders that vanish or cannot be written: one sentence, and the run goes on later."""

import errno
import os
import re
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

import helpers_search
import pytest
from helpers_resume import found, left_over

from modelswarms_fast.engines.transformers import TransformersEngine
from modelswarms_fast.errors import InputError
from modelswarms_fast.records import run_folder
from modelswarms_fast.runs.resume import resume
from modelswarms_fast.runs.search import search
from modelswarms_fast.weights import export as exports
from modelswarms_fast.weights.experts import read_experts

tiny = helpers_search.tiny
PACKAGE = Path(exports.__file__).parents[1]


@pytest.fixture(scope="module")
def settings(tiny):
    return tiny | {"particles": 4, "iterations": 2, "confirm": 2}


@pytest.fixture(scope="module")
def uncut(settings, tmp_path_factory):
    """What a search finds that nothing hinders."""
    out = tmp_path_factory.mktemp("uncut") / "run"
    search(**settings, out=out)
    return found(out)


@contextmanager
def largest_file(nbytes):
    """No file may be larger, as where the disk is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def go_on(settings, out):
    """Go on, or begin again where nothing says yet what was asked for."""
    if (out / "config.json").exists():
        resume(out)
    else:
        search(**settings, out=out)


@pytest.mark.parametrize("nbytes", [500, 3000, 6000, 10_000, 20_000])
def test_a_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_room(settings, uncut, tmp_path, nbytes):
    """Lists and scores, config.json, the winner, its tokenizer, the summary, answers and the report."""
    out = tmp_path / "run"
    with largest_file(nbytes), pytest.raises(InputError, match=r"written|write") as caught:
        search(**settings, out=out)
    assert "\n" not in str(caught.value)
    assert re.search("make room|has room|another folder", str(caught.value))
    go_on(settings, out)
    assert found(out) == uncut
    assert not left_over(out)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_each_reason_of_the_disk_is_one_sentence(settings, uncut, tmp_path, monkeypatch, number):
    """At a write in the middle, such as of a mount that turned read-only."""
    fsync, calls, out = os.fsync, [], tmp_path / "run"

    def failing(handle):
        calls.append(1)
        if len(calls) > 12:
            raise OSError(number, os.strerror(number))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(InputError, match=os.strerror(number)) as caught:
            search(**settings, out=out)
    assert "\n" not in str(caught.value)
    go_on(settings, out)
    assert found(out) == uncut


def at_step(monkeypatch, number, act):
    step, calls = TransformersEngine.step, []

    def disturbed(self):
        calls.append(1)
        if len(calls) == number:
            act()
        return step(self)

    monkeypatch.setattr(TransformersEngine, "step", disturbed)


@pytest.mark.parametrize("step", [2, 9])
def test_a_run_folder_that_is_removed_keeps_its_winner_and_is_one_sentence(settings, tmp_path, monkeypatch, step):
    out = tmp_path / "run"
    at_step(monkeypatch, step, lambda: shutil.rmtree(out))
    with pytest.raises(InputError, match=f"^cannot read {out / 'history.jsonl'}: No such file or directory") as caught:
        search(**settings, out=out)
    assert "\n" not in str(caught.value)
    assert read_experts([out / "global_best"], minimum=1).rows.isfinite().all()


@contextmanager
def as_nobody():
    """Root may write anywhere."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_read_only_folder_is_one_sentence(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o555)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o011)
    with as_nobody(), pytest.raises(InputError, match=f"{folder / 'run'}.*Permission denied") as caught:
        run_folder.begin_run(folder / "run")
    assert "\n" not in str(caught.value)


def test_there_must_be_room_for_the_winner_before_the_first_iteration(settings, tmp_path, monkeypatch):
    real, out = os.statvfs, tmp_path / "run"

    def little(path):
        kept = real(path)
        return os.statvfs_result((*kept[:2], kept[2], 3, 1, *kept[5:10]))

    steps = []
    at_step(monkeypatch, 1, lambda: steps.append(1))
    monkeypatch.setattr(exports.os, "statvfs", little)
    with pytest.raises(InputError, match=rf"^{out} has room for \d+ bytes, and the winner needs \d+: make room"):
        search(**settings, out=out)
    assert not steps


def test_only_clocks_that_never_jump_are_read():
    """A run that waits or measures by the time of day would be upset when somebody sets it.

    One file may write it: model_swarm's log lines and names of run folders have it.
    """
    pattern = re.compile(r"\btime\.(time|time_ns|ctime|localtime|gmtime|strftime)\b|\bdatetime\b|from time import")
    writes = PACKAGE / "compat" / "model_swarm" / "folders.py"
    assert re.findall(r"datetime\.\w+\(.*", writes.read_text()) == ['datetime.now().strftime("%Y-%m-%d %H:%M:%S")']
    for path in set(PACKAGE.rglob("*.py")) - {writes}:
        assert not pattern.search(path.read_text()), path
