"""The process groups that all vLLM engines of a process share: they end with the last engine, not with any of them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

_OPEN: set[int] = set()  # engines that have not ended


def end_with_the_last(llm: Any) -> Callable[[], object]:
    """What ends an engine, once; it is also called when nobody holds the engine any more."""
    client = llm.llm_engine.engine_core
    if (finalizer := getattr(client, "_finalizer", None)) is not None:
        finalizer.detach()  # vLLM's own would end the groups of the others
    _OPEN.add(id(client.engine_core))
    return weakref.finalize(client, _end, client.engine_core)


def _end(core: Any) -> None:
    _OPEN.discard(id(core))
    with _groups_kept() if _OPEN else nullcontext():
        core.shutdown()


@contextmanager
def _groups_kept() -> Iterator[None]:
    """Have vLLM end no process groups until the block ends."""
    from vllm.v1.engine import core

    name = "cleanup_dist_env_and_memory"
    before = getattr(core, name, None)  # not in every version
    if before is None:
        yield
        return
    setattr(core, name, lambda: None)
    try:
        yield
    finally:
        setattr(core, name, before)
