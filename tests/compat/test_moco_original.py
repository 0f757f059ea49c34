"""MoCo itself beside what takes its place: only with `pytest --moco CLONE`."""

import helpers_moco
import pytest

from benchmarks.published.moco import DTYPES, compare

zoo = helpers_moco.zoo


@pytest.fixture
def clone(request):
    given = request.config.getoption("--moco")
    assert given is not None, "give --moco CLONE"
    return given.resolve()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_search_and_its_answers_are_those_of_moco(clone, zoo, tmp_path, dtype):
    found = compare(clone, zoo.experts, zoo.other, tmp_path / "both", dtype)
    assert found["texts_equal"] == found["texts"] > 100
    assert found["tensors_equal"] == found["tensors"] > 1000
    assert found["different_texts"] > 20
    assert all(value for name, value in found.items() if name.endswith("_equal"))
