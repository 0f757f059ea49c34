"""Runs that are killed at random moments, go on, and end with the same bits: python tests/faults/kills.py.

A run is started in a process of its own and killed with SIGKILL at a moment drawn from its whole length, imports left
out. It goes on by `modelswarms-fast resume`, is perhaps killed again, and in the end must have found what a run has
that was never cut: the same history, winner and exported bytes. After each kill nothing may be left of it: no process,
no shared memory, and in the end no temporary file.

Processes are forked from this one, which has imported everything: that saves ten seconds a run.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    ROOT = Path(__file__).parents[2]
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import helpers_search

from modelswarms_fast.cli import main as command_line
from modelswarms_fast.records.run_folder import read_history, read_json

MARK = "MODELSWARMS_KILLS"  # in the environment of a run and of all processes that it starts
AFTER = 3.0  # seconds after the first score in which a late kill comes
GONE = 30.0  # seconds that processes have to end in after a kill
CACHES = ("torchinductor_",)  # of torch, which it would find again
SHARED = Path("/dev/shm")
PRIVATE: list[bool] = []  # not empty: SHARED is of this process and its runs alone

# What differs between two runs of the same.
COSTS = {
    "seconds", "wall_seconds", "engine_idle_share", "prompts_per_second", "auto_timings", "expert_passes", "prompts",
    "tokens", "reused_scores", "skipped_examples",
}  # fmt: skip
RESULTS = {"summary.json", "sweep.json", "study.json", "baselines.json", "answers.json", "test_scores.json"}
TRANSFORMERS = {
    "search, state weights": ["search", "--state", "weights", "--particles", "5", "--confirm", "2"],
    "search, state mixture": ["search", "--state", "mixture", "--particles", "5", "--final-test"],
    "search, stopped early": ["search", "--particles", "4", "--stop-early", "--task", "helpers_search:rich"],
    "search, every coordinate": ["search", "--randomness", "coordinate", "--row-dtype", "bfloat16"],
    "search, two engines": ["search", "--engines", "2", "--particles", "4"],
    "search, cma-es": ["search", "--policy", "cma-es", "--particles", "4"],
    "search, guided": ["search", "--policy", "guided", "--particles", "4", "--choose", "posterior"],
    "sweep": ["sweep", "--searches", "2"],
    "study": ["study", "--seeds", "1"],
    "compare": ["compare", "--budget", "9", "--methods", "best_expert,random_search,greedy_soup,model_swarms"],
    "token-swarm": ["token-swarm", "--particles", "4", "--limit-dev", "6"],
}
VLLM = {
    "vLLM, merged": ["search", "--serve", "merged", "--particles", "5"],
    "vLLM, slots": ["search", "--serve", "slots", "--particles", "5"],
    "vLLM, mixture": ["search", "--serve", "mixture", "--particles", "5"],
    "vLLM, two ranks": ["search", "--serve", "merged", "--particles", "4", "--tensor-parallel", "2"],
}
SLOW = {"search, two engines": 0.05, "vLLM, two ranks": 0.5}
"""How often a kind is drawn beside the others."""


class Runs:
    """Runs of some kinds over one tiny base, and what they find if nothing happens to them."""

    def __init__(self, scratch: Path, kinds: dict[str, list[str]], seed: int) -> None:
        self._scratch, self._kinds, self._random = scratch, kinds, random.Random(seed)
        shape = {"vocab_size": 64, "hidden_size": 128, "head_dim": 32} if kinds is VLLM else {}
        self._tiny = helpers_search.make_tiny(scratch / "tiny", **shape)
        self._uncut: dict[str, tuple[float, dict[str, Any]]] = {}
        self.kills = 0
        self.counts: Counter[str] = Counter()
        """Kills by kind, and by what the run had come to."""
        self.wrong: list[str] = []
        """What was not as it must be."""

    def attempt(self, most: int) -> None:
        """One run that is killed up to `most` times, goes on each time, and is compared in the end."""
        names = list(self._kinds)
        name = self._random.choices(names, [SLOW.get(one, 1.0) for one in names])[0]
        if name not in self._uncut:
            folder = self._folder("uncut")
            seconds = self._run(self._command(name, folder), None)
            self._uncut[name] = seconds, found(folder)
        seconds, expected = self._uncut[name]
        out = self._folder("cut")
        for _ in range(self._random.randint(1, most)):
            # Most of a run on vLLM is the start of its engine, so half of its kills wait for a score.
            late = self._kinds is VLLM and self._random.random() < 0.5
            moment = self._random.uniform(0.0, AFTER if late else seconds)
            if self._run(self._again(name, out), moment, out if late else None) >= 0:
                break  # it has ended before
            self.kills += 1
            self.counts[name] += 1
            self.counts[come_to(out)] += 1
        else:
            self._run(self._again(name, out), None)
        self._compare(name, out, expected)

    def _command(self, name: str, out: Path) -> list[str]:
        command, *options = self._kinds[name]
        tiny = self._tiny
        given = ["--base", tiny["base"], "--data", str(tiny["data"]), "--out", str(out), "--dtype", "float32"]
        if "--task" not in options:
            given += ["--task", tiny["task"]]
        if command not in ("compare",):
            given += ["--iterations", "2"]
        given += ["--seed", "5"]
        if command != "token-swarm":
            engine = ["--parity-check", "off", "--max-model-len", "64"] if self._kinds is VLLM else []
            given += ["--engine", "vllm" if self._kinds is VLLM else "transformers", *engine]
        kind = ["seeds"] if command == "study" else []
        return [command, *kind, str(tiny["experts"]), *given, *options]

    def _again(self, name: str, out: Path) -> list[str]:
        """The command that begins a run, or goes on with it."""
        if (out / "config.json").exists():
            return ["resume", str(out)]
        return self._command(name, out)

    def _folder(self, what: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=what, dir=self._scratch)) / "run"

    def _run(self, words: Sequence[str], moment: float | None, scored: Path | None = None) -> float:
        """Run a command; the seconds that it took, or -1 if it was killed at the moment.

        The moment is counted from the start, or from the first score that it adds to the folder `scored`.
        """
        temporary = Path(tempfile.mkdtemp(prefix="tmp", dir=self._scratch))
        log = temporary.with_suffix(".log")
        ready, told = os.pipe()
        child = os.fork()
        if child == 0:
            _become(words, temporary, log, told)
        os.close(told)
        os.read(ready, 1)  # it begins
        os.close(ready)
        began, status = time.monotonic(), None
        counted, before = began, 0 if scored is None else size_of_scores(scored)
        while status is None and (moment is None or time.monotonic() - counted < moment):
            pid, ended = os.waitpid(child, os.WNOHANG)
            status = ended if pid else None
            time.sleep(0.005)
            if scored is not None:
                if size_of_scores(scored) == before:
                    counted = time.monotonic()
                else:
                    scored = None
        seconds = time.monotonic() - began
        if status is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        elif status != 0 and "has ended; there is nothing to resume" not in tail(log):
            self.wrong.append(f"{' '.join(words[:1])} ended with {os.waitstatus_to_exitcode(status)}: {tail(log)}")
        self._check_left(child, temporary, killed=status is None)
        shutil.rmtree(temporary, ignore_errors=True)
        log.unlink(missing_ok=True)
        return -1.0 if status is None else seconds

    def _check_left(self, session: int, temporary: Path, *, killed: bool) -> None:
        end = time.monotonic() + GONE
        while (left := processes(session, str(temporary))) and time.monotonic() < end:
            time.sleep(0.02)
        for pid in left:
            self.wrong.append(f"process {pid} is left")
            os.kill(pid, signal.SIGKILL)
        if PRIVATE:
            for path in SHARED.iterdir():
                self.wrong.append(f"{path} is left of {path.stat().st_size} bytes")
                path.unlink()
        if not killed:  # of a run that is killed while vLLM starts, the next start removes what is left
            self.wrong += [f"{path} is left" for path in temporary.iterdir() if not path.name.startswith(CACHES)]

    def _compare(self, name: str, out: Path, expected: dict[str, Any]) -> None:
        try:
            now = found(out)
        except Exception as error:
            self.wrong.append(f"{name}: {type(error).__name__}: {error}")
            return
        for what in sorted(expected.keys() | now.keys()):
            if now.get(what) != expected.get(what):
                self.wrong.append(f"{name}: {what} differs")
        self.wrong += [f"{name}: {path.relative_to(out)} is left" for path in left_over(out)]
        shutil.rmtree(out.parent)


def _become(words: Sequence[str], temporary: Path, log: Path, told: int) -> None:
    """Be a run from here on."""
    status = 70
    try:
        os.setsid()
        os.environ |= {MARK: str(temporary), "TMPDIR": str(temporary)}
        tempfile.tempdir = None
        output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = ["modelswarms-fast", *words]
        os.write(told, b"1")
        os.close(told)
        command_line.main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def found(folder: Path) -> dict[str, Any]:
    """What a run has found, file by file, without what it has cost."""
    contents: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name == "history.jsonl":
            contents[name] = _plain(read_history(path))
        elif path.name in RESULTS:
            contents[name] = _plain(read_json(path))
        elif path.parent.name == "global_best" and path.is_file():
            contents[name] = path.read_bytes()
    return contents


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items() if name not in COSTS}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def come_to(folder: Path) -> str:
    """What a run that was killed had come to."""
    if not (folder / "config.json").exists():
        return "killed before config.json"
    if any(folder.rglob("summary.json")):
        return "killed after a summary.json"
    return "killed after the first score" if size_of_scores(folder) else "killed before the first score"


def size_of_scores(folder: Path) -> int:
    """Bytes of all scores below a run folder."""
    return sum(path.stat().st_size for path in folder.rglob("scores.jsonl"))


def left_over(folder: Path) -> list[Path]:
    """Temporary files anywhere below a folder."""
    return [path for path in folder.rglob(".*")]


def processes(session: int, mark: str) -> list[int]:
    """Processes that live and are of a session, or have the mark in their environment."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                own = f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0")
                if fields[0] != "Z" and (own or int(fields[3]) == session):
                    pids.append(int(entry.name))
            except (OSError, IndexError):
                continue
    return pids


