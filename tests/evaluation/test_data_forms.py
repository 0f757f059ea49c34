"""Files in all forms give the utility of the canonical file; what would be wrong in silence is said."""

import csv
import io
import json
import sys

import pytest
from helpers_scorers import make_classifier
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.dataset_files import read_files
from modelswarms_fast.evaluation.objectives import Answer, load_utility

COLOURS = ["red", "green apple", "blue é"]


def questions(count, start=0):
    numbers = range(start, start + count)
    return [
        {
            "question": f"Which, {n}?",
            "choices": dict(zip("ABC", COLOURS[n % 3 :] + COLOURS[: n % 3], strict=True)),
            "answer": "ABC"[n % 2],
        }
        for n in numbers
    ]


def only(*names, **made):
    """Examples with these fields instead."""
    return lambda one: {name: one[name] for name in names} | {name: one[of] for name, of in made.items()}


TASKS = {
    "multiple_choice": only("question", "choices", "answer"),
    "abstain": only("question", "choices", "answer"),
    "exact_match": only("question", "answer"),
    "perplexity": only(prompt="question", completion="answer"),
    "toxicity": only(prompt="question"),
    "reward": only(prompt="question"),
    "judge": only(prompt="question"),
    "helpers_search:vowels": only(prompt="question"),
}


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return str(make_classifier(tmp_path_factory.mktemp("model")))


@pytest.fixture
def options(model, monkeypatch):
    monkeypatch.setattr("modelswarms_fast.evaluation.objectives.judge.Judge.check", lambda self: None)
    return {
        "toxicity": {"scorer": "helpers_toxicity:loud"},
        "reward": {"model": model, "low": "0", "high": "1"},
        "judge": {"model": "m", "endpoint": "http://127.0.0.1:1/v1"},
    }


def flat(example):
    """A line of a table."""
    return {name: value for name, value in example.items() if name != "choices"} | example.get("choices", {})


def table(rows, delimiter=","):
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, [*flat(rows[0])], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(map(flat, rows))
    return out.getvalue()


def lines(rows):
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"


def columns(rows):
    return {name: [row[name] for row in rows] for name in rows[0]}


def parquet(path, rows):
    arrow = pytest.importorskip("pyarrow")
    path.parent.mkdir(parents=True, exist_ok=True)
    pytest.importorskip("pyarrow.parquet").write_table(arrow.Table.from_pylist(rows), path)


