"""The class of a machine, and the names of results."""

import re

import pytest

from benchmarks import machine


def cpuinfo(vendor, family, model, name):
    return (
        f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\n"
        f"model name\t: {name}\nstepping\t: 1\n"
    )


@pytest.mark.parametrize(
    ("vendor", "family", "model", "name", "wanted"),
    [
        ("AuthenticAMD", 25, 1, "AMD EPYC 7763", "zen3"),
        ("AuthenticAMD", 25, 0x21, "AMD Ryzen 9 5900X", "zen3"),
        ("AuthenticAMD", 25, 0x11, "AMD EPYC 9654", "zen4"),
        ("AuthenticAMD", 25, 0x61, "AMD Ryzen 9 7950X", "zen4"),
        ("AuthenticAMD", 25, 0xA0, "AMD EPYC 9754", "zen4"),
        ("AuthenticAMD", 26, 2, "AMD EPYC 9755", "zen5"),
        ("GenuineIntel", 6, 143, "Intel(R) Xeon(R) Platinum 8480+", "sapphire-rapids"),
        ("GenuineIntel", 6, 207, "Intel(R) Xeon(R) Processor", "emerald-rapids"),
        ("GenuineIntel", 6, 85, "Intel(R) Xeon(R) Gold 6148 CPU @ 2.40GHz", "intel-xeon-gold-6148-cpu-2-40ghz"),
    ],
)
def test_classes_of_processors(vendor, family, model, name, wanted):
    assert machine.class_of(cpuinfo(vendor, family, model, name)) == wanted


def test_a_processor_that_says_nothing():
    assert machine.class_of("") == "unknown"


def test_names_of_results(tmp_path):
    assert machine.latest(tmp_path) is None
    path = machine.new_result(tmp_path)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_[a-z0-9-]+_[a-z0-9]+\.json", path.name)
    for name in ("2025-01-01_zen4_abc.json", "2026-01-01_zen3_abc.json", "notes.md"):
        (tmp_path / name).touch()
    assert machine.latest(tmp_path).name == "2026-01-01_zen3_abc.json"