def tail(log: Path) -> str:
    """The last lines of what a run has printed."""
    return " / ".join(log.read_text(errors="replace").strip().splitlines()[-3:])[-600:]


def have_own_memory() -> bool:
    """Give this process a /dev/shm of its own, so that no other is blamed; whether that is allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, recursive_private = 0x20000, 0x4000 | 1 << 18
    return bool(
        libc.unshare(new_namespace) == 0
        and libc.mount(b"none", b"/", None, recursive_private, None) == 0
        and libc.mount(b"tmpfs", str(SHARED).encode(), b"tmpfs", 0, b"size=8g") == 0
    )


@contextmanager
def environment() -> Iterator[Path]:
    """A scratch folder, and what every run needs of its surroundings."""
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
    support = str(Path(helpers_search.__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [support, os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory(prefix="kills-") as scratch:
        yield Path(scratch)


def kill_runs(kinds: dict[str, list[str]], kills: int, *, seed: int, say: bool = False) -> dict[str, Any]:
    """Kill runs so often, at least; what came of it."""
    import_all(kinds)
    with environment() as scratch:
        runs = Runs(scratch, kinds, seed)
        tried = said = 0
        while runs.kills < kills:
            runs.attempt(min(4, kills - runs.kills))
            tried += 1
            if say:
                print(f"{runs.kills} kills in {tried} runs", *runs.wrong[said:], sep="\n", flush=True)
                said = len(runs.wrong)
    return {
        "kills": runs.kills,
        "runs": tried,
        "seed": seed,
        "counts": dict(sorted(runs.counts.items())),
        "memory_watched": bool(PRIVATE),
        "wrong": runs.wrong,
    }


def import_all(kinds: dict[str, list[str]]) -> None:
    """What every run imports; no thread is started."""
    import matplotlib.pyplot  # noqa: F401

    import modelswarms_fast.runs.compare
    import modelswarms_fast.runs.study
    import modelswarms_fast.runs.sweep
    import modelswarms_fast.runs.token_swarm  # noqa: F401

    if kinds is VLLM:
        from modelswarms_fast.engines.vllm.launch import import_vllm

        import_vllm()


def main() -> None:
    """Kill runs of either engine, and keep the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--transformers", type=int, default=200, metavar="KILLS")
    parser.add_argument("--vllm", type=int, default=20, metavar="KILLS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="keep the counts in this file")
    asked = parser.parse_args()
    if have_own_memory():
        PRIVATE.append(True)
    results = json.loads(asked.json.read_text()) if asked.json and asked.json.exists() else {}
    for name, kinds, kills in (("transformers", TRANSFORMERS, asked.transformers), ("vllm", VLLM, asked.vllm)):
        if kills:
            results[name] = kill_runs(kinds, kills, seed=asked.seed, say=True)
            if asked.json:
                asked.json.parent.mkdir(parents=True, exist_ok=True)
                asked.json.write_text(json.dumps(results, indent=2) + "\n")
    sys.exit(any(one["wrong"] for one in results.values()))


if __name__ == "__main__":
    main()
