"""The benchmarks without timing anything: what they count, what they compare with, and what they write."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import benchmarks.__main__ as command
from benchmarks import GROUPS, measure
from benchmarks.operators import bench_growth, bench_rows, bench_update, torch_baselines
from benchmarks.published import published
from benchmarks.reporting import tables, write_performance
from modelswarms_fast.errors import InputError
from modelswarms_fast.ops import _C, swarm_update_
from modelswarms_fast.weights.layout import Layout

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"

# A clone of the published code, as far as the adapter asks for it.
MERGE = """
from pathlib import Path
from safetensors.torch import load_file, save_file

def read(folder):
    return load_file(Path(folder) / "adapter_model.safetensors")

def lora_merge(weights, lora_name_list, output_name, gpu_id, directly_load_safetensors=0):
    assert directly_load_safetensors == 1
    parts = [read(folder) for folder in lora_name_list]
    merged = {name: sum(w * part[name] for w, part in zip(weights, parts, strict=True)) for name in parts[0]}
    Path(output_name).mkdir(exist_ok=True)
    save_file(merged, Path(output_name) / "adapter_model.safetensors")
"""

# A clone of this repository, as far as the command asks for it.
BENCHMARK = """
def test_one(benchmark):
    benchmark.extra_info.update(group="update", row="the row", seconds=0.002, threads=1)
    benchmark.pedantic(lambda: None, rounds=1)
