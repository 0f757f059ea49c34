"""How small steps vanish in bfloat16, and that stochastic rounding keeps them: python -m benchmarks.quality.rounding

Seven of the experts in examples/experts are particles that are drawn to the eighth, at constant step lengths: 0.1, to
which the default decays, and 0.01. Prints how far they come, and writes a file into benchmarks/results/quality/rounding
and docs/figures/rounding.svg. All is computed from files and counters: the numbers are the same on every machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.machine import latest, new_result
from modelswarms_fast.ops import Rounding, swarm_update_
from modelswarms_fast.weights.layout import Layout

HERE = Path(__file__).parents[1]
EXPERTS = HERE.parent / "examples" / "experts"
RESULTS = HERE / "results" / "quality" / "rounding"
FIGURE = HERE.parent / "docs" / "figures" / "rounding.svg"

# SearchLoop that bring float32 about nine tenths of the way.
RUNS = {0.1: 25, 0.01: 250}
# The defaults without the global worst, at the mean of their random factors.
COEFFICIENTS = (0.4, 0.3, 0.3, 0.0)
KINDS: dict[str, tuple[torch.dtype, Rounding]] = {
    "float32": (torch.float32, "nearest"),
    "bfloat16, nearest": (torch.bfloat16, "nearest"),
    "bfloat16, stochastic": (torch.bfloat16, "stochastic"),
}
LOOKS = {"float32": ("#9a9a9a", 6.0), "bfloat16, nearest": ("#c0392b", 2.0), "bfloat16, stochastic": ("#1f5fa8", 2.0)}


def load_experts() -> Tensor:
    """Rows [8, D] of the experts as they lie in the files, bfloat16, by name."""
    tensors = [load_file(path) for path in sorted(EXPERTS.glob("*/adapter_model.safetensors"))]
    layout = Layout.of(tensors[0])
    rows = torch.empty(len(tensors), layout.size, dtype=layout.dtype)
    for row, expert in zip(rows, tensors, strict=True):
        layout.flatten(expert, row)
    return rows


def walk(experts: Tensor, kind: str, step_length: float, iterations: int) -> tuple[list[float], Tensor]:
    """Share of the way to the target after each iteration, from 0, and where the particles [7, D] end.

    The share is the walked path's projection onto the way: errors that are as often up as down add nothing to it.
    """
    dtype, rounding = KINDS[kind]
    target, start = experts[0].to(dtype), experts[1:].to(dtype)
    position, velocity, best = start.clone(), torch.zeros_like(start), target.repeat(len(start), 1)
    coefficients = torch.tensor([COEFFICIENTS]).repeat(len(start), 1)
    coefficients /= coefficients.sum(dim=1, keepdim=True)
    way = experts[:1].double() - experts[1:].double()
    walked = [0.0]
    for iteration in range(iterations):
        rows = (position, velocity, best, target, start[0])
        swarm_update_(*rows, coefficients, step_length, rounding=rounding, iteration=iteration)
        moved = position.double() - start.double()
        walked.append(((moved * way).sum() / way.square().sum()).item())
    return walked, position


def measure(experts: Tensor, step_length: float, iterations: int) -> dict[str, Any]:
    """All kinds at one step length."""
    found: dict[str, Any] = {}
    differs = experts[1:] != experts[0]
    way = (experts[:1].double() - experts[1:].double()).square().mean().sqrt()
    exact = None
    for kind in KINDS:
        walked, end = walk(experts, kind, step_length, iterations)
        exact = end.double() if exact is None else exact
        found[kind] = {
            "share of the way": [round(share, 5) for share in walked],
            "weights that never moved": round((end == experts[1:])[differs].double().mean().item(), 5),
            "distance from float32, in ways": round(((end - exact).square().mean().sqrt() / way).item(), 5),
        }
    return found


def draw(results: dict[float, dict[str, Any]]) -> None:
    """One panel a step length."""
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "rounding", "font.size": 11})
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(results), figsize=(9, 3.6), sharey=True, layout="constrained")
    for panel, (step_length, found) in zip(panels, results.items(), strict=True):
        for kind, values in found.items():
            color, width = LOOKS[kind]
            panel.plot([100 * share for share in values["share of the way"]], color=color, linewidth=width, label=kind)
        panel.set(title=f"step length {step_length}", xlabel="iteration", ylim=(-2, 102))
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("way to the target, %")
    panels[0].legend(frameon=False, loc="lower right")
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, metadata={"Date": None, "Creator": None})


def main() -> None:
    """Measure, print, write and draw."""
    experts = load_experts()
    results = {step_length: measure(experts, step_length, iterations) for step_length, iterations in RUNS.items()}
    for step_length, found in results.items():
        print(f"step length {step_length}, {RUNS[step_length]} iterations, D = {experts.shape[1]:,}")
        for kind, values in found.items():
            share, away = values["share of the way"][-1], values["distance from float32, in ways"]
            stuck = values["weights that never moved"]
            print(f"  {kind:21} {share:6.1%} of the way; {stuck:6.1%} of weights did not move; {away:.3f} from float32")
    target = latest(RESULTS) or new_result(RESULTS)  # the same numbers on every machine: written over
    target.write_text(json.dumps({str(step_length): found for step_length, found in results.items()}, indent=1) + "\n")
    draw(results)


if __name__ == "__main__":
    main()
