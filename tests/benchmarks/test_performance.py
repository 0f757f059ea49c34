"""docs/performance.md and the tables beside the results."""

import json

from helpers_benchmarks import results, row

from benchmarks.reporting import performance_tables, write_performance
from benchmarks.reporting.performance_targets import Machine


def large(share, eager, **facts):
    facts = {"backend": "cpp", "headline": True, "particles": 10, "size": 1000, "bytes": 104_000, "spread": 0.3} | facts
    limit = {"limit": {"in place": 40.0}, "share_of_limit": share, "GB/s": 40 * share}
    return row(**facts, **limit, baselines={"torch eager": {"seconds": eager / 2, "ratio": eager}})


def write(tmp_path, *runs):
    """What is written beside the files, and the page; each run is of a class of machine of its own."""
    folder = tmp_path / "results" / "engine"
    for path in (folder, tmp_path / "results" / "gpu", tmp_path / "docs"):
        path.mkdir(parents=True, exist_ok=True)
    for number, run in enumerate(runs):
        (folder / f"2026-11-30_zen{number + 4}_abcdef0.json").write_text(json.dumps(run))
    (tmp_path / "results" / "gpu" / "2026-11-30_h200_abcdef0.json").write_text("{}")  # no run
    write_performance.write(tmp_path / "results", tmp_path / "docs")
    return (tmp_path / "results" / "README.md").read_text(), (tmp_path / "docs" / "performance.md").read_text()


def rows_of(text):
    """Cells of each line of the tables, by the first of them."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {line[0]: line[1:] for line in lines}


def test_targets_met_and_missed_by_each_machine(tmp_path):
    one = results(large(0.93, 12.0, dtype="bfloat16"), large(0.8, 9.0, dtype="float32", threads=1))
    two = results(large(0.7, 30.0, dtype="bfloat16"))
    text, page = write(tmp_path, one, two)
    table = rows_of(text)
    assert table["what"] == ["goal", "Zen 4", "Zen 5"]
    assert table["`cpp` update, share of the limit, all threads"] == [
        "≥ 0.90", "bfloat16 0.93 met", "bfloat16 **0.70 missed**",
    ]  # fmt: skip
    assert table["`cpp` update, share of the limit, one thread"] == ["≥ 0.90", "float32 **0.80 missed**", "—"]
    assert table["`cpp` update against torch eager, one thread"] == ["≥ 10x", "float32 **9x missed**", "—"]
    assert "| row of update | 2 | 500 ms | 37.2 / 28.0 | 40.0 | 0.93 / 0.70 | 12 / 30 |" in text
    assert "| row of update | 1 | 500 ms | 32.0 | 40.0 | 0.80 | 9 |" in text
    short = rows_of(page)
    assert len(short) == 1 + 10
    assert short["Update of ten particles: share of the memory bandwidth"] == [
        "≥ 0.90", "bfloat16 0.93 met", "bfloat16 **0.70 missed**",
    ]  # fmt: skip


def test_of_a_row_the_latest_run_of_a_machine_counts(tmp_path):
    early = results(row("load", serve="slots", kind="lora", baselines={"add_lora from a file": of_base(9.0, 9.0)}),
                    row("evaluate", beyond_bytes=-5e6))  # fmt: skip
    late = results(row("load", serve="slots", kind="lora", baselines={"add_lora from a file": of_base(150.0, 150.0)}))
    folder = tmp_path / "results" / "engine"
    folder.mkdir(parents=True)
    (folder / "2026-11-29_zen4_bbbbbbb.json").write_text(json.dumps(early | {"datetime": "2026-11-29T00:00:00"}))
    table = rows_of(write(tmp_path, late)[0])
    assert table["load into a slot against vLLM's add_lora from a file"] == ["≥ 100x", "example adapter 150x met"]
    assert table["memory beyond vLLM alone and the rows"] == ["≤ 200 MB", "-5 MB met"]


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
    cells = {name: " ".join(cell) for name, cell in rows_of(write(tmp_path, run)[0]).items()}
    assert cells["load into a slot, of the fastest copy of the row"] == "≤ 1.2x example adapter **4x missed**"
    assert cells["load into a slot against vLLM's add_lora from a file"] == "≥ 100x example adapter 150x met"
    merges = "load by merging, of the fastest copy of the base weights that it reads and writes"
    assert cells[merges] == "≤ 1.5x example adapter 1.25x met<br>whole checkpoint **2x missed**"
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
    whole = row("evaluate", serve="merged", particles=10, stop_early=False, share_of_base=0.97)
    run = results(
        large(0.9, 12.0, dtype="bfloat16"), row("growth", against="P", worst_deviation=0.06, limit_spread=0.2), whole
    )
    (tmp_path / "results").mkdir(parents=True)
    (tmp_path / "results" / "notes.md").write_text("What we learned.\n")
    text, page = write(tmp_path, run)
    assert "What we learned." in page
    assert "against P **6.0% missed**" in text
    figures = {name: (tmp_path / "docs" / "figures" / name) for name in ("update.svg", "iterations.svg")}
    drawn = {}
    for name, path in figures.items():
        assert f"figures/{name}" in page
        drawn[name] = path.read_bytes()
        path.unlink()
    write(tmp_path, run)
    assert {name: path.read_bytes() for name, path in figures.items()} == drawn


def test_the_documents_are_what_the_script_writes(tmp_path):
    machines, notes = write_performance.load(write_performance.RESULTS), write_performance.RESULTS / "notes.md"
    docs = write_performance.ROOT / "docs"
    assert (docs / "performance.md").read_text() == write_performance.page(machines, notes.read_text(), tmp_path)
    assert (write_performance.RESULTS / "README.md").read_text() == performance_tables.everything(machines)


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
    run = Machine("zen4", (results(update, mix, *cached, roof, growth, stopped, *beside),))
    # 32 GB/s of ours are 1.25 times torch.compile's 25.6, which are 0.64 of 40; 400 operations for 480 bytes.
    assert [text for _, text in performance_tables.reasons(run)] == [
        "bfloat16 55", "bfloat16 40", "bfloat16 30%, threads 1",
        "bfloat16 0.64, threads 1", "bfloat16 2, threads 1",
        "float32 100, threads 1",
        "bfloat16 17, threads 1", "D 12%", "mix, merged 0.90, 0.80", "2 engines 20.0, 12.5",
    ]  # fmt: skip
    assert [text for _, text in performance_tables.reasons(Machine("zen5", (results(),)))] == ["—"] * 10


def test_operations_of_the_roofline():
    assert performance_tables.operations(row(particles=2, size=10)) == 12 * 2 * 10
    assert performance_tables.operations(row("mix", particles=2, experts=3, size=10)) == 2 * 3 * 2 * 10
