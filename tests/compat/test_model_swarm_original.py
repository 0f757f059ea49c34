"""model_swarm itself beside what takes its place: only with `pytest --model-swarm CLONE`."""

import pytest
from helpers_model_swarm import make_place_of_all

from benchmarks.published.model_swarm import SCRIPTED, SEARCHES, compare


@pytest.fixture
def clone(request):
    given = request.config.getoption("--model-swarm")
    assert given is not None, "give --model-swarm CLONE"
    return given.resolve()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place_of_all(tmp_path_factory.mktemp("place"))


@pytest.mark.parametrize(
    ("search", "dtype"),
    [*((search, "float32") for search in SEARCHES), ("choices", "bfloat16"), ("choices", "float16")],
)
def test_a_search_is_that_of_model_swarm(clone, place, tmp_path, search, dtype):
    found = compare(clone, place, search, tmp_path / "both", dtype)
    assert found["scratchpad_equal"]
    assert found["args_equal"]
    for name in ("log_lines", "files", "contents", "tensors"):
        assert found[f"{name}_equal"] == found[name] > 10, name
    assert found["utilities"] > 3


@pytest.mark.parametrize("search", SCRIPTED)
def test_its_own_script_on_our_engine_is_model_swarm(clone, place, tmp_path, search):
    found = compare(clone, place, search, tmp_path / "both", script=True)
    assert found["scratchpad_equal"]
    assert found["args_equal"]
    for name in ("log_lines", "files", "contents", "tensors"):
        assert found[f"{name}_equal"] == found[name] > 10, name
