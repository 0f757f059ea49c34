"""python -m benchmarks: which benchmarks there are, what it shows, and its mistakes."""

import json
import sys
from pathlib import Path

import pytest
from helpers_benchmarks import results, row

import benchmarks.__main__ as command
from benchmarks import GROUPS
from benchmarks.reporting import tables
from modelswarms_fast.errors import InputError

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"


# A clone of this repository, as far as the command asks for it.
BENCHMARK = """
def test_one(benchmark):
    benchmark.extra_info.update(group="update", row="the row", seconds=0.002, threads=1)
    benchmark.pedantic(lambda: None, rounds=1)
"""


def test_every_group_has_a_file_and_every_file_a_group():
    assert {path.stem.removeprefix("bench_"): path.parent.name for path in BENCHMARKS.rglob("bench_*.py")} == GROUPS


def run_command(monkeypatch, *arguments):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # or pytest-benchmark would measure nothing
    monkeypatch.setattr(sys, "argv", ["benchmarks", *map(str, arguments)])
    return command.main()


@pytest.fixture
def clone(tmp_path, monkeypatch):
    folder = tmp_path / "benchmarks"
    (folder / "operators").mkdir(parents=True)
    (folder / "conftest.py").write_text(
        "def pytest_benchmark_update_machine_info(config, machine_info):\n"
        "    machine_info.update(cpu='a processor', cores=1, threads=1, python='3', versions={'torch': '2'})\n"
    )
    (folder / "operators" / "bench_update.py").write_text(BENCHMARK)
    (tmp_path / "pytest.ini").write_text("[pytest]\npython_files = bench_*.py\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_shows_tables_and_keeps_the_numbers(clone, monkeypatch, capsys):
    assert run_command(monkeypatch, "update", "--json", clone / "kept.json") == 0
    shown = capsys.readouterr().out
    assert "the row" in shown
    assert "2 ms" in shown
    assert "a processor" in shown
    assert json.loads((clone / "kept.json").read_text())["benchmarks"][0]["extra_info"]["row"] == "the row"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speed"], "There is no benchmark 'speed'; choose from update, mix,"),
        (["update", "--model-swarm", "nowhere"], "nowhere has no merge.py"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, message, clone, monkeypatch, capsys):
    assert run_command(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.strip().splitlines()) == 1


def test_outside_of_a_clone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_command(monkeypatch) == 2
    assert "in a clone of the repository" in capsys.readouterr().err


def test_without_pytest_benchmark(clone, monkeypatch, capsys):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert run_command(monkeypatch, "update") == 2
    assert "pip install pytest pytest-benchmark" in capsys.readouterr().err


def test_a_benchmark_that_fails(clone):
    (clone / "benchmarks" / "operators" / "bench_update.py").write_text(
        BENCHMARK + "\ndef test_two():\n    raise OSError\n"
    )
    with pytest.raises(InputError, match="A benchmark failed"):
        command.run_benchmarks(["update"], quick=False, model_swarm=None, target=None)


def test_cells_of_a_row():
    assert tables.cells(row(evaluated_share=0.9, least_share=0.8)) == {
        "threads": "2",
        "time": "500 ms",
        "evaluated": "0.90",
        "at least": "0.80",
    }
    full = row(
        **{"GB/s": 20.0, "limit": {"a": 25.0, "b": 40.0}, "share_of_limit": 0.5},
        baselines={"torch eager": {"seconds": 6.0, "ratio": 12.0}},
        rows_bytes=3_000_000,
        added_bytes={"ours": 1_000_000},
    )
    assert tables.cells(full) == {
        "threads": "2",
        "time": "500 ms",
        "GB/s": "20.0",
        "limit": "40.0",
        "share of limit": "0.50",
        "vs torch eager": "12",
        "peak memory": "4 MB",
    }
    assert tables.columns_of([row(), full])[-2:] == ["vs torch eager", "peak memory"]
    found = tables.tables(results(full, row("mix")))
    assert [table.title for table in found] == ["update", "mix"]
    assert [column.header for column in found[1].columns] == ["row", "threads", "time"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.3, "12.3 s"), (0.5, "500 ms"), (1.234e-5, "12.3 µs"), (3e-8, "30 ns"), (-2e-5, "-20 µs")]
)
def test_seconds_are_readable(seconds, text):
    assert tables.seconds_text(seconds) == text