"""


def make_swarm(particles=3, size=200, dtype=torch.float32):
    torch.manual_seed(4)
    return bench_update.make_swarm(particles, size, dtype)


def row(group="update", **facts):
    return {"group": group, "row": f"row of {group}", "seconds": 0.5, "threads": 2, **facts}


def results(*rows):
    machine = {"cpu": "a processor", "cores": 2, "threads": 2, "python": "3", "versions": {"torch": "2"}}
    commit = {"id": "abcdef0123", "time": "", "dirty": False}
    return {"machine_info": machine, "commit_info": commit, "benchmarks": [{"extra_info": row} for row in rows]}


# what is counted


def test_every_group_has_a_file_and_every_file_a_group():
    assert {path.stem.removeprefix("bench_"): path.parent.name for path in BENCHMARKS.rglob("bench_*.py")} == GROUPS


def test_bytes_of_an_update():
    assert bench_update.bytes_of(10, 1000, torch.bfloat16) == 52 * 1000 * 2


def test_rows_moved_with_promotions_and_restarts():
    particles = bench_rows.PARTICLES
    moved = {case: bench_rows.rows_moved(table) for case, table in bench_rows.tables().items()}
    assert moved == {
        "nobody improved": 5 * particles + 2,
        "all improved": 4 * particles + 2,  # p is x
        "all restart": 3 * particles + 2,  # and v is 0
    }


def test_a_straight_line_has_no_worst_point():
    points = [1, 2, 5, 10]
    line = bench_growth.line_through(points, [3 + 2 * x for x in points])
    assert line["worst_deviation"] == pytest.approx(0, abs=1e-12)
    assert (line["fixed"], line["each"]) == (pytest.approx(3), pytest.approx(2))
    bent = bench_growth.line_through(points, [3 + 2 * x * (1.2 if x == 5 else 1) for x in points])
    assert 0.05 < bent["worst_deviation"] < 0.2


def test_medians_ratios_and_turns():
    """Everything runs once a round, the limit right before ours."""
    order = []
    facts = {}

    def pedantic(target, setup, rounds):
        for _ in range(rounds):
            setup()
            target()

    fake = SimpleNamespace(group="update", extra_info=facts, pedantic=pedantic)
    measure.Measure(fake, quick=True).row(
        "one",
        lambda: order.append("ours"),
        bytes_moved=100,
        limit={"loop": (200, lambda: order.append("limit"))},
        baselines={"other": lambda: order.append("baseline")},
        memory=False,
        warmup=False,
        particles=4,
    )
    assert order == ["baseline", "limit", "ours"] * 5
    assert facts["particles"] == 4
    assert facts["GB/s"] == pytest.approx(100 / facts["seconds"] / 1e9)
    assert 0 < facts["share_of_limit"] < 100
    other = facts["baselines"]["other"]
    assert other["ratio"] == pytest.approx(other["seconds"] / facts["seconds"])


def test_the_share_of_the_limit(monkeypatch):
    """Of each pair of neighbours, whatever the machine does from one round to the next."""
    seconds = iter([second for mood in (1, 5, 2) for second in (10 * mood, 2 * mood, 4 * mood)])
    monkeypatch.setattr(measure, "clock", lambda *arguments: next(seconds))
    facts = {}

    def pedantic(target, setup, rounds):
        for _ in range(rounds):
            setup()
            target()

    fake = SimpleNamespace(group="update", extra_info=facts, pedantic=pedantic)
    loops = {"loop": (100, lambda: None)}
    baselines = {"other": lambda: None}
    measure.Measure(fake, quick=True).row(
        "one", lambda: None, bytes_moved=100, limit=loops, baselines=baselines, memory=False, warmup=False, rounds=3
    )
    assert facts["share_of_limit"] == 0.5
    assert facts["limit"]["loop"] == pytest.approx(100 / 4 / 1e9)
    assert facts["baselines"]["other"]["ratio"] == 2.5


def test_memory_that_a_call_takes():
    held = 50_000_000
    taken = measure.added_bytes(lambda: torch.ones(held, dtype=torch.uint8))
    assert held <= taken < 1.2 * held


# the limit


@pytest.mark.parametrize("words", [1, 7, 8, 4099])
@pytest.mark.parametrize(
    ("elsewhere", "streams"), [(False, (False, False)), (True, (True, False)), (False, (True, True))]
)
def test_the_limit_of_the_update_reads_and_writes_everything(words, elsewhere, streams):
    x, v, p, other = torch.randint(0, 2**60, (4, words)).unbind()
    moved = v + (p - x)
    expected = x + moved
    out = other if elsewhere else x
    _C.limit_update(x.data_ptr(), v.data_ptr(), p.data_ptr(), out.data_ptr(), v.data_ptr(), words, *streams)
    assert torch.equal(out, expected)
    assert torch.equal(v, moved)


@pytest.mark.parametrize("words", [1, 7, 8, 4099])
@pytest.mark.parametrize("stream", [False, True])
def test_the_limit_of_the_mix_reads_and_writes_everything(words, stream):
    read, out = torch.randint(0, 2**50, (5, words)), torch.full((3, words + 1), -1)
    _C.limit_mix(out.data_ptr(), words + 1, read.data_ptr(), words, 3, 5, words, stream)
    assert torch.equal(out[:, :words], read.sum(0) + torch.arange(3)[:, None])
    assert (out[:, words] == -1).all()


def test_the_limit_of_arithmetic_counts_all_threads():
    one = _C.limit_arithmetic(1000)
    assert one > 0
    assert _C.limit_arithmetic(3000) == 3 * one


# the baselines do the same work


@pytest.mark.parametrize("name", ["eager", "foreach", "numpy"])
def test_a_baseline_moves_particles_as_ours_does(name):
    theirs, ours = make_swarm(), make_swarm()
    getattr(torch_baselines, name)(theirs)()
    swarm_update_(*ours.all)
    torch.testing.assert_close(theirs.velocity, ours.velocity, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(theirs.position, ours.position, rtol=1e-5, atol=1e-5)
    assert not torch.equal(ours.position, make_swarm().position)


def test_the_baseline_with_random_numbers_for_every_coordinate():
    """All four terms alike: whatever is drawn, the velocity is that term."""
    swarm = make_swarm()
    for rows in (swarm.velocity, swarm.personal_best, swarm.global_best):
        rows.zero_()
    swarm.position.fill_(-1)  # p - x and g - x are 1
    swarm.velocity.fill_(1)
    swarm.global_worst.fill_(-2)  # x - w is 1
    torch_baselines.eager(swarm, torch_baselines.formula_coordinate)()
    torch.testing.assert_close(swarm.velocity, torch.ones_like(swarm.velocity))
    torch.testing.assert_close(swarm.position, torch.full_like(swarm.position, -0.5))


def test_pyswarms_without_anything_to_go_to():
    swarm = make_swarm()
    swarm.personal_best.copy_(swarm.position)
    swarm.position[:] = swarm.personal_best[:] = swarm.global_best
    start, velocity = swarm.position.clone(), swarm.velocity.clone()
    torch_baselines.pyswarms(swarm)()
    expected = velocity * swarm.coefficients[0, 0]
    torch.testing.assert_close(swarm.velocity, expected)
    torch.testing.assert_close(swarm.position, start + expected)


def test_the_published_update_is_ours(tmp_path):
    layout = Layout.of({"a.weight": torch.empty(5, 8), "b.weight": torch.empty(3)})
    theirs, ours = (make_swarm(3, layout.size) for _ in range(2))
    clone, files = tmp_path / "clone", tmp_path / "files"
    clone.mkdir()
    files.mkdir()
    (clone / "merge.py").write_text(MERGE)
    swarm = published.Published(published.lora_merge_of(clone), files, layout, theirs)
    for _ in range(2):
        swarm.update()
        swarm_update_(*ours.all)
    for particle in range(3):
        position, velocity = swarm.rows(particle)
        for found, expected in ((position, ours.position), (velocity, ours.velocity)):
            for name, view in layout.views(found).items():
                torch.testing.assert_close(view, layout.views(expected[particle])[name], rtol=1e-5, atol=1e-5)
    assert load_file(files / "best" / published.WEIGHTS)["a.weight"].shape == (5, 8)


def test_a_clone_without_merge(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no merge\.py"):
        published.lora_merge_of(tmp_path)


# the command


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


# an iteration of the published code

ITERATION = {
    "search.py": """
