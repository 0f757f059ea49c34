"""Several engines on one node, each in a process of its own, behind the protocol of one."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoTokenizer

from modelswarms_fast.config import EngineConfig, Serve
from modelswarms_fast.engines import Completion, Request, Watch, share_cores
from modelswarms_fast.engines.process import Start
from modelswarms_fast.errors import InputError
from modelswarms_fast.experts import Experts
from modelswarms_fast.shared import place_of, shared_rows

LOOK = 1.0  # seconds between two looks whether a silent process still lives
PATIENCE = 10.0  # seconds that a process has to end by itself


class _Running(NamedTuple):
    key: int
    slot: int | None
    engine: int
    prompt: int
    max_tokens: int


class _Worker:
    """One process, and what it has to be told."""

    def __init__(self, number: int, count: int, start: Start) -> None:
        self.name = f"Engine {number + 1} of {count}"
        self.number, self._count, self._start = number, count, start
        self.restarted = False
        self.begin()

    def begin(self) -> None:
        """Start the process; it has been told nothing yet."""
        self.ready = False
        self.calls: list[tuple[Any, ...]] = []
        self.knows: set[int] = set()
        """Prompts."""
        self.pipe, theirs = Pipe()
        cores = share_cores(sorted(os.sched_getaffinity(0)), self.number, self._count)
        command = [sys.executable, "-P", "-m", "modelswarms_fast.engines.process", str(theirs.fileno())]
        mine = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, cores)  # of this thread alone; the process inherits it
            self.process = subprocess.Popen(
                command,
                env=_environment(self.number, self._count, len(cores), self._start.config.tensor_parallel),
                pass_fds=(theirs.fileno(), *self._start.descriptors),
                stdin=subprocess.DEVNULL,
                stdout=2,  # whatever an engine prints is not this program's output
                process_group=0,  # out of reach of a terminal's Ctrl-C from its first moment
            )
        finally:
            os.sched_setaffinity(0, mine)
            theirs.close()
        self.tell(self._start)

    def tell(self, message: Any) -> None:
        """Send; a process that has ended is noticed where its answers are waited for."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send(message)

    def flush(self) -> None:
        """Send all calls in one message."""
        if self.calls:
            calls, self.calls = self.calls, []
            self.tell(calls)

    def cause(self) -> str:
        """How the process ended."""
        code = self.process.wait()
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"

    def end(self) -> None:
        """End the process, if it lives."""
        self.pipe.close()
        for stop in (None, self.process.terminate, self.process.kill):
            if stop is not None:
                stop()
            try:
                self.process.wait(PATIENCE)
                return
            except subprocess.TimeoutExpired:
                continue


