"""A search that has ended is not lost, a cut one goes on, and no command replaces a model that it was given."""

import json

import helpers_search
import pytest
import torch
from helpers_evaluate import ScriptedEngine, utility
from helpers_rows import held_bytes
from helpers_search import NAMES, arguments_of, told

from modelswarms_fast.config import EngineConfig, SwarmConfig
from modelswarms_fast.errors import EngineError, InputError
from modelswarms_fast.evaluation.evaluator import Evaluator
from modelswarms_fast.evaluation.objectives import Answer
from modelswarms_fast.records.run_folder import Journal, read_json
from modelswarms_fast.runs import search as module
from modelswarms_fast.runs.compare import compare
from modelswarms_fast.runs.experiment import Experiment, choose_state
from modelswarms_fast.runs.final_test import compare_on_test
from modelswarms_fast.runs.search import search
from modelswarms_fast.runs.study import study
from modelswarms_fast.runs.sweep import sweep
from modelswarms_fast.runs.token_swarm import token_swarm
from modelswarms_fast.swarm import Swarm
from modelswarms_fast.weights.experts import read_experts

tiny = helpers_search.tiny


@pytest.mark.parametrize("step", ["choose_winner", "compare_on_test", "write_test_scores", "write_report"])
def test_what_fails_after_the_search_costs_neither_winner_nor_summary(tiny, tmp_path, monkeypatch, step):
    def fails(*arguments, **more):
        raise EngineError("the engine died")

    monkeypatch.setattr(module, step, fails)
    with pytest.raises(EngineError, match="the engine died"):
        search(**tiny, out=tmp_path / "run", confirm=4, final_test=True)
    summary = read_json(tmp_path / "run" / "summary.json")
    assert summary["stopped"] == "iterations"
    assert summary["end"]["dev"] >= summary["start"]["dev"]
    assert ("test" in summary["end"]) == (step in ("write_test_scores", "write_report"))
    winner = read_experts([tmp_path / "run" / "global_best"], minimum=1).rows[0]
    coefficients = torch.tensor([summary["mixture"][name] for name in NAMES])
    torch.testing.assert_close(winner, coefficients @ read_experts(tiny["experts"]).rows, rtol=1e-4, atol=1e-5)


