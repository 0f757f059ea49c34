"""Files of examples of any content, for every kind of task: read, or refused in one sentence that names the file."""

import json
import os

import pytest
from fuzzing import JSON, TEXTS, damaged_bytes, fuzz, run_case
from hypothesis import given
from hypothesis import strategies as st

from modelswarms_fast.evaluation.objectives import load_utility

GOOD = {
    "exact_match": [{"question": f"What is {n}?", "answer": str(n)} for n in range(6)],
    "multiple_choice": [{"question": f"Which {n}?", "choices": {"A": "x", "B": "y"}, "answer": "A"} for n in range(6)],
    "perplexity": [{"prompt": "a", "text": f"text {n}"} for n in range(6)],
    "abstain": [{"question": f"Which {n}?", "choices": {"A": "x", "B": "y"}, "answer": "A"} for n in range(6)],
    "json:dumps": [{"prompt": f"text {n}"} for n in range(6)],
}
SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", "", ".txt")
OPTIONS = (
    "map",
    "dev_split",
    "test_split",
    "split_seed",
    "limit_dev",
    "max_tokens",
    "scoring",
    "options",
    "temperature",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where each case writes its file."""
    return tmp_path_factory.mktemp("data")


def contents(rows: list[dict]) -> dict[str, bytes]:
    """The same examples in every form of text."""
    names = list(rows[0])
    table = [names, *([str(row.get(name)) for name in names] for row in rows)]
    return {
        "splits": json.dumps({"dev": rows[:3], "test": rows[3:]}).encode(),
        "list": json.dumps(rows).encode(),
        "columns": json.dumps({name: [row.get(name) for row in rows] for name in names}).encode(),
        "lines": "\n".join(map(json.dumps, rows)).encode(),
        "csv": "\n".join(",".join(cells) for cells in table).encode(),
        "utf-16": json.dumps({"dev": rows[:3], "test": rows[3:]}).encode("utf-16"),
    }


@fuzz(150)
@given(st.data())
def test_fuzz_bytes_of_data_files(folder, data):
    task = data.draw(st.sampled_from(sorted(GOOD)))
    form = contents(GOOD[task])[data.draw(st.sampled_from(["splits", "list", "columns", "lines", "csv", "utf-16"]))]
    path = folder / f"data{data.draw(st.sampled_from(SUFFIXES))}"
    path.write_bytes(data.draw(damaged_bytes(form) | st.just(form)))
    run_case("bytes of data files", lambda: load_utility(task, path))


@fuzz(150)
@given(st.data())
def test_fuzz_values_of_data_files(folder, data):
    task = data.draw(st.sampled_from(sorted(GOOD)))
    rows = [dict(row) for row in GOOD[task]]
    row = rows[data.draw(st.integers(0, 5))]
    name = data.draw(st.sampled_from(sorted(row)) | TEXTS)
    value = data.draw(JSON | st.just(...))
    row.pop(name, None)
    if value is not ...:
        row[name] = value
    content = {"dev": rows[:3], "test": rows[3:]}
    if data.draw(st.booleans()):
        content[data.draw(st.sampled_from(["dev", "test", "dataset", "train", "more"]))] = data.draw(JSON)
    path = folder / "values.json"
    path.write_text(json.dumps(content))
    run_case("values of data files", lambda: load_utility(task, path))


@fuzz(120)
@given(st.data())
def test_fuzz_options_of_tasks(folder, data):
    task = data.draw(st.sampled_from([*sorted(GOOD), "reward", "judge", "toxicity", "multitask", "lm_eval:no"]) | TEXTS)
    path = folder / "options.json"
    rows = GOOD.get(task, GOOD["exact_match"])
    path.write_text(json.dumps({"dev": rows[:3], "test": rows[3:]}))
    own = [
        "retries",
        "timeout",
        "concurrency",
        "endpoint",
        "model",
        "weights",
        "tasks",
        "scale",
        "low",
        "batch",
        "label",
    ]
    options = data.draw(st.dictionaries(st.sampled_from(own) | TEXTS, TEXTS, max_size=2))
    name = data.draw(st.sampled_from(OPTIONS))
    settings = {"options": options} | ({name: data.draw(JSON)} if data.draw(st.booleans()) else {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        run_case("options of tasks", lambda: load_utility(task, path, **settings))


@fuzz(30)
@given(st.sampled_from(SUFFIXES), st.sampled_from(["pipe", "folder", "device", "loop", "gone", "memory"]))
def test_fuzz_kinds_of_data_files(folder, suffix, kind):
    path = folder / f"kind{suffix}"
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)
    makers = {
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "device": lambda: path.symlink_to("/dev/zero"),
        "loop": lambda: path.symlink_to(path.name),
        "memory": lambda: path.symlink_to("/proc/self/mem"),
        "gone": lambda: None,
    }
    makers[kind]()
    run_case("kinds of data files", lambda: load_utility("exact_match", path))
