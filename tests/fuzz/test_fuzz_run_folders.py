"""Run folders of which one file is damaged: a report is written, or one sentence says which file it is."""

import json
import tempfile
from pathlib import Path

from fuzzing import JSON, changed, damaged_bytes, fuzz, places, run_case
from helpers_run_folder import write_whole_run
from hypothesis import given
from hypothesis import strategies as st

from modelswarms_fast.records.checks import check_history
from modelswarms_fast.records.report import write_report
from modelswarms_fast.records.run_folder import read_whole_history
from modelswarms_fast.runs.resume import resume

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


@fuzz(30)
@given(damaged())
def test_fuzz_reports_of_damaged_runs(case):
    run_case("report of a damaged run", lambda: report(*case))


@st.composite
def damaged_lines(draw: st.DrawFn) -> bytes:
    """A history of a search that can go on, with one line of it damaged."""
    whole = [json.loads(line) | {"evaluated": [True] * 3} for line in LINES]
    number = draw(st.integers(0, len(whole) - 1))
    place = draw(st.sampled_from(list(places(whole[number]))))
    whole[number] = changed(whole[number], place, draw(JSON | st.just(...)))
    content = "".join(json.dumps(line) + "\n" for line in whole).encode()
    return draw(damaged_bytes(content)) if draw(st.integers(0, 4)) == 0 else content


@fuzz(150)
@given(damaged_lines())
def test_fuzz_histories_to_go_on_from(tmp_path_factory, content):
    def case():
        path = tmp_path_factory.getbasetemp() / "history.jsonl"
        path.write_bytes(content)
        lines = read_whole_history(path)
        assert all(line["iteration"] == number for number, line in enumerate(lines))
        check_history(lines, path)

    run_case("histories to go on from", case)


@fuzz(60)
@given(JSON | st.dictionaries(st.sampled_from(["run", "sources", "task", "methods", "ranges", "base"]), JSON))
def test_fuzz_configs_to_go_on_from(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp() / "resumed"
    folder.mkdir(exist_ok=True)
    base = {"run": "search", "sources": ["nowhere"], "experts": ["a"], "base": "nowhere", "task": "exact_match"}
    given_ = base | content if isinstance(content, dict) else content
    (folder / "config.json").write_text(json.dumps(given_))
    (folder / "files.jsonl").write_text('{"files of": "a run of modelswarms_fast"}\n"config.json"\n')
    run_case("configs to go on from", lambda: resume(folder), untouched=folder)
