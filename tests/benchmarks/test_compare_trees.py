"""Two versions compared: turns, medians and refusals, on stand-ins for trees."""

import json
import sys

import pytest

from benchmarks.reporting import compare_trees

ANSWERS = """
import json, sys
print(json.dumps({"package": PACKAGE}), flush=True)
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    open(LOG, "a").write(SECONDS + " ")
    print(json.dumps({line.strip(): [float(SECONDS)]}), flush=True)
"""


@pytest.fixture
def trees(tmp_path, monkeypatch):
    """Two trees that answer 2 and 3 seconds, and a log of who was asked."""
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        (folder / "modelswarms_fast").mkdir(parents=True)
    script = tmp_path / "script.py"
    head = (
        f"import os\nLOG = {str(tmp_path / 'log')!r}\ntree = os.environ['PYTHONPATH']\n"
        "PACKAGE = tree + '/modelswarms_fast/__init__.py'\nSECONDS = '2' if tree.endswith('a') else '3'\n"
    )
    script.write_text(head + ANSWERS)
    monkeypatch.setattr(compare_trees, "SCRIPT", script)
    monkeypatch.setattr(compare_trees, "PAUSE_SECONDS", 0)
    return folders


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["compare_trees", *map(str, arguments)])
    try:
        compare_trees.main()
    except SystemExit as ended:
        return ended.code
    return 0


def test_trees_take_turns_and_medians_are_compared(trees, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, *trees, "--only", "slots", "--json", tmp_path / "kept.json") == 0
    kept = json.loads((tmp_path / "kept.json").read_text())
    load = kept["measured"]["load, slots"]
    assert (load["medians"], load["ratio"], load["spreads"]) == ([2, 3], 1.5, [0, 0])
    assert len(load["a"]) == len(load["b"]) == compare_trees.KINDS["slots"]["load, slots"]
    assert (tmp_path / "log").read_text().split()[:8] == ["2", "3", "3", "2", "2", "3", "3", "2"]
    assert "1.500" in capsys.readouterr().out


def test_a_package_from_elsewhere_is_refused(trees, monkeypatch):
    text = compare_trees.SCRIPT.read_text()
    compare_trees.SCRIPT.write_text(text.replace("PACKAGE = tree", "PACKAGE = '/elsewhere'"))
    assert "which is not in" in run(monkeypatch, *trees, "--only", "slots")


def test_a_tree_that_fails_is_one_sentence(trees, monkeypatch):
    compare_trees.SCRIPT.write_text("raise SystemExit(1)")
    assert "its error is above" in run(monkeypatch, *trees, "--only", "operators")


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--only", "speed"], "there is no measurement 'speed'"), ([], "has no folder")]
)
def test_mistakes(arguments, message, trees, tmp_path, monkeypatch, capsys):
    chosen = trees if arguments else [trees[0], tmp_path / "none"]
    assert run(monkeypatch, *chosen, *arguments) == 2
    assert message in capsys.readouterr().err


def test_quick_measurements_of_operators():
    """The real script on this tree."""
    tree = compare_trees.SCRIPT.parents[2]
    settings = {"size": 64, "dev": 1, "examples": ""}
    one = compare_trees.Tree(tree, "operators", settings, sys.executable, str(tree))
    one.wait()
    for name in compare_trees.KINDS["operators"]:
        assert [seconds > 0 for seconds in one.measure(name)[name]] == [True]
    one.close()
