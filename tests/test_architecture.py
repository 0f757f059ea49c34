"""Arrows point one way only: who may import what."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "modelswarms_fast"

# What each room may import beside itself. `config` and `errors` are open to all.
ROOMS = {
    "swarm": set(),
    "policies": set(),
    "ops": set(),
    "records": set(),
    "weights": {"ops"},
    "compat": {"ops", "weights", "engines", "evaluation", "records", "runs", "swarm"},
    "engines": {"ops", "weights"},
    "evaluation": {"ops", "weights", "engines", "records"},
    "runs": {"ops", "weights", "engines", "evaluation", "records", "policies", "swarm"},
    "cli": {"runs", "evaluation", "records", "compat"},
}
OPEN = {"config", "errors"}
TOP = {*ROOMS, *OPEN, "__init__", "py.typed"}


def files(room=""):
    found = sorted((PACKAGE / room).rglob("*.py")) if (PACKAGE / room).is_dir() else [PACKAGE / f"{room}.py"]
    return [path for path in found if "kernels" not in path.parts]


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imports(nodes):
    """Modules that are imported, at once or inside functions."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_of(path):
    return list(imports(ast.walk(ast.parse(path.read_text()))))


def test_the_package_has_these_rooms_and_nothing_else():
    found = {path.name.removesuffix(".py") for path in PACKAGE.iterdir()} - {"__pycache__"}
    assert found == TOP
    assert len(found) <= 14


@pytest.mark.parametrize(("room", "path"), [(room, path) for room in ROOMS for path in files(room)])
def test_a_room_imports_only_what_it_may(room, path):
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] == "modelswarms_fast" and len(parts) > 1 and parts[1] in ROOMS.keys() - {room}:
            assert parts[1] in ROOMS[room], f"{name_of(path)} imports {name}"


@pytest.mark.parametrize("room", sorted(path.name for path in PACKAGE.rglob("*") if (path / "__init__.py").exists()))
def test_a_room_says_what_its_files_are(room):
    """The paragraph of a room names each of its files."""
    folder = next(path for path in PACKAGE.rglob(room) if (path / "__init__.py").exists())
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    assert text
    if folder.name in {"baselines", "analysis", "objectives"}:
        return  # one file a method, an analysis, an objective, as the paragraph says
    for path in folder.iterdir():
        if path.suffix == ".py" and path.stem != "__init__":
            assert f"`{path.stem}`" in text, f"{folder.name} does not say what {path.name} is"


# Files that decide, and compute no tensor.
DECIDE = [
    PACKAGE / "compat" / f"{name}.py" for name in ("published", "moco_swarm", "moco_numeric", "draws", "ensembles")
]
DECIDE += [PACKAGE / "compat" / "model_swarm" / "metrics.py", PACKAGE / "swarm.py"]
DECIDE += [PACKAGE / "weights" / "row_table.py", *files("records"), *files("policies")]


@pytest.mark.parametrize("path", DECIDE)
def test_policy_and_records_never_see_a_tensor(path):
    assert not {name.split(".")[0] for name in imports_of(path)} & {"torch", "vllm", "transformers"}


def test_only_files_of_one_folder_touch_what_is_inside_vllm():
    inside = ("vllm.v1", "vllm.model_executor", "vllm.worker", "vllm._custom_ops", "vllm.lora.punica_wrapper")
    for path in files():
        if "engines.vllm." not in name_of(path):
            assert not [name for name in imports_of(path) if name.startswith(inside)], name_of(path)


def test_objectives_know_no_engine_and_import_torch_only_where_a_classifier_scores():
    for path in files("evaluation/objectives"):
        assert not [name for name in imports_of(path) if "engines" in name], path.name
        torch = [name for name in imports_of(path) if name.split(".")[0] in {"torch", "transformers"}]
        assert not torch or path.stem in {"classifier", "judge"}, path.name
        at_once = set(imports(ast.parse(path.read_text()).body))
        assert not {name.split(".")[0] for name in at_once} & {"torch", "transformers"}, path.name


def test_only_the_bindings_include_pybind11_and_nothing_includes_torch():
    csrc, kernels = PACKAGE.parent / "csrc", PACKAGE.parent / "kernels"
    for path in [*csrc.iterdir(), *kernels.glob("*.cu*")]:
        text = path.read_text()
        assert ("pybind11/" in text) == (path.name == "bindings.cpp"), path.name
        assert "torch/" not in text, path.name
        assert "ATen/" not in text, path.name
