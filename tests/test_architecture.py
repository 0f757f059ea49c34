"""Arrows point down only: who may import what."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "modelswarms_fast"

# From the top to the bottom; a room imports only rooms of lower floors.
FLOORS = [
    {"cli"},
    {"cli_many"},
    {"cli_options"},
    {"loop", "bench", "one_model", "comparison", "sweep", "token_swarm"},
    {"study", "final_test"},
    {"interleave"},
    {"resumable"},
    {"baselines.evolmerge", "baselines.random_search"},
    {
        "baselines.best_expert",
        "baselines.cbtm",
        "baselines.cma_es",
        "baselines.dare_ties",
        "baselines.data_merge",
        "baselines.greedy_soup",
        "baselines.lorahub",
        "baselines.model_stock",
        "baselines.model_swarms",
        "baselines.pack",
        "baselines.slerp",
        "baselines.uniform_soup",
        "baselines.vote",
    },
    {"baselines.ensembles"},
    {"baselines"},
    {"session"},
    {"iterations", "confirm"},
    {"progress", "evaluate", "particles", "report"},
    {"asking", "canary", "tiers", "analysis.every", "analysis.studies"},
    {
        "analysis.composition",
        "analysis.emergence",
        "analysis.top_k",
        "analysis.trajectory",
        "analysis.weak_to_strong",
    },
    {"analysis"},
    {"engines.group", "engines.ensemble"},
    {"engines.worker", "engines.decoding"},
    {"engines.vllm", "engines.transformers", "engines.process", "plots", "trace"},
    {"engines.ranks"},
    {"engines", "engines.vllm_worker", "journal", "shard"},
    {"engines.mixture", "engines.vllm_cpu", "stream"},
    {"plans", "engines.low_rank"},
    {"swarm", "utilities", "experts", "ops", "memory_plan", "scores"},
    {
        "export",
        "checkpoint",
        "reference",
        "checks",
        "shared",
        "utilities.exact_match",
        "utilities.multitask",
        "utilities.judge",
        "utilities.reward",
        "utilities.toxicity",
        "utilities.abstain",
        "utilities.perplexity",
        "utilities.lm_eval_task",
    },
    {"base", "utilities.callables", "utilities.classifier", "utilities.multiple_choice"},
    {"utilities.data", "utilities.utility"},
    {"memory"},
    {"training_data", "engines.vocabulary", "lora", "layout", "config", "kernels", "rows", "extension"},
    {"errors"},
]

# export.py names Experts in an annotation; start_engine() opens the engine that it is asked for.
EXCEPT = {"export": {"experts"}, "engines": {"engines.vllm", "engines.transformers", "engines.group"}}


def rooms():
    for path in sorted(PACKAGE.rglob("*.py")):
        if "kernels" not in path.parts:
            name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
            yield name.removesuffix(".__init__").removesuffix("__init__"), path


def imports(path):
    """Rooms that a file imports when it is imported itself, or inside its functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def floor(room):
    return next((index for index, names in enumerate(FLOORS) if room in names), None)


@pytest.mark.parametrize(("room", "path"), [entry for entry in rooms() if entry[0]])
def test_a_room_imports_only_rooms_below(room, path):
    assert floor(room) is not None, f"{room} has no floor: give it one"
    for name in imports(path):
        below = name.removeprefix("modelswarms_fast.")
        allowed = EXCEPT.get(room, set()) | {room}  # `from package import module` names the package too
        if name.startswith("modelswarms_fast.") and floor(below) is not None and below not in allowed:
            assert floor(below) > floor(room), f"{room} imports {below}"


@pytest.mark.parametrize("policy", ["swarm", "rows", "analysis.every", "analysis.studies"])
def test_the_policy_never_sees_a_tensor(policy):
    seen, stack = set(), [policy]
    paths = dict(rooms())
    while stack:
        room = stack.pop()
        if room in seen or room not in paths:
            continue
        seen.add(room)
        for name in imports(paths[room]):
            assert name.split(".")[0] not in {"torch", "vllm", "transformers"}, f"{room} imports {name}"
            stack.append(name.removeprefix("modelswarms_fast."))
    assert policy in seen


def test_two_files_touch_what_is_inside_vllm():
    inside = ("vllm.v1", "vllm.model_executor", "vllm.worker", "vllm._custom_ops", "vllm.lora.punica_wrapper")
    for room, path in rooms():
        if room not in {"engines.vllm_worker", "engines.vllm_cpu"}:
            assert not [name for name in imports(path) if name.startswith(inside)], room


def test_utilities_know_no_engine_and_no_torch():
    """A classifier that scores needs torch, but only once there is one."""
    for room, path in rooms():
        if room.startswith("utilities"):
            assert not [name for name in imports(path) if "engines" in name], room
            torch = [name for name in imports(path) if "torch" in name or "transformers" in name]
            assert not torch or room in {"utilities.classifier", "utilities.judge"}, room
            at_once = [
                node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)
            ]
            assert not [node for node in at_once if "torch" in ast.dump(node) or "transformers" in ast.dump(node)], room


def test_only_the_bindings_include_pybind11_and_nothing_includes_torch():
    csrc = PACKAGE.parent / "csrc"
    kernels = PACKAGE.parent / "kernels"
    for path in [*csrc.iterdir(), *kernels.glob("*.cu*")]:
        text = path.read_text()
        assert ("pybind11/" in text) == (path.name == "bindings.cpp"), path.name
        assert "torch/" not in text, path.name
        assert "ATen/" not in text, path.name
