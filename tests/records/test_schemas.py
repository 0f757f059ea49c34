"""Schemas of a run folder's files: what a run writes fits them, what it never writes is named in one sentence."""

import json
import re
from pathlib import Path

import pytest
from helpers_run_folder import ANSWERS, CONFIG, HISTORY, SUMMARY, TEST_SCORES, write_run, write_whole_run

from modelswarms_fast.errors import InputError
from modelswarms_fast.records.analysis import read_run
from modelswarms_fast.records.checks import can_go_on
from modelswarms_fast.records.report import write_plots, write_report
from modelswarms_fast.records.schemas import SCHEMAS

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "run-folder.md"


@pytest.mark.parametrize("file", SCHEMAS)
def test_the_reference_has_a_row_with_a_meaning_for_each_field_of_a_schema(file):
    table = REFERENCE.read_text().partition(f"<!-- fields of {file} -->")[2].partition("<!-- end of fields -->")[0]
    rows = {row[0]: row[1:] for row in re.findall(r"^\| `(\S+)` \| (.+) \| (.+) \|$", table, re.MULTILINE)}
    assert {field.alias or name for name, field in SCHEMAS[file].model_fields.items()} <= rows.keys()
    assert table.count("\n| `") == len(rows)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("config.json", CONFIG | {"experts": [1]}, "config.json: experts.0 is not what a run writes"),
        ("config.json", CONFIG | {"experts": []}, "config.json: experts is not"),
        ("config.json", CONFIG | {"first": "a"}, "config.json: first is not"),
        ("summary.json", SUMMARY | {"start": 3}, "summary.json: start is not"),
        ("summary.json", SUMMARY | {"evaluations": "12"}, "summary.json: evaluations is not"),
        ("summary.json", SUMMARY | {"seconds": {"total": [1]}}, r"summary.json: seconds.total is not"),
        ("summary.json", SUMMARY | {"mixture": {"a": 1e200}}, r"summary.json: mixture.a is not"),
        ("answers.json", ANSWERS | {"gained": [{}]}, r"answers.json: gained.0.example is not"),
        ("answers.json", ANSWERS | {"counts": {"gained": -1}}, r"answers.json: counts.gained is not"),
        ("test_scores.json", {"groups": {}}, r"test_scores.json: the groups are not those of a run"),
        ("test_scores.json", {"groups": {"experts": {"scores": 1}}}, r"test_scores.json: groups.experts.scores is not"),
    ],
)
def test_what_no_run_writes_is_one_sentence_with_its_place(tmp_path, name, content, sentence):
    folder = write_whole_run(tmp_path)
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(InputError, match=sentence):
        write_report(folder)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"utilities": [0.1, 0.2]}, "line 3: a list of particles does not fit"),
        ({"utilities": ["0.1", None, None]}, r"line 3: utilities.0 is not"),
        ({"iteration": 7}, "line 3: iteration does not fit"),
        ({"restarts": [3]}, "line 3: the number of a particle does not fit"),
        ({"improved": [-1]}, r"line 3: improved.0 is not"),
        ({"global_best_mixture": [1.0]}, "line 3: a mixture does not fit"),
        ({"mixtures": [[1.0, 0.0, 0.0]]}, "line 3: a list of particles does not fit"),
        ({"scores": [[1, 0], None, None]}, "line 3: a list of scores does not fit"),
        ({"global_best": {"particle": 9, "utility": 0.1}}, "line 3: the number of a particle does not fit"),
        ({"seconds": {"load": "long"}}, r"line 3: seconds.load is not"),
    ],
)
def test_a_line_that_does_not_fit_its_schema_or_the_others_is_named(tmp_path, change, sentence):
    write_whole_run(tmp_path)
    lines = [json.loads(text) for text in (tmp_path / "history.jsonl").read_text().splitlines()]
    lines[2] |= change
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    with pytest.raises(InputError, match=rf"history.jsonl: {sentence}"):
        read_run(tmp_path)


def test_a_search_goes_on_only_from_lines_that_lack_nothing_and_fit_those_before():
    line = HISTORY[0] | {"evaluated": [True] * 3, "improved": [0], "scores": [[1, "nan"], None, [0.5, None]]}
    assert can_go_on(line, [])
    assert can_go_on(line | {"iteration": 1}, [line])
    for change in (
        {"iteration": 2},
        {"scores": [["1", 0]]},
        {"scores": [[1]] * 3},
        {"global_best": None},
        {"evaluated": []},
    ):
        assert not can_go_on(line | {"iteration": 1} | change, [line])
    for name in ("utilities", "evaluated", "improved", "scores", "iteration"):
        assert not can_go_on({key: value for key, value in line.items() if key != name}, [])
    assert not can_go_on([], [])


def test_names_that_are_not_utf8_or_look_like_markup_are_drawn(tmp_path):
    names = ["caf\udce9", "a[/x]", "$x$ \x1b[31m"]
    run = write_run(
        tmp_path, config=CONFIG | {"experts": names}, summary=SUMMARY | {"mixture": dict.fromkeys(names, 0.5)}
    )
    (run / "test_scores.json").write_text(json.dumps(TEST_SCORES))
    page = write_report(run).read_text()
    assert "a[/x]" in page
    assert all(path.read_bytes().decode() for path in write_plots(run, tmp_path / "plots"))
