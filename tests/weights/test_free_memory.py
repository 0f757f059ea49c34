"""What is free: of the machine, and within control groups of either version."""

import pytest

from modelswarms_fast.weights.free_memory import free_host_memory

MEMINFO = "MemTotal: 2000 kB\nMemFree: 100 kB\nMemAvailable: 1000 kB\n"
V2 = {"memory.max": "900000", "memory.current": "500000", "memory.stat": "anon 1\ninactive_file 100000\n"}
V1 = {"memory.limit_in_bytes": "700000", "memory.usage_in_bytes": "600000", "memory.stat": "total_inactive_file 7\n"}
UNLIMITED = V1 | {"memory.limit_in_bytes": str(2**63 - 4096)}


@pytest.mark.parametrize(
    ("groups", "files", "free"),
    [
        ("", {}, 1_024_000),
        ("0::/\n", {}, 1_024_000),
        ("0::/a/b\n", {"a/b": V2}, 500_000),
        ("0::/a/b\n", {"a": V2}, 500_000),  # the limit is of the group around ours
        ("0::/a/b\n", {"a": V2 | {"memory.max": "max"}}, 1_024_000),
        ("0::/outside/of/the/container\n", {"": V2}, 500_000),
        ("4:memory:/a\n1:cpu:/\n0::/\n", {"memory/a": V1}, 100_007),
        ("4:memory:/a\n", {"memory/a": UNLIMITED, "memory": V1}, 100_007),
        ("4:cpu,memory:/a\n", {"memory/a": UNLIMITED}, 1_024_000),
        ("1:cpu:/a\n", {"memory/a": V1}, 1_024_000),
        ("0::/a\n", {"a": V2 | {"memory.current": "1100000"}}, 0),
    ],
)
def test_the_least_of_the_machine_and_its_groups(tmp_path, groups, files, free):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for folder, found in files.items():
        (tmp_path / "sys/fs/cgroup" / folder).mkdir(parents=True, exist_ok=True)
        for name, text in found.items():
            (tmp_path / "sys/fs/cgroup" / folder / name).write_text(text)
    assert free_host_memory(tmp_path) == free


def test_this_machine_has_some():
    assert 0 < free_host_memory() < 1 << 60
