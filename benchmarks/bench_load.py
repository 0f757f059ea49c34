"""Loading a particle into a running engine, against vLLM's own add_lora from a file and a copy of as many bytes."""

from __future__ import annotations

import itertools

import pytest
from engines import EXAMPLES, SLOTS, engine, experts, plain_vllm
from measure import CORES, Measure, random_rows

pytest.importorskip("vllm")


@pytest.mark.parametrize("serve", ["merged", "slots"])
def test_load(measure: Measure, serve: str) -> None:
    """The row is in memory when ours starts, the adapter's file in the page cache when add_lora does."""
    from vllm.lora.request import LoRARequest

    rows = experts().rows
    server, plain = engine(serve), plain_vllm()
    device = server.device
    copy = random_rows(1, rows.shape[1], rows.dtype, device)[0]
    folders = [str(EXAMPLES / "experts" / name) for name in experts().names]
    particles, slots, numbers = itertools.count(), itertools.cycle(range(server.slots)), itertools.count(1)

    def load() -> None:
        server.load(next(slots), rows[next(particles) % len(rows)])

    def add_lora() -> None:
        """A new name each time: what has been seen before is not read again."""
        number = next(numbers)
        plain.llm_engine.add_lora(LoRARequest(f"adapter-{number}", number, folders[number % len(folders)]))

    def copy_row() -> None:
        copy.copy_(rows[next(particles) % len(rows)])

    baselines = {"add_lora from a file": add_lora, "copy of a row": copy_row}
    if serve == "merged":
        # What a merge has to read and write, and no more.
        baselines["copy of the base weights"] = lambda: server.llm.collective_rpc("swarm_restore")

    measure.row(
        f"{serve}, D={rows.shape[1]:,}",
        load,
        baselines=baselines,
        rounds=2 * measure.rounds,
        memory=False,
        device=device,
        dtype="bfloat16",
        serve=serve,
        slots=SLOTS if serve == "slots" else 1,
        size=rows.shape[1],
        row_bytes=rows.shape[1] * rows.element_size(),
        threads=CORES,
    )
    server.restore()
