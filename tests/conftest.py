"""The order of the files."""

import pytest

LONG = ("vllm", "tensor_parallel", "vllm_pool", "pool", "pool_failures", "kernels_aot", "judge_vllm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: each file goes to one of the processes, which would otherwise wait for the last of them."""
    place = {f"test_{name}": index for index, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))