import os
import wandb
from trl import Trainer, tuned

LIMIT = tuned(3)


@tuned(steps=3)
def unused():
    pass


def lora_merge(weights, names, output, gpu, fast):
    os.makedirs(output, exist_ok=True)


def particle_update(index, gpu, name, *settings):
    assert sorted(os.listdir(f"search/{name}/particle_{index}")) == ["now", "personal_best", "velocity"]
    assert sorted(os.listdir(f"search/{name}")) == ["global_best", "global_worst", *(f"particle_{i}" for i in range(3))]
    if os.path.exists("log"):
        wandb.log({})
    open(f"search/{name}/particle_{index}/now/moved", "w").close()
""",
    "evaluate.py": """
import json
import os
import time

import torch


class Model:
    dtype = torch.float16


def evaluate(path, task, dataset, gpu, base):
    global model
    model = Model()
    assert os.path.exists(path + "/moved") and task == "exact_match" and base == "the base"
    assert torch.zeros(2).to(f"cuda:{gpu}").device.type == "cpu"
    time.sleep(1000)
    return len(json.load(open(f"data/eval/{dataset}.json"))["dev"])
""",
}


def clone_with_an_iteration(tmp_path):
    clone = tmp_path / "clone"
    clone.mkdir()
    for name, text in ITERATION.items():
        (clone / name).write_text(text)
    experts = [tmp_path / f"expert-{index}" for index in range(3)]
    for expert in experts:
        expert.mkdir()
    data = tmp_path / "data.json"
    data.write_text(json.dumps({"dev": [1, 2, 3, 4], "test": []}))
    return clone, experts, data


def test_an_iteration_of_the_published_code_is_scaled_and_does_not_sleep(tmp_path):
    clone, experts, data = clone_with_an_iteration(tmp_path)
    found = published.published_iteration(clone, experts, Path("the base"), data, measured=[2])
    assert (found["measured_particles"], found["sleep"], found["utilities"]) == (1, 1000, [4])
    assert found["dtype"] == "float16"
    assert found["seconds"] == pytest.approx(3 * (found["update"] + found["evaluate"]))
    assert sorted(path.name for path in clone.iterdir()) == ["evaluate.py", "search.py"]


def test_a_missing_package_that_is_used_after_all_is_an_error(tmp_path):
    clone, experts, data = clone_with_an_iteration(tmp_path)
    (clone / "log").touch()
    with pytest.raises(RuntimeError, match=r"used wandb\.log, which is not installed"):
        published.published_iteration(clone, experts, Path("the base"), data, measured=[0])


# the document


def large(share, eager, **facts):
    facts = {"backend": "cpp", "headline": True, "particles": 10, "size": 1000, "bytes": 104_000, "spread": 0.3} | facts
    limit = {"limit": {"in place": 40.0}, "share_of_limit": share, "GB/s": 40 * share}
    return row(**facts, **limit, baselines={"torch eager": {"seconds": eager / 2, "ratio": eager}})


def write(tmp_path, *runs):
    for folder in ("results/performance", "results/gpu", "docs"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for number, run in enumerate(runs):
        (tmp_path / "results" / "performance" / f"run-{number}.json").write_text(json.dumps(run))
    (tmp_path / "results" / "gpu" / "machine.json").write_text("{}")  # no run
    write_performance.write(tmp_path / "results", tmp_path / "docs")
    return (tmp_path / "docs" / "performance.md").read_text()


def test_targets_met_and_missed_by_each_run(tmp_path):
    one = results(large(0.93, 12.0, dtype="bfloat16"), large(0.8, 9.0, dtype="float32", threads=1))
    two = results(large(0.7, 30.0, dtype="bfloat16"))
    text = write(tmp_path, one, two)
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("|")]
    table = {line[0].removeprefix("| "): [*line[1:-1], line[-1].removesuffix(" |")] for line in lines}
    assert table["`cpp` update, share of the limit, all threads"] == [
        "≥ 0.90", "bfloat16 0.93 met", "bfloat16 **0.70 missed**",
    ]  # fmt: skip
    assert table["`cpp` update, share of the limit, one thread"] == ["≥ 0.90", "float32 **0.80 missed**", "—"]
    assert table["`cpp` update against torch eager, one thread"] == ["≥ 10x", "float32 **9x missed**", "—"]
    assert "| row of update | 2 | 500 ms | 37.2 / 28.0 | 40.0 | 0.93 / 0.70 | 12 / 30 |" in text
    assert "| row of update | 1 | 500 ms | 32.0 | 40.0 | 0.80 | 9 |" in text


def of_base(seconds, ratio):
    return {"seconds": seconds, "ratio": ratio}


def test_targets_of_loads_iterations_and_starts(tmp_path):
    copies = {"row, torch copy_": of_base(0.5, 0.5), "row, copy, past the caches": of_base(0.25, 0.25)}
    adds = {"add_lora from a file": of_base(150.0, 150.0)}
    merged = {"row, torch copy_": of_base(0.1, 0.1), "base weights, torch copy_": of_base(0.8, 0.8)}
    whole = {"serve": "merged", "particles": 10, "share_of_base": 0.97, "idle_share": 0.02}
    papers = {
        "published code, float16": of_base(30.0, 30.0),
        "published code, bfloat16": of_base(6.0, 6.0),
    }
    run = results(
        row("load", serve="slots", kind="lora", row_bytes=8, baselines=adds | copies),
        row("load", serve="merged", kind="lora", row_bytes=8, baselines=merged),
        row("load", serve="merged", kind="full", row_bytes=8, baselines={"row, torch copy_": of_base(0.5, 0.5)}),
        row("load", serve="mixture", kind="lora", row_bytes=0, baselines=adds),
        row("evaluate", stop_early=False, **whole),
        row("search", serve="merged", task="mix", stop_early=True, share_of_base=1.2),
        row("search", serve="merged", stop_early=True),
        row("evaluate", serve="mixture", particles=1000, stop_early=False, idle_share=0.5, particles_in_a_step=1000),
        row("evaluate", overhead_seconds=0.002),
        row("evaluate", overhead_seconds=0.001),
        row("evaluate", beyond_bytes=-5e6, baselines={"vLLM alone": of_base(1.0, 0.8)}),
        row("evaluate", state="mixture", host_memory="none", checkpoints_bytes=3e9, unmapped_checkpoints_bytes=1e9),
        row("evaluate", state="weights", host_memory="2GB", checkpoints_bytes=9e9, unmapped_checkpoints_bytes=5e9),
        row("search", published=True, stop_early=False, engines=2, baselines=papers),
    )
    text = write(tmp_path, run)
    table = {line.split(" | ")[0]: line.split(" | ")[1:] for line in text.splitlines() if line.startswith("| ")}
    cells = {name.removeprefix("| "): " ".join(cell).removesuffix(" |") for name, cell in table.items()}
    assert cells["load into a slot, of the fastest copy of the row"] == "≤ 1.2x lora **4x missed**"
    assert cells["load into a slot against vLLM's add_lora from a file"] == "≥ 100x lora 150x met"
    merges = "load by merging, of the fastest copy of the base weights that it reads and writes"
    assert cells[merges] == "≤ 1.5x lora 1.25x met<br>full **2x missed**"
    whole_name = "a whole iteration, 10 particles, prompts a second of the plain base model's"
    assert cells[whole_name] == "≥ 0.95 merged 0.97 met"
    moves = "moves with `stop_early`, prompts of a full evaluation a second, of the plain base model's"
    assert cells[moves] == "≥ 1.30 mix, merged **1.20 missed**"
    assert cells["particles in one step of an engine that serves mixtures"] == "≥ 1,000 1,000 met"
    assert cells["idle share of the engine in an iteration"] == "≤ 3.0% merged 2.0% met"
    assert (
        cells["driver of 100 particles of four prompts, all of an iteration but the time within the engine"]
        == "≤ 5 ms 2 ms met"
    )
    against = "float16, 2 engines 30x met<br>bfloat16, 2 engines **6x missed**"
    assert cells["a whole iteration against the published code on this CPU"] == f"≥ 20x {against}"
    assert cells["memory beyond vLLM alone and the rows"] == "≤ 200 MB -5 MB met"
    beyond = "memory of a search over ten whole checkpoints beyond vLLM alone, without pages of a file of rows"
    assert cells[beyond] == ("≤ 4 GB mixture, host_memory none 3 GB met<br>weights, host_memory 2GB **5 GB missed**")
    assert cells["start of the engine to the first prompt, of vLLM's alone"] == "≤ 1.20 **1.25 missed**"


def test_notes_and_figures(tmp_path):
    growth = row("growth", against="P", points=[1, 2], point_seconds=[0.1, 0.2], fixed=0.0, each=0.1)
    growth |= {"worst_deviation": 0.06, "dtype": "bfloat16", "limit_spread": 0.2}
    roof = row("mix", dtype="float32", registers=True, **{"GFLOP/s": 100.0})
    run = results(large(0.9, 12.0, dtype="bfloat16"), roof, growth)
    (tmp_path / "results" / "performance").mkdir(parents=True)
    (tmp_path / "results" / "performance" / "notes.md").write_text("What we learned.\n")
    text = write(tmp_path, run)
    assert "What we learned." in text
    assert "against P **6.0% missed**" in text
    figures = {name: (tmp_path / "docs" / "figures" / name) for name in ("scaling.svg", "roofline-run-0.svg")}
    drawn = {}
    for name, path in figures.items():
        assert f"figures/{name}" in text
        drawn[name] = path.read_bytes()
        path.unlink()
    write(tmp_path, run)
    assert {name: path.read_bytes() for name, path in figures.items()} == drawn


def test_reasons_of_what_was_missed():
    compiled = {"torch eager": {"seconds": 1.0, "ratio": 12.0}, "torch.compile": {"seconds": 0.5, "ratio": 1.25}}
    update = large(0.8, 12.0, dtype="bfloat16", threads=1) | {"baselines": compiled}
    facts = {"dtype": "bfloat16", "backend": "cpp", "threads": 1, "particles": 2, "size": 10}
    mix = row("mix", headline=True, experts=10, bytes=480, limit={"past": 24.0}, **facts) | {"seconds": 2e-7}
    cached = [
        row("update", in_cache=True, **facts, **{"GB/s": 55.4}),
        row("mix", in_cache=True, **facts, **{"GFLOP/s": 81.0}),
    ]
    roof = row("mix", dtype="float32", registers=True, threads=1, **{"GFLOP/s": 100.0})
    growth = row("growth", against="D", limit_spread=0.125)
    stopped = row("search", task="mix", serve="merged", stop_early=True, evaluated_share=0.9, least_share=0.8)
    beside = [
        row("search", published=True, engines=2, seconds=20.0, products_seconds=12.5),
        row("search", published=True),
    ]
    run = write_performance.Run("run", results(update, mix, *cached, roof, growth, stopped, *beside))
    # 32 GB/s of ours are 1.25 times torch.compile's 25.6, which are 0.64 of 40; 400 operations for 480 bytes.
    assert [text for _, text in write_performance.reasons(run)] == [
        "bfloat16 55", "bfloat16 40", "bfloat16 30%, threads 1",
        "bfloat16 0.64, threads 1", "bfloat16 2, threads 1",
        "float32 100, threads 1",
        "bfloat16 17, threads 1", "D 12%", "mix, merged 0.90, 0.80", "2 engines 20.0, 12.5",
    ]  # fmt: skip
    assert [text for _, text in write_performance.reasons(write_performance.Run("none", results()))] == ["—"] * 10


def test_operations_of_the_roofline():
    assert write_performance.operations(row(particles=2, size=10)) == 12 * 2 * 10
    assert write_performance.operations(row("mix", particles=2, experts=3, size=10)) == 2 * 3 * 2 * 10


def test_gpu_check_refuses_what_it_does_not_know():
    command = ["bash", str(BENCHMARKS / "gpu" / "gpu_check.sh"), "--fast"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 64
    assert "usage:" in result.stderr


def test_random_rows_do_not_change():
    """Two runs measure the same numbers."""
    one, two = (measure.random_rows(2, 64, torch.bfloat16) for _ in range(2))
    assert torch.equal(one, two)
    assert np.isclose(float(measure.shares(3).sum()), 3)
