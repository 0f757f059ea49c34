"""One resident vLLM engine: loaded once, particles written into it in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from modelswarms_fast.engines import Completion, Request
from modelswarms_fast.errors import InputError
from modelswarms_fast.experts import Experts

CPU_KV_CACHE_BYTES = 1 << 30
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the ranks that vLLM's slots can have


class VllmEngine:
    """Serves particles from a vLLM engine in this process.

    `serve="merged"` writes W = W0 + scaling · B A into the live weights (full-weight rows are written as they
    are); it has one slot. `serve="slots"` writes A and B into vLLM's LoRA slots and serves several particles in
    one batch.

    The key-value blocks that vLLM caches by prompt prefix belong to the weights that made them. Each load gets a
    version, which is part of the cache key (as `cache_salt`, or as the adapter's name), so that a block is never
    used for other weights than its own.

    Raises:
        InputError: vLLM is not installed, or the layout does not fit the base model.
    """

    def __init__(
        self,
        base: Path,
        experts: Experts | None,
        *,
        serve: str = "merged",
        slots: int = 4,
        dtype: str = "auto",
        max_model_len: int = 4096,
    ) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # rows are handed to the worker by reference
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        try:
            from vllm import LLM
            from vllm.platforms import current_platform
        except ImportError as error:
            raise InputError(
                f"vLLM cannot be imported ({error}); install modelswarms-fast[vllm], or use engine='transformers'."
            ) from error
        modules = () if experts is None else experts.modules
        if serve == "slots" and not modules:
            raise InputError("serve is 'slots' but there are no LoRA experts to serve; use serve='merged'.")
        on_cpu = current_platform.is_cpu()
        settings: dict[str, Any] = {}
        if on_cpu:
            # vLLM's own estimate reads NUMA files that small machines lack; short prompts need small blocks to hit.
            settings |= {"kv_cache_memory_bytes": CPU_KV_CACHE_BYTES, "block_size": 32}
        else:
            settings["gpu_memory_utilization"] = 0.75  # rows and the untouched base weights want the rest
        if serve == "slots":
            rank = max(module.rank for module in modules)
            settings |= {
                "enable_lora": True,
                "max_loras": slots,
                "max_lora_rank": next((r for r in LORA_RANKS if r >= rank), rank),
                # Without it the embeddings and the head get slots too, which every token then pays for.
                "lora_target_modules": sorted({module.name.rpartition(".")[2] for module in modules}),
            }
        self.serve = serve
        self.slots = slots if serve == "slots" else 1
        try:
            self.llm = LLM(
                model=str(base),
                dtype=dtype,
                max_model_len=max_model_len,
                enforce_eager=on_cpu,
                enable_prefix_caching=True,
                disable_log_stats=True,
                trust_remote_code=False,
                seed=0,
                worker_extension_cls="modelswarms_fast.engines.vllm_worker.SwarmWorker",
                **settings,
            )
        except ValueError as error:  # vLLM's word for settings that do not fit the model or the memory
            reason = " ".join(str(error).split())
            raise InputError(f"vLLM cannot serve {base} with max_model_len {max_model_len}: {reason}") from error
        self.tokenizer = self.llm.get_tokenizer()
        self.device = torch.device("cpu" if on_cpu else "cuda")
        self.max_model_len = max_model_len
        self.dtype: torch.dtype = self.llm.llm_engine.model_config.dtype
        self._version = 0
        self._versions: list[int | None] = [None] * self.slots
        if experts is not None:
            self.llm.collective_rpc("swarm_attach", args=(serve, experts.layout, modules))

    def load(self, slot: int, row: torch.Tensor) -> None:
        """Serve the particle whose flat row [D] this is from `slot`, in place."""
        self._check_slot(slot)
        self.llm.collective_rpc("swarm_load", args=(slot, row))
        self._version += 1
        self._versions[slot] = self._version

    def restore(self) -> None:
        """Serve the base model again, from requests with slot None."""
        if any(version is not None for version in self._versions):
            self.llm.collective_rpc("swarm_restore")
        self._versions = [None] * self.slots

    def generate(self, requests: Sequence[Request], max_tokens: int) -> list[Completion]:
        """Complete every request greedily, all in one continuous batch; same order.

        Ends at the model's end-of-sequence token, which is not part of the text, or after max_tokens.
        """
        from vllm import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, detokenize=False)
        outputs = self._run(requests, params)
        tokens = [list(output.outputs[0].token_ids) for output in outputs]
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [Completion(text, len(ids)) for text, ids in zip(texts, tokens, strict=True)]

    def log_probs(self, request: Request, top: int = 20) -> dict[int, float]:
        """Natural log-probabilities of the `top` most likely next tokens, by token id."""
        from vllm import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=1, logprobs=top, detokenize=False)
        first = self._run([request], params)[0].outputs[0].logprobs[0]
        return {token: entry.logprob for token, entry in first.items()}

    def _run(self, requests: Sequence[Request], params: Any) -> Any:
        from vllm.lora.request import LoRARequest

        prompts: list[dict[str, Any]] = []
        adapters: list[LoRARequest | None] = []
        for slot, tokens in requests:
            prompt: dict[str, Any] = {"prompt_token_ids": tokens}
            adapter = None
            if slot is None:
                if self.serve == "merged" and self._versions[0] is not None:
                    raise RuntimeError("the base model is not being served; restore() it first")
            else:
                version = self._versions[self._check_slot(slot)]
                if version is None:
                    raise RuntimeError(f"slot {slot} is empty; load() a particle first")
                if self.serve == "slots":
                    adapter = LoRARequest(f"version-{version}", slot + 1, "in-memory")
                else:
                    prompt["cache_salt"] = f"version-{version}"
            prompts.append(prompt)
            adapters.append(adapter)
        lora = adapters if any(adapters) else None
        return self.llm.generate(prompts, params, lora_request=lora, use_tqdm=False)

    def _check_slot(self, slot: int) -> int:
        if not 0 <= slot < self.slots:
            raise IndexError(f"slot {slot} of {self.slots}")
        return slot