class EngineGroup:
    """K engines with s slots each are one engine with K · s slots, of which each is filled and emptied by itself.

    Slot i is a slot of engine i mod K, so that a few particles are spread over all. A row that lies in shared memory
    (`shared_rows`) is read there by the engine, when it comes to it: it must not change before the requests submitted
    to its slot have ended or been dropped. Any other row is copied first. Requests to the base model go to the engines
    in turn.

    An engine whose process ends is started anew once, loaded as before, and asked again for what it had not answered.

    Raises:
        InputError: as the engines do when they start; or, from any method, an engine ended twice.
        EngineError: from any method, an engine failed.
    """

    def __init__(self, base: Path, experts: Experts | None, config: EngineConfig) -> None:
        count = config.engines
        self.device = torch.device("cpu")  # the driver's rows are in the host's memory, whatever the engines run on
        self.watch: Watch | None = None
        self.serve: Serve = config.serve
        self.auto_timings: dict[str, float] = {}
        self._loaded: dict[int, tuple[Any, ...]] = {}
        self._running: dict[int, _Running] = {}
        self._numbers: dict[int, int] = {}
        """Key → number under which the request runs; keys come again, numbers do not."""
        self._ended: list[tuple[int, Completion]] = []
        self._prompts: dict[tuple[int, ...], int] = {}
        self._tokens: list[list[int]] = []
        self._submitted = 0
        self._asked: tuple[int, tuple[Any, ...]] | None = None
        self._answer: dict[int, float] | None = None
        self._failure: Exception | None = None
        descriptors: tuple[int, ...] = ()
        rows = (0, 0, 0, 0)
        if experts is not None:
            self._layout = experts.layout
            # An engine serves as many rows as it has LoRA slots, otherwise one.
            copies = count * config.slots if config.serve == "slots" else count
            self._copies = shared_rows(copies, experts.layout.size, experts.layout.dtype)
            self._experts = experts.rows
            if place_of(self._experts) is None:
                self._experts = shared_rows(len(experts.rows), experts.layout.size, experts.layout.dtype)
                self._experts.copy_(experts.rows)
            descriptor, offset = self._place(self._experts)
            descriptors = tuple({descriptor, self._place(self._copies)[0]})
            rows = (descriptor, offset, len(self._experts), self._experts.stride(0))
            nothing = torch.empty(0)
            experts = replace(experts, rows=nothing, room=nothing)
        start = Start(base, experts, replace(config, engines=1), descriptors, rows)
        self._workers: list[_Worker] = []
        try:
            for number in range(count):
                self._workers.append(_Worker(number, count, start))
            self.tokenizer: Any = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
            while not all(worker.ready for worker in self._workers):
                self._receive()
        except BaseException:
            self.close()
            raise

    def choose(self, prompts: Sequence[list[int]], max_tokens: int) -> None:
        """The settings have chosen."""

    def load(self, slot: int, row: torch.Tensor) -> None:
        """Serve the particle whose flat row [D] this is from `slot`; see above for when the row may change."""
        if row.shape != (self._layout.size,) or row.dtype != self._layout.dtype:
            raise ValueError(f"a row is a [{self._layout.size}] {self._layout.dtype} vector")
        place = place_of(row) if row.stride(0) == 1 else None
        # Only memory that the processes have: rows may come from elsewhere.
        if place is None or place[0] not in self._workers[0]._start.descriptors:
            copy = self._copies[self._check_slot(slot) % len(self._copies)]
            copy.copy_(row)
            place = self._place(copy)
        self._load(slot, "load", *place)

    def load_mixture(self, slot: int, mixture: torch.Tensor) -> None:
        """Serve the mixture [n] of the experts from `slot`; their rows must be those that the group started with."""
        self._load(slot, "load_mixture", mixture.tolist())

    def restore(self) -> None:
        """Serve the base model again, in every engine."""
        self._loaded = {}
        for worker in self._workers:
            worker.calls.append(("restore",))

    def submit(self, key: int, request: Request, max_tokens: int) -> None:
        """Begin to complete a request greedily."""
        number, engine = self._submitted, self._engine_of(request.slot)
        prompt = self._number(request.prompt)
        self._numbers[key] = number
        self._running[number] = _Running(key, request.slot, engine, prompt, max_tokens)
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
        self._asked = (engine, ("log_probs", self._place_in(request.slot), self._number(request.prompt), top))
        self._answer = None
        self._tell_asked()
        self._flush()
        while self._answer is None:
            self._receive()
        self._asked = None
        return self._answer

    def close(self) -> None:
        """End the engines' processes and wait for them."""
        for worker in self._workers:
            worker.pipe.close()  # all at once: each ends when it sees this
        for worker in self._workers:
            worker.end()
        self._workers = []

    # calls

    def _load(self, slot: int, name: str, *arguments: Any) -> None:
        worker = self._workers[self._check_slot(slot) % len(self._workers)]
        self._loaded[slot] = (name, slot // len(self._workers), *arguments)
        worker.calls.append(self._loaded[slot])

    def _number(self, tokens: Sequence[int]) -> int:
        """Of a prompt, which each engine is told once."""
        number = self._prompts.setdefault(tuple(tokens), len(self._tokens))
        if number == len(self._tokens):
            self._tokens.append(list(tokens))
        return number

    def _teach(self, worker: _Worker, prompt: int) -> None:
        if prompt not in worker.knows:
            worker.knows.add(prompt)
            worker.calls.append(("prompt", prompt, self._tokens[prompt]))

    def _ask(self, number: int) -> None:
        _, slot, engine, prompt, max_tokens = self._running[number]
        worker = self._workers[engine]
        self._teach(worker, prompt)
        worker.calls.append(("submit", number, self._place_in(slot), prompt, max_tokens))

    def _tell_asked(self) -> None:
        assert self._asked is not None
        engine, call = self._asked
        self._teach(self._workers[engine], call[2])
        self._workers[engine].calls.append(call)

    def _flush(self) -> None:
        for worker in self._workers:
            worker.flush()

    # answers

    def _receive(self) -> None:
        """Take in what has come, or wait for it; notice processes that have ended."""
        if self._failure is not None:
            raise RuntimeError("an engine of this group has failed; close() it") from self._failure
        pipes = {worker.pipe: worker for worker in self._workers}
        heard = wait(pipes, timeout=LOOK)
        for pipe in heard:
            assert isinstance(pipe, Connection)
            try:
                message = pipe.recv()
            except (EOFError, OSError):
                self._ended_early(pipes[pipe])
            else:
                self._take(pipes[pipe], *message)
        if not heard:  # a child of the process may hold its pipe open
            for worker in self._workers:
                if worker.process.poll() is not None:
                    self._ended_early(worker)

    def _take(self, worker: _Worker, what: str, *content: Any) -> None:
        if what == "ended":
            completions, seen = content
            for number, text, tokens in completions:
                running = self._running.pop(number, None)  # None: dropped meanwhile
                if running is not None:
                    del self._numbers[running.key]
                    self._ended.append((running.key, Completion(text, tokens)))
            for name, start, end in seen:
                if self.watch is not None:
                    self.watch(name, worker.number, start, end)
        elif what == "log_probs":
            self._answer = content[0]
        elif what == "ready":
            slots, self.dtype, self.max_model_len = content
            self.slots = slots * len(self._workers)
            worker.ready = True
        else:
            self._failure = content[0]
            raise content[0]

    def _ended_early(self, worker: _Worker) -> None:
        """Start a process that has ended anew, and say to it what it is to know."""
        worker.end()
        ended = f"{worker.name} {worker.cause()}"
        if worker.restarted:
            fewer = f", or fewer engines than {len(self._workers)}" if len(self._workers) > 1 else ""
            raise InputError(f"{ended} after it had been started anew; give the run more memory{fewer}.")
        logging.getLogger(__name__).warning("%s; it is started anew.", ended)
        worker.restarted = True
        worker.begin()
        for slot, call in self._loaded.items():
            if slot % len(self._workers) == worker.number:
                worker.calls.append(call)
        for number, running in self._running.items():
            if running.engine == worker.number:
                self._ask(number)
        if self._asked is not None and self._asked[0] == worker.number:
            self._tell_asked()
        worker.flush()

    # where things are

    def _engine_of(self, slot: int | None) -> int:
        return (self._submitted if slot is None else self._check_slot(slot)) % len(self._workers)

    def _place_in(self, slot: int | None) -> int | None:
        """Slot of the engine for a slot of the group."""
        return None if slot is None else slot // len(self._workers)

    def _check_slot(self, slot: int) -> int:
        if not 0 <= slot < self.slots:
            raise IndexError(f"slot {slot} of {self.slots}")
        return slot

    def _place(self, tensor: torch.Tensor) -> tuple[int, int]:
        place = place_of(tensor)
        assert place is not None
        return place


def _environment(number: int, count: int, cores: int, ranks: int) -> dict[str, str]:
    """Of an engine's process: its threads, its GPUs, and the modules that this process can import."""
    threads = max(1, min(cores, int(os.environ.get("OMP_NUM_THREADS", 0)) // count or cores))
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
    }
    if torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
        if count * ranks > len(devices):
            raise InputError(
                f"engines is {count} and tensor_parallel {ranks} but there are {len(devices)} GPUs; lower them until "
                "there is a GPU for each."
            )
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices[number * ranks : (number + 1) * ranks])
    return environment
