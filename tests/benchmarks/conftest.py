"""Benchmarks are a package that is not installed. Last on the path: an installed modelswarms_fast comes first."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
