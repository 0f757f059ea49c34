"""The whole loop on the exact engine: files, determinism, both states, exports, failures."""

import itertools
import json
import os
import signal
import threading
from pathlib import Path

import helpers_search
import numpy as np
import pytest
import torch
from helpers_models import make_adapter, make_base

import modelswarms_fast
from modelswarms_fast.cli.search import run_search
from modelswarms_fast.engines.transformers import TransformersEngine
from modelswarms_fast.errors import InputError
from modelswarms_fast.evaluation.objectives.utility import mean_error
from modelswarms_fast.records.run_folder import read_history
from modelswarms_fast.runs import evaluate, experiment
from modelswarms_fast.runs.search import search
from modelswarms_fast.weights.experts import read_experts
from modelswarms_fast.weights.population import Population
from modelswarms_fast.weights.row_table import count_rows

tiny = helpers_search.tiny


def history_of(run):
    return read_history(Path(run) / "history.jsonl")


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """One finished search: its arguments, folder and summary."""
    out = tmp_path_factory.mktemp("run") / "search"
    return tiny, out, search(**tiny, out=out, particles=5)


def test_run_folder_is_complete(run):
    arguments, out, summary = run
    assert sorted(path.name for path in out.iterdir()) == [
        "analysis.json",
        "answers.json",
        "config.json",
        "files.jsonl",
        "global_best",
        "history.jsonl",
        "report.html",
        "scores.jsonl",
        "summary.json",
    ]
    assert json.loads((out / "summary.json").read_text()) == summary
    config = json.loads((out / "config.json").read_text())
    assert config["particles"] == 5
    assert config["inertia"] == 0.4
    assert config["base"] == arguments["base"]
    assert len(history_of(out)) == summary["iterations"] + 1 == 4
    promised = "base task experts particles seed iterations stopped start end dev_examples test_examples evaluations"
    assert set(summary) >= {*promised.split(), "prompts", "tokens", "seconds"}
    assert set(summary["start"]) == {"particle", "expert", "dev", "test"}
    assert set(summary["end"]) == {"particle", "iteration", "dev", "chosen_by", "test"}
    assert summary["end"]["chosen_by"] == "best"
    best = history_of(out)[summary["end"]["iteration"]]["utilities"][summary["end"]["particle"]]
    assert best == summary["end"]["dev"]
    assert set(summary["seconds"]) == {"setup", "update", "load", "generate", "score", "test", "total"}
    assert summary["evaluations"] == 20
    assert summary["prompts"] == 20 * 12
    assert 0 < summary["tokens"] <= 20 * 12 * 10


def test_search_is_public():
    assert modelswarms_fast.search is search


def test_standard_errors_are_those_of_the_mean():
    scores = [1.0, 0.0, 0.0, 1.0, 1.0]
    assert mean_error("dev", scores) == pytest.approx(np.std(scores, ddof=1) / np.sqrt(5))


def test_bests_in_the_history_are_those_of_its_utilities(run):
    _, out, summary = run
    lines = history_of(out)
    utilities = np.array([line["utilities"] for line in lines])
    assert summary["end"]["dev"] == utilities.max()
    assert summary["start"]["dev"] == utilities[0, :3].max()
    assert summary["start"]["expert"] == summary["experts"][int(utilities[0, :3].argmax())]
    for index, line in enumerate(lines):
        assert line["global_best"]["utility"] == utilities[: index + 1].max()
        assert line["global_worst"]["utility"] == utilities[: index + 1].min()
        best_before = utilities[:index].max(axis=0) if index else np.full(5, -1)
        assert line["improved"] == np.flatnonzero(utilities[index] > best_before).tolist()


def test_the_swarm_improves(run):
    _, _, summary = run
    assert summary["end"]["dev"] > summary["start"]["dev"]


def test_scores_are_those_of_the_exported_files(run):
    """dev and test of the summary are reproduced from global_best/ alone, by `evaluate` in a new engine."""
    arguments, out, summary = run
    for split in ("dev", "test"):
        result = evaluate.evaluate(
            str(out / "global_best"),
            base=arguments["base"],
            task=arguments["task"],
            data=arguments["data"],
            split=split,
            engine="transformers",
            dtype="float32",
        )
        assert result["score"] == pytest.approx(summary["end"][split], abs=1e-12)
        assert result["examples"] == 12


