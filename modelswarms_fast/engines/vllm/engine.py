"""One resident vLLM engine: loaded once, particles written into it in memory."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from modelswarms_fast.config import EngineConfig, Sampling, Serve
from modelswarms_fast.engines.protocol import Completion, Request, Watch, complete, working
from modelswarms_fast.engines.vllm.arguments import check_options, open_modes, vllm_arguments
from modelswarms_fast.engines.vllm.launch import (
    environment_of,
    import_vllm,
    lacks_slots,
    start_ranks,
    start_vllm,
    wraps_text,
)
from modelswarms_fast.engines.vllm.process_groups import end_with_the_last
from modelswarms_fast.engines.vllm.relied_on import check_names
from modelswarms_fast.errors import InputError
from modelswarms_fast.weights.experts import Experts

MIXTURES = 1024  # slots of serve="mixture"; each costs n numbers
FEW, AUTO_REQUESTS = 8, 1024  # requests that serve="auto" begins with, and its most
TIE = 0.05  # of the fastest mode's prompts a second: less is noise

SEQUENCES = 256
"""Requests of a step, about as many as vLLM takes if it is not told."""


class VllmEngine:
    """Serves particles from a vLLM engine in this process; with `tensor_parallel` above 1, from its child processes.

    `serve="merged"` writes W = W0 + scaling · B A into the live weights (full-weight rows are written as they
    are); it has one slot. `serve="slots"` writes A and B into vLLM's LoRA slots and serves several particles in
    one batch; on a CPU rows of the experts' room are served where they lie. `serve="mixture"` keeps the experts
    beside the base model and serves any number of their mixtures in one batch, and one row that is none.
    `serve="auto"` starts so that all of these modes that the experts and the state allow are open, and serves in
    the first of them until `autotune` has timed them.

    The key-value blocks that vLLM caches by prompt prefix belong to the weights that made them. Each load gets a
    version, which is part of the cache key (as `cache_salt`, or as the adapter's name), so that a block is never
    used for other weights than its own.

    Raises:
        InputError: vLLM is not installed, does not know an option, or the layout does not fit the base model.
        EngineError: its child processes do not start.
    """

    def __init__(
        self, base: Path, experts: Experts | None, config: EngineConfig, *, dtype: str, max_model_len: int
    ) -> None:
        """`dtype` and `max_model_len` are those of `config` as far as the base model allows."""
        modules = () if experts is None else experts.modules
        modes = open_modes(config, modules)
        llm_class, known, on_cpu = import_vllm()
        from modelswarms_fast.engines.vllm.nameless import own_folder

        text_only = wraps_text(base) and "language_model_only" in known
        self.refused: dict[Serve, str] = {}
        """Of the ways to serve that the settings allow, those that the base model or the experts do not, and why."""
        if "slots" in modes and (name := lacks_slots(base, on_cpu)) is not None:
            modes = tuple(mode for mode in modes if mode != "slots")
            self.refused["slots"] = f"vLLM has no LoRA slots for {name}; use serve='merged', or engine='transformers'."
            if not modes:
                raise InputError(self.refused["slots"])
        check_names(["engine", *modes, *(["cpu"] if on_cpu else [])])
        check_options(config.engine_options, modes, known)
        arguments = vllm_arguments(
            base, modules, modes, config, dtype=dtype, max_model_len=max_model_len, on_cpu=on_cpu, text_only=text_only
        )
        self.watch: Watch | None = None
        self.auto_timings: dict[str, float] = {}
        self._worker: Any
        variables = environment_of(config.tensor_parallel, on_cpu)
        whole = experts is not None and not modules
        with ExitStack() as stack:
            folder = stack.enter_context(own_folder())
            if config.tensor_parallel > 1:
                self.llm, self._worker = start_ranks(llm_class, arguments, variables, on_cpu, folder=folder)
                self._working = self._worker.working
            else:
                self.llm = start_vllm(llm_class, arguments, variables, on_cpu, folder=folder, whole=whole)
                # In this process, so a load is a call of it: through vLLM's layers it would take as long again.
                self._worker = self.llm.collective_rpc("swarm_worker")[0]
                self._working = partial(working, "vLLM")
            self._end = end_with_the_last(self.llm)
            self._on_disk = stack.pop_all()
        self.tokenizer = self.llm.get_tokenizer()
        # Of the rows: the ranks read them in the host's memory.
        self.device = torch.device("cpu" if on_cpu or config.tensor_parallel > 1 else "cuda")
        self.max_model_len = max_model_len
        self.dtype: torch.dtype = self.llm.llm_engine.model_config.dtype
        self.ahead = 2 * int(arguments.get("max_num_seqs", SEQUENCES))
        """Requests that keep it busy: those of a step, and as many more."""
        self._words: int = self.llm.llm_engine.model_config.get_vocab_size()
        self._version = 0
        self._versions: dict[int, int] = {}
        """Slot → version of what it serves."""
        self._continuations: dict[int, int] = {}
        """Key → tokens of the continuation that is looked at."""
        self._not_finite: set[int] = set()
        """Keys of requests with a logit that is NaN."""
        self._watch_logits()
        self._slots = config.slots
        self._experts = experts
        try:
            self._modes = modes if experts is None else self._attach(experts, modes)
        except BaseException:
            self.close()
            raise
        self.set_mode(self._modes[0])

    def _attach(self, experts: Experts, modes: Sequence[Serve]) -> tuple[Serve, ...]:
        """The modes that the base model and the experts allow. Raises InputError if there is none."""
        able: list[Serve] = []
        for mode in modes:
            try:
                self._worker.swarm_attach(mode, experts)
                able.append(mode)
            except InputError as error:
                self.refused[mode] = str(error)
        if not able:
            raise InputError(self.refused[modes[0]])
        return tuple(able)

    def set_mode(self, mode: Serve) -> None:
        """Serve in this one of the open modes; nothing must be loaded."""
        self.serve: Serve = mode
        self.slots = {"merged": 1, "slots": self._slots, "mixture": MIXTURES}[mode]
        if self._experts is not None:
            self._mode = self._worker.swarm_serve(mode)

    def autotune(self, prompts: Sequence[list[int]], max_tokens: int) -> None:
        """With serve="auto", time each mode on the first requests of an iteration, a second each; take the fastest.

        Of modes within 5 % of the fastest it takes the one with the most slots: it loses least where particles have
        few prompts or are stopped early, which is not timed here.

        Every mode completes the same requests: the prompts of the first expert, then those of the second, as many as
        the first mode completes in a second. They are not found in the prefix cache again, since each load has its
        version.
        """
        if len(self._modes) == 1:
            return
        count = FEW
        self._seconds(self._modes[0], prompts, count, max_tokens)  # the first step of an engine is slow
        while self._seconds(self._modes[0], prompts, count, max_tokens) < 1.0 and count < AUTO_REQUESTS:
            count *= 2
        for mode in self._modes:
            seconds = min(self._seconds(mode, prompts, count, max_tokens) for _ in range(2))
            self.auto_timings[mode] = count / seconds
        enough = (1 - TIE) * max(self.auto_timings.values())
        self.set_mode([mode for mode in self._modes if self.auto_timings[mode] >= enough][-1])

    def _seconds(self, mode: Serve, prompts: Sequence[list[int]], count: int, max_tokens: int) -> float:
        assert self._experts is not None
        self.set_mode(mode)
        start = time.perf_counter()
        particles = -(-count // len(prompts))
        corners = torch.eye(len(self._experts.names))
        for first in range(0, particles, self.slots):
            wave = range(first, min(first + self.slots, particles))
            for slot, particle in enumerate(wave):
                self.load_mixture(slot, corners[particle % len(corners)])
            requests = [Request(slot, prompt) for slot in range(len(wave)) for prompt in prompts]
            complete(self, requests[: count - first * len(prompts)], max_tokens)
        seconds = time.perf_counter() - start
        self.restore()
        return seconds

    def load(self, slot: int, row: torch.Tensor) -> None:
        """Serve the particle whose flat row [D] this is from `slot`.

        With serve="slots" on a CPU, a row of the experts' room must stay as it is until the requests to the slot have
        ended.
        """
        self._load(self._mode.load, slot, row)

    def load_mixture(self, slot: int, mixture: torch.Tensor) -> None:
        """Serve the mixture [n] of the experts from `slot`; their rows must be those that the engine started with."""
        self._load(self._mode.load_mixture, slot, mixture.float())

    def _load(self, load: Callable[[int, torch.Tensor], None], slot: int, values: torch.Tensor) -> None:
        self._check_slot(slot)
        start = time.perf_counter()
        load(slot, values)
        if self.watch is not None:
            self.watch("load", 0, start, time.perf_counter())
        self._version += 1
        self._versions[slot] = self._version

    def restore(self) -> None:
        """Serve the base model again, from requests with slot None."""
        if self._versions:
            self._mode.restore()
        self._versions = {}

    def submit(self, key: int, request: Request, max_tokens: int) -> None:
        """Begin to complete a request, or to look at its continuation.

        A completion ends at the model's end-of-sequence token, which is not part of the text, or after max_tokens. For
        a continuation vLLM computes the log-probability of every token of the prompt and generates one token, which
        is not looked at; it takes nothing of the prompt from its prefix cache then.
        """
        if request.continuation is None:
            params = self._params(request.sampling, max_tokens=max_tokens)
        else:
            params = self._params(max_tokens=1, prompt_logprobs=0)  # 0 others beside the token itself
            self._continuations[key] = len(request.continuation)
        self._add(str(key), request, params)

    def step(self) -> list[tuple[int, Completion]]:
        """One step of the continuous batch; the keys that ended in it and their completions.

        A request with a logit that is NaN ends at once, as not finite.
        """
        outputs = self._step()
        if bad := self._not_finite:
            self._not_finite = set()
            self.drop(bad)
            self._scrub()
            outputs = [output for output in outputs if int(output.request_id) not in bad]
            return [(key, Completion("", 0, finite=False)) for key in sorted(bad)] + self._completions(outputs)
        return self._completions(outputs)

    def _scrub(self) -> None:
        """Make 0 of what is no number in the cache of keys and values.

        Its blocks will be others' blocks, and attention multiplies what it does not look at by 0.
        """
        with self._working():
            self._worker.swarm_scrub()

    def _completions(self, outputs: Sequence[Any]) -> list[tuple[int, Completion]]:
        if not outputs:
            return []
        keys = [int(output.request_id) for output in outputs]
        tokens = [list(output.outputs[0].token_ids) for output in outputs]
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        lengths = [self._continuations.pop(key, None) for key in keys]
        return [
            (key, Completion(text, len(ids), ids=ids) if length is None else _likelihood(output, length))
            for key, output, text, ids, length in zip(keys, outputs, texts, tokens, lengths, strict=True)
        ]

    def drop(self, keys: Iterable[int]) -> None:
        """Give up requests that run."""
        keys = list(keys)
        for key in keys:
            self._continuations.pop(key, None)
        self.llm.llm_engine.abort_request([str(key) for key in keys])

    def log_probs(self, request: Request, top: int = 20) -> dict[int, float]:
        """Natural log-probabilities of the `top` most likely next tokens, at most LOG_PROBS, by token id.

        Raises RuntimeError while other requests run.
        """
        if self.llm.llm_engine.has_unfinished_requests():
            raise RuntimeError("log_probs() while requests run; step() until they have ended")
        self._add("log_probs", request, self._params(max_tokens=1, logprobs=min(top, self._words)))
        while not (outputs := self._step()):
            pass
        found = {token: entry.logprob for token, entry in outputs[0].outputs[0].logprobs[0].items()}
        if not all(map(math.isfinite, found.values())):
            self._scrub()
        return found

    def leave(self) -> None:
        """Leave nothing on the disk; the process is about to end."""
        self._on_disk.close()

    def close(self) -> None:
        """Shut vLLM down and give its memory back; the engine is not to be used again."""
        if self.llm is None:
            return
        self.llm = self._worker = self._mode = self._experts = None
        with suppress(Exception):  # an engine that has failed is closed as well, and its own error is the one to say
            self._end()
        self._on_disk.close()
        gc.unfreeze()  # vLLM hides from the garbage collector what it starts with
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _params(self, sampling: Sampling | None = None, **settings: Any) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        settings |= {"temperature": 0.0} if sampling is None else sampling._asdict()
        return SamplingParams(detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY, **settings)

    def _step(self) -> Any:
        """Requests that ended in one step of vLLM's."""
        start = time.perf_counter()
        with self._working():
            outputs = [output for output in self.llm.llm_engine.step() if output.finished]
        if self.watch is not None:
            self.watch("step", 0, start, time.perf_counter())
        return outputs

    def _add(self, name: str, request: Request, params: Any) -> None:
        from vllm.lora.request import LoRARequest

        slot = request.slot
        prompt: dict[str, Any] = {"prompt_token_ids": request.prompt + (request.continuation or [])}
        adapter = None
        if slot is None:
            if self.serve == "merged" and self._versions:
                raise RuntimeError("the base model is not being served; restore() it first")
        else:
            version = self._versions.get(self._check_slot(slot))
            if version is None:
                raise RuntimeError(f"slot {slot} is empty; load() a particle first")
            if self.serve == "slots":
                adapter = LoRARequest(f"version-{version}", slot + 1, "in-memory")
            else:
                if self.serve == "mixture":
                    params.extra_args = {"particle": slot}
                prompt["cache_salt"] = f"version-{version}"
        self.llm.llm_engine.add_request(name, prompt, params, lora_request=adapter)

    def _watch_logits(self) -> None:
        """Note the requests of which vLLM says that a logit is NaN; it says so to its own statistics alone."""
        core = self.llm.llm_engine.engine_core
        get_output = core.get_output

        def watched() -> Any:
            outputs = get_output()
            for one in outputs.outputs:
                if one.num_nans_in_logits:
                    key = one.request_id.partition("-")[0]  # vLLM appends characters of its own
                    if key.isdecimal():
                        self._not_finite.add(int(key))
            return outputs

        core.get_output = watched

    def _check_slot(self, slot: int) -> int:
        if not 0 <= slot < self.slots:
            raise IndexError(f"slot {slot} of {self.slots}")
        return slot


def _likelihood(output: Any, length: int) -> Completion:
    """What vLLM says of the last so many tokens of a prompt."""
    tokens, entries = output.prompt_token_ids[-length:], output.prompt_logprobs[-length:]
    found = [entry[token] for token, entry in zip(tokens, entries, strict=True)]
    return Completion("", length, math.fsum(one.logprob for one in found), all(one.rank == 1 for one in found))
