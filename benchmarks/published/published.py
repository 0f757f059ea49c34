"""The published code's own update and iteration, run from the user's clone of it (github.com/BunsenFeng/model_swarm).

Nothing of it is here: for an update `lora_merge` is imported from the clone's merge.py and called as its search calls
it, with files for everything that moves; an iteration runs in a process of its own (published_search.py).
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.operators.torch_baselines import Tensors
from modelswarms_fast.weights.layout import Layout

WEIGHTS = "adapter_model.safetensors"
DATASET = "benchmark"
TMPFS = Path("/dev/shm")


def lora_merge_of(clone: Path) -> Callable[..., Any]:
    """`lora_merge` of the clone. Raises FileNotFoundError where there is no merge.py."""
    file = clone / "merge.py"
    if not file.is_file():
        raise FileNotFoundError(f"{clone} has no merge.py; give a clone of the published code")
    spec = importlib.util.spec_from_file_location("published_merge", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    merge: Callable[..., Any] = module.lora_merge
    return merge


class Published:
    """A swarm as files, moved by five merges a particle: p - x, g - x, x - w, the new velocity, the new position."""

    def __init__(self, merge: Callable[..., Any], folder: Path, layout: Layout, swarm: Tensors) -> None:
        """folder: where the files go, on tmpfs; layout: the tensors of a row; swarm: where it starts."""
        self._merge, self._folder, self._layout = merge, folder, layout
        self._coefficients, self._step_length = swarm.coefficients.tolist(), swarm.step_length
        self._write("best", swarm.global_best)
        self._write("worst", swarm.global_worst)
        for particle, rows in enumerate(zip(*swarm.rows[:3], strict=True)):
            for name, row in zip(("x", "v", "p"), rows, strict=True):
                self._write(f"{particle}-{name}", row)

    def update(self) -> None:
        """Move every particle once."""
        for particle in range(len(self._coefficients)):
            self._move(particle)

    def rows(self, particle: int) -> tuple[Tensor, Tensor]:
        """x and v [D] of a particle, read from its files."""
        return self._read(f"{particle}-x"), self._read(f"{particle}-v")

    def _move(self, particle: int) -> None:
        inertia, cognitive, social, repel = self._coefficients[particle]
        x, v, p = (f"{particle}-{name}" for name in ("x", "v", "p"))
        to_best, to_global, from_worst = (f"{particle}-{name}" for name in ("p-x", "g-x", "x-w"))
        self._merged(to_best, {p: 1, x: -1})
        self._merged(to_global, {"best": 1, x: -1})
        self._merged(from_worst, {"worst": -1, x: 1})
        self._merged(v, {v: inertia, to_best: cognitive, to_global: social, from_worst: repel})
        self._merged(x, {x: 1, v: self._step_length})

    def _merged(self, output: str, parts: dict[str, float]) -> None:
        self._merge(
            weights=list(parts.values()),
            lora_name_list=[str(self._folder / name) for name in parts],
            output_name=str(self._folder / output),
            gpu_id=0,
            directly_load_safetensors=1,
        )

    def _write(self, name: str, row: Tensor) -> None:
        (self._folder / name).mkdir()
        views = self._layout.views(row.contiguous())
        save_file({tensor: view.clone() for tensor, view in views.items()}, self._folder / name / WEIGHTS)

    def _read(self, name: str) -> Tensor:
        row = torch.zeros(self._layout.size, dtype=self._layout.dtype)
        self._layout.flatten(load_file(self._folder / name / WEIGHTS), row)
        return row


def published_iteration(
    clone: Path, experts: Sequence[Path], base: Path, data: Path, *, measured: Sequence[int], dtype: str = ""
) -> dict[str, Any]:
    """One iteration of the published code, one particle an expert, in a copy of the clone on tmpfs.

    Only the particles `measured` are moved and evaluated; the rest of the iteration is taken to be as fast. Its
    process pools, which it starts anew twice an iteration, and its pauses are not in the time. dtype: of the model
    instead of the float16 that it asks for.

    Returns:
        seconds (of all particles, by the median), measured_particles, update, evaluate and sleep (median seconds of a
        particle; sleep is left out of the others), utilities, dtype.
    """
    script = Path(__file__).with_name("published_search.py")
    with tempfile.TemporaryDirectory(dir=TMPFS if TMPFS.is_dir() else None) as folder:
        copy = Path(folder, "clone")
        shutil.copytree(clone, copy, ignore=shutil.ignore_patterns(".git", "eval"))
        (copy / "data" / "eval").mkdir(parents=True, exist_ok=True)
        (copy / "search").mkdir(exist_ok=True)
        shutil.copy(data, copy / "data" / "eval" / f"{DATASET}.json")
        spec = {"experts": [str(path.absolute()) for path in experts], "base": str(base), "dataset": DATASET}
        (copy / "spec.json").write_text(json.dumps(spec | {"measured": list(measured), "dtype": dtype}))
        ended = subprocess.run(
            [sys.executable, str(script), "spec.json"],
            cwd=copy,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    if ended.returncode != 0:
        raise RuntimeError(f"the published code failed: {ended.stderr[-2000:]}")
    found = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    median = {name: statistics.median(line[name] for line in found) for name in ("update", "evaluate", "sleep")}
    seconds = statistics.median(line["update"] + line["evaluate"] for line in found) * len(experts)
    utilities = [line["utility"] for line in found]
    return {"seconds": seconds, "measured_particles": len(found), **median} | {
        "utilities": utilities,
        "dtype": found[0]["dtype"],
    }
