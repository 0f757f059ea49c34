"""What a user can do nothing about is not shown."""

import os
import subprocess
import sys

import pytest


@pytest.mark.vllm
def test_vllm_is_imported_without_a_word():
    """In a process of its own, as an engine of several is; VLLM_LOGGING_LEVEL is not set there either."""
    start = "from modelswarms_fast.engines.vllm.launch import import_vllm; import_vllm()"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", start], env=environment, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
