"""Several engines behind the protocol of one."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoTokenizer

from modelswarms_fast.config import EngineConfig, Sampling, Serve
from modelswarms_fast.engines.pool.members import Member, Members
from modelswarms_fast.engines.pool.processes import Processes
from modelswarms_fast.engines.pool.prompts import MOST, Prompts
from modelswarms_fast.engines.pool.supervisor import LOOK
from modelswarms_fast.engines.protocol import Completion, Request, Watch
from modelswarms_fast.errors import InputError
from modelswarms_fast.weights.base_model import loading
from modelswarms_fast.weights.experts import Experts
from modelswarms_fast.weights.mixing import row_form


class _RunningRequest(NamedTuple):
    key: int
    slot: int | None
    engine: int
    prompt: int
    max_tokens: int
    continuation: int | None
    sampling: Sampling | None


class EnginePool:
    """K engines with s slots each are one engine with K · s slots, of which each is filled and emptied by itself.

    Slot i is a slot of engine i mod K, so that few particles are spread over all engines. A row must not change before
    the requests submitted to its slot have ended or been dropped. Requests to the base model go to the engines in turn.

    An engine that ends, or is given up because it does not answer in time (`Member.check`), is started anew once,
    loaded as before, and asked again for what it had not answered.

    Raises:
        InputError: as the engines do when they start; or, from any method, an engine ended twice.
        EngineError: from any method, an engine failed.
    """

    def __init__(
        self, base: Path, experts: Experts | None, config: EngineConfig, members: Members | None = None
    ) -> None:
        """`members`: the engines, which this closes; by default processes of this node."""
        self.device = torch.device("cpu")  # the driver's rows are in the host's memory, whatever the engines run on
        self.watch: Watch | None = None
        self.serve: Serve = config.serve
        self.auto_timings: dict[str, float] = {}
        self._loaded: dict[int, tuple[Any, ...]] = {}
        self._running: dict[int, _RunningRequest] = {}
        self._numbers: dict[int, int] = {}
        """Key → number under which the request runs; keys come again, numbers do not."""
        self._ended: list[tuple[int, Completion]] = []
        self._prompts = Prompts()
        self._submitted = 0
        self._asked: tuple[int, Sequence[int], tuple[Any, ...]] | None = None
        """Engine, prompts that it must know, call."""
        self._answer: Any = None
        self._chosen: Serve | None = None
        self._looked = time.monotonic()
        self._failure: Exception | None = None
        self._layout = None if experts is None else row_form(experts).layout
        self._members = members or Processes(base, experts, config)
        self._workers: Sequence[Member] = self._members.all
        try:
            with loading(base):
                self.tokenizer: Any = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
            while not all(worker.ready for worker in self._workers):
                self._receive()
        except BaseException:
            self.close()
            raise

    def autotune(self, prompts: Sequence[list[int]], max_tokens: int) -> None:
        """With serve="auto", have one engine time each mode while the others wait; then all serve as it has chosen."""
        numbers = [self._prompts.number(prompt) for prompt in prompts]
        mode, self.auto_timings = self._request(0, numbers, "autotune", numbers, max_tokens)
        self.set_mode(mode)

    def set_mode(self, mode: Serve) -> None:
        """Serve in this mode, which `autotune` has taken."""
        self.serve = self._chosen = mode
        for worker in self._workers:
            worker.calls.append(("set_mode", mode))
        self.slots = self._request(0, [], "count_slots") * len(self._workers)

    def load(self, slot: int, row: torch.Tensor) -> None:
        """Serve the particle whose flat row [D] this is from `slot`; see above for when the row may change."""
        assert self._layout is not None
        if row.shape != (self._layout.size,) or row.dtype != self._layout.dtype:
            raise ValueError(f"a row is a [{self._layout.size}] {self._layout.dtype} vector")
        self._load(slot, "load", *self._members.place(self._check_slot(slot), row))

    def load_mixture(self, slot: int, mixture: torch.Tensor) -> None:
        """Serve the mixture [n] of the experts from `slot`; their rows must be those that the pool started with."""
        self._load(slot, "load_mixture", mixture.tolist())

    def restore(self) -> None:
        """Serve the base model again, in every engine."""
        self._loaded = {}
        for worker in self._workers:
            worker.calls.append(("restore",))

    def submit(self, key: int, request: Request, max_tokens: int) -> None:
        """Begin to complete a request, or to look at its continuation."""
        if len(self._prompts) >= MOST:
            needed = {number for one in self._running.values() for number in (one.prompt, one.continuation)}
            self._prompts.forget(self._workers, needed)
        number, engine = self._submitted, self._engine_of(request.slot)
        prompt = self._prompts.number(request.prompt)
        continuation = None if request.continuation is None else self._prompts.number(request.continuation)
        self._numbers[key] = number
        self._running[number] = _RunningRequest(
            key, request.slot, engine, prompt, max_tokens, continuation, request.sampling
        )
        self._submitted += 1
        self._ask(number)

    def step(self) -> list[tuple[int, Completion]]:
        """Wait until requests have ended; their keys and completions."""
        self._flush()
        while self._running and not self._ended:
            self._receive()
        ended, self._ended = self._ended, []
        return ended

    def drop(self, keys: Iterable[int]) -> None:
        """Give up requests; what they might still say is not heard."""
        given_up = set(keys)
        if not given_up:
            return
        self._ended = [(key, completion) for key, completion in self._ended if key not in given_up]
        numbers: list[list[int]] = [[] for _ in self._workers]
        for number in sorted(self._numbers.pop(key) for key in given_up if key in self._numbers):
            numbers[self._running.pop(number).engine].append(number)
        for worker, mine in zip(self._workers, numbers, strict=True):
            if mine:
                worker.calls.append(("drop", mine))

    def log_probs(self, request: Request, top: int = 20) -> dict[int, float]:
        """Natural log-probabilities of the `top` most likely next tokens, from the engine of the slot."""
        engine = 0 if request.slot is None else self._check_slot(request.slot) % len(self._workers)
        prompt = self._prompts.number(request.prompt)
        found: dict[int, float] = self._request(
            engine, [prompt], "log_probs", self._slot_in_engine(request.slot), prompt, top
        )
        return found

    def close(self) -> None:
        """End the engines and wait for them."""
        self._members.close()
        self._workers = []

    # calls

    def _load(self, slot: int, name: str, *arguments: Any) -> None:
        worker = self._workers[self._check_slot(slot) % len(self._workers)]
        self._loaded[slot] = (name, slot // len(self._workers), *arguments)
        worker.calls.append(self._loaded[slot])

    def _ask(self, number: int) -> None:
        _, slot, engine, prompt, max_tokens, continuation, sampling = self._running[number]
        worker = self._workers[engine]
        self._prompts.teach(worker, prompt)
        if continuation is not None:
            self._prompts.teach(worker, continuation)
        worker.calls.append(("submit", number, self._slot_in_engine(slot), prompt, max_tokens, continuation, sampling))

    def _request(self, engine: int, prompts: Sequence[int], *call: Any) -> Any:
        """The answer of an engine to a call."""
        self._asked, self._answer = (engine, prompts, call), None
        self._tell_asked()
        self._flush()
        while self._answer is None:
            self._receive()
        self._asked = None
        return self._answer

    def _tell_asked(self) -> None:
        assert self._asked is not None
        engine, prompts, call = self._asked
        for prompt in prompts:
            self._prompts.teach(self._workers[engine], prompt)
        self._workers[engine].calls.append(call)

    def _flush(self) -> None:
        for worker in self._workers:
            worker.flush()

    # answers

    def _receive(self) -> None:
        """Take in what has come, or wait for it; notice engines that have ended or do not answer."""
        if self._failure is not None:
            raise RuntimeError("an engine of this pool has failed; close() it") from self._failure
        heard = set()
        for worker, message in self._members.wait(LOOK):
            heard.add(worker.number)
            if message is None:
                self._ended_early(worker)
            else:
                self._take(worker, *message)
        if time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        owing = {running.engine for running in self._running.values()} | ({self._asked[0]} if self._asked else set())
        for worker in self._workers:
            if worker.number in heard:
                continue
            if worker.lives():
                worker.check(owes=not worker.ready or worker.number in owing)
            else:
                self._ended_early(worker)

    def _take(self, worker: Member, what: str, *content: Any) -> None:
        if what == "ended":
            completions, seen = content
            for number, *completion in completions:
                running = self._running.pop(number, None)  # None: dropped meanwhile
                if running is not None:
                    del self._numbers[running.key]
                    self._ended.append((running.key, Completion(*completion)))
            for name, start, end in seen:
                if self.watch is not None:
                    self.watch(name, worker.number, start, end)
        elif what == "answer":
            self._answer = content[0]
        elif what == "ready":
            serve, slots, self.dtype, self.max_model_len = content
            if self._chosen is None:  # one that is started anew is told what has been chosen
                self.serve, self.slots = serve, slots * len(self._workers)
            worker.ready = True
        else:
            self._failure = content[0]
            raise content[0]

    def _ended_early(self, worker: Member) -> None:
        """Start an engine that has ended anew, and say to it what it is to know."""
        worker.end()
        ended = f"{worker.name} {worker.cause()}"
        if not worker.restarts_left:
            fewer = f", or fewer engines than {len(self._workers)}" if len(self._workers) > 1 else ""
            raise InputError(f"{ended} after it had been started anew; give the run more memory{fewer}.")
        logging.getLogger(__name__).warning("%s; it is started anew.", ended)
        worker.restarts_left -= 1
        worker.begin()
        if self._chosen is not None:
            worker.calls.append(("set_mode", self._chosen))
        for slot, call in self._loaded.items():
            if slot % len(self._workers) == worker.number:
                worker.calls.append(call)
        for number, running in self._running.items():
            if running.engine == worker.number:
                self._ask(number)
        if self._asked is not None and self._asked[0] == worker.number:
            self._tell_asked()
        worker.flush()

    # slots

    def _engine_of(self, slot: int | None) -> int:
        return (self._submitted if slot is None else self._check_slot(slot)) % len(self._workers)

    def _slot_in_engine(self, slot: int | None) -> int | None:
        """Slot of the engine for a slot of the pool."""
        return None if slot is None else slot // len(self._workers)

    def _check_slot(self, slot: int) -> int:
        if not 0 <= slot < self.slots:
            raise IndexError(f"slot {slot} of {self.slots}")
        return slot
