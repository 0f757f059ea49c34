"""The swarm update of rows that do not fit on the tier they are computed on, in blocks of columns through buffers.

No GPU has run this yet: the tests replay what its streams wait for, in many orders that the events allow.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

import torch
from torch import Tensor

from modelswarms_fast.ops import Rounding, RowRandomness, swarm_update_rows_, validation
from modelswarms_fast.weights.layout import ALIGNMENT

# One is computed while the next one fills and the last one empties: with two, both directions would take turns.
BUFFERS = 3

# Of each row in a block. With files on a disk, among the fastest of 64 KiB to 4 MiB; on a GPU not measured.
BLOCK_BYTES = 1 << 20

Wait = Callable[[], None]


def buffer_bytes(row_bytes: int) -> int:
    """Bytes of the buffers of an update, for each row that it reads or writes."""
    return BUFFERS * min(row_bytes, BLOCK_BYTES)


def stream_update_rows_(
    rows: Tensor,
    table: Tensor,
    global_best: int,
    global_worst: int,
    coefficients: Tensor,
    step_length: float,
    *,
    device: torch.device | str | None = None,
    block_columns: int | None = None,
    rounding: Rounding = "nearest",
    randomness: RowRandomness = "particle",
    seed: int = 0,
    iteration: int = 0,
    first_column: int = 0,
    backend: str = "auto",
) -> None:
    """``swarm_update_rows_``, bit for bit, of rows that come to `device` and go back one block of columns at a time.

    While a block is computed the next one comes in and the last one goes out. Only rows that are read come in, each
    once, and only rows that are written go out. The buffers hold 3 · block_columns columns of the rows that the
    table names. When it returns, the rows are written. If anything raises on the way, some blocks have moved and
    others have not: the rows are lost.

    Args:
        rows: [R, D] in the memory of the host. For a CUDA device they should be pinned; others, such as
            those in a file, are allowed, but CUDA copies them more slowly.
        device: where the update is computed, a CUDA device or the CPU (the default). Two threads copy.
        block_columns: columns of a block, a multiple of 4. Default: 1 MiB of each row.
        table, global_best, global_worst, coefficients, step_length, rounding, randomness, seed, iteration,
            first_column, backend: as in ``swarm_update_rows_``; table and coefficients on the CPU.

    Raises:
        TypeError, ValueError: as ``swarm_update_rows_``, before a row is written.
        Exception: whatever a copy raised; then no thread is left running.
    """
    validation.check_rows({"rows": rows})
    validation.check_matrix("rows", rows)
    target = torch.device("cpu" if device is None else device)
    if rows.device.type != "cpu":
        raise ValueError(f"rows are on {rows.device}, but only rows on the CPU are streamed; use swarm_update_rows_")
    if target.type not in ("cpu", "cuda"):
        raise ValueError(f"rows can be streamed to cpu or cuda, got {target}")
    columns = BLOCK_BYTES // rows.element_size() if block_columns is None else block_columns
    if columns < 4 or columns % 4:
        raise ValueError(f"block_columns must be a positive multiple of 4, got {columns}")
    particles = len(table) if isinstance(table, Tensor) and table.dim() else 0
    validation.check_scalars("table", table, (particles, 5), (torch.int64,))
    validation.check_scalars("coefficients", coefficients, (particles, 4), (torch.float32,))
    validation.check_device("table", table, "rows", rows)
    validation.check_device("coefficients", coefficients, "rows", rows)
    size = rows.shape[1]
    if particles == 0 or size == 0:
        return
    validation.check_table(table, len(rows), global_best, global_worst)
    validation.check_overlap({"rows": rows}, {"coefficients": coefficients, "table": table})

    x_in, x_out, v_in, v_out, p = table.t().tolist()
    read = sorted({*x_in, *v_in, *p, global_best, global_worst} - {-1})
    written = [*x_out, *v_out]
    slots = {row: slot for slot, row in enumerate(sorted({*read, *written}))}
    renumbered = table.clone(memory_format=torch.contiguous_format).apply_(lambda row: slots.get(row, -1))
    coefficients = coefficients.to(target)
    columns = min(columns, size)
    pitch = _aligned(columns, rows.dtype)
    buffers = torch.empty(BUFFERS, len(slots), pitch, dtype=rows.dtype, device=target)

    def blocks(number: int) -> tuple[Tensor, Tensor]:
        """A block of the rows, and of the buffer that it passes through."""
        start = number * columns
        outer = rows[:, start : start + columns]
        return outer, buffers[number % BUFFERS, :, : outer.shape[1]]

    def come(number: int) -> None:
        outer, inner = (block.unbind() for block in blocks(number))
        _copy([(inner[slots[row]], outer[row]) for row in read])

    def go(number: int) -> None:
        outer, inner = (block.unbind() for block in blocks(number))
        _copy([(outer[row], inner[slots[row]]) for row in written])

    count = math.ceil(size / columns)
    with closing(CopyStream(target)) as incoming, closing(CopyStream(target)) as outgoing:
        wait_for_block = incoming.start(partial(come, 0))
        going: deque[Wait] = deque()
        for number in range(count):
            wait_for_block()
            if len(going) == BUFFERS - 1:  # the next block's buffer is that of the oldest one still going
                going.popleft()()
            if number + 1 < count:
                wait_for_block = incoming.start(partial(come, number + 1))
            swarm_update_rows_(
                *(blocks(number)[1], renumbered, slots[global_best], slots[global_worst], coefficients, step_length),
                rounding=rounding,
                randomness=randomness,
                seed=seed,
                iteration=iteration,
                first_column=first_column + number * columns,
                backend=backend,
            )
            going.append(outgoing.start(partial(go, number)))
        while going:
            going.popleft()()


class CopyStream:
    """Copies to or from a device, in a thread and, of a GPU, on a stream of its own, beside everything else.

    The thread also waits for a disk, and for CUDA where it copies memory that is not page-locked: whoever starts a
    copy never does.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._thread = ThreadPoolExecutor(1)

    def start(self, work: Callable[[], None]) -> Wait:
        """Begin, after all that the current stream has been given; the work lets go of the interpreter's lock.

        What is returned waits for the end, on a GPU by making the current stream wait, and raises what the work raised.
        """
        stream, device = self._stream, self._device
        if stream is None:
            return self._thread.submit(work).result
        before = torch.cuda.current_stream(device).record_event()

        def queue() -> torch.cuda.Event:
            stream.wait_event(before)
            with torch.cuda.stream(stream):
                work()
            done: torch.cuda.Event = stream.record_event()
            return done

        queued = self._thread.submit(queue)
        return lambda: torch.cuda.current_stream(device).wait_event(queued.result())

    def close(self) -> None:
        """Drop what has not begun, end the thread, and wait until nothing is copied any more."""
        self._thread.shutdown(cancel_futures=True)
        if self._stream is not None:
            self._stream.synchronize()


def _copy(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    for to, source in pairs:
        to.copy_(source, non_blocking=True)


def _aligned(columns: int, dtype: torch.dtype) -> int:
    step = ALIGNMENT // dtype.itemsize
    return math.ceil(columns / step) * step