def test_the_winner_is_the_mixture_it_is_said_to_be(run):
    arguments, out, summary = run
    pool = read_experts(arguments["experts"])
    winner = read_experts([out / "global_best"], minimum=1).rows[0]
    mixture = torch.tensor([summary["mixture"][name] for name in pool.names])
    torch.testing.assert_close(winner, mixture @ pool.rows, rtol=0, atol=1e-5)
    assert sum(summary["mixture"].values()) == pytest.approx(1)


def test_same_seed_same_run_and_other_seed_another(run, tmp_path):
    arguments, out, _ = run
    search(**arguments, out=tmp_path / "again", particles=5)
    search(**arguments | {"seed": 6}, out=tmp_path / "other", particles=5)
    first, again, other = (history_of(path) for path in (out, tmp_path / "again", tmp_path / "other"))
    for a, b in zip(first, again, strict=True):
        times = {"seconds", "engine_idle_share"}
        assert {key: a[key] for key in a if key not in times} == {key: b[key] for key in b if key not in times}
    assert first[1]["utilities"] != other[1]["utilities"]
    weights = [(path / "global_best" / "adapter_model.safetensors").read_bytes() for path in (out, tmp_path / "again")]
    assert weights[0] == weights[1]


def test_both_states_give_the_same_utilities(run, tmp_path):
    """float32 rows; the two differ by rounding, which greedy decoding of this task does not see."""
    arguments, out, summary = run
    mixture = search(**arguments, out=tmp_path / "run", particles=5, state="mixture")
    weights_history, mixture_history = history_of(out), history_of(tmp_path / "run")
    np.testing.assert_allclose(
        [line["utilities"] for line in weights_history],
        [line["utilities"] for line in mixture_history],
        rtol=0,
        atol=1e-6,
    )
    assert mixture["end"]["test"] == pytest.approx(summary["end"]["test"], abs=1e-6)


def evaluated(arguments, model, split="test"):
    """The score of a model folder in a new engine."""
    result = evaluate.evaluate(
        str(model),
        base=arguments["base"],
        task=arguments["task"],
        data=arguments["data"],
        split=split,
        engine="transformers",
        dtype="float32",
    )
    return result["score"]


@pytest.fixture
def held(monkeypatch):
    """The experts that a search reads and the particles that it makes, in this order."""
    found = []

    def reading(*arguments, **options):
        found.append(read_experts(*arguments, **options))
        return found[-1]

    class Kept(Population):
        def __init__(self, *arguments, **more):
            super().__init__(*arguments, **more)
            found.append(self)

    monkeypatch.setattr(experiment, "read_experts", reading)
    monkeypatch.setattr(experiment, "Population", Kept)
    return found


@pytest.mark.parametrize("particles", [None, 3, 5])
def test_the_experts_lie_in_the_rows_of_the_swarm(tiny, tmp_path, held, particles):
    """3P + 2 rows in all. The best expert's test score is its own though its row has long been a particle's."""
    count = {} if particles is None else {"particles": particles}
    summary = search(**tiny | {"iterations": 10}, out=tmp_path / "run", **count)
    experts, swarm = held[:2]
    rows = swarm._weights.rows
    assert len(rows) == len(experts.room) == count_rows(particles or 3)
    assert rows.data_ptr() == experts.room.data_ptr() == experts.rows.data_ptr()
    assert rows.stride() == experts.room.stride()
    assert rows.untyped_storage().nbytes() <= rows.numel() * rows.element_size() + 2**20
    best = Path(tiny["experts"]) / summary["start"]["expert"]
    first = read_experts([best], minimum=1)
    assert not torch.equal(rows[summary["start"]["particle"]], first.rows[0])
    assert summary["start"]["test"] == pytest.approx(evaluated(tiny, best), abs=1e-12)
    assert summary["start"]["dev"] == pytest.approx(evaluated(tiny, best, "dev"), abs=1e-12)


def test_state_mixture_holds_the_experts_and_no_more_rows(tiny, tmp_path, held):
    search(**tiny, out=tmp_path / "run", state="mixture")
    experts, swarm = held[:2]
    assert len(experts.room) == 3
    assert swarm._weights is None
    assert torch.equal(experts.rows, read_experts(tiny["experts"]).rows)


