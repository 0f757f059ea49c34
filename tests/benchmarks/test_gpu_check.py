"""The script for a machine with a GPU, as far as it goes without one."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"


def test_gpu_check_refuses_what_it_does_not_know():
    command = ["bash", str(BENCHMARKS / "gpu" / "gpu_check.sh"), "--fast"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 64
    assert "usage:" in result.stderr
