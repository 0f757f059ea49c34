"""Inside the vLLM worker: writes particles into the live model. The only file that touches vLLM internals.

vLLM imports this module (as `worker_extension_cls`) before it builds the model, which is when the changes to
its CPU build below have to be made. Tested with vLLM 0.32 on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import vllm._custom_ops
import vllm.model_executor.layers.utils
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.model_executor.layers.linear import LinearBase
from vllm.platforms import current_platform

from modelswarms_fast.engines.mixture import MixtureServer, Place
from modelswarms_fast.errors import InputError
from modelswarms_fast.experts import Experts, LoraModule
from modelswarms_fast.layout import TensorSpec
from modelswarms_fast.memory import empty_rows
from modelswarms_fast.plans import CopyPlan, CopyTarget, MergePlan, MergeTarget


class GroupedPunicaWrapper(PunicaWrapperCPU):  # type: ignore[misc]
    """LoRA on a CPU as two matrix products an adapter, over the tokens that use it.

    The stock one gathers a whole [out, rank] matrix for every token, which is 3 to 10 times slower, and reads
    the last slot for tokens without an adapter (their index is -1). Here those tokens are in no group.
    """

    _groups: list[tuple[int, slice | torch.Tensor]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scalings: dict[torch.Tensor, float] = {}
        """Of each stacked B that holds it unscaled, as a row has it."""

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
        """y += scale · scaling · (x Aᵀ) Bᵀ, slice by slice.

        x [tokens, in], y [tokens, out], A [S, 1, rank, in], B [S, 1, out, rank].
        """
        x, y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        for slot, tokens in self._groups:
            inputs = x[tokens]
            start = 0
            for a, b, size in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                low = inputs @ a[slot, 0].t()
                factor = scale * self.scalings.get(b, 1.0)
                if isinstance(tokens, slice):
                    y[tokens, start : start + size].addmm_(low, b[slot, 0].t(), alpha=factor)
                else:
                    y[tokens, start : start + size] += factor * (low @ b[slot, 0].t())
                start += size


if current_platform.is_cpu():
    # Packed into oneDNN or SGL handles, a linear layer's weights could not be written again in place.
    vllm._custom_ops._supports_onednn = False
    vllm.model_executor.layers.utils.check_cpu_sgl_kernel = lambda n, k, dtype: False
    type(current_platform).get_punica_wrapper = classmethod(lambda cls: f"{__name__}.{GroupedPunicaWrapper.__name__}")


class Way(NamedTuple):
    """One way to serve particles: what the engine asks of it."""

    load: Callable[[int, torch.Tensor], None]
    load_mixture: Callable[[int, torch.Tensor], None]
    restore: Callable[[], None]
    switch: Callable[[bool], None] = lambda on: None
    """It begins or ends to be the way of the engine."""


class SwarmWorker:
    """Mixed into vLLM's worker, in the process of the engine, which gets it by `LLM.collective_rpc("swarm_worker")`."""

    model_runner: Any

    def swarm_worker(self) -> SwarmWorker:
        """The worker itself."""
        return self

    def swarm_attach(self, serve: str, experts: Experts) -> None:
        """Resolve every tensor of the layout to its place in the live model, once for each way of serving.

        Raises:
            InputError: a tensor has no place in this base model, or another shape there.
        """
        self._swarm_experts = experts
        if not hasattr(self, "_swarm_ways"):
            self._swarm_ways: dict[str, Way] = {}
        if serve == "slots":
            self._swarm_ways[serve] = self._attach_slots(experts.modules)
        elif serve == "mixture":
            self._swarm_ways[serve] = self._attach_mixture()
        elif experts.modules:
            self._swarm_ways[serve] = self._attach_merged(experts.modules)
        else:
            self._swarm_ways[serve] = self._attach_full()

    def swarm_serve(self, serve: str) -> None:
        """Serve in this way from now on, and in no other. Nothing else may be loaded."""
        for name, way in self._swarm_ways.items():
            way.switch(name == serve)

    def swarm_load(self, serve: str, slot: int, row: torch.Tensor) -> None:
        """Write one flat row [D] into a slot, in place."""
        self._swarm_ways[serve].load(slot, row)

    def swarm_load_mixture(self, serve: str, slot: int, mixture: torch.Tensor) -> None:
        """Serve a mixture [n] of the experts, float32, from a slot."""
        self._swarm_ways[serve].load_mixture(slot, mixture)

    def swarm_restore(self, serve: str) -> None:
        """Put the base model's own weights back, bit for bit."""
        self._swarm_ways[serve].restore()

    # merged and full weights

    def _attach_merged(self, modules: Sequence[LoraModule]) -> Way:
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
        plan = MergePlan(targets)
        return self._way([plan], [target.live for target in targets], [target.base for target in targets])

    def _attach_full(self) -> Way:
        places = self._weight_places()
        specs = self._swarm_experts.layout.specs
        places_of = [self._place(places, spec.name, spec.shape) for spec in specs]
        covered = {live.data_ptr() for live in places_of}  # a tied head lies where the embeddings do
        for name, weight in places.items():
            if weight.data_ptr() not in covered:
                raise InputError(
                    f"The experts have no tensor {name}, which the base model has; use the base they share."
                )
        plan = CopyPlan([CopyTarget(spec, live) for spec, live in zip(specs, places_of, strict=True)])
        return self._way([plan], places_of, [live.clone() for live in places_of])

    def _way(
        self,
        plans: Sequence[CopyPlan | MergePlan],
        live: Sequence[torch.Tensor] = (),
        base: Sequence[torch.Tensor] = (),
    ) -> Way:
        """A plan for each slot; what is live is overwritten with the base to restore it."""
        rows = self._swarm_experts.rows

        def restore() -> None:
            if live:
                torch._foreach_copy_(list(live), list(base))

        return Way(
            lambda slot, row: plans[slot].load(row),
            lambda slot, mixture: plans[slot].load_mixture(rows, mixture),
            restore,
        )

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
        return next(spec for spec in self._swarm_experts.layout.specs if spec.name == name)

    # LoRA slots

    def _attach_slots(self, modules: Sequence[LoraModule]) -> Way:
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

        places: dict[str, tuple[Any, int]] = {}
        """Of each module, the layer that it is a part of, and which part."""
        for name, layer in manager.modules.items():
            parent, _, leaf = name.rpartition(".")
            parts = manager.packed_modules_mapping.get(leaf) or [leaf]
            if len(parts) == len(layer.lora_a_stacked):
                places |= {f"{parent}.{part}": (layer, index) for index, part in enumerate(parts)}
        for module in modules:
            if module.name not in places:
                raise InputError(f"The base model has no LoRA slot for {module.name}; use serve='merged'.")
            layer, index = places[module.name]
            a, b = layer.lora_a_stacked[index], layer.lora_b_stacked[index]
            if a.shape[3] != self._spec(module.a).shape[1] or b.shape[2] != self._spec(module.b).shape[0]:
                raise InputError(f"{module.a} does not fit {module.name} of the base model; use the base they share.")
        fill = self._slots_that_are_rows if current_platform.is_cpu() else self._slots_that_are_stacked
        return self._way(fill(manager.lora_slots, [(module, *places[module.name]) for module in modules]))

    def _slots_that_are_rows(self, count: int, modules: Sequence[tuple[LoraModule, Any, int]]) -> list[CopyPlan]:
        """Each slot is a row, and what vLLM takes for its stacked A and B are views of it: a load is one plain copy.

        The scaling, which vLLM keeps in B, is left to GroupedPunicaWrapper, and ranks are not padded.
        """
        layout, dtype = self._swarm_experts.layout, modules[0][1].lora_a_stacked[0].dtype
        slots = empty_rows(count, layout.size, dtype).zero_()
        for module, layer, index in modules:
            stacked = []
            for spec in (self._spec(module.a), self._spec(module.b)):
                stacked.append(slots[:, spec.offset : spec.end].view(count, 1, *spec.shape))
            a, b = stacked
            layer.lora_a_stacked = (*layer.lora_a_stacked[:index], a, *layer.lora_a_stacked[index + 1 :])
            layer.lora_b_stacked = (*layer.lora_b_stacked[:index], b, *layer.lora_b_stacked[index + 1 :])
            layer.punica_wrapper.scalings[b] = module.scaling
        line = TensorSpec("row", 0, (layout.size // layout.step, layout.step))
        return [CopyPlan([CopyTarget(line, slot.view(line.shape))]) for slot in slots]

    def _slots_that_are_stacked(self, count: int, modules: Sequence[tuple[LoraModule, Any, int]]) -> list[CopyPlan]:
        """The stacked tensors that vLLM made, as its GPU kernels want them contiguous. vLLM keeps the scaling in B."""
        plans = []
        for slot in range(count):
            targets = []
            for module, layer, index in modules:
                a, b = layer.lora_a_stacked[index][slot, 0], layer.lora_b_stacked[index][slot, 0]
                targets.append(CopyTarget(self._spec(module.a), a[: module.rank]))
                targets.append(CopyTarget(self._spec(module.b), b[:, : module.rank], module.scaling))
            plans.append(CopyPlan(targets))
        return plans

    # mixtures

    def _attach_mixture(self) -> Way:
        """A forward hook on each adapted module, told by the model runner whose tokens a step has."""
        runner = self.model_runner
        if not hasattr(runner, "_prepare_inputs"):
            raise InputError("This vLLM lays out its batches elsewhere than the tested one; use serve='merged'.")
        server = MixtureServer(self._swarm_experts, self._linear_places(), runner.device, runner.model_config.dtype)
        plain = type(runner)._prepare_inputs

        def prepare_inputs(scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
            slots = []
            for name in runner.input_batch.req_ids:
                extra = runner.requests[name].sampling_params.extra_args
                slots.append(extra["particle"] if extra else -1)
            server.begin(slots, num_scheduled_tokens)
            return plain(runner, scheduler_output, num_scheduled_tokens)

        runner._prepare_inputs = prepare_inputs
        return Way(server.load, server.load_mixture, server.restore, server.switch)

    def _linear_places(self) -> dict[str, Place]:
        """Name in the checkpoint → where the model computes that linear layer."""
        model = self.model_runner.get_model()
        packed = getattr(model, "packed_modules_mapping", {})
        places: dict[str, Place] = {}
        for name, module in model.named_modules():
            linear = getattr(module, "base_layer", module)
            if not isinstance(linear, LinearBase) or name.endswith(".base_layer"):
                continue
            parent, _, leaf = name.rpartition(".")
            start = 0
            for part, size in zip(packed.get(leaf) or [leaf], linear.output_partition_sizes, strict=True):
                places[f"{parent}.{part}"] = Place(module, start, size, linear.input_size)
                start += size
        return places
