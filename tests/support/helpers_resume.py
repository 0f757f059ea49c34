"""Runs that are cut at a write, and what a run has found, to compare it with one that was not cut."""

import os
from contextlib import contextmanager
from pathlib import Path

from helpers_search import told

from modelswarms_fast.records.run_folder import read_json

# What differs between two runs of the same.
COSTS = {"seconds", "wall_seconds", "engine_idle_share", "prompts_per_second", "auto_timings", "expert_passes"}


class Cut(BaseException):
    """As sudden as a kill: nothing that handles errors handles it."""


@contextmanager
def cut_at(monkeypatch, number, torn=False):
    """Cut before a write is on the disk, the first being 1; `torn`: of what it has written, half is there."""
    fsync, done = os.fsync, []

    def sync(handle):
        done.append(handle)
        if len(done) != number:
            return fsync(handle)
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if torn and path.is_file():
            lines = path.read_bytes()
            start = lines.rfind(b"\n", 0, -1) + 1 if path.suffix == ".jsonl" else 0
            os.truncate(path, (start + len(lines)) // 2)
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", sync)
        yield done


def found(run):
    """What a run has found and written, without what it cost in seconds."""
    run = Path(run)
    summary = {name: value for name, value in read_json(run / "summary.json").items() if name not in COSTS}
    winner = {path.name: path.read_bytes() for path in (run / "global_best").iterdir()}
    answers = read_json(run / "answers.json") if (run / "answers.json").exists() else None
    return {"history": told(run), "summary": summary, "winner": winner, "answers": answers}


def left_over(folder):
    """Temporary files anywhere below a folder."""
    return [path for path in Path(folder).rglob(".*") if path.name.endswith(".tmp") or "global_best" in path.name]
