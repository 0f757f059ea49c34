"""The whole comparison on the exact engine: one table, runs that were cut, and the bootstrap."""

import json
import sys

import helpers_models
import helpers_search
import numpy as np
import pytest
from helpers_search import arguments_of
from rich.console import Console

from modelswarms_fast.cli import main
from modelswarms_fast.errors import InputError
from modelswarms_fast.runs import baselines
from modelswarms_fast.runs import compare as module
from modelswarms_fast.runs.baselines import METHODS
from modelswarms_fast.runs.compare import compare, paired, table_of
from modelswarms_fast.runs.search import search

tiny = helpers_search.tiny
pytestmark = pytest.mark.filterwarnings("ignore:COBYLA")  # of budgets this small
BUDGET = 9
QUICK = ["best_expert", "uniform_soup", "model_swarms"]
TEST = 12  # examples
RESULT = {
    "dev": 0.5, "test": 0.5, "test_standard_error": 0.1, "test_scores": [1.0] * TEST, "evaluations": 1, "prompts": 1,
    "seconds": 1.0, "recipe": {},
}  # fmt: skip


@pytest.fixture(scope="module", params=["weights", "mixture"])
def compared(request, tiny, tmp_path_factory):
    """Every method once: arguments, folder, content."""
    out = tmp_path_factory.mktemp("compared") / request.param
    train = helpers_search.write_training(tmp_path_factory.mktemp("train"))
    arguments = arguments_of(tiny, out=out, budget=BUDGET, seed=3, state=request.param, train=train)
    return arguments, out, compare(**arguments)


def test_every_method_has_its_numbers(compared, tiny):
    _, out, content = compared
    assert json.loads((out / "baselines.json").read_text()) == content
    assert list(content["methods"]) == list(METHODS)
    assert content["objective"] == {}, "this one has nothing to tell"
    for name, result in content["methods"].items():
        promised = "dev test test_standard_error test_scores evaluations prompts seconds recipe"
        assert set(result) == set(promised.split()), name
        assert len(result["test_scores"]) == 12
        assert result["test"] == pytest.approx(np.mean(result["test_scores"]))
        assert 0 < result["evaluations"] <= BUDGET
        assert result["seconds"] > 0
    assert set(content["against_model_swarms"]) == set(METHODS) - {"model_swarms"}
    best = content["methods"]["best_expert"]
    for name in ("greedy_soup", "slerp", "random_search", "cma_es", "model_swarms"):
        assert content["methods"][name]["dev"] >= best["dev"], f"{name} has looked at the experts"


def test_model_swarms_is_the_search(compared, tiny, tmp_path):
    arguments, _, content = compared
    alone = search(**tiny | {"seed": 3, "iterations": 2}, out=tmp_path / "run", state=arguments["state"])
    found = content["methods"]["model_swarms"]
    assert (found["dev"], found["test"]) == (alone["end"]["dev"], alone["end"]["test"])
    assert found["recipe"]["mixture"] == alone["mixture"]
    assert found["evaluations"] == alone["evaluations"] == BUDGET
    assert found["test_standard_error"] == alone["test_standard_error"]["end"]
    assert found["prompts"] == alone["prompts"], "the evaluation of the experts is counted, though it was shared"
    assert content["methods"]["best_expert"]["test"] == alone["start"]["test"]


def test_both_states_find_the_same(tiny, tmp_path):
    found = [
        compare(**arguments_of(tiny, out=tmp_path / state, budget=7, methods=["cma_es", "lorahub"], state=state))
        for state in ("weights", "mixture")
    ]
    for name in ("cma_es", "lorahub"):
        results = [content["methods"][name] for content in found]
        assert results[0]["dev"] == pytest.approx(results[1]["dev"], abs=1e-6)
        assert results[0]["recipe"] == results[1]["recipe"]


def test_full_checkpoints(tmp_path):
    """Methods that need the base read it."""
    tiny = helpers_search.make_tiny(tmp_path)
    folders = [helpers_models.make_base(tmp_path / "full" / f"e{seed}", seed=seed) for seed in (1, 2, 3)]
    methods = ["model_swarms", "slerp", "dare_ties", "model_stock", "evolmerge", "lorahub"]
    arguments = arguments_of(tiny, experts=folders, out=tmp_path / "out", budget=6, methods=methods)
    content = compare(**arguments)
    assert list(content["methods"]) == methods
    ratio = content["methods"]["model_stock"]["recipe"]["ratio"]
    assert 0 < ratio["median"] < 1
    assert content["methods"]["lorahub"]["recipe"]["differences"].keys() == {"e1", "e2", "e3"}


