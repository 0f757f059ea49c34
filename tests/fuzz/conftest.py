"""Writes the counts of all fuzzers, if FUZZ_JSON names a file."""

import json
import os
from pathlib import Path

import pytest
from fuzzing import COUNTS, OUTCOMES


def pytest_sessionfinish(session: pytest.Session) -> None:
    """One file for the whole session: cases by fuzzer and outcome."""
    if (target := os.environ.get("FUZZ_JSON")) and COUNTS:
        fuzzers = sorted({fuzzer for fuzzer, _ in COUNTS})
        cases = {fuzzer: {outcome: COUNTS[fuzzer, outcome] for outcome in OUTCOMES} for fuzzer in fuzzers}
        totals = {outcome: sum(one[outcome] for one in cases.values()) for outcome in OUTCOMES}
        content = {"seed": os.environ.get("FUZZ_SEED"), "cases": sum(totals.values()), **totals, "fuzzers": cases}
        Path(target).write_text(json.dumps(content, indent=2) + "\n")
