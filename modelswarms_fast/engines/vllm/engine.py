"""One resident vLLM engine: loaded once, particles written into it in memory."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from modelswarms_fast.config import Serve, State
from modelswarms_fast.engines.protocol import Completion, Request, Watch, asked_threads, complete, working
from modelswarms_fast.engines.vllm.tensor_parallel import Ranks, cores_of_ranks
from modelswarms_fast.errors import EngineError, InputError
from modelswarms_fast.weights.experts import Experts

CPU_KV_CACHE_BYTES = 1 << 30
MIXTURES = 1024  # slots of serve="mixture"; each costs n numbers
FEW, AUTO_REQUESTS = 8, 1024  # requests that serve="auto" begins with, and its most
TIE = 0.05  # of the fastest way's prompts a second: less is noise
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the ranks that vLLM's slots can have


class VllmEngine:
    """Serves particles from a vLLM engine in this process; with `tensor_parallel` above 1, from its child processes.

    `serve="merged"` writes W = W0 + scaling · B A into the live weights (full-weight rows are written as they
    are); it has one slot. `serve="slots"` writes A and B into vLLM's LoRA slots and serves several particles in
    one batch; on a CPU rows of the experts' room are served where they lie. `serve="mixture"` keeps the experts
    beside the base model and serves any number of their mixtures in one batch, and one row that is none.
    `serve="auto"` starts so that all of these ways that the experts and the state allow are open, and serves in
    the first of them until `choose` has timed them.

    The key-value blocks that vLLM caches by prompt prefix belong to the weights that made them. Each load gets a
    version, which is part of the cache key (as `cache_salt`, or as the adapter's name), so that a block is never
    used for other weights than its own.

    Raises:
        InputError: vLLM is not installed, or the layout does not fit the base model.
        EngineError: its child processes do not start.
    """

    def __init__(
        self,
        base: Path,
        experts: Experts | None,
        *,
        serve: Serve = "merged",
        slots: int = 4,
        state: State = "weights",
        tensor_parallel: int = 1,
        dtype: str = "auto",
        max_model_len: int = 4096,
        max_num_seqs: int | None = None,
    ) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # rows are handed to the worker by reference
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        try:
            from vllm import LLM, envs
            from vllm.platforms import current_platform
        except ImportError as error:
            raise InputError(
                f"vLLM cannot be imported ({error}); install modelswarms-fast[vllm], or use engine='transformers'."
            ) from error
        modules = () if experts is None else experts.modules
        if serve in ("slots", "mixture") and not modules:
            raise InputError(f"serve is {serve!r} but there are no LoRA experts to serve; use serve='merged'.")
        ways: tuple[Serve, ...] = (serve,)
        if serve == "auto":
            ways = ("merged",)
            if modules:
                ways += ("slots", "mixture") if state == "mixture" else ("slots",)
        if "mixture" in ways:
            os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # the runner that says whose tokens a step has
            envs.disable_envs_cache()  # an engine before this one has frozen what vLLM reads of the environment
        on_cpu = current_platform.is_cpu()
        settings: dict[str, Any] = {} if max_num_seqs is None else {"max_num_seqs": max_num_seqs}
        if on_cpu:
            # vLLM's own estimate reads NUMA files that small machines lack; short prompts need small blocks to hit.
            settings |= {"kv_cache_memory_bytes": CPU_KV_CACHE_BYTES // tensor_parallel, "block_size": 32}
        else:
            settings["gpu_memory_utilization"] = 0.75  # rows and the untouched base weights want the rest
        if tensor_parallel > 1:
            settings |= {"tensor_parallel_size": tensor_parallel, "distributed_executor_backend": "mp"}
            # A fork of a process that has looked for GPUs cannot use them.
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
            # Ranks end with this process and leave their queues to Python to clear up, which it would warn of.
            warnings = [os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker"]
            os.environ["PYTHONWARNINGS"] = ",".join(filter(None, warnings))
            if on_cpu:  # vLLM itself would ask for a NUMA node a rank
                cores = sorted(os.sched_getaffinity(0))
                threads = asked_threads(len(cores))
                os.environ["VLLM_CPU_OMP_THREADS_BIND"] = cores_of_ranks(cores, threads, tensor_parallel)
        if "slots" in ways:
            rank = max(module.rank for module in modules)
            settings |= {
                "enable_lora": True,
                "max_loras": slots,
                "max_lora_rank": next((r for r in LORA_RANKS if r >= rank), rank),
                # Without it the embeddings and the head get slots too, which every token then pays for.
                "lora_target_modules": sorted({module.name.rpartition(".")[2] for module in modules}),
            }
        self.watch: Watch | None = None
        self.auto_timings: dict[str, float] = {}
        try:
            self.llm = LLM(
                model=str(base),
                dtype=dtype,
                max_model_len=max_model_len,
                # A compiled or captured model would not ask whose tokens these are.
                enforce_eager=on_cpu or "mixture" in ways,
                enable_prefix_caching=True,
                disable_log_stats=True,
                trust_remote_code=False,
                seed=0,
                worker_extension_cls="modelswarms_fast.engines.vllm.worker.SwarmWorker",
                **settings,
            )
        except ValueError as error:  # vLLM's word for settings that do not fit the model or the memory
            reason = " ".join(str(error).split())
            raise InputError(f"vLLM cannot serve {base} with max_model_len {max_model_len}: {reason}") from error
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            processes = f" {tensor_parallel} processes" if tensor_parallel > 1 else ""
            raise EngineError(
                f"vLLM could not start{processes} for {base} ({reason}); what it said is above, on standard error."
            ) from error
        self.tokenizer = self.llm.get_tokenizer()
        # Of the rows: the ranks read them in the host's memory.
        self.device = torch.device("cpu" if on_cpu or tensor_parallel > 1 else "cuda")
        self.max_model_len = max_model_len
        self.dtype: torch.dtype = self.llm.llm_engine.model_config.dtype
        self._version = 0
        self._versions: dict[int, int] = {}
        """Slot → version of what it serves."""
        self._continuations: dict[int, int] = {}
        """Key → tokens of the continuation that is looked at."""
        self._slots = slots
        self._experts = experts
        if tensor_parallel > 1:
            self._worker: Any = Ranks(self.llm)
            self._working = self._worker.working
        else:
            # In this process, so a load is a call of it: the way through vLLM's layers would cost as much as a load.
            self._worker = self.llm.collective_rpc("swarm_worker")[0]
            self._working = lambda: working("vLLM")
        self._ways = ways if experts is None else self._attach(experts, ways)
        self.set_mode(self._ways[0])

    def _attach(self, experts: Experts, ways: Sequence[Serve]) -> tuple[Serve, ...]:
        """The ways that the base model and the experts allow. Raises InputError if there is none."""
        able: list[Serve] = []
        refusals = []
        for way in ways:
            try:
                self._worker.swarm_attach(way, experts)
                able.append(way)
            except InputError as error:
                refusals.append(error)
        if not able:
            raise refusals[0]
        return tuple(able)

    def set_mode(self, way: Serve) -> None:
        """Serve in this one of the open ways; nothing must be loaded."""
        self.serve: Serve = way
        self.slots = {"merged": 1, "slots": self._slots, "mixture": MIXTURES}[way]
        if self._experts is not None:
            self._way = self._worker.swarm_serve(way)

    def autotune(self, prompts: Sequence[list[int]], max_tokens: int) -> None:
        """With serve="auto", time each way on the first requests of an iteration, a second each, and take the best.

        Of those that are about as fast it is the one that serves the most particles at once: where they have few
        prompts or are stopped early, which this does not time, it loses the least.

        Every way completes the same requests: the prompts of the first expert, then those of the second, as many as
        the first way completes in a second. They are not found in the prefix cache again, since each load has its
        version.
        """
        if len(self._ways) == 1:
            return
        count = FEW
        self._seconds(self._ways[0], prompts, count, max_tokens)  # the first step of an engine is slow
        while self._seconds(self._ways[0], prompts, count, max_tokens) < 1.0 and count < AUTO_REQUESTS:
            count *= 2
        for way in self._ways:
            seconds = min(self._seconds(way, prompts, count, max_tokens) for _ in range(2))
            self.auto_timings[way] = count / seconds
        enough = (1 - TIE) * max(self.auto_timings.values())
        self.set_mode([way for way in self._ways if self.auto_timings[way] >= enough][-1])

    def _seconds(self, way: Serve, prompts: Sequence[list[int]], count: int, max_tokens: int) -> float:
        assert self._experts is not None
        self.set_mode(way)
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
        self._load(self._way.load, slot, row)

    def load_mixture(self, slot: int, mixture: torch.Tensor) -> None:
        """Serve the mixture [n] of the experts from `slot`; their rows must be those that the engine started with."""
        self._load(self._way.load_mixture, slot, mixture.float())

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
            self._way.restore()
        self._versions = {}

    def submit(self, key: int, request: Request, max_tokens: int) -> None:
        """Begin to complete a request greedily, or to look at its continuation.

        A completion ends at the model's end-of-sequence token, which is not part of the text, or after max_tokens. For
        a continuation vLLM computes the log-probability of every token of the prompt and generates one token, which
        is not looked at; it takes nothing of the prompt from its prefix cache then.
        """
        if request.continuation is None:
            params = self._greedy(max_tokens=max_tokens)
        else:
            params = self._greedy(max_tokens=1, prompt_logprobs=0)  # 0 others beside the token itself
            self._continuations[key] = len(request.continuation)
        self._add(str(key), request, params)

    def step(self) -> list[tuple[int, Completion]]:
        """One step of the continuous batch; the keys that ended in it and their completions."""
        outputs = self._step()
        if not outputs:
            return []
        keys = [int(output.request_id) for output in outputs]
        tokens = [list(output.outputs[0].token_ids) for output in outputs]
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        lengths = [self._continuations.pop(key, None) for key in keys]
        return [
            (key, Completion(text, len(ids)) if length is None else _likelihood(output, length))
            for key, output, text, ids, length in zip(keys, outputs, texts, tokens, lengths, strict=True)
        ]

    def drop(self, keys: Iterable[int]) -> None:
        """Give up requests that run."""
        keys = list(keys)
        for key in keys:
            self._continuations.pop(key, None)
        self.llm.llm_engine.abort_request([str(key) for key in keys])

    def log_probs(self, request: Request, top: int = 20) -> dict[int, float]:
        """Natural log-probabilities of the `top` most likely next tokens, by token id.

        Raises RuntimeError while other requests run.
        """
        if self.llm.llm_engine.has_unfinished_requests():
            raise RuntimeError("log_probs() while requests run; step() until they have ended")
        self._add("log_probs", request, self._greedy(max_tokens=1, logprobs=top))
        while not (outputs := self._step()):
            pass
        return {token: entry.logprob for token, entry in outputs[0].outputs[0].logprobs[0].items()}

    def close(self) -> None:
        """Nothing outlives an engine in this process; ranks end with it."""

    def _greedy(self, **settings: Any) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(temperature=0.0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY, **settings)

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

        slot, tokens, continuation = request
        prompt: dict[str, Any] = {"prompt_token_ids": tokens + (continuation or [])}
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

    def _check_slot(self, slot: int) -> int:
        if not 0 <= slot < self.slots:
            raise IndexError(f"slot {slot} of {self.slots}")
        return slot


def _likelihood(output: Any, length: int) -> Completion:
    """What vLLM says of the last so many tokens of a prompt."""
    tokens, entries = output.prompt_token_ids[-length:], output.prompt_logprobs[-length:]
    found = [entry[token] for token, entry in zip(tokens, entries, strict=True)]
    return Completion("", length, math.fsum(one.logprob for one in found), all(one.rank == 1 for one in found))