def put(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def files(suffix, write, dev="dev", test="test"):
    def made(folder, rows):
        for split, some in zip((dev, test), rows, strict=True):
            put(folder / "quiz" / f"{split}{suffix}", write(some))
        return folder / "quiz"

    return made


def shards(folder, rows):
    for number, one in enumerate(rows[0]):
        parquet(folder / "quiz" / "data" / f"validation-0000{number}-of-00009.parquet", [one])
    parquet(folder / "quiz" / "data" / "test-00000-of-00001.parquet", rows[1])
    return folder / "quiz"


def two_files(folder, rows):
    files(".jsonl", lines)(folder, rows)
    return [folder / "quiz" / "test.jsonl", folder / "quiz" / "dev.jsonl"]


def whole(dump=json.dumps, encoding="utf-8", names=("dev", "test"), rows_as=list):
    def made(folder, rows):
        content = {name: rows_as(some) for name, some in zip(names, rows, strict=True)}
        return put(folder / "quiz.json", dump(content), encoding)

    return made


def unescaped(content):
    return json.dumps(content, ensure_ascii=False)


FORMS = {
    "byte-order mark": whole(unescaped, "utf-8-sig"),
    "UTF-16": whole(unescaped, "utf-16"),
    "UTF-16 without a mark": whole(unescaped, "utf-16-be"),
    "train and validation": whole(names=("train", "validation")),
    "train and test": whole(names=("Train", "Test")),
    "validation and test": whole(names=("valid", "test")),
    "splits of columns": whole(rows_as=columns),
    "pandas' columns": whole(
        rows_as=lambda rows: {name: dict(enumerate(one)) for name, one in columns(rows).items()},
    ),
    "JSONL": files(".jsonl", lines),
    "JSONL, called JSON": files(".json", lines, "train", "val"),
    "lists": files(".json", json.dumps),
    "CSV": files(".csv", table),
    "CSV with semicolons": files(".csv", lambda rows: table(rows, ";")),
    "TSV": files(".tsv", lambda rows: table(rows, "\t")),
    "two files": two_files,
    "Parquet": shards,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_utility_of_the_canonical_file(form, options, tmp_path):
    for task, fields in TASKS.items():
        dev, test = ([fields(one) for one in some] for some in (questions(4), questions(3, start=4)))
        more = {"options": options.get(task, {}), "limit_dev": 3}
        canonical = put(tmp_path / "canonical" / "quiz.json", json.dumps({"dev": dev, "test": test}))
        expected = load_utility(task, canonical, **more)
        utility = load_utility(task, FORMS[form](tmp_path / task, (dev, test)), **more)
        assert utility.asks == expected.asks, task
        assert utility.examples == expected.examples, task
        assert utility.dataset == expected.dataset == "quiz"
        assert utility.data[0].warnings == []


def test_each_of_several_tasks_may_have_its_own_form(tmp_path):
    dev, test = questions(4), questions(3, start=4)
    paths = [FORMS["CSV"](tmp_path / "a", (dev, test)), FORMS["UTF-16"](tmp_path / "b", (dev, test))]
    utility = load_utility("multitask", paths)
    alone = load_utility("multiple_choice", paths[1])
    assert utility.asks["dev"] == alone.asks["dev"] * 2
    assert [one.line.partition(": ")[2] for one in utility.data] == [
        "CSV, a file a split; dev 4, test 3; choices from columns A, B, …",
        "JSON; dev 4, test 3",
    ]


# Choices and answers


def choices_of(*texts):
    return dict(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", texts, strict=False))


@pytest.mark.parametrize("task", ["multiple_choice", "abstain"])
@pytest.mark.parametrize(
    ("form", "answer", "said"),
    [
        (choices_of, lambda n: "ABC"[n], ""),
        (choices_of, lambda n: "abc"[n], ""),
        (choices_of, lambda n: f"({'ABC'[n]})", ""),
        (choices_of, lambda n: n, "; answers by index from 0"),
        (choices_of, lambda n: f"{n}", "; answers by index from 0"),
        (choices_of, lambda n: n + 1, "; answers by index from 1"),
        (choices_of, lambda n: ["tin", "an  OAK", "7"][n], "; answers by text"),
        (choices_of, lambda n: ["tin", "B", 2][n], "; answers by text and key and index from 0"),
        (lambda *texts: list(texts), lambda n: n, "; choices from a list; answers by index from 0"),
        (
            lambda *texts: {"text": list(texts), "label": list("ABC")},
            lambda n: "ABC"[n],
            "; choices from labels and texts",
        ),
        (
            lambda *texts: [{"label": label, "text": text} for label, text in zip("ABC", texts, strict=True)],
            lambda n: "ABC"[n],
            "; choices from labels and texts",
        ),
    ],
)
def test_choices_and_answers_in_all_forms(task, form, answer, said, tmp_path):
    texts = ("tin", "an oak", 7)

    def rows(choices, means):
        return [{"question": f"q{n}", "choices": choices, "answer": means(n % 3)} for n in range(6)]

    def write(name, some):
        return put(tmp_path / name, json.dumps({"dataset": "x", "dev": some[:3], "test": some[3:]}))

    canonical = load_utility(task, write("canonical.json", rows(choices_of(*texts), lambda n: "ABC"[n])))
    utility = load_utility(task, write("other.json", rows(form(*texts), answer)))
    assert (utility.examples, utility.asks) == (canonical.examples, canonical.asks)
    assert utility.data[0].line == f"{tmp_path}/other.json: JSON; dev 3, test 3{said}"


def test_labels_that_are_numbers_are_keys(tmp_path):
    rows = [
        {"question": f"q{n}", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answer": answer}
        for n, answer in enumerate([1, "2", 2, "1"])
    ]
    utility = load_utility("multiple_choice", put(tmp_path / "x.json", json.dumps({"dev": rows[:2], "test": rows[2:]})))
    assert [str(one["answer"]) for one in utility.examples["dev"] + utility.examples["test"]] == ["1", "2", "2", "1"]


def test_published_files_stay_as_they_are(tmp_path):
    rows = [
        {"question": "q", "choices": {"1": 8, "2": 7.5}, "answer": 2, "more": 1},
        {"question": "Which blood?", "choices": {"A": "O", "B": "B", "C": "A"}, "answer": "A"},
    ]
    utility = load_utility("multiple_choice", put(tmp_path / "x.json", json.dumps({"dev": rows, "test": rows})))
    assert utility.examples == {"dev": rows, "test": rows}
    assert utility.data[0].notes == []


def test_as_many_choices_as_letters(tmp_path):
    rows = [{"question": f"q{n}", "choices": list("zyxwvutsrqponmlkjihgfedcba"), "answer": 25} for n in range(2)]
    path = put(tmp_path / "x.json", json.dumps({"dev": rows, "test": rows}))
    assert load_utility("multiple_choice", path).examples["dev"][0]["answer"] == "Z"
    rows[1]["choices"].append("more")
    put(path, json.dumps({"dev": rows, "test": rows}))
    with pytest.raises(InputError, match=r"dev example 1 has 27 choices in a list; give at most 26"):
        load_utility("multiple_choice", path)


def test_a_table_of_mmlu_without_a_header(tmp_path):
    path = put(tmp_path / "mmlu.csv", 'What is 1+1?,1,2,"3, or more",4,B\nWhat is 1+2?,1,2,3,4,C\n')
    utility = load_utility("multiple_choice", path)
    assert {one["answer"] for split in utility.examples.values() for one in split} == {"B", "C"}
    assert "CSV without a header; dev 1, test 1" in utility.data[0].line


def test_an_empty_cell_is_a_choice_less(tmp_path):
    put(tmp_path / "x" / "dev.csv", "question,A,B,C,answer\nq,1,2,,B\n")
    put(tmp_path / "x" / "test.csv", "question,A,B,C,answer\nr,1,2,3,C\n")
    utility = load_utility("multiple_choice", tmp_path / "x")
    assert utility.examples["dev"][0]["choices"] == {"A": "1", "B": "2"}


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        (True, "it is TRUE.", "False"),
        (False, "false", "true"),
        (["= 5.", 7], "7", "= 6."),
        (["= 5.", "five"], "so = 5.", "Five"),
        (3, "3", "4"),
    ],
)
def test_values_of_exact_match(answer, right, wrong, tmp_path):
    rows = [{"question": "q", "answer": answer}]
    utility = load_utility("exact_match", put(tmp_path / "x.json", json.dumps({"dev": rows, "test": rows})))
    assert utility.score("dev", [0], [[Answer(right)]]) == [1.0]
    assert utility.score("dev", [0], [[Answer(wrong)]]) == [0.0]


def test_several_right_choices(tmp_path):
    rows = [{"question": "q", "choices": ["x", "y", "z"], "answer": [0, 2]}]
    path = put(tmp_path / "x.json", json.dumps({"dev": rows, "test": rows}))
    utility = load_utility("multiple_choice", path)
    assert utility.examples["dev"][0]["answer"] == ["A", "C"]
    assert [utility.score("dev", [0], [[Answer(text)]]) for text in "ABC"] == [[1.0], [0.0], [1.0]]
    likely = load_utility("multiple_choice", path, scoring="loglikelihood")
    assert likely.score("dev", [0], [[Answer("", 1, value) for value in (-2.0, -3.0, -1.0)]]) == [1.0]


# Names and splits


def test_fields_are_renamed(tmp_path):
    rows = [
        {"doc": {"text": f"q{n}"}, "a.b": "no", "opa": "x", "opb": "y", "opc": None, "cop": n % 2} for n in range(4)
    ]
    path = put(tmp_path / "x.json", json.dumps({"dev": rows[:2], "test": rows[2:]}))
    utility = load_utility(
        "multiple_choice", path, map={"question": "doc.text", "choices": "opa, opb,opc", "answer": "cop"}
    )
    assert [one["question"] for one in utility.examples["dev"]] == ["q0", "q1"]
    assert utility.examples["dev"][1]["choices"] == {"A": "x", "B": "y"}
    assert load_utility("exact_match", path, map={"question": "doc.text", "answer": "a.b"}).prompts["test"] == [
        "q2",
        "q3",
    ]
    with pytest.raises(InputError, match=r'dev example 0 has no field "doc.title", which map names; it has doc, a.b'):
        load_utility("exact_match", path, map={"question": "doc.title"})


def splits_file(folder, *names):
    return put(
        folder / "x.json",
        json.dumps({name: [{"question": name, "answer": f"{i}"} for i in range(5)] for name in names}),
    )


@pytest.mark.parametrize(
    ("names", "given", "expected"),
    [
        (("train", "validation", "test"), {}, ("validation", "test")),
        (("test", "dev", "validation"), {}, ("dev", "test")),
        (("dev", "validation"), {}, ("dev", "validation")),
        (("train", "val", "test"), {"dev_split": "train"}, ("train", "test")),
        (("train", "val", "test"), {"test_split": "val"}, ("train", "val")),
        (("easy", "hard"), {"dev_split": "hard", "test_split": "easy"}, ("hard", "easy")),
        (("train", "test"), {"dev_split": "train", "test_split": "train"}, ("train", "train")),
        (("data",), {}, ("data", "data")),
    ],
)
def test_which_split_is_which(names, given, expected, tmp_path):
    utility = load_utility("exact_match", splits_file(tmp_path, *names), **given)
    assert tuple(utility.prompts[split][0] for split in ("dev", "test")) == expected
    assert utility.data[0].kept == (expected[0] == expected[1])


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        (("easy", "hard"), {}, "has the lists easy, hard, of which dev and test cannot be told; give --dev-split"),
        (("test", "hard"), {}, "has the lists test, hard"),
        (("dev", "test"), {"dev_split": "train"}, 'dev_split is "train" but .* has no such split; it has dev, test'),
    ],
)
def test_splits_that_cannot_be_told(names, given, message, tmp_path):
    with pytest.raises(InputError, match=message):
        load_utility("exact_match", splits_file(tmp_path, *names), **given)


