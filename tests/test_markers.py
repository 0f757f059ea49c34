"""Markers say what a test needs, so that it can be left out."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
NEED_VLLM = [
    path for path in TESTS.rglob("test_*.py") if re.search(r'^pytest\.importorskip\("vllm"\)', path.read_text(), re.M)
]


@pytest.mark.parametrize("path", NEED_VLLM, ids=lambda path: path.stem)
def test_files_that_need_vllm_say_so(path):
    assert re.search(r"^pytestmark = .*pytest\.mark\.vllm", path.read_text(), re.M)


def test_there_are_such_files():
    assert len(NEED_VLLM) >= 5