def test_a_run_that_was_cut_goes_on(tiny, tmp_path, monkeypatch):
    arguments = arguments_of(tiny, out=tmp_path / "out", budget=6, methods=QUICK)
    load, ran = baselines.load_method, []

    def loading(name):
        run = load(name)

        def noted(*given, **settings):
            ran.append(name)
            if name == "uniform_soup" and len(ran) == 2:
                raise KeyboardInterrupt
            return run(*given, **settings)

        return noted

    monkeypatch.setattr(module, "load_method", loading)
    with pytest.raises(KeyboardInterrupt):
        compare(**arguments)
    file = tmp_path / "out" / "baselines.json"
    first = json.loads(file.read_text())["methods"]
    assert list(first) == ["best_expert"]
    content = compare(**arguments, resume=True)
    assert ran == ["best_expert", "uniform_soup", "uniform_soup", "model_swarms"]
    assert content["methods"]["best_expert"] == first["best_expert"]
    assert list(content["against_model_swarms"]) == ["best_expert", "uniform_soup"]

    monkeypatch.setattr(module.Experiment, "__enter__", lambda self: pytest.fail("an engine is started for nothing"))
    assert compare(**arguments, resume=True) == content


def test_results_of_other_arguments_are_not_mixed(compared):
    arguments, _, _ = compared
    others = {"seed": {"seed": 4}, "budget": {"budget": 10}, "examples": {"limit_dev": 3}, "train": {"train": "x.json"}}
    for name, change in others.items():
        with pytest.raises(InputError, match=f"with other settings .({name}|limit_dev) differs"):
            compare(**arguments | change, resume=True)


@pytest.fixture(scope="module")
def short(tiny, tmp_path_factory):
    """Arguments of a comparison that one method has ended of, and its file."""
    out = tmp_path_factory.mktemp("short") / "out"
    arguments = arguments_of(tiny, out=out, budget=6)
    compare(**arguments, methods=["best_expert"])
    return arguments, out / "baselines.json"


AGAINST = {"difference": 0.1, "interval": [0.0, 0.2], "share": 0.9}


@pytest.mark.parametrize(
    "content",
    [
        {"methods": []},
        {"methods": {"vote": 3}},
        {"methods": {"vote": {"dev": 0.5, "test": 0.5}}},
        {"methods": {"vote": RESULT | {"dev": "x"}}},
        {"methods": {"vote": RESULT | {"seconds": None}}},
        {"methods": {"vote": RESULT | {"test_scores": 1.0}}},
        {"methods": {"vote": RESULT | {"test_scores": ["x"] * TEST}}},
        {"methods": {"vote": RESULT | {"test_scores": [1.0] * (TEST - 1)}}},
        {"against_model_swarms": []},
        {"against_model_swarms": {"vote": {"difference": 0.1}}},
        {"against_model_swarms": {"vote": AGAINST | {"interval": [0.0]}}},
        {"against_model_swarms": {"vote": AGAINST | {"share": None}}},
    ],
)
def test_a_file_of_other_content_is_not_taken_for_results(short, content):
    arguments, file = short
    whole = {"config": {}, "methods": {"vote": RESULT}}
    file.write_text(json.dumps(whole | {"against_model_swarms": {"vote": AGAINST}}))
    assert compare(**arguments, methods=["vote"], resume=True)["methods"] == {"vote": RESULT}
    file.write_text(json.dumps(whole | content))
    with pytest.raises(
        InputError, match=r"baselines\.json.* (is not what a run writes|scores of other test).*; choose another folder"
    ):
        compare(**arguments, resume=True)


def test_a_file_that_holds_nothing_is_not_taken_for_results(short):
    arguments, file = short
    file.write_text("{}")
    with pytest.raises(InputError, match=r"baselines\.json: methods is not what a run writes"):
        compare(**arguments, resume=True)


