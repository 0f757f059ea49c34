"""Several vLLM engines on the real model find what one does: every way to serve, both states, rows in a file."""

import gc
import logging
import signal
from functools import partial
from pathlib import Path

import helpers_group
import pytest
import torch
from helpers_search import told

from modelswarms_fast.config import EngineConfig
from modelswarms_fast.engines.pool import supervisor
from modelswarms_fast.engines.pool.supervisor import Supervisor
from modelswarms_fast.engines.protocol import Request
from modelswarms_fast.engines.start import start_engine
from modelswarms_fast.evaluation.evaluator import Evaluator
from modelswarms_fast.evaluation.objectives import load_utility
from modelswarms_fast.runs import experiment
from modelswarms_fast.runs.search import search
from modelswarms_fast.weights.base_model import resolve_base
from modelswarms_fast.weights.experts import read_experts
from modelswarms_fast.weights.population import MadeRow
from modelswarms_fast.weights.shared_memory import shared_rows

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

pytest.importorskip("vllm")

EXAMPLES = Path(__file__).parents[2] / "examples"
DATA = EXAMPLES / "data" / "skills_mix.json"
BASE = "smollm2-135m-instruct"
EXPERTS = [EXAMPLES / "experts" / name for name in ("addition", "reverse", "units")]
DEFAULTS = {"task": "helpers_search:vowels", "particles": 3, "iterations": 2, "seed": 4, "parity_check": "off"}
DEFAULTS |= {"limit_dev": 8, "limit_test": 2, "max_tokens": 6, "max_model_len": 256}
DEFAULTS |= {"dtype": "float32", "row_dtype": "float32"}
disturb = helpers_group.disturb


def even(example, output):
    """Right or wrong, as every small change of an output may decide."""
    return float(len(output) % 2 == 0)


even.score_range = (0, 1)


@pytest.fixture(scope="module")
def engines():
    """One engine in this process and two in others, started once for all searches; every way to serve is open."""
    gc.collect()  # with a vLLM engine of this process ends what all of them share
    base, kept = resolve_base(BASE), []
    experts = read_experts(EXPERTS, dtype=torch.float32, place=shared_rows)
    for count in (1, 2):
        config = EngineConfig(serve="auto", state="mixture", dtype="float32", max_model_len=256, slots=2, engines=count)
        kept.append(start_engine(base, experts, config))
    yield dict(enumerate(kept, 1))
    for engine in kept:
        engine.close()


@pytest.fixture
def find(engines, monkeypatch, tmp_path):
    """A search over three experts in float32, where what shares a batch changes no token; its summary and history."""

    def start(base, experts, config, *cluster):
        if config.serve != "auto":
            engines[config.engines].set_mode(config.serve)
        return engines[config.engines]

    def find(**settings):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        summary = search(EXPERTS, base=BASE, data=DATA, out=out, **(DEFAULTS | settings))
        return summary, told(out)

    monkeypatch.setattr(experiment, "start_engine", start)
    for engine in engines.values():
        monkeypatch.setattr(engine, "close", lambda: None)
    return find


def decided(history):
    """What a search that stops early decided; which examples it took for that depends on what ran beside them."""
    names = ("restarts", "improved", "global_best", "global_best_mixture", "global_worst", "step_length")
    return [{name: line[name] for name in names} for line in history]


def test_slots_that_stop_early_with_rows_in_a_file(find, monkeypatch):
    monkeypatch.setattr("modelswarms_fast.evaluation.evaluator.FLOOR", 2)
    settings = {"serve": "slots", "host_memory": "6MB", "stop_early": True, "task": f"{__name__}:even"}
    alone, history = find(**settings)
    together, found = find(**settings, engines=2)
    assert "file" in together["memory"]["bytes"]
    assert alone["skipped_examples"] > 0 < together["skipped_examples"]
    assert decided(found) == decided(history)
    assert together["end"] == alone["end"]


def test_mixtures_by_two_engines_one_of_which_stops(find, disturb, monkeypatch, caplog):
    settings = {"serve": "mixture", "state": "mixture", "iterations": 1}
    alone, history = find(**settings)
    helpers_group.hurry(monkeypatch, limit=8.0)
    give_up = Supervisor._give_up

    def once(self, why):
        monkeypatch.setattr(supervisor, "STEP_LIMIT", 300.0)  # a start has its quiet seconds
        give_up(self, why)

    monkeypatch.setattr(Supervisor, "_give_up", once)
    processes = disturb({6}, signal.SIGSTOP)
    with caplog.at_level(logging.WARNING):
        together, found = find(**settings, engines=2)
    assert found == history
    assert together["end"] == alone["end"]
    (line,) = [record.getMessage() for record in caplog.records if "pool" in record.name]
    assert "of 2 did not answer for 8 s and was killed; it is started anew" in line
    assert len(processes) == 3


def test_two_engines_serve_as_one_of_them_chooses(find):
    alone, history = find(serve="merged", state="mixture", iterations=1)
    together, found = find(serve="auto", state="mixture", iterations=1, engines=2)
    timings = together["auto_timings"]
    assert set(timings) == {"merged", "slots", "mixture"}
    assert timings[together["serve"]] >= 0.95 * max(timings.values()) > 0
    assert found == history
    assert together["end"] == alone["end"]


def test_two_vllm_engines_score_as_one(tmp_path):
    """Two processes of one thread each, against one such process: the same particles, the same scores."""
    base = resolve_base(BASE)
    experts = read_experts(EXAMPLES / "experts", place=shared_rows)
    utility = load_utility("exact_match", DATA, limit_dev=8, limit_test=1)
    config = EngineConfig(engines=2, max_model_len=512, parity_check="off")
    group = start_engine(base, experts, config)
    try:
        all_scored = Evaluator(group, utility).score_population(
            {number: MadeRow(partial(experts.rows.__getitem__, number)) for number in range(4)}, "dev"
        )
        together = {particle: scored.known for particle, scored in all_scored.items()}
        probe = Request(0, list(group.tokenizer("Which is larger?")["input_ids"]))
        group.load(0, experts.rows[0])
        group.load(1, experts.rows[0])
        assert group.log_probs(probe) == group.log_probs(probe._replace(slot=1))
        # Each alone: the other slot is empty.
        alone = {}
        for particle in range(4):
            alone |= {particle: Evaluator(group, utility).score_model(experts.rows[particle], "dev")}
    finally:
        group.close()
    assert together == alone