def test_randomness_of_every_coordinate(tiny, tmp_path):
    """The winner is no mixture any more; everything else is as ever."""
    settings = tiny | {"randomness": "coordinate", "particles": 5}
    summary = search(**settings, out=tmp_path / "run")
    assert summary["mixture"] is None
    lines = history_of(tmp_path / "run")
    assert [line["global_best_mixture"] for line in lines] == [None] * 4
    assert json.loads((tmp_path / "run" / "config.json").read_text())["randomness"] == "coordinate"
    assert "so the global best is no mixture of the experts." in (tmp_path / "run" / "report.html").read_text()

    assert lines[-1]["global_best"]["utility"] > lines[0]["global_best"]["utility"], "the winner has moved"
    winner = read_experts([tmp_path / "run" / "global_best"], minimum=1).rows[0].double()
    experts = read_experts(settings["experts"]).rows.double().T
    mixture = torch.linalg.lstsq(experts, winner[:, None]).solution
    assert (experts @ mixture - winner[:, None]).norm() > 0.1 * winner.norm()
    for split in ("dev", "test"):
        score = evaluated(settings, tmp_path / "run" / "global_best", split)
        assert summary["end"][split] == pytest.approx(score, abs=1e-12)

    search(**settings, out=tmp_path / "again")
    weights = [tmp_path / name / "global_best" / "adapter_model.safetensors" for name in ("run", "again")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_winner_that_is_no_mixture_is_shown_without_one(tiny, tmp_path, capsys):
    for randomness, shown in (("coordinate", False), ("particle", True)):
        run_search({**tiny, "out": tmp_path / randomness, "randomness": randomness})
        output = capsys.readouterr().out
        assert ("winner = " in output) == shown
        assert "best expert" in output


def test_stochastic_rounding(tiny, tmp_path):
    """Rows in bfloat16 that are rounded up or down: other weights than to nearest, the same ones every time."""
    settings = tiny | {"row_dtype": "bfloat16", "particles": 5}
    runs = {"first": {"rounding": "stochastic"}, "again": {"rounding": "stochastic"}, "nearest": {}}
    summaries, files = {}, {}
    for name, rounding in runs.items():
        summaries[name] = search(**settings, **rounding, out=tmp_path / name)
        files[name] = tmp_path / name / "global_best" / "adapter_model.safetensors"
    assert files["first"].read_bytes() == files["again"].read_bytes() != files["nearest"].read_bytes()
    assert [json.loads((tmp_path / name / "config.json").read_text())["rounding"] for name in runs] == [
        "stochastic",
        "stochastic",
        "nearest",
    ]
    winner = read_experts([tmp_path / "first" / "global_best"], minimum=1).rows[0]
    assert winner.dtype == torch.bfloat16
    summary = summaries["first"]
    mixture = torch.tensor(list(summary["mixture"].values()))
    expected = mixture @ read_experts(settings["experts"], dtype=torch.bfloat16).rows.float()
    torch.testing.assert_close(winner.float(), expected, rtol=0, atol=0.05)
    assert summary["end"]["test"] == pytest.approx(evaluated(settings, tmp_path / "first" / "global_best"), abs=1e-12)


def test_stochastic_rounding_of_experts_in_a_half_type(tiny, tmp_path):
    """What the rows are, not what row_dtype says, decides."""
    for seed in range(2):
        make_adapter(Path(tiny["base"]), tmp_path / "experts" / f"e{seed}", seed=seed, dtype=torch.bfloat16)
    search(**tiny | {"experts": tmp_path / "experts"}, rounding="stochastic", out=tmp_path / "run")
    assert (tmp_path / "run" / "summary.json").exists()


def test_dropped_particles_keep_their_utility(tiny, tmp_path):
    summary = search(**tiny | {"iterations": 4}, out=tmp_path / "run", drop_n=0.5)
    lines = history_of(tmp_path / "run")
    dropped = 0
    for before, line in itertools.pairwise(lines):
        for particle, evaluated in enumerate(line["evaluated"]):
            if not evaluated:
                dropped += 1
                assert line["utilities"][particle] == before["utilities"][particle]
                assert particle not in line["improved"]
    assert dropped > 0
    assert summary["evaluations"] == 5 * 3 - dropped


def test_a_nan_utility_is_never_a_best(tiny, tmp_path):
    summary = search(**tiny | {"task": "helpers_search:unsure"}, out=tmp_path / "run", limit_dev=1, particles=8)
    utilities = [value for line in history_of(tmp_path / "run") for value in line["utilities"]]
    assert None in utilities, "NaN is null in the history"
    assert summary["end"]["dev"] == max(value for value in utilities if value is not None)


def test_an_expert_in_the_place_of_the_winner_is_refused(tiny, tmp_path):
    search(**tiny, out=tmp_path / "run")
    winner = tmp_path / "run" / "global_best"
    kept = (winner / "adapter_model.safetensors").read_bytes()
    experts = [winner, *sorted(path for path in Path(tiny["experts"]).iterdir() if path.is_dir())]
    with pytest.raises(InputError, match="global_best would be replaced by the winner of this search"):
        search(**tiny | {"experts": experts}, out=tmp_path / "run", overwrite=True)
    assert (winner / "adapter_model.safetensors").read_bytes() == kept


def test_limits(tiny, tmp_path):
    summary = search(**tiny, out=tmp_path / "run", limit_dev=3, limit_test=2)
    assert (summary["dev_examples"], summary["test_examples"]) == (3, 2)
    assert summary["prompts"] == 3 * 3 * 4


def test_an_interrupt_keeps_what_was_found(tiny, tmp_path, monkeypatch):
    step, calls = TransformersEngine.step, []

    def interrupting(self):
        calls.append(1)
        if len(calls) == 5:  # the second particle of the first iteration
            os.kill(os.getpid(), signal.SIGINT)
        return step(self)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(TransformersEngine, "step", interrupting)
    summary = search(**tiny, out=tmp_path / "run", final_test=True)
    assert summary["stopped"] == "interrupted"
    assert len(history_of(tmp_path / "run")) == 1
    groups = json.loads((tmp_path / "run" / "test_scores.json").read_text())["groups"]
    assert set(groups) == {"experts", "start", "best"}, "where the dropped iteration had moved to is no end"
    assert "test" not in json.loads((tmp_path / "run" / "analysis.json").read_text()).get("emergence", {})
    assert summary["iterations"] == 0
    assert summary["end"]["dev"] == summary["start"]["dev"]
    assert (tmp_path / "run" / "global_best" / "adapter_model.safetensors").exists()
    assert signal.getsignal(signal.SIGINT) is before, "the handler that was there is put back"


def test_an_interrupt_in_the_last_wave_keeps_the_iteration(tiny, tmp_path, monkeypatch):
    step, calls = TransformersEngine.step, []

    def interrupting(self):
        calls.append(1)
        if len(calls) == 6:  # the last particle of the first iteration
            os.kill(os.getpid(), signal.SIGINT)
        return step(self)

    monkeypatch.setattr(TransformersEngine, "step", interrupting)
    summary = search(**tiny, out=tmp_path / "run")
    assert (summary["stopped"], summary["iterations"]) == ("interrupted", 1)
    assert len(history_of(tmp_path / "run")) == 2


def test_a_dying_engine_loses_no_iteration(tiny, tmp_path, monkeypatch):
    step, calls = TransformersEngine.step, []

    def dying(self):
        calls.append(1)
        if len(calls) == 8:  # in the second iteration
            raise RuntimeError("engine died")
        return step(self)

    monkeypatch.setattr(TransformersEngine, "step", dying)
    with pytest.raises(RuntimeError, match="engine died"):
        search(**tiny, out=tmp_path / "run")
    lines = history_of(tmp_path / "run")
    assert [line["iteration"] for line in lines] == [0, 1]
    assert sum(lines[-1]["global_best_mixture"]) == pytest.approx(1), "enough to make the best again"


def test_an_earlier_run_is_not_overwritten_unless_asked(run):
    arguments, out, _ = run
    before = (out / "summary.json").read_bytes()
    with pytest.raises(InputError, match="not empty"):
        search(**arguments, out=out)
    assert (out / "summary.json").read_bytes() == before


def test_full_checkpoints_as_experts(tiny, tmp_path):
    for seed in range(3):
        make_base(tmp_path / "experts" / f"model{seed}", seed=seed)
    summary = search(**tiny | {"experts": tmp_path / "experts"}, out=tmp_path / "run")
    assert (tmp_path / "run" / "global_best" / "model.safetensors").exists()
    result = evaluate.evaluate(
        str(tmp_path / "run" / "global_best"),
        base=tiny["base"],
        task=tiny["task"],
        data=tiny["data"],
        engine="transformers",
        dtype="float32",
    )
    assert result["score"] == pytest.approx(summary["end"]["test"], abs=1e-12)


@pytest.mark.parametrize("particles", [3, 6])
@pytest.mark.parametrize("state", ["weights", "mixture"])
def test_a_budget_changes_where_rows_lie_and_not_a_bit(tiny, tmp_path, state, particles, capfd):
    """The least that works, with rows in a file that is gone at the end: all utilities and the winner are the same."""
    folders, runs = [], []
    for budget in (None, "60KB"):
        folders.append(tmp_path / str(budget))
        settings = {"state": state, "host_memory": budget, "spill": str(tmp_path), "particles": particles}
        runs.append(search(**tiny, out=folders[-1], **settings, progress=True, randomness="particle"))
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(folder.name for folder in folders)
    shown = capfd.readouterr().err
    assert "in memory" in shown
    assert ("in a file" in shown) == ("file" in runs[1]["memory"]["tiers"])
    assert runs[0]["memory"]["tiers"] == {"host": runs[0]["memory"]["rows"]}
    assert runs[0]["memory"]["cache_rows"] == 0
    if state == "weights":
        assert set(runs[1]["memory"]["tiers"]) == {"host", "file"}
        assert sum(runs[1]["memory"]["tiers"].values()) == runs[1]["memory"]["rows"]
    lines = [
        [{k: v for k, v in line.items() if k not in {"seconds", "engine_idle_share"}} for line in history_of(out)]
        for out in folders
    ]
    assert lines[0] == lines[1]
    weights = [(out / "global_best" / "adapter_model.safetensors").read_bytes() for out in folders]
    assert weights[0] == weights[1]
    config = json.loads((folders[1] / "config.json").read_text())
    assert config["host_memory"] == "60KB"
    assert config["memory"] == runs[1]["memory"]


def test_a_failing_search_leaves_no_file_of_rows_and_no_thread(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(Population, "update", lambda self, *moves: 1 / 0)
    spill, threads = tmp_path / "spill", threading.active_count()
    spill.mkdir()
    with pytest.raises(ZeroDivisionError):
        search(**tiny, out=tmp_path / "out", particles=5, host_memory="60KB", spill=str(spill))
    assert not list(spill.iterdir())
    assert threading.active_count() == threads


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"particles": 2}, "3 experts"),
        ({"inertia": -1}, "inertia"),
        ({"serve": "slots"}, "transformers engine"),
        ({"randomness": "coordinate", "state": "mixture"}, "randomness is 'coordinate' but state='mixture' has no"),
        ({"rounding": "stochastic"}, "rounding is 'stochastic' but the rows are float32, which loses no step"),
        ({"rounding": "stochastic", "row_dtype": "float32"}, "use rounding='nearest' or row_dtype='bfloat16'"),
        ({"rounding": "stochastic", "row_dtype": "bfloat16", "state": "mixture"}, "state='mixture' rounds nothing"),
        ({"rounding": "up"}, "rounding is 'up'; choose one of 'nearest', 'stochastic', 'published'"),
        ({"randomness": "row"}, "randomness is 'row'; choose one of 'particle', 'unit', 'coordinate'"),
        ({"particles": 1 << 40}, "particles is 1099511627776; give a number from 0 to 1,000,000"),
        ({"task": "sorting"}, "multiple_choice"),
        ({"data": "nowhere.json"}, "nowhere.json"),
        ({"experts": "nowhere"}, "nowhere"),
        ({"base": "no/where"}, "no/where"),
        ({"max_model_len": 16, "max_tokens": 14}, "Prompt 0 of the dev split"),
        ({"max_num_seqs": 0}, "max_num_seqs is 0; give a number from 1 to 1,000,000"),
        ({"max_num_seqs": 512}, "the transformers engine has no such setting; use engine='vllm'"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_no_run(tiny, tmp_path, change, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=message) as error:
        search(**tiny | change, out=tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_run_folder_under_which_no_winner_could_be_written_is_refused(tiny, tmp_path):
    """Before the search, not after it."""
    folder = tmp_path / os.fsdecode(b"run\xff")
    with pytest.raises(InputError, match=r"run\\udcff', which is not UTF-8; choose another folder"):
        search(**tiny, out=folder)
    assert not folder.exists()


def test_an_unknown_setting_is_refused(tiny, tmp_path):
    with pytest.raises(TypeError, match="fitness"):
        search(**tiny, out=tmp_path / "run", fitness=1)


def test_experts_of_another_base_are_refused(tiny, tmp_path):
    experts = [*sorted(Path(tiny["experts"]).iterdir())]
    other = make_base(tmp_path / "base")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"hidden_size": 64, "intermediate_size": 96}))
    with pytest.raises(InputError, match="base"):
        search(**tiny | {"experts": experts, "base": str(other)}, out=tmp_path / "run")
