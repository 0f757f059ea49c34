"""One Ray cluster on this machine for all tests of a session, whose nodes come and go."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
# A dead node is noticed in seconds.
HEALTH = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_failure_threshold": 4}


@pytest.fixture(scope="module")  # what comes after it is in no cluster
def cluster() -> Iterator[Any]:
    """A head and another node (`other`, which may be removed), of one core each; this process is their driver."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    folder = Path(tempfile.mkdtemp(prefix="r"))
    (folder / "ray").mkdir()
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("RAY_worker_niceness", "0")  # where others use the cores
    patch.setenv("RAY_raylet_start_wait_time_s", "120")
    patch.setenv("RAY_gcs_server_request_timeout_seconds", "120")
    patch.setenv("RAY_TMPDIR", str(folder))  # where it says which cluster is the last of this machine
    made = Cluster(initialize_head=True, head_node_args=NODE | {"temp_dir": str(folder), "_system_config": HEALTH})
    try:
        made.other = made.add_node(wait=False, **NODE)
        made.wait_for_nodes()
        ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
        yield made
    finally:
        ray.shutdown()
        made.shutdown()
        patch.undo()
        shutil.rmtree(folder, ignore_errors=True)
