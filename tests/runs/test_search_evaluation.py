"""Whole searches on the exact engine: early stopping, positions that come back, and the trace."""

import json
import shutil
from pathlib import Path

import helpers_search
import pytest
from helpers_search import write_data

from modelswarms_fast.engines.transformers import TransformersEngine
from modelswarms_fast.errors import InputError
from modelswarms_fast.records.run_folder import read_history
from modelswarms_fast.records.trace import Trace
from modelswarms_fast.runs.search import search
from modelswarms_fast.weights.population import Population

tiny = helpers_search.tiny


def history_of(run):
    return read_history(Path(run) / "history.jsonl")


@pytest.fixture
def wide(tiny, tmp_path):
    """The tiny search with 48 examples a split, more than the engine takes at once."""
    write_data(tmp_path / "wide.json", 48)
    return tiny | {"data": tmp_path / "wide.json", "task": "helpers_search:rich", "iterations": 5, "particles": 6}


def test_early_stopping_keeps_the_search(wide, tmp_path):
    whole = search(**wide, out=tmp_path / "whole")
    early = search(**wide, out=tmp_path / "early", stop_early=True)
    lines, bounded = history_of(tmp_path / "early"), 0
    for a, b in zip(history_of(tmp_path / "whole"), lines, strict=True):
        assert a["bounded"] == []
        for name in ("improved", "restarts", "evaluated", "global_best", "global_worst", "global_best_mixture"):
            assert a[name] == b[name], name
        for one in b["bounded"]:
            bounded += 1
            assert one["lower"] <= a["utilities"][one["particle"]] <= one["upper"] == b["utilities"][one["particle"]]
    assert bounded > 0
    assert lines[0]["bounded"] == []
    for name in ("end", "start", "mixture"):
        assert early[name] == whole[name]
    assert whole["skipped_examples"] == 0
    assert early["skipped_examples"] == whole["prompts"] - early["prompts"] > 0
    weights = [tmp_path / name / "global_best" / "adapter_model.safetensors" for name in ("whole", "early")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert json.loads((tmp_path / "early" / "config.json").read_text())["stop_early"] is True
    assert f"{early['skipped_examples']:,} left out" in (tmp_path / "early" / "report.html").read_text()


def test_early_stopping_without_a_range_is_refused(tiny, tmp_path):
    with pytest.raises(InputError, match=r"helpers_search:unsure have no known range; give the .* score_range"):
        search(**tiny | {"task": "helpers_search:unsure"}, out=tmp_path / "run", stop_early=True)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def loads(monkeypatch):
    """Every load of the engine."""
    load, noted = TransformersEngine.load, []
    monkeypatch.setattr(TransformersEngine, "load", lambda self, *what: (noted.append(1), load(self, *what))[1])
    return noted


def test_copies_of_an_expert_are_evaluated_once(tiny, tmp_path, loads):
    for name in ("one", "two", "three"):
        shutil.copytree(Path(tiny["experts"]) / ("bob" if name == "two" else "ada"), tmp_path / "experts" / name)
    settings = tiny | {"experts": tmp_path / "experts", "iterations": 0}
    summary = search(**settings, out=tmp_path / "run")
    assert summary["evaluations"] == 2
    assert summary["reused_scores"] == 12
    assert len(loads) == 2 + 1, "start and end are one position, which is tested once"
    assert summary["start"]["test"] == summary["end"]["test"]
    utilities = history_of(tmp_path / "run")[0]["utilities"]
    assert utilities[0] == utilities[1], "one and three, by name"


def test_a_swarm_that_stands_still_is_evaluated_once(tiny, tmp_path, loads):
    """Without a step every position is the last one."""
    settings = tiny | {"step_length": 0.0, "minimum_step_length": 0.0, "iterations": 3}
    for state in ("weights", "mixture"):
        summary = search(**settings, out=tmp_path / state, state=state)
        assert (summary["evaluations"], summary["prompts"]) == (3, 36)
        assert summary["reused_scores"] == 3 * 36
    assert len(loads) == 2 * (3 + 1)


def events_of(path):
    """Names of the lanes, and the events by lane."""
    events = json.loads(path.read_text())["traceEvents"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    return {
        name: [event for event in events if event["ph"] == "X" and event["tid"] == lane] for lane, name in names.items()
    }


def test_the_trace_shows_the_driver_and_the_engine(tiny, tmp_path):
    summary = search(**tiny, out=tmp_path / "run", trace=tmp_path / "traces" / "trace.json")
    lanes = events_of(tmp_path / "traces" / "trace.json")
    assert set(lanes) == {"driver", "engine 0"}
    assert {event["name"] for event in lanes["driver"]} == {"update", "tell", "journal", "score", "prepare"}
    assert {event["name"] for event in lanes["engine 0"]} == {"load", "step"}
    loads = [event["args"] for event in lanes["engine 0"] if event["name"] == "load"]
    assert loads == [{"iteration": i, "particles": [p]} for i in range(4) for p in range(3)]
    for events in lanes.values():
        assert all(event["dur"] >= 0 for event in events)
        ends = [event["ts"] + event["dur"] for event in events]
        assert all(end <= later["ts"] + 1 for end, later in zip(ends, events[1:], strict=False)), "one after the other"
    busy = sum(event["dur"] for event in lanes["engine 0"])
    lines = history_of(tmp_path / "run")
    total = sum(line["seconds"]["total"] for line in lines)
    assert summary["engine_idle_share"] == pytest.approx(1 - busy / 1e6 / total, abs=1e-3)
    for index, line in enumerate(lines):
        own = sum(event["dur"] for event in lanes["engine 0"] if event["args"]["iteration"] == index)
        assert line["engine_idle_share"] == pytest.approx(1 - own / 1e6 / line["seconds"]["total"], abs=1e-3)


def test_a_run_that_fails_leaves_its_trace(tiny, tmp_path, monkeypatch):
    step, calls = TransformersEngine.step, []

    def dying(self):
        calls.append(1)
        if len(calls) == 8:
            raise RuntimeError("engine died")
        return step(self)

    monkeypatch.setattr(TransformersEngine, "step", dying)
    with pytest.raises(RuntimeError, match="engine died"):
        search(**tiny, out=tmp_path / "run", trace=tmp_path / "run" / "trace.json")
    lanes = events_of(tmp_path / "run" / "trace.json")
    assert sum(event["name"] == "step" for event in lanes["engine 0"]) == 7


def test_a_trace_that_cannot_be_written_is_refused_before_the_search(tiny, tmp_path, loads):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*file/trace.json"):
        search(**tiny, out=tmp_path / "run", trace=tmp_path / "file" / "trace.json")
    assert not loads


def test_without_a_path_nothing_is_kept_but_the_busy_time():
    trace = Trace()
    trace.watch("load", 0, 1.0, 2.0)
    trace.watch("step", 1, 1.0, 4.0)
    with trace.span("tell"):
        pass
    trace.write()
    assert (trace.engines, trace.busy()) == (2, 4.0)
    assert not trace._events


def test_an_engine_that_worked_before_the_second_one_counts_for_its_own_seconds():
    """As where one engine has timed the ways to serve for both."""
    trace = Trace()
    trace.watch("step", 0, 0.0, 10.0)
    before = trace.busy()
    trace.watch("step", 0, 10.0, 13.0)
    trace.watch("step", 1, 10.0, 14.0)
    assert trace.idle(trace.busy() - before, 5.0) == pytest.approx(1 - 7 / 10)


def test_the_loop_hands_the_next_particles_ahead(tiny, tmp_path, monkeypatch):
    ahead = []
    monkeypatch.setattr(Population, "prefetch", lambda self, particle, best: ahead.append(particle))
    search(**tiny | {"iterations": 1}, out=tmp_path / "run")
    assert ahead == [1, 2] * 2
