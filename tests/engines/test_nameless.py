"""What vLLM's processes leave when they are killed while they start is removed by the next start."""

import fcntl
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from modelswarms_fast.engines.vllm import nameless
from modelswarms_fast.engines.vllm.nameless import own_folder

pytestmark = pytest.mark.vllm


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where sockets lie, and memory with names."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(nameless, "MEMORY", tmp_path / "shm")
    (tmp_path / "shm").mkdir()
    return tmp_path


def test_a_folder_for_sockets_is_gone_at_the_end(place):
    with own_folder() as folder:
        (folder / "store").touch()
        assert folder.stat().st_mode & 0o077 == 0
    assert [path.name for path in place.iterdir()] == ["shm"]


def test_what_a_killed_start_has_left_is_removed_and_nothing_else(place):
    code = (
        "import os, signal, sys, tempfile\n"
        "tempfile.tempdir = sys.argv[1]\n"
        "from modelswarms_fast.engines.vllm.nameless import own_folder\n"
        "with own_folder() as folder:\n"
        "    for name in ('psm_12', 'psm_34', 'mine'): (folder / name).touch()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(place)], check=False)
    (left,) = place.glob("modelswarms-vllm-*")
    for name in ("psm_12", "psm_56", "mine"):
        (place / "shm" / name).write_bytes(bytes(10))
    link = place / "modelswarms-vllm-link"
    link.symlink_to(place / "shm")
    with own_folder() as living:  # which another start leaves alone
        assert not left.exists()
        with own_folder():
            assert living.exists()
    assert sorted(os.listdir(place / "shm")) == ["mine", "psm_56"]
    assert link.is_symlink()


def test_a_folder_that_another_start_takes_for_a_dead_ones_is_made_anew(place, monkeypatch):
    """Between its making and its lock nothing says that its process lives."""
    real, lock, made, swept = tempfile.mkdtemp, fcntl.flock, [], []

    def mkdtemp(**where):
        made.append(Path(real(**where)))
        if len(made) == 1:
            made[0].rmdir()
        return str(made[-1])

    def flock(handle, operation):
        if len(made) == 2 and not swept:
            swept.append(made[1].rmdir())
        lock(handle, operation)

    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    monkeypatch.setattr(fcntl, "flock", flock)
    with own_folder() as folder:
        assert folder.is_dir()
        assert folder == made[2]
