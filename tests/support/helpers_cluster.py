"""One Ray cluster on this machine for all tests of a session, whose nodes come and go."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
# A dead node is noticed in seconds.
HEALTH = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_failure_threshold": 4}


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A head without cores and two nodes of one core; this process is their driver."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    folder = Path(tempfile.mkdtemp(prefix="r"))
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_TMPDIR", str(folder))  # where it says which cluster is the last of this machine
    (folder / "ray").mkdir()
    head = NODE | {"num_cpus": 0, "_system_config": HEALTH}
    made = Cluster(initialize_head=True, head_node_args=head | {"temp_dir": str(folder)})
    try:
        made.nodes = [made.add_node(wait=False, **NODE) for _ in range(2)]
        made.wait_for_nodes()
        ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
        yield made
    finally:
        ray.shutdown()
        made.shutdown()
        patch.undo()
        shutil.rmtree(folder, ignore_errors=True)
