"""Engines as actors of a Ray cluster: the members of a pool that run anywhere.

Calls go to an actor in lists, and what it says comes back through a call that waits for it. Only numbers travel: the
experts are read once a node, and a particle is its coefficients. Ray is imported when a cluster is asked for.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from modelswarms_fast.config import EngineConfig
from modelswarms_fast.engines.pool import supervisor
from modelswarms_fast.engines.pool.cluster import (
    Start,
    check_versions,
    join,
    of_bytes,
    read_on_node,
    reserve,
    start_of,
    to_bytes,
    versions,
)
from modelswarms_fast.engines.pool.members import Message
from modelswarms_fast.engines.pool.worker_process import Served, portable, ready, serve
from modelswarms_fast.errors import InputError, short
from modelswarms_fast.weights.experts import Experts
from modelswarms_fast.weights.mixing import row_form
from modelswarms_fast.weights.shared_memory import shared_rows

BEAT = 5.0  # seconds after which an actor answers though it has nothing to say
BEAT_LIMIT = 60.0  # seconds without such an answer after which it is given up
RESTARTS = 3  # how often each engine is started anew
LOGGED = 1 << 16  # most bytes of its log that an answer brings


class EngineActor:
    """What runs on a node: an engine in a thread, and the mailbox of its calls and messages."""

    def __init__(self, start: Start, tags: dict[str, str]) -> None:
        """`tags`: of its metrics."""
        import ray

        context = ray.get_runtime_context()
        self._start = start
        self._calls: queue.SimpleQueue[list[tuple[Any, ...]]] = queue.SimpleQueue()
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._rows: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        self._early: dict[int, list[tuple[Any, ...]]] = {}
        self._next = 0
        self._taking = threading.Lock()
        self._served: Served | None = None
        self._log = [os.open(f"/proc/self/fd/{number}", os.O_RDONLY) for number in (1, 2)]
        self._metrics = Metrics(tags)
        self._messages.put(("placed", context.get_node_id(), ray.util.get_node_ip_address(), versions()))
        threading.Thread(target=self._run, daemon=True).start()

    def give(self, rows: list[Any]) -> None:
        """References of what is wrong with this node's files, and of the experts' rows."""
        self._rows.put(rows)

    def tell(self, number: int, calls: list[tuple[Any, ...]]) -> None:
        """Calls to `Served`; `number` counts these lists from 0, since Ray may exchange two."""
        with self._taking:
            self._early[number] = calls
            while self._next in self._early:
                self._calls.put(self._early.pop(self._next))
                self._next += 1

    def hear(self, seconds: float) -> list[Message]:
        """What the engine has said since the last call, after at most so many seconds."""
        found: list[Message] = []
        with suppress(queue.Empty):
            found.append(self._messages.get(timeout=seconds))
            while True:
                found.append(self._messages.get_nowait())
        if text := b"".join(os.read(descriptor, LOGGED) for descriptor in self._log):
            found.append(("log", text.decode(errors="replace")))
        self._metrics.follow(found, 0 if self._served is None else len(self._served.running))
        return found

    def leave(self) -> None:
        """Do what the engine does before it ends."""
        leave = None if self._served is None else getattr(self._served.engine, "leave", None)
        if leave is not None:
            leave()

    def _run(self) -> None:
        try:
            experts, row_at = self._read()
            served = self._served = Served(self._start.base, experts, self._start.config, row_at, self._messages.put)
            self._messages.put(ready(served.engine))
            serve(served, self._calls)
        except Exception as error:
            self._messages.put(("failed", portable(error)))

    def _read(self) -> tuple[Experts | None, Any]:
        """The experts with their rows, which all engines of this node share, and what finds a row that was sent."""
        import ray

        start = self._start
        wrong, rows = ray.get(self._rows.get())
        if wrong is not None:
            raise InputError(wrong)
        experts = start.experts
        if experts is None:
            return None, None
        if rows is None:
            self._messages.put(("rows_wanted",))
            (rows,) = ray.get(self._rows.get())
        apart = start.config.tensor_parallel > 1  # its ranks are processes, which read rows in shared memory
        layout, form = experts.layout, row_form(experts).layout

        def tensor(array: Any, size: int, dtype: torch.dtype) -> torch.Tensor:
            found = of_bytes(array, size, dtype)
            return shared_rows(len(found), size, dtype).copy_(found) if apart else found

        room = tensor(rows, layout.size, layout.dtype)

        def row_at(reference: list[Any]) -> torch.Tensor:
            return tensor(ray.get(reference[0]), form.size, form.dtype)[0]

        return replace(experts, rows=room[: len(experts.names)], room=room), row_at


class Metrics:
    """What Ray's dashboard shows of an engine, through Ray's own metrics."""

    def __init__(self, tags: dict[str, str]) -> None:
        from ray.util.metrics import Counter, Gauge

        names = tuple(tags)
        self._prompts = Counter("modelswarms_prompts", "Prompts that the engine has completed.", names)
        self._idle = Gauge("modelswarms_idle_share", "Share of the last seconds without a step or a load.", names)
        self._queue = Gauge("modelswarms_queue", "Requests that the engine has and has not completed.", names)
        for one in (self._prompts, self._idle, self._queue):
            one.set_default_tags(tags)
        self._busy, self._began = 0.0, time.monotonic()

    def follow(self, messages: list[Message], running: int) -> None:
        """Take in what was said."""
        for what, *content in messages:
            if what == "ended":
                completions, seen = content
                if completions:
                    self._prompts.inc(len(completions))
                self._busy += sum(end - start for _, start, end in seen)
        self._queue.set(running)
        seconds = time.monotonic() - self._began
        if seconds > BEAT:
            self._idle.set(max(0.0, 1 - self._busy / seconds))
            self._busy, self._began = 0.0, time.monotonic()


class RayMember:
    """One actor, as a pool knows it."""

    def __init__(self, number: int, count: int, run: str, start: Any, options: dict[str, Any]) -> None:
        """`start`: the reference of a `Start`. `options`: of the actor."""
        self.number, self._count, self._run = number, count, run
        self._start, self._options = start, options
        self.restarts_left = RESTARTS
        self.node = self.node_id = ""
        self._attempt = 0
        self.begin()

    @property
    def name(self) -> str:
        """With its node, once it has one."""
        return f"Engine {self.number + 1} of {self._count}" + (f" on {self.node}" if self.node else "")

    def begin(self) -> None:
        """Have an actor made, where there is room or as soon as there is."""
        import ray

        self.ready = self.placed = False
        self.node = self.node_id = ""
        self.calls: list[tuple[Any, ...]] = []
        self.knows: set[int] = set()
        self._told = 0
        self._why = ""
        name = f"{self._run}/engine-{self.number + 1}" + (f"/{self._attempt}" if self._attempt else "")
        self._attempt += 1
        actor_class: Any = ray.remote(EngineActor)
        tags = {"run": self._run, "engine": str(self.number + 1)}
        self.actor = actor_class.options(name=name, **self._options).remote(self._start, tags)
        self.listen()
        self.heard()

    def listen(self) -> None:
        """Wait for what it says next."""
        self.reference = self.actor.hear.remote(BEAT)
        self._beat = time.monotonic()

    def heard(self) -> None:
        """Its time begins anew."""
        self._last = time.monotonic()

    def flush(self) -> None:
        """Send all calls in one message."""
        if self.calls:
            calls, self.calls = self.calls, []
            self.actor.tell.remote(self._told, calls)
            self._told += 1

    def check(self, *, owes: bool) -> None:
        """Give the actor up if nothing is heard of it, or if it owes an answer and does not get on.

        One that is started anew may wait for room without a limit: nodes may join.
        """
        now, limit = time.monotonic(), supervisor.STEP_LIMIT if self.ready else supervisor.START_LIMIT
        if not self.placed and self._attempt > 1:
            self.heard()
        elif self.placed and now - self._beat > BEAT_LIMIT + BEAT:
            self.give_up(f"was not heard of for {BEAT_LIMIT:.0f} s and was given up")
        elif not owes:
            self.heard()
        elif now - self._last > limit:
            self.give_up(f"did not answer for {limit:.0f} s and was given up")

    def lives(self) -> bool:
        """Whether it has not been given up, and has not been seen to end."""
        return not self._why

    def cause(self) -> str:
        """How it ended."""
        return self._why or "was given up"

    def died(self, error: Exception) -> None:
        """Ray says that it has ended. Raises InputError for a node that lacks this package."""
        text = str(error)
        if not self.placed and "import" in text and "modelswarms_fast" in text:
            raise InputError(
                f"a node of the cluster cannot import modelswarms_fast ({short(text.splitlines()[-1], 200)}); install "
                "the version of this machine on each."
            )
        self._why = self._why or "has ended"

    def give_up(self, why: str) -> None:
        """From here on it is an actor that has ended."""
        self._why = self._why or why
        self.end()

    def end(self) -> None:
        """Kill the actor; one that has ended is let be."""
        import ray

        with suppress(Exception):
            ray.kill(self.actor)


class Actors:
    """`config.engines` actors of the cluster `config.cluster`, each with a bundle of a placement group.

    Raises InputError where there is no such cluster, or no room in it.
    """

    def __init__(
        self,
        base: Path,
        experts: Experts | None,
        config: EngineConfig,
        run: str = "run",
        keep_log: Callable[[int, str], None] | None = None,
    ) -> None:
        """`run` names the actors. `keep_log` is given what each engine, by its number from 0, has printed."""
        assert config.cluster is not None
        self._experts, self._keep_log = experts, keep_log
        self.all: list[RayMember] = []
        self._joined = join(config.cluster)
        self._group: Any = None
        try:
            import ray
            from ray.util.metrics import Counter
            from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

            self._start = start_of(base, experts, config)
            self._group, bundle = reserve(config.engines, config.tensor_parallel)
            self._restarts = Counter("modelswarms_restarts", "Engines that were started anew.", ("run",))
            self._restarts.set_default_tags({"run": run})
            self._on_node: dict[str, list[Any]] = {}
            self._mine: Any = None
            start = ray.put(self._start)
            for number in range(config.engines):
                options = {
                    "num_cpus": bundle.get("CPU", 0),
                    "num_gpus": bundle.get("GPU", 0),
                    "max_concurrency": 4,
                    "scheduling_strategy": PlacementGroupSchedulingStrategy(self._group, number),
                }
                self.all.append(RayMember(number, config.engines, run, start, options))
        except BaseException:
            self.close()
            raise

    def wait(self, seconds: float) -> Iterator[tuple[RayMember, Message | None]]:
        """What actors have said; None for one that has ended. A beat is no message."""
        import ray

        waiting = {one.reference: one for one in self.all if one.lives()}
        found, _ = ray.wait(list(waiting), num_returns=1, timeout=seconds)
        if found:
            found, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
        for reference in found:
            one = waiting[reference]
            try:
                messages = ray.get(reference)
            except ray.exceptions.RayError as error:
                one.died(error)
                yield one, None
                continue
            one.listen()
            for message in messages:
                one.heard()
                if not self._take(one, *message):
                    yield one, message

    def place(self, slot: int, row: torch.Tensor) -> tuple[Any, ...]:
        """The reference of a copy of the row, which each node fetches once."""
        import ray

        return ([ray.put(to_bytes(row.detach().cpu()[None]))],)

    def close(self) -> None:
        """End the actors, and leave the cluster if this pool has joined it."""
        import ray

        if not ray.is_initialized():
            return
        with suppress(Exception):
            ray.wait([one.actor.leave.remote() for one in self.all if one.ready], timeout=supervisor.PATIENCE)
        for one in self.all:
            one.end()
        self.all = []
        if self._group is not None:
            with suppress(Exception):
                ray.util.remove_placement_group(self._group)
            self._group = None
        if self._joined:
            self._joined = False
            ray.shutdown()

    def _take(self, one: RayMember, what: str, *content: Any) -> bool:
        """Take in a message that is not the pool's; whether it was one."""
        if what == "placed":
            node, address, found = content
            one.placed, one.node, one.node_id = True, address, node
            check_versions(address, found)
            one.actor.give.remote(self._read_on(node, address))
            if one.restarts_left < RESTARTS:
                self._restarts.inc()
        elif what == "rows_wanted":
            one.actor.give.remote([self._own_rows()])
        elif what == "log":
            if self._keep_log is not None:
                self._keep_log(one.number, content[0])
        else:
            return False
        return True

    def _read_on(self, node: str, address: str) -> list[Any]:
        """References of what a node's own files hold; read once, for all engines there."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if node not in self._on_node:
            task: Any = ray.remote(read_on_node)
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            options: dict[str, Any] = {"num_returns": 2, "num_cpus": 0, "scheduling_strategy": there}
            self._on_node[node] = task.options(**options).remote(self._start, address)
        return self._on_node[node]

    def _own_rows(self) -> Any:
        """The reference of this process's rows of the experts; each node fetches them once."""
        import ray

        assert self._experts is not None
        if self._mine is None:
            self._mine = ray.put(to_bytes(self._experts.rows))
        return self._mine