def test_one_list_is_divided_at_random_but_always_alike(tmp_path):
    rows = [{"question": f"q{n}", "answer": "a"} for n in range(510)]
    path = put(tmp_path / "sums.jsonl", lines(rows))
    utility = load_utility("exact_match", path)
    assert utility.data[0].line == f"{path}: JSONL; dev 200, test 310 (random split, seed 0)"
    assert sorted(utility.prompts["dev"] + utility.prompts["test"]) == sorted(one["question"] for one in rows)
    assert utility.prompts["dev"] != [f"q{n}" for n in range(200)]
    assert load_utility("exact_match", path).prompts == utility.prompts
    assert load_utility("exact_match", path, split_seed=1).prompts != utility.prompts
    assert load_utility("exact_match", path, limit_dev=7).prompts["dev"] == utility.prompts["dev"][:7]
    for form, text in (("json", json.dumps(rows)), ("csv", table(rows)), ("json", json.dumps(columns(rows)))):
        assert load_utility("exact_match", put(tmp_path / f"other.{form}", text)).prompts == utility.prompts
    small = load_utility("exact_match", put(tmp_path / "small.jsonl", lines(rows[:6])))
    assert [len(some) for some in small.prompts.values()] == [2, 4]


def test_what_is_the_same_is_not_divided(tmp_path):
    rows = [{"question": f"q{n // 3}", "answer": "a"} for n in range(60)]
    utility = load_utility("exact_match", put(tmp_path / "sums.jsonl", lines(rows)))
    dev, test = map(set, utility.prompts.values())
    assert not dev & test
    assert len(dev | test) == 20
    assert len(utility.prompts["dev"]) > 24
    same = load_utility("exact_match", put(tmp_path / "same.jsonl", lines(rows[:3])))
    assert "too high" in same.data[0].warnings[0]


