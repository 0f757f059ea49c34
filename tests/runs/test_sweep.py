"""Searches with confirm and test scores, the report after the fact, sweeps and studies, on the exact engine."""

import json
import shutil
from dataclasses import replace

import helpers_search
import numpy as np
import pytest
import torch
from helpers_search import told, write_data
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from typer.testing import CliRunner

from modelswarms_fast.cli import main
from modelswarms_fast.config import SwarmConfig
from modelswarms_fast.engines.transformers import TransformersEngine
from modelswarms_fast.errors import InputError
from modelswarms_fast.records import run_folder
from modelswarms_fast.records.analysis import read_run
from modelswarms_fast.records.run_folder import Journal, read_json
from modelswarms_fast.runs import sweep
from modelswarms_fast.runs.final_test import evaluate_run
from modelswarms_fast.runs.search import search
from modelswarms_fast.runs.study import study, variants_of
from modelswarms_fast.runs.trial import Trial
from modelswarms_fast.weights.experts import inner_products, read_experts, read_model

tiny = helpers_search.tiny
RIGHT = {"task": "helpers_search:rich", "parity_check": "off"}


def sizes(tiny):
    """What a sweep or study takes: the searches' own settings apart from the engine's."""
    given = {name: value for name, value in (tiny | RIGHT).items() if name not in ("iterations", "seed")}
    return given | {"swarm": {"iterations": 2, "seed": 5}}


def test_confirm_examples_are_never_seen_by_the_search(tiny, tmp_path, monkeypatch):
    asked, at_lines = [], []
    submit, append = TransformersEngine.submit, Journal.append

    def submitted(engine, key, request, *more):
        asked.append(tuple(request.prompt))
        return submit(engine, key, request, *more)

    def appended(mine, line):
        append(mine, line)
        at_lines.append(len(asked))

    monkeypatch.setattr(TransformersEngine, "submit", submitted)
    monkeypatch.setattr(Journal, "append", appended)
    summary = search(**tiny | RIGHT, out=tmp_path / "run", confirm=4)
    words = json.loads(tiny["data"].read_text())["dev"]
    back = [words[index]["prompt"] for index in (1, 4, 7, 10)]  # evenly spread over twelve
    tokenizer = AutoTokenizer.from_pretrained(tiny["base"])
    tokens = {tuple(tokenizer(prompt)["input_ids"]) for prompt in back}
    during, after = set(asked[: at_lines[-1]]), asked[at_lines[-1] :]
    assert len(during) == 8
    assert not during & tokens
    assert tokens <= set(after)
    assert (summary["dev_examples"], summary["confirm_examples"], summary["test_examples"]) == (8, 4, 12)
    best = max(one["confirm"] for one in summary["candidates"])
    assert summary["end"]["confirm"] == best
    assert 0 <= summary["start"]["confirm"] <= 1