def test_a_run_folder_that_is_not_empty_is_refused_before_anything_is_read(tiny, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        search(**tiny | {"experts": "nowhere", "data": "nowhere.json"}, out=tmp_path)


def commands_into(tiny, out):
    """Each command that writes a run folder, beside search and token-swarm, as a function of resume."""
    arguments = arguments_of(tiny, out=out)
    return {
        "compare": lambda resume: compare(**arguments, budget=6, methods=["best_expert"], resume=resume),
        "sweep": lambda resume: sweep(**arguments, searches=1, swarm={"iterations": 0}, resume=resume),
        "study": lambda resume: study("seeds", **arguments, seeds=1, swarm={"iterations": 0}, resume=resume),
    }


@pytest.mark.parametrize("command", ["compare", "sweep", "study"])
@pytest.mark.parametrize("config", [False, True])
def test_a_folder_with_somebodys_own_data_is_left_as_it_is(tiny, tmp_path, command, config):
    """The data that a run divides has this name too; a config.json alone does not make the folder a run's."""
    own = {"data.json": "mine"}
    if config:
        own["config.json"] = json.dumps({"run": command, "experts": ["ada"], "sources": ["ada"]})
    for name, text in own.items():
        (tmp_path / name).write_text(text)
    for resume in (False, True):
        with pytest.raises(InputError, match="not empty"):
            commands_into(tiny, tmp_path)[command](resume)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == own


def test_a_token_swarm_does_not_replace_an_expert_of_its_own(tiny, tmp_path):
    summary = search(**tiny, out=tmp_path / "run")
    winner = tmp_path / "run" / "global_best"
    kept = (winner / "adapter_model.safetensors").read_bytes()
    settings = {"task": tiny["task"], "data": tiny["data"], "base": tiny["base"], "overwrite": True}
    experts = [winner, tiny["experts"] / "ada"]
    with pytest.raises(InputError, match="global_best would be replaced by the winner of this search"):
        token_swarm(experts, out=tmp_path / "run", **settings)
    assert (winner / "adapter_model.safetensors").read_bytes() == kept
    assert read_json(tmp_path / "run" / "summary.json") == json.loads(json.dumps(summary))


@pytest.mark.parametrize("state", ["weights", "mixture"])
@pytest.mark.parametrize("lines", [1, 3])
def test_a_search_that_was_cut_is_resumed(tiny, tmp_path, monkeypatch, lines, state):
    settings = tiny | {"particles": 5, "state": state}
    uncut = search(**settings, out=tmp_path / "uncut")
    left, append = [lines], Journal.append

    def cut(journal, line):
        if not left[0]:
            journal._file.write(b'{"iteration": 1, "utili')
            raise KeyboardInterrupt
        left[0] -= 1
        append(journal, line)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", cut)
        with pytest.raises(KeyboardInterrupt):
            search(**settings, out=tmp_path / "cut")
    with pytest.raises(InputError, match="not empty"):
        search(**settings, out=tmp_path / "cut")
    with pytest.raises(InputError, match=r"other settings \(inertia differs\)"):
        search(**settings | {"inertia": 0.1}, out=tmp_path / "cut", resume=True)
    summary = search(**settings, out=tmp_path / "cut", resume=True)
    assert told(tmp_path / "cut") == told(tmp_path / "uncut")
    for name in ("start", "end", "mixture", "iterations", "stopped"):
        assert summary[name] == uncut[name]
    weights = [tmp_path / which / "global_best" / "adapter_model.safetensors" for which in ("cut", "uncut")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    with pytest.raises(InputError, match="has ended; there is nothing to resume"):
        search(**settings, out=tmp_path / "cut", resume=True)


def test_there_must_be_something_to_resume(tiny, tmp_path):
    with pytest.raises(InputError, match="contradict each other"):
        search(**tiny, out=tmp_path / "run", resume=True, overwrite=True)


def test_rows_of_other_first_particles_keep_to_the_budget_too(tiny, tmp_path):
    """As in a study of diversity, whose particles begin at some experts several times."""
    settings = arguments_of(tiny, state="weights", host_memory="60KB", spill=str(tmp_path))
    with Experiment(**settings) as experiment:
        for first in (None, (0, 0, 1)):
            population = experiment.population(Swarm(SwarmConfig(particles=4), 3, first))
            assert held_bytes(population._weights.rows)["file"] > 0
            population.close()


def test_answers_are_asked_of_all_engines():
    engine = ScriptedEngine(4)
    evaluator = Evaluator(engine, utility([f"q{index}" for index in range(8)]), engines=2)
    answers = evaluator.generate(torch.tensor([3.0]), "dev")
    slots = [entry[1] for entry in engine.log if entry[0] == "submit"]
    assert slots == [0, 1] * 4
    assert len(answers) == 8


def test_state_auto_is_what_fits(tiny, tmp_path, capsys):
    found = {}
    for name, more in (("all", {}), ("little", {"host_memory": "30KB"}), ("drawn", {"randomness": "coordinate"})):
        summary = search(**tiny | {"iterations": 1} | more, out=tmp_path / name, progress=True)
        config = read_json(tmp_path / name / "config.json")
        assert config["state"] == summary["state"]
        assert config["state_reason"] in " ".join(capsys.readouterr().err.split())
        found[name] = (summary["state"], config["state_reason"])
    assert found == {
        "all": ("weights", "the rows of 3 particles fit the memory budget"),
        "little": ("mixture", "the rows of 3 particles do not fit the memory budget"),
        "drawn": ("weights", "randomness is 'coordinate'"),
    }


@pytest.mark.parametrize(
    ("settings", "randomness", "state"),
    [
        ({"serve": "mixture"}, "particle", "mixture"),
        ({"rounding": "stochastic"}, "particle", "weights"),
        ({"rounding": "published"}, "particle", "weights"),
        ({}, "coordinate", "weights"),
        ({}, "particle", None),
    ],
)
def test_a_setting_may_need_a_state(settings, randomness, state):
    assert choose_state(EngineConfig(**settings), randomness)[0] == state


def test_answers_show_what_changed():
    """Ten questions that only the winner gets right, five that only the best expert does."""
    scored = utility([str(index) for index in range(4)], score=lambda example, output: float(output == "right"))
    prompts = [str(index) for index in range(40)]
    scored.examples["test"][:] = [{"prompt": prompt, "answer": f"a{prompt}"} for prompt in prompts]
    scored.asks["test"][:] = [scored.asks["dev"][0][:1]] * 40
    rights = {3.0: range(10, 30), 7.0: range(16, 40)}  # of the expert, of the winner
    engine = ScriptedEngine(1)
    evaluator = Evaluator(engine, scored)
    evaluator.generate = lambda row, split: [
        [Answer("right" if index in rights[float(row)] else "wrong")] for index in range(40)
    ]
    scores, answers = compare_on_test(evaluator, torch.tensor([3.0]), torch.tensor([7.0]))
    assert (sum(scores["start"]), sum(scores["end"])) == (20, 24)
    assert answers["counts"] == {"gained": 10, "lost": 6, "both": 14, "neither": 10}
    assert [one["example"] for one in answers["gained"]] == list(range(30, 40))
    assert [one["example"] for one in answers["lost"]] == list(range(10, 15))
    assert answers["lost"][0]["best_expert"] == "right"
    assert answers["lost"][0]["winner"] == "wrong"
    assert answers["lost"][0]["expected"] == "a10"


def test_a_run_folder_says_what_changed(tiny, tmp_path):
    search(**tiny, out=tmp_path / "run", command=["modelswarms-fast", "search"])
    answers = read_json(tmp_path / "run" / "answers.json")
    assert sum(answers["counts"].values()) == 12
    assert answers["best_expert"] in NAMES
    assert read_json(tmp_path / "run" / "config.json")["command"] == ["modelswarms-fast", "search"]
