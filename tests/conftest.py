"""The order of the tests."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow files first: each file goes to one of the processes, which would otherwise wait for the last of them."""
    items.sort(key=lambda item: [item.get_closest_marker(name) is None for name in ("slow", "vllm")])
