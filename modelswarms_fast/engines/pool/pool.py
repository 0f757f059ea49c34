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
from modelswarms_fast.engines.pool.sharing import Sharing, Task
from modelswarms_fast.engines.pool.supervisor import LOOK
from modelswarms_fast.engines.protocol import Completion, Request, Watch
from modelswarms_fast.errors import InputError
from modelswarms_fast.weights.base_model import loading
from modelswarms_fast.weights.experts import Experts
from modelswarms_fast.weights.mixing import row_form

NONE_LIMIT = 3600.0  # seconds in which an engine comes back, if there is none
MOST_LOSSES = 3  # engines that may end while they work on one request


class _RunningRequest(NamedTuple):
    key: int
    slot: int | None
    prompt: int
    max_tokens: int
    continuation: int | None
    sampling: Sampling | None


class EnginePool:
    """K engines with s slots each are one engine with K · s slots, of which each is filled and emptied by itself.

    Slot i is a slot of engine i mod K, so that few particles are spread over all engines; `Sharing` says when another
    engine helps. A row must not change before the requests submitted to its slot have ended or been dropped. Requests
    to the base model go to the engines in turn.

    An engine that ends, or is given up because it does not answer in time (`Member.check`), is started anew as often as
    `Member.restarts_left` says. What it had not answered goes to the others or, once it is back, to itself.

    Raises:
        InputError: as the engines do when they start; or, from any method, an engine ended too often.
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
        self._asked: tuple[int, int | None, Sequence[int], tuple[Any, ...]] | None = None
        """Engine, slot whose particle it must have, prompts that it must know, call."""
        self.lost: list[str] = []
        """A sentence for each engine that has ended; whoever records them empties the list."""
        self._losses: dict[int, int] = {}
        """Request → engines that have ended with it."""
        self._answer: Any = None
        self._chosen: Serve | None = None
        self._looked = self._served = time.monotonic()
        self._failure: Exception | None = None
        self._layout = None if experts is None else row_form(experts).layout
        self._members = members or Processes(base, experts, config)
        self._workers: Sequence[Member] = self._members.all
        self._sharing = Sharing(len(self._workers))
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
        mode, self.auto_timings = self._request(0, None, numbers, "autotune", numbers, max_tokens)
        self.set_mode(mode)

    def set_mode(self, mode: Serve) -> None:
        """Serve in this mode, which `autotune` has taken."""
        self.serve = self._chosen = mode
        for worker in self._workers:
            worker.calls.append(("set_mode", mode))
        self._sharing.each = self._request(0, None, [], "count_slots")
        self._sharing.clear()
        self.slots = self._sharing.each * len(self._workers)

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
        self._sharing.clear()
        for worker in self._workers:
            worker.calls.append(("restore",))

    def submit(self, key: int, request: Request, max_tokens: int) -> None:
        """Begin to complete a request, or to look at its continuation."""
        if len(self._prompts) >= MOST:
            needed = {number for one in self._running.values() for number in (one.prompt, one.continuation)}
            self._prompts.forget(self._workers, needed)
        if request.slot is not None:
            self._check_slot(request.slot)
        number = self._submitted
        prompt = self._prompts.number(request.prompt)
        continuation = None if request.continuation is None else self._prompts.number(request.continuation)
        self._numbers[key] = number
        self._running[number] = _RunningRequest(key, request.slot, prompt, max_tokens, continuation, request.sampling)
        self._submitted += 1
        self._sharing.submit(number, request.slot)

    def step(self) -> list[tuple[int, Completion]]:
        """Wait until requests have ended; their keys and completions."""
        self._share()
        while self._running and not self._ended:
            self._receive()
            self._share()
        ended, self._ended = self._ended, []
        return ended

    def drop(self, keys: Iterable[int]) -> None:
        """Give up requests; what they might still say is not heard."""
        given_up = set(keys)
        if not given_up:
            return
        self._ended = [(key, completion) for key, completion in self._ended if key not in given_up]
        numbers = [self._numbers.pop(key) for key in given_up if key in self._numbers]
        told = self._sharing.drop([(number, self._running.pop(number).slot) for number in numbers])
        for engine, mine in told.items():
            self._workers[engine].calls.append(("drop", mine))

    def log_probs(self, request: Request, top: int = 20) -> dict[int, float]:
        """Natural log-probabilities of the `top` most likely next tokens, from the engine of the slot."""
        if request.slot is not None:
            self._check_slot(request.slot)
        while (task := self._sharing.settle(request.slot)) is None:
            self._receive()
        self._do(task)
        prompt = self._prompts.number(request.prompt)
        call = ("log_probs", task.place, prompt, top)
        found: dict[int, float] = self._request(task.engine, request.slot, [prompt], *call)
        return found

    def close(self) -> None:
        """End the engines and wait for them."""
        self._members.close()
        self._workers = []

    # calls

    def _load(self, slot: int, name: str, *arguments: Any) -> None:
        self._loaded[self._check_slot(slot)] = (name, arguments)
        self._sharing.load(slot)

    def _share(self) -> None:
        """Give the engines what they have room for, and send it."""
        for task in self._sharing.assign():
            self._do(task)
        self._flush()

    def _do(self, task: Task) -> None:
        worker = self._workers[task.engine]
        if task.load and task.slot in self._loaded:
            name, arguments = self._loaded[task.slot]
            worker.calls.append((name, task.place, *arguments))
        for number in task.requests:
            _, _, prompt, max_tokens, continuation, sampling = self._running[number]
            self._prompts.teach(worker, prompt)
            if continuation is not None:
                self._prompts.teach(worker, continuation)
            worker.calls.append(("submit", number, task.place, prompt, max_tokens, continuation, sampling))

    def _request(self, engine: int, slot: int | None, prompts: Sequence[int], *call: Any) -> Any:
        """The answer of an engine to a call. The engine has the particle of the slot."""
        self._asked, self._answer = (engine, slot, prompts, call), None
        if self._workers[engine].ready:  # else it is asked once it is
            self._tell_asked()
        self._flush()
        while self._answer is None:
            self._receive()
        self._asked = None
        return self._answer

    def _tell_asked(self) -> None:
        assert self._asked is not None
        engine, _, prompts, call = self._asked
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
        owing = self._sharing.busy | ({self._asked[0]} if self._asked else set())
        if any(worker.ready for worker in self._workers):
            self._served = self._looked
        elif self._looked - self._served > NONE_LIMIT:
            raise InputError(
                f"No engine has been there for {NONE_LIMIT:.0f} s; add nodes with room for one, and go on with resume."
            )
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
                    self._sharing.ended(number)
                    self._losses.pop(number, None)
                    del self._numbers[running.key]
                    self._ended.append((running.key, Completion(*completion)))
            for name, start, end in seen:
                if self.watch is not None:
                    self.watch(name, worker.number, start, end)
        elif what == "answer":
            self._answer = content[0]
        elif what == "ready":
            serve, slots, self.dtype, self.max_model_len, self._sharing.ahead = content
            if self._chosen is None:  # one that is started anew is told what has been chosen
                self.serve, self.slots = serve, slots * len(self._workers)
                self._sharing.each = slots
            worker.ready = True
            self._sharing.up(worker.number)
            if self._asked is not None and self._asked[0] == worker.number:
                self._ask_again()
        else:
            self._failure = content[0]
            raise content[0]

    def _ended_early(self, worker: Member) -> None:
        """Start an engine that has ended anew; what it had not answered is shared out again."""
        worker.end()
        ended = f"{worker.name} {worker.cause()}"
        fewer = f", or fewer engines than {len(self._workers)}" if len(self._workers) > 1 else ""
        if not worker.restarts_left:
            raise InputError(f"{ended} after it had been started anew; give the run more memory{fewer}.")
        for number in self._sharing.down(worker.number):
            self._losses[number] = self._losses.get(number, 0) + 1
            if self._losses[number] == MOST_LOSSES:
                raise InputError(
                    f"{ended}, as {MOST_LOSSES - 1} engines before it that had the same prompt; give the run more "
                    f"memory{fewer}."
                )
        logging.getLogger(__name__).warning("%s; it is started anew.", ended)
        self.lost.append(f"{ended}; it is started anew.")
        worker.restarts_left -= 1
        worker.begin()
        if self._chosen is not None:
            worker.calls.append(("set_mode", self._chosen))
        worker.flush()

    def _ask_again(self) -> None:
        """Ask an engine that was started anew for the answer that is waited for."""
        assert self._asked is not None
        engine, slot, _, _ = self._asked
        if slot is not None and (task := self._sharing.settle(slot)) is not None:
            self._do(task)
        self._tell_asked()
        self._workers[engine].flush()

    def _check_slot(self, slot: int) -> int:
        if not 0 <= slot < self.slots:
            raise IndexError(f"slot {slot} of {self.slots}")
        return slot