def test_what_cannot_be_used_is_refused_before_an_engine_starts(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(module.Experiment, "__enter__", lambda self: pytest.fail("an engine was started"))
    arguments = arguments_of(tiny, out=tmp_path / "out", budget=6)
    with pytest.raises(InputError, match="no method 'swarms'"):
        compare(**arguments | {"methods": ["swarms"]})
    with pytest.raises(InputError, match="less than the 3 experts"):
        compare(**arguments | {"budget": 2})
    with pytest.raises(InputError, match="no setting 'speed'"):
        compare(**arguments | {"swarm": {"speed": 1}})
    with pytest.raises(InputError, match="patience is 0"):
        compare(**arguments | {"swarm": {"patience": 0}})
    with pytest.raises(InputError, match="seed is -1"):
        compare(**arguments | {"seed": -1})
    assert not (tmp_path / "out").exists()
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps({"dev": [{"text": "abc"}], "test": [{"text": "abc"}]}))
    with pytest.raises(InputError, match="those in dev of texts have none; leave cbtm out"):
        compare(**arguments | {"task": "perplexity", "data": texts, "methods": ["cbtm"]})


def test_the_paired_bootstrap():
    """Of a difference that all examples share, of none, and against the textbook's resampling."""

    def compared(ours, theirs, seed=0):
        return paired(ours, theirs, np.mean, ["a"] * len(ours), seed)

    assert compared([1.0, 0.5, 1.0], [0.5, 0.0, 0.5]) == {"difference": 0.5, "interval": [0.5, 0.5], "share": 1.0}
    assert compared([0.5, 0.25], [0.5, 0.25]) == {"difference": 0.0, "interval": [0.0, 0.0], "share": 0.5}
    random = np.random.default_rng(0)
    ours, theirs = random.random(60), random.random(60)
    found = compared(ours.tolist(), theirs.tolist(), 1)
    assert found == compared(ours.tolist(), theirs.tolist(), 1)
    assert found != compared(ours.tolist(), theirs.tolist(), 2)
    means = [np.mean((ours - theirs)[random.integers(60, size=60)]) for _ in range(20_000)]
    np.testing.assert_allclose(found["interval"], np.quantile(means, [0.025, 0.975]), atol=0.01)
    assert found["share"] == pytest.approx(np.mean(np.array(means) > 0), abs=0.02)
    assert np.isnan(compared([1.0, float("nan")], [0.0, 1.0])["share"])


def test_the_bootstrap_of_several_tasks_keeps_each_ones_examples():
    """A utility that knows which place is of which task, as a harmonic mean does."""
    strata = ["one", "two", "one"]
    found = paired([1.0, 5.0, 2.0], [0.0, 0.0, 0.0], lambda scores: min(scores[0], scores[2], scores[1] / 5), strata, 0)
    assert found["difference"] == 1.0
    assert found["interval"] == [1.0, 1.0], "5 never stands where task one is"


def test_the_table_shows_every_method(compared):
    console = Console(width=200, record=True)
    with console.capture() as capture:
        console.print(table_of(compared[2]))
    for name, result in compared[2]["methods"].items():
        assert name in capture.get()
        assert f"{result['dev']:.4f}" in capture.get()
        assert f"{result['test']:.4f} ± {result['test_standard_error']:.4f}" in capture.get()


def test_the_command(tiny, tmp_path, monkeypatch, capsys):
    given = {"base": tiny["base"], "task": tiny["task"], "data": tiny["data"], "engine": "transformers"}
    options = [text for name, value in (given | {"dtype": "float32"}).items() for text in (f"--{name}", str(value))]
    more = ["--out", str(tmp_path / "out"), "--budget", "6", "--methods", ",".join(QUICK), "--inertia", "0.1"]
    monkeypatch.setattr(sys, "argv", ["modelswarms-fast", "compare", str(tiny["experts"]), *options, *more])
    with pytest.raises(SystemExit) as error:
        main.main()
    assert not error.value.code
    content = json.loads((tmp_path / "out" / "baselines.json").read_text())
    assert content["config"]["swarm"] == {"inertia": 0.1}
    shown = capsys.readouterr()
    for name in QUICK:
        assert name in shown.out
        assert f"{name}: dev " in shown.err
