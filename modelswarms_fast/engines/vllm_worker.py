"""Inside the vLLM worker: writes particles into the live model. The only file that touches vLLM internals.

vLLM imports this module (as `worker_extension_cls`) before it builds the model, which is when the changes to
its CPU build below have to be made. Tested with vLLM 0.32 on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import vllm._custom_ops
import vllm.model_executor.layers.utils
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms import current_platform

from modelswarms_fast.errors import InputError
from modelswarms_fast.experts import LoraModule
from modelswarms_fast.layout import Layout, TensorSpec
from modelswarms_fast.plans import CopyPlan, CopyTarget, MergePlan, MergeTarget


class GroupedPunicaWrapper(PunicaWrapperCPU):  # type: ignore[misc]
    """LoRA on a CPU as two matrix products an adapter, over the tokens that use it.

    The stock one gathers a whole [out, rank] matrix for every token, which is 3 to 10 times slower, and reads
    the last slot for tokens without an adapter (their index is -1). Here those tokens are in no group.
    """

    _groups: list[tuple[int, slice | torch.Tensor]]

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Group the tokens of a step by slot, once for all layers."""
        super().update_metadata(*args, **kwargs)
        self._groups = []
        slots = self.token_lora_indices
        for slot in torch.unique(slots).tolist():
            if slot < 0:
                continue
            tokens = torch.nonzero(slots == slot).flatten()
            first, last = int(tokens[0]), int(tokens[-1])
            # Requests are submitted particle by particle, so a slot's tokens are mostly one slice: no copies.
            contiguous = last - first + 1 == tokens.numel()
            self._groups.append((slot, slice(first, last + 1) if contiguous else tokens))

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        """y += scale · (x Aᵀ) Bᵀ, slice by slice.

        x [tokens, in], y [tokens, out], A [S, 1, rank, in], B [S, 1, out, rank].
        """
        x, y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        for slot, tokens in self._groups:
            inputs = x[tokens]
            start = 0
            for a, b, size in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                low = inputs @ a[slot, 0].t()
                if isinstance(tokens, slice):
                    y[tokens, start : start + size].addmm_(low, b[slot, 0].t(), alpha=scale)
                else:
                    y[tokens, start : start + size] += scale * (low @ b[slot, 0].t())
                start += size


if current_platform.is_cpu():
    # Packed into oneDNN or SGL handles, a linear layer's weights could not be written again in place.
    vllm._custom_ops._supports_onednn = False
    vllm.model_executor.layers.utils.check_cpu_sgl_kernel = lambda n, k, dtype: False
    type(current_platform).get_punica_wrapper = classmethod(lambda cls: f"{__name__}.{GroupedPunicaWrapper.__name__}")