def test_the_winner_is_the_candidate_that_confirm_prefers(tiny, tmp_path, monkeypatch):
    """Whatever is best on dev, the exported model is the particle's that was chosen."""
    from modelswarms_fast.runs import choose as module

    kept = {}

    def last(evaluator, swarm, particles):
        found = choose(evaluator, swarm, particles)
        one = found.candidates[-1]
        kept["row"] = particles.row(one["particle"], best=True).clone()
        return replace(found, particle=one["particle"], dev=one["dev"], confirm=one["confirm"])

    choose = module.confirm
    monkeypatch.setattr(module, "confirm", last)
    out = tmp_path / "run"
    summary = search(**tiny | RIGHT, out=out, confirm=4)
    particle = summary["candidates"][-1]["particle"]
    assert summary["end"]["particle"] == particle
    experts = read_experts(tiny["experts"])
    torch.testing.assert_close(read_model(out / "global_best", experts), kept["row"], rtol=0, atol=0)
    coefficients = torch.tensor([summary["mixture"][name] for name in experts.names])
    torch.testing.assert_close(coefficients @ experts.rows, kept["row"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("state", ["weights", "mixture"])
def test_positions_and_scores_of_a_run_are_kept(tiny, tmp_path, state):
    out = tmp_path / "run"
    summary = search(**tiny | RIGHT | {"state": state}, out=out, particles=5, final_test=True)
    run = read_run(out)
    positions, dev, test = run.positions(), run.dev_scores(), run.test_scores()
    assert positions.shape == (4, 5, 3)
    np.testing.assert_allclose(positions.sum(axis=2), 1, atol=1e-12)
    np.testing.assert_array_equal(dev["start"].mean(axis=1), run.dev_utilities()["start"])
    np.testing.assert_array_equal(dev["end"].mean(axis=1), run.dev_utilities()["end"])
    np.testing.assert_array_equal(dev["best"].mean(axis=1), run.dev_utilities()["best"])
    assert test["experts"].shape == (3, 12)
    assert test["best"][summary["end"]["particle"]].mean() == summary["end"]["test"]
    assert test["experts"][summary["start"]["particle"]].mean() == summary["start"]["test"]
    assert {"emergence", "trajectory", "composition", "weak_to_strong", "top_k"} <= set(
        read_json(out / "analysis.json")
    )
    # And again after the fact, from the history: the same, as float32 rounds far below what the score sees.
    before = (out / "test_scores.json").read_text()
    evaluate_run(out, {"task": read_json(out / "config.json")["task"]})
    again = json.loads((out / "test_scores.json").read_text())
    assert again["exact"] == (state == "mixture")
    assert again["groups"] == json.loads(before)["groups"]


def test_kept_files_of_an_earlier_run_do_not_outlive_it(tiny, tmp_path):
    out = tmp_path / "run"
    search(**tiny | RIGHT, out=out, final_test=True)
    assert (out / "test_scores.json").exists()
    search(**tiny | RIGHT | {"iterations": 1}, out=out, overwrite=True)
    assert not (out / "test_scores.json").exists()
    assert "top_k" not in read_json(out / "analysis.json")


@pytest.mark.parametrize("state", ["weights", "mixture"])
def test_a_sweep_that_was_cut_ends_as_one_that_was_not(tiny, tmp_path, monkeypatch, state):
    settings = sizes(tiny) | {"state": state, "searches": 3}
    uncut = sweep.sweep(**settings, out=tmp_path / "uncut")
    advance, left = Trial.advance, [4]

    def cut(search, *arguments):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return advance(search, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trial, "advance", cut)
        with pytest.raises(KeyboardInterrupt):
            sweep.sweep(**settings, out=tmp_path / "cut")
    assert sweep.sweep(**settings, out=tmp_path / "cut", resume=True) == uncut
    for one in uncut["searches"]:
        name = f"searches/{one['name']}"
        assert (tmp_path / "cut" / name / "history.jsonl").read_bytes() == (
            tmp_path / "uncut" / name / "history.jsonl"
        ).read_bytes()
        experts = read_experts(tiny["experts"])
        rows = [read_model(tmp_path / which / name / "global_best", experts) for which in ("cut", "uncut")]
        torch.testing.assert_close(*rows, rtol=0, atol=0)
    assert uncut["best"]["dev"] == max(one["dev"] for one in uncut["searches"])
    assert uncut["evaluations"] == 3 + sum(one["evaluations"] for one in uncut["searches"])


def test_a_search_of_a_sweep_is_a_run_of_its_own(tiny, tmp_path):
    """The same settings in `search` find the same, line by line, and the folder can be reported."""
    found = sweep.sweep(**sizes(tiny), out=tmp_path / "sweep", searches=2)
    one = found["searches"][0]
    drawn = {name: one[name] for name in found["ranges"]}
    search(**tiny | RIGHT | drawn | {"iterations": 2, "seed": one["seed"]}, out=tmp_path / "alone")
    folder = tmp_path / "sweep" / "searches" / one["name"]
    cost = {"prompts", "tokens"}
    alone = [{name: value for name, value in line.items() if name not in cost} for line in told(tmp_path / "alone")]
    assert told(folder) == alone
    result = CliRunner().invoke(main.app, ["report", str(folder), "--plots", str(tmp_path / "plots")])
    assert result.exit_code == 0, result.output
    assert (folder / "report.html").exists()
    products = [read_json(run / "config.json")["expert_products"] for run in (folder, tmp_path / "alone")]
    assert products[0] == products[1] == inner_products(read_experts(tiny["experts"]).rows)
    assert read_json(folder / "analysis.json")["trajectory"]["exact"]
    assert (tmp_path / "plots" / "trajectory.svg").read_bytes().startswith(b"<?xml")


def test_a_sweep_of_other_arguments_is_refused(tiny, tmp_path):
    settings = sizes(tiny) | {"searches": 1}
    sweep.sweep(**settings, out=tmp_path / "sweep")
    with pytest.raises(InputError, match=r"holds a sweep with other settings \(ranges differs\)"):
        sweep.sweep(**settings | {"ranges": {"inertia": (0.2, 0.3)}}, out=tmp_path / "sweep", resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    with pytest.raises(InputError, match="is not empty"):
        sweep.sweep(**settings, out=tmp_path / "mine")


def test_a_sweep_goes_on_with_the_experts_that_it_began_with(tiny, tmp_path):
    """Not with others of the same names."""
    shutil.copytree(tiny["experts"], tmp_path / "experts")
    settings = sizes(tiny) | {"searches": 1, "experts": tmp_path / "experts"}
    sweep.sweep(**settings, out=tmp_path / "sweep")
    file = next((tmp_path / "experts").glob("*/adapter_model.safetensors"))
    save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, file)
    with pytest.raises(InputError, match="was started with experts with other weights"):
        sweep.sweep(**settings, out=tmp_path / "sweep", resume=True)


def test_what_is_drawn_lies_in_the_ranges_and_does_not_depend_on_how_many():
    ranges = sweep.check_ranges({"inertia": (0.1, 0.3), "step": (0.5, 0.5)})
    many = sweep.draw(ranges, 200, 3)
    assert many[:5] == sweep.draw(ranges, 5, 3)
    inertia = [one["inertia"] for one in many]
    assert 0.1 <= min(inertia) < 0.11
    assert 0.29 < max(inertia) <= 0.3
    assert {one["step_length"] for one in many} == {0.5}
    assert many[:5] != sweep.draw(ranges, 5, 4)


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"particles": (1, 2)}, "no setting particles to draw"),
        ({"inertia": (0.3, 0.1)}, "give the lower end first"),
        ({"drop_k": (0.0, 1.0)}, "drop_k is 1.0"),
    ],
)
def test_ranges_that_cannot_be_are_refused(ranges, message):
    with pytest.raises(InputError, match=message):
        sweep.check_ranges(ranges)


