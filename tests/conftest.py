"""The order of the tests, and those that need a clone of another program."""

from pathlib import Path

import pytest

ORIGINALS = {
    "test_moco_original.py": "--moco",
    "test_model_swarm_original.py": "--model-swarm",
    "test_heterogeneous_swarm_original.py": "--heterogeneous-swarm",
}
"""File → the option that it needs; without it the file is not collected."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Clones of the programs that tests compare with."""
    parser.addoption("--model-swarm", type=Path, metavar="FOLDER", help="Your clone of model_swarm.")
    parser.addoption("--heterogeneous-swarm", type=Path, metavar="FOLDER", help="Your clone of heterogeneous_swarm.")
    parser.addoption("--moco", type=Path, metavar="FOLDER", help="Your clone of MoCo (model_collaboration).")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave a file out whose clone is not given."""
    option = ORIGINALS.get(collection_path.name)
    return True if option is not None and config.getoption(option, None) is None else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow files first: each file goes to one of the processes, which would otherwise wait for the last of them."""
    items.sort(key=lambda item: [item.get_closest_marker(name) is None for name in ("slow", "vllm")])
