"""Engines that stay between calls: each model that is asked for finds the engine that can serve it, or starts one."""

from __future__ import annotations

import gc
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace

import torch

from modelswarms_fast.compat.devices import CPU, environment, names_of, visible, waves
from modelswarms_fast.compat.models import Model, Models
from modelswarms_fast.config import DType, EngineConfig, Sampling
from modelswarms_fast.engines.protocol import Engine, Request
from modelswarms_fast.engines.start import start_here
from modelswarms_fast.errors import EngineError, InputError
from modelswarms_fast.weights.experts import Experts
from modelswarms_fast.weights.free_memory import free_host_memory

NEED = 1.5
"""Memory that an engine on a CPU is taken to need, in sizes of its base model's files."""

Ids = list[int]


@dataclass(frozen=True)
class Job:
    """Prompts for one model."""

    model: str
    """Path or hub id."""
    prompts: Sequence[Ids]
    max_tokens: int
    samplings: Sequence[Sampling]
    """One for each prompt."""
    base: str | None = None
    """Folder or hub id of an adapter's base model, in place of the one that its config names."""
    dtype: DType | None = None
    """Number type of the base model, where the settings leave it open."""


@dataclass
class _Resident:
    """An engine that runs."""

    engine: Engine
    devices: tuple[str, ...]
    base: Hashable
    """Version of the full model that it was started with; None: of adapters."""
    loaded: dict[int, Hashable] = field(default_factory=dict)
    """Slot → version of the model that it serves."""


@dataclass(eq=False)
class _Call:
    """A call of `generate`, and what came out."""

    jobs: Sequence[Job]
    names: tuple[str, ...]
    """Of devices."""
    together: bool
    wanted: Callable[[], bool]
    found: list[list[Ids]] | None = None
    error: Exception | None = None


