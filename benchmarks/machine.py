"""The class of this machine, and names of result files: DATE_MACHINE_COMMIT.json, in a folder for what was measured."""

from __future__ import annotations

import datetime
import json
import re
import subprocess
from pathlib import Path
from typing import Any

NAMES = {
    "zen3": "Zen 3",
    "zen4": "Zen 4",
    "zen5": "Zen 5",
    "sapphire-rapids": "Sapphire Rapids",
    "emerald-rapids": "Emerald Rapids",
}
"""Classes of processors that are told apart, and how a reader knows them."""
INTEL = {143: "sapphire-rapids", 207: "emerald-rapids"}


def class_of(cpuinfo: str) -> str:
    """The class of a processor by what /proc/cpuinfo says of it; a short form of its name where it is no known one."""
    fields = dict(re.findall(r"^([a-z_ ]+?)\s*: (.*)$", cpuinfo, re.MULTILINE))
    name, family, model = fields.get("model name", "unknown"), fields.get("cpu family"), int(fields.get("model", -1))
    if fields.get("vendor_id") == "AuthenticAMD" and family == "26":
        return "zen5"
    if fields.get("vendor_id") == "AuthenticAMD" and family == "25":
        return "zen4" if model in range(0x10, 0x20) or model in range(0x60, 0x80) or model >= 0xA0 else "zen3"
    if fields.get("vendor_id") == "GenuineIntel" and family == "6" and model in INTEL:
        return INTEL[model]
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\(.*?\)", "", name).lower()).strip("-")


def machine_class() -> str:
    """Of this machine."""
    path = Path("/proc/cpuinfo")
    return class_of(path.read_text() if path.exists() else "")


def commit() -> str:
    """Short id of what is checked out here; "unknown" outside of a clone."""
    ended = subprocess.run(["git", "rev-parse", "--short=7", "HEAD"], capture_output=True, text=True, check=False)
    return ended.stdout.strip() or "unknown"


def latest(folder: Path) -> Path | None:
    """The latest result in a folder."""
    return max(folder.glob("*.json"), default=None)


def new_result(folder: Path) -> Path:
    """Where a result of today, this machine and this commit goes."""
    return folder / f"{datetime.date.today().isoformat()}_{machine_class()}_{commit()}.json"


def write_result(folder: Path, facts: dict[str, Any]) -> Path:
    """Write and print what was measured; where it went."""
    place = new_result(folder)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts, indent=1))
    return place