class SwarmWorker:
    """Mixed into vLLM's worker; every public method is called through `LLM.collective_rpc`."""

    model_runner: Any

    def swarm_attach(self, serve: str, layout: Layout, modules: Sequence[LoraModule]) -> None:
        """Resolve every tensor of the layout to its place in the live model, once.

        Raises:
            InputError: a tensor has no place in this base model, or another shape there.
        """
        self._swarm_layout = layout
        self._swarm_load: Callable[[int, torch.Tensor], None]
        if serve == "slots":
            self._attach_slots(modules)
        elif modules:
            self._attach_merged(modules)
        else:
            self._attach_full()

    def swarm_load(self, slot: int, row: torch.Tensor) -> None:
        """Write one flat row [D] into a slot, in place."""
        self._swarm_load(slot, row)

    def swarm_restore(self) -> None:
        """Put the base model's own weights back, bit for bit."""
        if self._swarm_live:
            torch._foreach_copy_(self._swarm_live, self._swarm_base)

    # merged and full weights

    def _attach_merged(self, modules: Sequence[LoraModule]) -> None:
        places = self._weight_places()
        targets = []
        for module in modules:
            a, b = self._spec(module.a), self._spec(module.b)
            live = self._place(places, f"{module.name}.weight", (b.shape[0], a.shape[1]))
            if module.name == "lm_head" and live.data_ptr() == places["model.embed_tokens.weight"].data_ptr():
                raise InputError(
                    "lm_head is tied to the embeddings, which merging would change too; use serve='slots'."
                )
            targets.append(MergeTarget(a, b, live.clone(), live, module.scaling))
        self._swarm_live = [target.live for target in targets]
        self._swarm_base = [target.base for target in targets]
        plan = MergePlan(targets)
        self._swarm_load = lambda slot, row: plan.load(row)

    def _attach_full(self) -> None:
        places = self._weight_places()
        specs = self._swarm_layout.specs
        self._swarm_live = [self._place(places, spec.name, spec.shape) for spec in specs]
        self._swarm_base = [live.clone() for live in self._swarm_live]
        covered = {live.data_ptr() for live in self._swarm_live}  # a tied head lies where the embeddings do
        for name, weight in places.items():
            if weight.data_ptr() not in covered:
                raise InputError(
                    f"The experts have no tensor {name}, which the base model has; use the base they share."
                )

        plan = CopyPlan([CopyTarget(spec, live) for spec, live in zip(specs, self._swarm_live, strict=True)])
        self._swarm_load = lambda slot, row: plan.load(row)

    def _weight_places(self) -> dict[str, torch.Tensor]:
        """Name in the checkpoint → live tensor; fused parameters are given as views of their parts."""
        model = self.model_runner.get_model()
        packed = getattr(model, "packed_modules_mapping", {})
        places: dict[str, torch.Tensor] = {}
        for name, parameter in model.named_parameters():
            path, _, kind = name.replace(".base_layer", "").rpartition(".")
            parent, _, leaf = path.rpartition(".")
            parts = packed.get(leaf)
            if not parts:
                places[f"{path}.{kind}"] = parameter.data
                continue
            sizes = model.get_submodule(name.rpartition(".")[0]).output_partition_sizes
            for part, view in zip(parts, parameter.data.split(sizes), strict=True):
                places[f"{parent}.{part}.{kind}"] = view
        if hasattr(model, "lm_head") and "lm_head.weight" not in places and "model.embed_tokens.weight" in places:
            places["lm_head.weight"] = places["model.embed_tokens.weight"]  # tied
        return places

    def _place(self, places: dict[str, torch.Tensor], name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if name not in places:
            raise InputError(f"The experts adapt {name}, which the base model does not have; use the base they share.")
        live = places[name]
        if "embed_tokens" in name or "lm_head" in name:
            live = live[: self.model_runner.model_config.hf_config.vocab_size]  # vLLM pads the vocabulary
        if tuple(live.shape) != shape:
            raise InputError(
                f"{name} has shape {list(shape)} by the experts but {list(live.shape)} in the base model; "
                "use the base they share."
            )
        return live

    def _spec(self, name: str) -> TensorSpec:
        return next(spec for spec in self._swarm_layout.specs if spec.name == name)

    # LoRA slots

    def _attach_slots(self, modules: Sequence[LoraModule]) -> None:
        manager = self.model_runner.lora_manager._adapter_manager
        model = self.model_runner.get_model()
        dummy = manager.create_dummy_lora(1, 1, getattr(model, "embedding_modules", None))
        for slot in range(manager.lora_slots):
            manager.add_adapter(dummy.clone(slot + 1))
            manager.activate_adapter(slot + 1)
            manager.pin_adapter(slot + 1)  # or the least recently used slot could be evicted
        manager._last_mapping = None
        if manager.lora_index_to_id != [slot + 1 for slot in range(manager.lora_slots)]:
            raise RuntimeError(f"vLLM placed its adapters as {manager.lora_index_to_id}")

        places: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for name, module in manager.modules.items():
            parent, _, leaf = name.rpartition(".")
            parts = manager.packed_modules_mapping.get(leaf) or [leaf]
            if len(parts) == len(module.lora_a_stacked):
                for index, part in enumerate(parts):
                    places[f"{parent}.{part}"] = (module.lora_a_stacked[index], module.lora_b_stacked[index])
        stacks = []
        for module in modules:
            if module.name not in places:
                raise InputError(f"The base model has no LoRA slot for {module.name}; use serve='merged'.")
            a, b = places[module.name]
            if a.shape[3] != self._spec(module.a).shape[1] or b.shape[2] != self._spec(module.b).shape[0]:
                raise InputError(f"{module.a} does not fit {module.name} of the base model; use the base they share.")
            stacks.append((a, b, module))
        self._swarm_live, self._swarm_base = [], []
        plans = []
        for slot in range(manager.lora_slots):
            targets = []
            for a, b, module in stacks:
                targets.append(CopyTarget(self._spec(module.a), a[slot, 0, : module.rank]))
                # vLLM keeps the scaling in B.
                targets.append(CopyTarget(self._spec(module.b), b[slot, 0, :, : module.rank], module.scaling))
            plans.append(CopyPlan(targets))
        self._swarm_load = lambda slot, row: plans[slot].load(row)