def test_the_hub_is_read_with_labels_by_name(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    features = datasets.Features(
        {"question": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = [{"question": f"q{n}", "label": n % 2} for n in range(3)]
    for split in ("train", "validation"):
        (tmp_path / "quiz").mkdir(exist_ok=True)
        made = datasets.Dataset.from_list(rows, features=features)
        made.to_parquet(tmp_path / "quiz" / f"{split}.parquet")
    utility = load_utility("exact_match", f"hf:{tmp_path}/quiz", map={"answer": "label"})
    assert [one["answer"] for one in utility.examples["dev"]] == ["no", "yes", "no"]
    assert (utility.dataset, utility.data[0].kept) == ("quiz", True)
    assert "Hub; dev 3, test 3 (from train and validation)" in utility.data[0].line
    with pytest.raises(InputError, match=r"hf:no-one/nothing:at-all cannot be loaded \(.*give a file"):
        load_utility("exact_match", "hf:no-one/nothing:at-all")


@pytest.mark.parametrize(("package", "data"), [("pyarrow.parquet", "x.parquet"), ("datasets", "hf:some/thing")])
def test_a_package_that_is_missing_is_named(package, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    put(tmp_path / "x.parquet", "PAR1")
    with pytest.raises(InputError, match=r"needs .*; install modelswarms-fast\[data\]"):
        load_utility("exact_match", data if data.startswith("hf:") else tmp_path / data)


# What would be wrong in silence

GOOD = {"question": "q", "answer": "a"}


def test_examples_in_dev_and_test_and_twice_are_counted(tmp_path):
    dev = [{"question": text, "choices": {"A": "x", "B": "y"}, "answer": "A"} for text in ("One?", "Two?", "two?  ")]
    other = [{"question": "One?", "choices": {"A": "x", "B": "z"}, "answer": "A"}]  # other choices, another question
    test = [dev[1] | {"question": " TWO?", "choices": {"A": "y", "B": "X"}}, *other]
    path = put(tmp_path / "x.json", json.dumps({"dev": dev, "test": test}))
    utility = load_utility("multiple_choice", path)
    assert utility.data_facts()["data_warnings"] == [
        f"{path}: 1 of 2 test examples are in dev too, so the test score is too high; remove them",
        f"{path}: 1 of 3 dev examples stand there more than once",
    ]
    assert load_utility("multiple_choice", path, limit_dev=1).data[0].warnings == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "x.json",
            {"dev": [GOOD], "test": [GOOD | {"question": " \n"}]},
            'test example 0: the field "question" is empty',
        ),
        ("x.json", '{"dev": [{"question": "q", "answer": NaN}]}', "holds NaN, which JSON does not have"),
        (
            "x.jsonl",
            '{"question": "q", "answer": 1}\n\n{"question": "r", "answer": -Infinity}',
            "line 3 holds -Infinity",
        ),
        ("x.json", '[{"question": "q", "answer": 1e999}]', "holds 1e999"),
        ("x.json", '{"dev": [{"a": {"A": "x", "A": "y"}}]}', 'the key "A" stands twice in an object'),
        ("x.jsonl", '{"question": "q"}\n{"question": "r"', "line 2 is not JSON"),
        ("x.jsonl", '{"question": "q"}\n[1]', "line 2 is not a JSON object"),
        ("x.json", '{"question": "q"}\n{"question": "r"', "line 2 is not JSON"),
        ("x.jsonl", "", "holds no examples"),
        ("x.json", {"question": ["q", "r"], "answer": ["a"]}, r"columns of unequal lengths \(question 2, answer 1\)"),
        ("x.json", {"question": "q", "answer": "a"}, "holds no examples; give the lists"),
        ("x.csv", b"question,answer\ncaf\xe9,a\n", "is neither UTF-8 nor UTF-16"),
        ("x.csv", "question,answer\nq,a,b\n", "line 2 has 3 cells for 2 columns"),
        ("x.csv", 'question,answer\n"q" x,a\n', "line 2 is not CSV"),
        ("x.csv", "question,answer,answer\nq,a,b\n", 'the column "answer" stands twice'),
        ("x.csv", 'question,answer\n"q\nq",a\nr,\nr,\n', 'line [45] lacks the field "answer".*--map answer=NAME'),
        ("x.parquet", "PAR1", "is not Parquet"),
        ("x.jsonl", GOOD, "it has 1 example, too few to divide"),
        ("x.txt", "hello", "is not JSON"),
    ],
)
def test_what_is_wrong_is_one_sentence(name, content, message, tmp_path):
    path = tmp_path / name
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message) as caught:
        load_utility("exact_match", path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_missing_values_of_parquet_are_missing_fields(tmp_path):
    parquet(tmp_path / "x" / "dev.parquet", [GOOD, {"question": "q", "answer": None}])
    parquet(tmp_path / "x" / "test.parquet", [{"question": "r", "answer": float("nan")}])
    with pytest.raises(InputError, match=r'dev.parquet: row 1 lacks the field "answer"'):
        load_utility("exact_match", tmp_path / "x")


def test_whole_numbers_that_pandas_has_made_fractions(tmp_path):
    for split, answers in (("dev", [7.0, None]), ("test", [2.5, 3.0])):
        rows = [{"question": f"{split} {n}", "id": float(n), "answer": answer} for n, answer in enumerate(answers)]
        parquet(tmp_path / "x" / f"{split}.parquet", [row for row in rows if row["answer"] is not None])
    utility = load_utility("exact_match", tmp_path / "x")
    assert utility.score("dev", [0], [[Answer("it is 7")]]) == [1.0]
    assert [one["answer"] for one in utility.examples["test"]] == [2.5, 3.0]


@pytest.mark.parametrize("choices", [None, 3, "x", ["x"], {"A": None}])
def test_what_a_task_does_not_need_is_left_alone(choices, tmp_path):
    rows = [GOOD | {"choices": choices, "more": [None]}]
    path = put(tmp_path / "x.json", json.dumps({"dev": rows, "test": rows}))
    assert load_utility("exact_match", path).examples["dev"] == rows


@pytest.mark.parametrize(
    ("choices", "answer", "message"),
    [
        ({"A": "B", "B": "A"}, "A", 'has the answer "A", which means as key A, but as text B; write the key'),
        (["5", "2", "3"], 2, 'has the answer "2", which means as index from 0 C, but as text B'),
        (["x", "y"], "z", 'has the answer "z", which is no key, index or text of one of its choices; give A, B'),
        (["x", "x"], "x", "which is no key"),
        (["x", "y"], 7, "which is no key"),
        (["x", "y"], [], "is an empty list"),
        ({"text": ["x", "y"], "label": ["A", "A"]}, "A", "has 2 labels and 2 texts of choices"),
        ({"text": ["x", "y"], "label": ["A"]}, "A", "has 1 labels and 2 texts"),
    ],
)
def test_answers_that_cannot_be_told(choices, answer, message, tmp_path):
    rows = [{"question": "q", "choices": choices, "answer": answer}]
    path = put(tmp_path / "x.json", json.dumps({"dev": rows, "test": rows}))
    with pytest.raises(InputError, match=message) as caught:
        load_utility("multiple_choice", path)
    assert "dev example 0" in str(caught.value)


def test_files_that_are_no_splits(tmp_path):
    a, b = (put(tmp_path / f"{name}.json", json.dumps([GOOD, GOOD])) for name in "ab")
    with pytest.raises(InputError, match=r"takes one evaluation file, not 2"):
        load_utility("exact_match", [a, b])
    with pytest.raises(InputError, match=r"holds 2 data files, none of them named after a split"):
        load_utility("exact_match", tmp_path)
    both = put(tmp_path / "x" / "dev.json", json.dumps({"dev": [GOOD], "test": [GOOD]}))
    put(tmp_path / "x" / "test.json", json.dumps([GOOD]))
    with pytest.raises(InputError, match=rf"{both} is for dev but has 2 splits itself"):
        load_utility("exact_match", tmp_path / "x")


def test_what_brings_its_own_data_has_nothing_to_map(tmp_path):
    with pytest.raises(InputError, match="map is given, but lm_eval:x reads its own data; leave it out"):
        load_utility("lm_eval:x", tmp_path, map={"question": "a"})


NAMES = st.sampled_from(["dev", "test", "question", "answer", "A", "B", "choices", "text", "label", "0"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda one: st.lists(one, max_size=4) | st.dictionaries(NAMES, one, max_size=4),
    max_leaves=20,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=40) | (st.text(alphabet='"{}[],:\n;\ta1', max_size=40) | JSON.map(json.dumps)).map(str.encode),
    st.sampled_from([".json", ".jsonl", ".csv", ".tsv", ".parquet", ""]),
    st.sampled_from(["multiple_choice", "exact_match", "perplexity"]),
)  # fmt: skip
def test_any_bytes_are_read_or_refused_in_a_sentence(tmp_path, data, suffix, task):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(data)
    try:
        read_files([path])
        load_utility(task, path)
    except InputError:
        pass