def test_a_range_as_text():
    assert sweep.parse_range("inertia=0.1:0.3") == ("inertia", (0.1, 0.3))
    assert sweep.parse_range("step=0.5") == ("step", (0.5, 0.5))
    for text in ("inertia", "inertia=a:b", "inertia=0.1:"):
        with pytest.raises(InputError, match="the range is"):
            sweep.parse_range(text)


def test_a_study_by_the_command_line(tiny, tmp_path):
    given = sizes(tiny)
    write_data(tmp_path / "data.json", 6)
    arguments = [
        "study", "seeds", str(given["experts"]), "--base", given["base"], "--task", given["task"],
        "--data", str(tmp_path / "data.json"), "--out", str(tmp_path / "study"), "--engine", "transformers",
        "--seeds", "2", "--iterations", "1", "--no-repel", "--dtype", "float32", "--parity-check", "off",
    ]  # fmt: skip
    result = CliRunner().invoke(main.app, arguments)
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "study" / "study.json").read_text())
    assert [run["seed"] for run in content["variants"]["all"]] == [0, 1]
    assert content["summary"]["all"]["runs"] == 2
    config = read_json(tmp_path / "study" / "searches" / "all-1" / "config.json")
    assert (config["repel"], config["iterations"]) == (False, 1)
    assert (tmp_path / "study" / "study.svg").read_bytes().startswith(b"<?xml")
    best = content["variants"]["all"][0]
    assert best["test"] == pytest.approx(np.mean(best["test_scores"]))


def test_a_study_of_other_arguments_is_refused(tiny, tmp_path):
    """Also where its searches have all ended, and where only what the data file holds is another."""
    data = tmp_path / "data.json"
    shutil.copy(tiny["data"], data)
    settings = sizes(tiny) | {"data": data, "out": tmp_path / "study", "seeds": 1}
    study("seeds", **settings)
    others = {"inertia": ("seeds", settings | {"swarm": {"inertia": 0.9}}), "kind": ("ablation", settings)}
    for name, (kind, other) in others.items():
        with pytest.raises(InputError, match=rf"holds a study with other settings \({name} differs\)"):
            study(kind, **other, resume=True)
    content = read_json(data)
    content["dev"][0]["prompt"] += " "
    data.write_text(json.dumps(content))
    with pytest.raises(InputError, match="was started with other data"):
        study("seeds", **settings, resume=True)


def test_a_folder_that_another_process_fills_is_refused(tiny, tmp_path):
    settings = sizes(tiny) | {"searches": 1, "out": tmp_path / "sweep"}
    sweep.sweep(**settings)
    with run_folder.locked(tmp_path / "sweep"), pytest.raises(InputError, match="another process is at work in"):
        sweep.sweep(**settings, resume=True)
    sweep.sweep(**settings, resume=True)


def test_a_study_of_diversity(tiny, tmp_path):
    content = study("diversity", **sizes(tiny), out=tmp_path / "study", seeds=1)
    assert list(content["variants"]) == ["3 x 1", "1 x 3"]
    (copies,) = content["variants"]["1 x 3"]
    middle = sorted(content["initial"].values())[1]
    assert copies["dev"] == middle  # copies of one expert stand where it stands


def test_variants():
    config, initial = SwarmConfig(particles=6), np.array([0.5, 0.1, 0.9, np.nan, 0.3, 0.2])
    weak = variants_of("weak", config, initial)
    assert weak["without the best"][1] == (0, 1, 3, 4, 5)
    assert weak["lower half"][1] == (1, 3, 5)
    diversity = variants_of("diversity", config, initial)
    assert [(name, sorted(set(first))) for name, (_, first) in diversity.items()] == [
        ("6 x 1", [0, 1, 2, 3, 4, 5]),
        ("3 x 2", [0, 3, 5]),
        ("2 x 3", [0, 1]),
        ("1 x 6", [5]),
    ]
    assert all(len(first) == 6 for _, first in diversity.values())
    assert variants_of("ablation", config, initial)["no decay"][0] == {"step_length_factor": 1.0}
    assert len(variants_of("drop", config, initial)) == 9
    with pytest.raises(InputError, match="needs at least 4"):
        variants_of("weak", config, initial[:3])
