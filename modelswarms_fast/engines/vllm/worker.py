"""Beside the model in vLLM's worker: opens the serving modes and writes particles into them.

vLLM mixes `SwarmWorker` into its own worker class (`worker_extension_cls`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.model_executor.layers.linear import LinearBase, RowParallelLinear

from modelswarms_fast.engines.vllm.cpu_patches import keep_logits
from modelswarms_fast.engines.vllm.live_weights import full_weights, merged_lora
from modelswarms_fast.engines.vllm.lora_slots import lora_slots
from modelswarms_fast.engines.vllm.mixture import MixtureServer, OutputSlice
from modelswarms_fast.engines.vllm.model_runners import watch_batches
from modelswarms_fast.engines.vllm.weight_map import WeightMap
from modelswarms_fast.errors import InputError, quoted
from modelswarms_fast.weights.experts import Experts


class ServingMode(Protocol):
    """One way to serve particles."""

    def load(self, slot: int, row: torch.Tensor) -> None:
        """Serve a row [D] from a slot."""

    def load_mixture(self, slot: int, mixture: torch.Tensor) -> None:
        """Serve a mixture [n] of the experts from a slot."""

    def restore(self) -> None:
        """Serve the base model again."""

    def switch(self, on: bool) -> None:
        """Begin or end to be the engine's mode; nothing is loaded then."""


class SwarmWorker:
    """Mixed into vLLM's worker; the engine gets it by `LLM.collective_rpc("swarm_worker")`."""

    model_runner: Any

    def swarm_worker(self) -> SwarmWorker:
        """The worker itself, ready to serve."""
        if not hasattr(self, "_swarm_modes"):
            keep_logits(self.model_runner)
            self._swarm_modes: dict[str, ServingMode] = {}
            self._swarm_weights: WeightMap | None = None
        return self

    def swarm_attach(self, serve: str, experts: Experts, room: torch.Tensor | None = None) -> None:
        """Open a serving mode: find every tensor of the experts in the live model.

        `room` is that of the experts, where it is not in `experts`.

        Raises:
            InputError: a tensor has no place in this base model, or another shape there, or vLLM would not see changes.
        """
        if room is not None:
            experts = replace(experts, rows=room[: len(experts.names)], room=room)
        if self.model_runner.model_config.use_mla and any("kv_b_proj" in spec.name for spec in experts.layout.specs):
            raise InputError(
                "The experts change kv_b_proj, of which vLLM uses a copy made when it loads the model (MLA); "
                "use engine='transformers'."
            )
        if experts.whole and serve != "merged":
            raise InputError(
                f"An expert has trained {experts.whole[0]} whole (modules_to_save), which serve={quoted(serve)} has no "
                "place for; use serve='merged'."
            )
        if self._swarm_weights is None:
            base = Path(self.model_runner.model_config.model)
            self._swarm_weights = WeightMap(self.model_runner.get_model(), base)
        weights = self._swarm_weights
        mode: ServingMode
        if serve == "slots":
            mode = lora_slots(self.model_runner, weights, experts)
        elif serve == "mixture":
            mode = _mixtures(self.model_runner, weights, experts)
        elif experts.modules:
            mode = merged_lora(weights, experts)
        else:
            mode = full_weights(weights, experts)
        self._swarm_modes[serve] = mode

    def swarm_scrub(self) -> None:
        """Write 0 wherever the cache of keys and values holds NaN or infinity."""
        left = list(self.model_runner.kv_caches)
        while left:
            one = left.pop()
            if not isinstance(one, torch.Tensor):
                left += one
            elif one.dtype in (torch.float32, torch.float16, torch.bfloat16):
                torch.nan_to_num_(one, nan=0.0, posinf=0.0, neginf=0.0)

    def swarm_serve(self, serve: str) -> ServingMode:
        """Serve in this mode from now on, and in no other. Nothing may be loaded."""
        for name, mode in self._swarm_modes.items():
            mode.switch(name == serve)
        return self._swarm_modes[serve]


def _mixtures(runner: Any, weights: WeightMap, experts: Experts) -> MixtureServer:
    """A forward hook on each adapted module, told by the model runner whose tokens a step has."""
    server = MixtureServer(
        experts, _output_slices(runner.get_model(), weights, experts), runner.device, runner.model_config.dtype
    )
    watch_batches(runner, server.begin)
    return server


def _output_slices(model: torch.nn.Module, weights: WeightMap, experts: Experts) -> dict[str, OutputSlice]:
    """Of each adapted linear layer, where the model computes it."""
    slices: dict[str, OutputSlice] = {}
    found = weights.linear(experts.layer_shapes)
    for adapted in experts.modules:
        weight = found[adapted.name]
        live, start = weight.part
        module = model.get_submodule(weight.module)
        linear = getattr(module, "base_layer", module)
        if not isinstance(linear, LinearBase):
            continue
        split, add_up = linear.tp_size > 1, None
        if split and (getattr(linear, "gather_output", False) or not getattr(linear, "input_is_parallel", True)):
            continue  # its inputs or outputs are whole, and its weight is not
        if split and isinstance(linear, RowParallelLinear) and linear.reduce_results:
            add_up = tensor_model_parallel_all_reduce
        outputs, inputs = live.shape
        slices[adapted.name] = OutputSlice(module, weight.row, outputs, inputs, weight.shape, start or (0, 0), add_up)
    return slices
