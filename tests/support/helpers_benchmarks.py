"""Rows and files of results as pytest-benchmark writes them."""


def row(group="update", **facts):
    return {"group": group, "row": f"row of {group}", "seconds": 0.5, "threads": 2, **facts}


def results(*rows):
    machine = {"cpu": "a processor", "cores": 2, "threads": 2, "python": "3", "versions": {"torch": "2"}}
    commit = {"id": "abcdef0123", "time": "", "dirty": False}
    return {
        "machine_info": machine,
        "commit_info": commit,
        "benchmarks": [{"extra_info": row} for row in rows],
        "datetime": "2026-11-30T00:00:00",
    }