class Fleet:
    """Generates with any number of models, and keeps their engines.

    Adapters of one base and of one shape share an engine, as do full models of one shape. On GPUs each has an engine
    on devices of its own; on a CPU they stay as long as there is memory. What was not used for longest ends first.
    Threads may share a fleet: calls that come while another one runs are answered together after it.
    """

    def __init__(self, models: Models, settings: EngineConfig) -> None:
        """`engines` and `tensor_parallel` of the settings are not used: the devices of a call decide."""
        self.models, self._settings = models, settings
        self._engines: OrderedDict[Hashable, _Resident] = OrderedDict()
        self._lock, self._gate = threading.RLock(), threading.Lock()
        self._calls: list[_Call] = []
        """Those that wait."""
        self._known: list[str] = []
        """Devices that were asked for so far."""
        self._visible = visible()  # now: others may change it later

    def generate(
        self,
        jobs: Sequence[Job],
        devices: Sequence[int] = (0,),
        *,
        together: bool = False,
        wanted: Callable[[], bool] = lambda: True,
    ) -> list[list[Ids]]:
        """The tokens that each job's model answers to each of its prompts, the end of the sequence included.

        Args:
            jobs: of any models, some of them several times, with any number of prompts.
            devices: GPUs, as indices into CUDA_VISIBLE_DEVICES; on a CPU without meaning.
            together: spread each model over all devices.
            wanted: asked when its turn comes; a call that nobody waits for any more has no answers.

        Raises:
            InputError: a model cannot be read or served, or a prompt is too long.
            EngineError: an engine failed; the next call starts it anew.
        """
        call = _Call(jobs, names_of(devices, self._visible), together, wanted)
        with self._gate:
            self._calls.append(call)
        with self._lock:
            if call.found is None and call.error is None:
                with self._gate:
                    calls = [one for one in self._calls if one.together == together]
                    self._calls = [one for one in self._calls if one.together != together]
                self._answer(calls)
        if call.error is not None:
            raise call.error
        assert call.found is not None
        return call.found

    def _answer(self, calls: Sequence[_Call]) -> None:
        """Generate for calls at once; an error is that of all of them."""
        for call in calls:
            if not call.wanted():
                call.found = [[] for _ in call.jobs]
        calls = [call for call in calls if call.found is None]
        if not calls:
            return
        jobs = [job for call in calls for job in call.jobs]
        names = tuple(dict.fromkeys(name for call in calls for name in call.names))
        try:
            found = iter(self._generate(jobs, names, calls[0].together))
        except Exception as error:
            for call in calls:
                call.error = error
            return
        for call in calls:
            call.found = [next(found) for _ in call.jobs]

    def _generate(self, jobs: Sequence[Job], names: tuple[str, ...], together: bool) -> list[list[Ids]]:
        found: list[list[Ids]] = [[[]] * len(job.prompts) for job in jobs]
        asked: OrderedDict[Hashable, dict[Hashable, tuple[Model, list[int]]]] = OrderedDict()
        for number, job in enumerate(jobs):
            if job.prompts:
                model = self.models.find(job.model, job.base, job.dtype if self._settings.dtype == "auto" else None)
                asked.setdefault(model.engine, {}).setdefault(model.version, (model, []))[1].append(number)
        self._known += [name for name in names if name not in self._known]
        running = {key: resident.devices for key, resident in self._engines.items()}
        for wave in waves(list(asked), running, names, self._known, together):
            for key, mine in wave.items():
                self._prepare(key, next(iter(asked[key].values()))[0], mine, together)
            with ThreadPoolExecutor(len(wave)) as threads:
                done = [threads.submit(self._serve, key, list(asked[key].values()), jobs, found) for key in wave]
            for one in done:
                one.result()
        return found

    def release(self) -> None:
        """End all engines, and give their memory back; the next call starts those that it needs."""
        with self._lock:
            self._end(*self._engines)

    def _serve(
        self, key: Hashable, models: Sequence[tuple[Model, list[int]]], jobs: Sequence[Job], found: list[list[Ids]]
    ) -> None:
        """Have one engine answer the jobs of these models; those that it has loaded come first."""
        resident = self._engines[key]
        engine, slots = resident.engine, range(resident.engine.slots)
        loaded = set(resident.loaded.values())
        waiting = deque(sorted(models, key=lambda one: (one[0].version != resident.base, one[0].version not in loaded)))
        running: dict[int | None, int] = {}
        """Slot → requests."""
        places: dict[int, tuple[int | None, int, int]] = {}
        """Key → slot, job, prompt."""
        try:
            while waiting or running:
                while waiting and (slot := self._slot(resident, waiting[0][0], running, slots)) != -1:
                    model, numbers = waiting.popleft()
                    running[slot] = 0
                    for number in numbers:
                        job = jobs[number]
                        for index, (prompt, sampling) in enumerate(zip(job.prompts, job.samplings, strict=True)):
                            limit = self._limit(engine, model, len(prompt), job.max_tokens)
                            places[request := len(places)] = slot, number, index
                            running[slot] += 1
                            engine.submit(request, Request(slot, prompt, None, sampling), limit)
                for request, completion in engine.step():
                    slot, number, index = places[request]
                    if not completion.finite:
                        raise EngineError(f"{jobs[number].model} computes NaN; use another dtype, or other weights.")
                    found[number][index] = list(completion.ids)
                    running[slot] -= 1
                    if not running[slot]:
                        del running[slot]
        except BaseException:
            self._end(key)  # what still runs in it is of no use
            raise

    def _slot(self, resident: _Resident, model: Model, running: dict[int | None, int], slots: range) -> int | None:
        """Where an engine serves a model from now on, loaded; -1: nowhere yet."""
        if model.version == resident.base:
            if running:
                return -1
            if resident.loaded:
                resident.engine.restore()
                resident.loaded = {}
            return None
        if None in running:
            return -1
        free = [slot for slot in slots if slot not in running]
        slot = next((one for one in free if resident.loaded.get(one) == model.version), free[0] if free else -1)
        if slot != -1 and resident.loaded.get(slot) != model.version:
            resident.engine.load(slot, model.weights().to(resident.engine.device))
            resident.loaded[slot] = model.version
        return slot

    @staticmethod
    def _limit(engine: Engine, model: Model, length: int, max_tokens: int) -> int:
        if length >= engine.max_model_len:
            raise InputError(
                f"A prompt for {model.folder} has {length} tokens, and the engine takes {engine.max_model_len} with the"
                " answer; set a larger max_model_len, or shorten it."
            )
        return min(max_tokens, engine.max_model_len - length)

    # engines

    def _prepare(self, key: Hashable, model: Model, devices: tuple[str, ...], together: bool) -> None:
        """Have the engine of this key on these devices, as the one that was used last."""
        resident = self._engines.get(key)
        if resident is not None and resident.devices == devices:
            self._engines.move_to_end(key)
            return
        self._end(key)
        for other, one in list(self._engines.items()):
            if self._in_the_way(one, devices, model):
                self._end(other)
        form = model.form
        # An engine of adapters may look at a row; the row of a full model is large, and is not needed.
        rows = form.rows if form.kind == "full" else model.weights()[None]
        ranks = len(devices) if together else 1
        config = replace(
            self._settings,
            engines=max(1, len(devices) // ranks),
            tensor_parallel=ranks,
            dtype=model.dtype or self._settings.dtype,
        )
        if form.kind == "full":
            config = replace(config, serve="merged")
        engine = self._start(model, replace(form, rows=rows, room=rows), config, devices)
        self._engines[key] = _Resident(engine, devices, model.version if model.folder == model.base else None)

    def _in_the_way(self, resident: _Resident, devices: tuple[str, ...], model: Model) -> bool:
        """Whether an engine has to end for one of this model; asked of the engines in the order of their use."""
        if devices != CPU:
            return bool(set(resident.devices) & set(devices))
        need = sum(file.stat().st_size for file in model.base.glob("*.safetensors"))
        return free_host_memory() < NEED * need

    def _start(self, model: Model, form: Experts, config: EngineConfig, devices: tuple[str, ...]) -> Engine:
        if config.engine == "transformers" and devices == CPU:
            return start_here(model.base, form, config)
        from modelswarms_fast.engines.pool.pool import EnginePool

        with environment(devices):
            return EnginePool(model.base, form, config)

    def _end(self, *keys: Hashable) -> None:
        residents = [self._engines.pop(key) for key in keys if key in self._engines]
        if not residents:
            return
        for resident in residents:
            with suppress(Exception):  # it may have failed before
                resident.engine.close()
        del residents, resident
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
