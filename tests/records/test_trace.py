"""A trace replaces an earlier trace and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelswarms_fast.errors import InputError
from modelswarms_fast.records.trace import Trace


def test_a_trace_replaces_a_trace(tmp_path: Path) -> None:
    for name in ("first", "second"):
        trace = Trace(tmp_path / "new" / "trace.json")
        trace.watch(name, 0, 1.0, 2.0)
        trace.write()
        trace.write()
    assert "second" in (tmp_path / "new" / "trace.json").read_text()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["trace.json"]


@pytest.mark.parametrize("content", [b"", b'{"dev": []}', b'{"traceEvents"', b"\xff" * 100, b"[]"])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.json").write_bytes(content)
    with pytest.raises(InputError, match=r"data\.json is there and is no trace, so it is not replaced"):
        Trace(tmp_path / "data.json")
    assert (tmp_path / "data.json").read_bytes() == content


def test_folders_links_and_pipes_are_refused(tmp_path: Path) -> None:
    Trace(tmp_path / "trace.json").write()
    (tmp_path / "link").symlink_to(tmp_path / "trace.json")
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "link", tmp_path / "dangling", tmp_path / "pipe", Path("/dev/null"), Path()):
        with pytest.raises(InputError, match="is there and is no trace"):
            Trace(path)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError):
        Trace(tmp_path / name)
