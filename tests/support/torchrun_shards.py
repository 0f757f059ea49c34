"""A search of a few iterations with a toy utility, on some of the columns: alone, or one process a shard.

    python -m torch.distributed.run --standalone --nproc-per-node 2 tests/torchrun_shards.py FOLDER

writes FOLDER/<case>-<rank>.safetensors, each process its columns of the rows. Every process makes the same plans from
the same seed; the only thing the processes tell each other is how many columns count, one integer a particle.
"""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from modelswarms_fast.config import SwarmConfig
from modelswarms_fast.ops import mix_, swarm_update_rows_
from modelswarms_fast.swarm import Swarm
from modelswarms_fast.weights.layout import Layout
from modelswarms_fast.weights.row_table import RowTable

PARTICLES, EXPERTS, ITERATIONS, SEED = 7, 4, 15, 11
WEIGHTS = (0.4, 0.3, 0.3, 0.3)
CASES = {
    "float32": (torch.float32, {}),
    "float32-coordinate": (torch.float32, {"randomness": "coordinate"}),
    "bfloat16": (torch.bfloat16, {}),
    "bfloat16-stochastic-coordinate": (torch.bfloat16, {"rounding": "stochastic", "randomness": "coordinate"}),
    "float16-stochastic": (torch.float16, {"rounding": "stochastic"}),
}


def make_experts(dtype):
    """Experts [n, D], a target [D] and the layout of both."""
    generator = torch.Generator().manual_seed(SEED)
    shapes = {"a": (33, 7), "b": (129,), "c": (3, 5, 8), "d": (1,)}
    rows = [{name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()} for _ in range(5)]
    layout = Layout.of(rows[0], dtype)
    flat = torch.empty(len(rows), layout.size, dtype=dtype)
    for row, tensors in zip(flat, rows, strict=True):
        layout.flatten(tensors, row)
    return flat[:EXPERTS], flat[EXPERTS], layout


def search(columns, dtype, noise, total, device="cpu"):
    """Run on these columns; `total` sums the counts [P] int64 of all shards. The rows, and what has happened."""
    experts, target, _ = make_experts(dtype)
    experts, target = experts[:, columns].to(device), target[columns].to(device)
    config = SwarmConfig(particles=PARTICLES, patience=6, restart_patience=0.34, seed=SEED)
    swarm, table = Swarm(config, EXPERTS), RowTable(PARTICLES)
    rows = torch.zeros(table.count, experts.shape[1], dtype=dtype, device=device)

    def mix(numbers, mixture):
        out = torch.empty_like(rows[: len(numbers)])
        mix_(out, experts, torch.from_numpy(mixture).float().to(device))
        rows[torch.from_numpy(numbers).to(device)] = out

    def utilities():
        positions = rows[torch.from_numpy(table.x).to(device)]
        counts = ((positions.float() - target.float()).abs() < 0.5).sum(dim=1)
        return total(counts).cpu().numpy().astype(float)

    def promote():
        told = swarm.tell(utilities())
        table.promote(told.improved, told.global_best, told.global_worst)
        return int(told.improved.sum()), told.global_best is not None, told.global_worst is not None

    positions = swarm.initial_positions()
    mix(table.x, positions)
    events = [(0, *promote())]
    mix(table.v, swarm.initial_velocities(positions))
    for _ in range(ITERATIONS):
        plan = swarm.ask()
        coefficients = torch.from_numpy(plan.coefficients)
        if "randomness" in noise:
            coefficients = torch.tensor(WEIGHTS).repeat(PARTICLES, 1)
        swarm_update_rows_(
            *(rows, torch.from_numpy(table.update(plan.restarts)), table.g, table.w),
            coefficients.to(device),
            plan.step_length,
            seed=SEED,
            iteration=plan.iteration,
            first_column=columns.start,
            **noise,
        )
        events.append((int(plan.restarts.sum()), *promote()))
    return rows, events


def main(folder):
    """One process of several."""
    import torch.distributed as dist

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    gpu = torch.cuda.device_count() >= size
    device = f"cuda:{rank}" if gpu else "cpu"
    if gpu:
        torch.cuda.set_device(rank)
    dist.init_process_group("nccl" if gpu else "gloo")

    def total(counts):
        dist.all_reduce(counts)
        return counts

    for name, (dtype, noise) in CASES.items():
        columns = make_experts(dtype)[2].shards(size)[rank]
        rows, _ = search(columns, dtype, noise, total, device)
        save_file({"rows": rows.cpu()}, folder / f"{name}-{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
