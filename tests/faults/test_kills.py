"""A few runs that are killed at random moments; `make faults` kills many more."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = 10


@pytest.mark.slow
def test_runs_that_are_killed_go_on_and_find_the_same(tmp_path):
    script = Path(__file__).with_name("kills.py")
    command = [sys.executable, script, "--transformers", str(KILLS), "--vllm", "0", "--json", tmp_path / "kills.json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads((tmp_path / "kills.json").read_text())["transformers"]
    assert found["kills"] == KILLS
    assert found["wrong"] == []
