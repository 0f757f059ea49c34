"""Run folders of which one file is damaged: a report is written, or one sentence says which file it is."""

import json
import tempfile
from pathlib import Path

from fuzzing import JSON, changed, damaged_bytes, fuzz, places, run_case
from helpers_run_folder import write_whole_run
from hypothesis import given
from hypothesis import strategies as st

from modelswarms_fast.records.report import write_report

FILES = ("config.json", "history.jsonl", "summary.json", "test_scores.json", "answers.json")
with tempfile.TemporaryDirectory() as _folder:
    write_whole_run(Path(_folder))
    WHOLE = {name: Path(_folder, name).read_bytes() for name in FILES}
LINES = WHOLE["history.jsonl"].splitlines()


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    """A file of a run, and what it holds instead."""
    name = draw(st.sampled_from(FILES))
    if draw(st.integers(0, 4)) == 0:
        return name, draw(damaged_bytes(WHOLE[name]))
    lines, number = [WHOLE[name]], 0
    if name == "history.jsonl":
        lines, number = list(LINES), draw(st.integers(0, len(LINES) - 1))
    content = json.loads(lines[number])
    place = draw(st.sampled_from(list(places(content))))
    content = changed(content, place, draw(JSON | st.just(...)))
    lines[number] = json.dumps(content).encode()
    return name, b"\n".join(lines) + b"\n"


def report(name: str, content: bytes) -> None:
    """The report of a run with this file instead of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for file, whole in WHOLE.items():
            (folder / file).write_bytes(whole)
        (folder / name).write_bytes(content)
        page = write_report(folder)
        assert page.read_text().count("<script") == 0


@fuzz(60)
@given(damaged())
def test_fuzz_reports_of_damaged_runs(case):
    run_case("report of a damaged run", lambda: report(*case))
