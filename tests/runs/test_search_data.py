"""What a run says of its data, and the examples that it keeps."""

import json

import helpers_search
import pytest

from modelswarms_fast.errors import InputError
from modelswarms_fast.runs.evaluate import evaluate
from modelswarms_fast.runs.report import report
from modelswarms_fast.runs.search import search
from modelswarms_fast.runs.token_swarm import token_swarm

tiny = helpers_search.tiny

ROWS = [{"word": f"{a}{b}"} for a in "bcdf" for b in "aeiou"]
DIVIDED = {"map": {"prompt": "word"}, "limit_dev": 4, "split_seed": 3}


@pytest.fixture
def words(tmp_path):
    path = tmp_path / "words.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, ROWS[0]]))
    return path


def read(path):
    return json.loads(path.read_text())


def test_a_file_that_was_divided_is_kept_with_the_run(tiny, words, tmp_path, capsys):
    out = tmp_path / "run"
    given = tiny | {"iterations": 1}
    found = search(**given | {"data": words}, **DIVIDED, out=out, progress=True)
    line = f"{words}: JSONL; dev 8, test 13 (random split, seed 3)"
    assert line in capsys.readouterr().err
    config = read(out / "config.json")
    assert config["data_read"] == [line]
    assert config["data_warnings"] == [f"{words}: 1 of 13 test examples stand there more than once"]
    page = (out / "report.html").read_text()
    assert line in page
    assert f"Warning: {config['data_warnings'][0]}." in page
    kept = read(out / "data.json")
    assert [len(kept[split]) for split in ("dev", "test")] == [8, 13]
    assert kept["dataset"] == "words"

    words.unlink()  # from here on the run folder is enough
    report(out, evaluate=True, given={"task": tiny["task"]})
    end = read(out / "test_scores.json")["groups"]["best"]["scores"][found["end"]["particle"]]
    assert sum(end) / len(end) == pytest.approx(found["end"]["test"], abs=1e-6)
    more = {"base": tiny["base"], "task": tiny["task"], "engine": "transformers", "dtype": "float32"}
    alone = evaluate(str(out / "global_best"), data=out / "data.json", **more)
    assert alone["score"] == pytest.approx(found["end"]["test"], abs=1e-6)
    assert alone["data_read"] == [f"{out / 'data.json'}: JSON; dev 8, test 13"]
    again = search(**given | {"data": out / "data.json"}, limit_dev=4, out=out, overwrite=True)
    assert (again["end"], again["examples"]) == (found["end"], found["examples"])
    assert read(out / "data.json") == kept, "what a run reads is not lost by replacing the run"


def test_a_cut_run_goes_on_with_the_same_examples_alone(tiny, words, tmp_path):
    out = tmp_path / "run"
    given = tiny | {"iterations": 1, "data": words}
    found = search(**given, **DIVIDED, out=out)
    (out / "summary.json").unlink()
    assert search(**given, **DIVIDED, out=out, resume=True)["end"] == found["end"]
    (out / "summary.json").unlink()
    words.write_text(words.read_text().replace("ba", "be"))
    with pytest.raises(InputError, match="was started with other data"):
        search(**given, **DIVIDED, out=out, resume=True)


def test_several_tasks_keep_a_file_each_and_a_file_of_splits_none(tiny, words, tmp_path):
    out = tmp_path / "run"
    options = {"tasks": tiny["task"]}
    given = tiny | {"iterations": 0, "task": "multitask", "options": options}
    search(**given | {"data": [words, words]}, **DIVIDED, out=out)
    assert [read(out / f"data_{number}.json")["dataset"] for number in (1, 2)] == ["words", "words"]
    report(out, evaluate=True, given={"task": "multitask", "options": options})
    search(**given | {"data": [tiny["data"]] * 2}, out=out, overwrite=True)
    assert not [path.name for path in out.glob("data*")]


def test_a_token_swarm_says_and_keeps_it_too(tiny, words, tmp_path):
    out = tmp_path / "run"
    given = {"base": tiny["base"], "task": tiny["task"], "iterations": 0}
    token_swarm(tiny["experts"], data=words, **given, **DIVIDED, out=out)
    assert "random split, seed 3" in read(out / "config.json")["data_read"][0]
    assert len(read(out / "data.json")["test"]) == 13
