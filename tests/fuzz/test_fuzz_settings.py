"""Settings and arguments of any type and size: taken, or refused in one sentence that names them."""

import dataclasses
import math
from typing import Any

import pytest
from fuzzing import ODD_TEXTS, PYTHON, TEXTS, fuzz, run_case
from hypothesis import given
from hypothesis import strategies as st

import modelswarms_fast
from modelswarms_fast.cli.options import read_pairs, value_of
from modelswarms_fast.config import EngineConfig, SwarmConfig, TaskConfig, parse_bytes
from modelswarms_fast.runs.sweep import check_ranges, parse_range
from modelswarms_fast.swarm import Swarm


def names_of(kind: Any) -> list[str]:
    """The fields of a dataclass of settings."""
    return [one.name for one in dataclasses.fields(kind)]


def some_of(kind: Any) -> st.SearchStrategy[dict[str, Any]]:
    """One or two fields with any value."""
    return st.dictionaries(st.sampled_from(names_of(kind)), PYTHON | NEAR, min_size=1, max_size=2)


NEAR = (
    st.sampled_from(["slots", "merged", "mixture", "auto", "weights", "delta", "8GB", "1e9 GB", "unit"]) | st.floats()
)


@fuzz(150)
@given(some_of(SwarmConfig))
def test_fuzz_settings_of_a_swarm(changes):
    def case():
        config = SwarmConfig(**({"particles": 4} | changes))
        swarm = Swarm(config, 3) if config.particles < 5000 else None
        if swarm is not None and config.particles >= 3:
            swarm.initial_positions()
            swarm.tell([0.5] * config.particles)
            if config.iterations:
                moves = swarm.ask()
                assert math.isfinite(moves.step_length)

    run_case("settings of a swarm", case)


@fuzz(150)
@given(some_of(EngineConfig))
def test_fuzz_settings_of_an_engine(changes):
    run_case("settings of an engine", lambda: EngineConfig(**changes))


@fuzz(100)
@given(some_of(TaskConfig))
def test_fuzz_settings_of_a_task(changes):
    run_case("settings of a task", lambda: TaskConfig(**changes))


@fuzz(150)
@given(
    st.sampled_from(["range", "bytes", "value", "pairs", "ranges"]), TEXTS | st.text(alphabet="ainert=:.0123456789eE- ")
)
def test_fuzz_texts_of_options(kind, text):
    cases = {
        "range": lambda: check_ranges(dict([parse_range(text)])),
        "bytes": lambda: parse_bytes("host_memory", text),
        "value": lambda: value_of(text),
        "pairs": lambda: read_pairs([text]),
        "ranges": lambda: check_ranges({"inertia": (0.1, 0.2), "step": (0.5, float("nan"))}),
    }
    run_case("texts of options", cases[kind])


FUNCTIONS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "search": (["nowhere"], {"base": "nowhere", "task": "exact_match", "data": "nowhere.json", "out": "run"}),
    "sweep": (["nowhere"], {"base": "nowhere", "task": "exact_match", "data": "nowhere.json", "out": "run"}),
    "study": (["seeds", "nowhere"], {"base": "nowhere", "task": "exact_match", "data": "nowhere.json", "out": "run"}),
    "compare": (
        ["nowhere"],
        {"base": "nowhere", "task": "exact_match", "data": "nowhere.json", "out": "run", "budget": 9},
    ),
    "token_swarm": (["nowhere"], {"task": "exact_match", "data": "nowhere.json", "out": "run"}),
    "evaluate": (["nowhere"], {"base": "nowhere", "task": "exact_match", "data": "nowhere.json"}),
    "report": (["nowhere"], {}),
}
ARGUMENTS = {
    "search": ("resume", "overwrite", "progress", "trace", "confirm", "final_test", "log", "seed", "spill", "options"),
    "sweep": ("searches", "ranges", "evaluations", "minutes", "at_once", "swarm", "say", "train"),
    "study": ("seeds", "at_once", "swarm", "say"),
    "compare": ("methods", "seed", "swarm", "progress", "train"),
    "token_swarm": ("base", "dtype", "max_model_len", "overwrite", "progress"),
    "evaluate": ("split", "dry_run", "limit_test"),
    "report": ("evaluate", "plots"),
}


@fuzz(200)
@given(st.data())
def test_fuzz_arguments_of_public_functions(tmp_path_factory, data):
    name = data.draw(st.sampled_from(sorted(FUNCTIONS)))
    positional, keywords = FUNCTIONS[name]
    which = data.draw(st.sampled_from([*range(len(positional)), *keywords, *ARGUMENTS[name]]))
    value = data.draw(PYTHON | ODD_TEXTS)
    positional, keywords = list(positional), dict(keywords)
    if isinstance(which, int):
        positional[which] = value
    else:
        keywords[which] = value
    folder = tmp_path_factory.getbasetemp() / "empty"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_case(
            "arguments of public functions",
            lambda: getattr(modelswarms_fast, name)(*positional, **keywords),
            untouched=folder,
        )
