"""Inside the vLLM worker: writes particles into the live model. It and vllm_cpu.py alone touch what vLLM keeps inside.

vLLM imports this module (as `worker_extension_cls`) before it builds the model, which is when the changes to
its CPU build have to be made. Which versions were read and run: docs/engine.md.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import vllm
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.model_executor.layers.linear import ColumnParallelLinear, LinearBase, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.platforms import current_platform

from modelswarms_fast.engines.vllm.cpu_patches import RowPart  # changes vLLM, too
from modelswarms_fast.engines.vllm.mixture import MixtureServer, OutputSlice
from modelswarms_fast.errors import InputError
from modelswarms_fast.ops.extension import _C
from modelswarms_fast.weights.arena import empty_rows
from modelswarms_fast.weights.experts import Experts, LoraModule
from modelswarms_fast.weights.layout import TensorSpec
from modelswarms_fast.weights.shared_memory import SharedTensor
from modelswarms_fast.weights.weight_loader import CopyTarget, LoraMerger, MergeTarget, WeightCopier

PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


class ServingMode(NamedTuple):
    """One way to serve particles: what the engine asks of it."""

    load: Callable[[int, torch.Tensor], None]
    load_mixture: Callable[[int, torch.Tensor], None]
    restore: Callable[[], None]
    switch: Callable[[bool], None] = lambda on: None
    """It begins or ends to be the way of the engine."""


class TensorShard(NamedTuple):
    """The part of a weight that this rank holds."""

    live: torch.Tensor
    shape: tuple[int, ...]
    """Of the whole weight."""
    start: tuple[int, int] | None = None
    """Row and column of it at which the part begins; None: all of it."""


def _as_loaded(weight: torch.Tensor) -> bool:
    """Neither moved into a packed copy, which leaves an empty tensor (zentorch), nor quantized."""
    return weight.numel() > 0 and weight.dtype in (torch.float32, torch.bfloat16, torch.float16)


class SlotPart(NamedTuple):
    """A LoRA module in vLLM's LoRA layer of which it is a part."""

    module: LoraModule
    layer: Any
    number: int
    row: int
    """Of B, at which the part begins that this rank holds."""
    column: int
    """Of A."""


class RowSlots:
    """Slots on a CPU: a row of the room is served where it lies, any other is copied into the slot's own."""

    def __init__(
        self, own: Sequence[WeightCopier], experts: torch.Tensor, room: torch.Tensor, lying: dict[int, int]
    ) -> None:
        """`experts` [n, D], `room` [R, D]. `lying` says which row of the room a slot serves, for slots that serve one.

        A load that copies nothing is a few calls whose code the caches have lost since the last one: so few, and so
        short.
        """
        self._own, self._experts, self._room, self._lying = own, experts, room, lying

    def load(self, slot: int, row: torch.Tensor) -> None:
        """Serve a row [D]; one of the room must not change before what is asked of the slot has ended."""
        number = -1 if _C is None else _C.row_number(self._room, row)
        if number >= 0:
            self._lying[slot] = number
            return
        self._own[slot].load(row)
        self._lying.pop(slot, None)

    def load_mixture(self, slot: int, mixture: torch.Tensor) -> None:
        """Serve a mixture [n] of the experts."""
        self._own[slot].load_mixture(self._experts, mixture)
        self._lying.pop(slot, None)


class SwarmWorker:
    """Mixed into vLLM's worker.

    In the process of the engine, which gets it by `LLM.collective_rpc("swarm_worker")`; or one of several ranks, each
    in a process of its own and with its part of every weight, called through `swarm_call`.
    """

    model_runner: Any

    def swarm_worker(self) -> SwarmWorker:
        """The worker itself."""
        return self

    def swarm_call(self, name: str, arguments: tuple[Any, ...]) -> str | None:
        """A method of this worker, called from another process: the sentence of its InputError, or None.

        Tensors are given as what says where they lie.
        """
        given = [argument.view() if isinstance(argument, SharedTensor) else argument for argument in arguments]
        try:
            getattr(self, name)(*given)
        except InputError as error:
            return str(error)
        return None

    def swarm_follow(self) -> None:
        """End with the process of the engine, however that ends and whatever is under way here, and leave nothing.

        All ranks have mapped the memory through which they add up by now, so its names can go.
        """
        for file in Path("/dev/shm").glob(f"{os.environ.get('VLLM_DIST_IDENT', '?')}-*cpushm*"):
            file.unlink(missing_ok=True)
        parent = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)

    def swarm_attach(self, serve: str, experts: Experts, room: torch.Tensor | None = None) -> None:
        """Resolve every tensor of the layout to its place in the live model, once for each way of serving.

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
        self._swarm_experts = experts
        if not hasattr(self, "_swarm_ways"):
            self._swarm_ways: dict[str, ServingMode] = {}
        if serve == "slots":
            self._swarm_ways[serve] = self._attach_slots(experts.modules)
        elif serve == "mixture":
            self._swarm_ways[serve] = self._attach_mixture()
        elif experts.modules:
            self._swarm_ways[serve] = self._attach_merged(experts.modules)
        else:
            self._swarm_ways[serve] = self._attach_full()

    def swarm_serve(self, serve: str) -> ServingMode:
        """Serve in this way from now on, and in no other. Nothing may be loaded."""
        for name, way in self._swarm_ways.items():
            way.switch(name == serve)
        return self._swarm_ways[serve]

    def swarm_load(self, serve: str, slot: int, row: torch.Tensor) -> None:
        """Write one flat row [D] into a slot, in place."""
        self._swarm_ways[serve].load(slot, row)

    def swarm_load_mixture(self, serve: str, slot: int, mixture: torch.Tensor | list[float]) -> None:
        """Serve a mixture [n] of the experts, float32, from a slot."""
        self._swarm_ways[serve].load_mixture(slot, torch.as_tensor(mixture))

    def swarm_restore(self, serve: str) -> None:
        """Put the base model's own weights back, bit for bit."""
        self._swarm_ways[serve].restore()

    # merged and full weights

    def _attach_merged(self, modules: Sequence[LoraModule]) -> ServingMode:
        places = self._weight_places()
        targets = []
        for module in modules:
            a, b = self._spec(module.a), self._spec(module.b)
            shard = self._place(places, f"{module.name}.weight", (b.shape[0], a.shape[1]))
            live = shard.live
            if module.name == "lm_head" and live.data_ptr() == places["model.embed_tokens.weight"].live.data_ptr():
                raise InputError(
                    "lm_head is tied to the embeddings, which merging would change too; use serve='slots'."
                )
            targets.append(MergeTarget(a, b, live.clone(), live, module.scaling, shard.start))
        plan = LoraMerger(targets)
        return self._way([plan], [target.live for target in targets], [target.base for target in targets])

    def _attach_full(self) -> ServingMode:
        places = self._weight_places()
        specs = self._swarm_experts.layout.specs
        shards = [self._place(places, spec.name, spec.shape) for spec in specs]
        covered = {shard.live.data_ptr() for shard in shards}  # a tied head lies where the embeddings do
        if len(covered) < len(specs):
            raise InputError(
                "The experts have a head of their own, but the base model's lies in its embeddings (tied); save the "
                "experts without lm_head.weight, or untie the base model."
            )
        for name, place in places.items():
            if place.live.data_ptr() not in covered:
                raise InputError(
                    f"The experts have no tensor {name}, which the base model has; use the base they share."
                )
        plan = WeightCopier(
            [CopyTarget(spec, part.live, start=part.start) for spec, part in zip(specs, shards, strict=True)]
        )
        return self._way([plan], [part.live for part in shards], [part.live.clone() for part in shards])

    def _way(
        self,
        plans: Sequence[WeightCopier | LoraMerger],
        live: Sequence[torch.Tensor] = (),
        base: Sequence[torch.Tensor] = (),
    ) -> ServingMode:
        """A plan for each slot; what is live is overwritten with the base to restore it."""
        rows = self._swarm_experts.rows

        def restore() -> None:
            if live:
                torch._foreach_copy_(list(live), list(base))

        return ServingMode(
            lambda slot, row: plans[slot].load(row),
            lambda slot, mixture: plans[slot].load_mixture(rows, mixture),
            restore,
        )

    def _weight_places(self) -> dict[str, TensorShard]:
        """Name in the checkpoint → where it lies; fused parameters are given as views of their parts."""
        model = self.model_runner.get_model()
        packed = getattr(model, "packed_modules_mapping", {})
        places: dict[str, TensorShard] = {}
        for name, parameter in model.named_parameters():
            owner = model.get_submodule(name.rpartition(".")[0])
            path, _, kind = name.replace(".base_layer", "").rpartition(".")
            parent, _, leaf = path.rpartition(".")
            parts = packed.get(leaf)
            if not parts:
                if getattr(owner, "tp_size", 1) > 1 and len(getattr(owner, "output_partition_sizes", ())) > 1:
                    raise InputError(f"{name} holds several layers in one and cannot be cut; use tensor_parallel=1.")
                places[f"{path}.{kind}"] = _shard(owner, 0, parameter.data)
                continue
            views = [parameter.data] * len(parts)
            if _as_loaded(parameter):
                views = list(parameter.data.split(owner.output_partition_sizes))
            for index, (part, view) in enumerate(zip(parts, views, strict=True)):
                places[f"{parent}.{part}.{kind}"] = _shard(owner, index, view)
        if hasattr(model, "lm_head") and "lm_head.weight" not in places and "model.embed_tokens.weight" in places:
            places["lm_head.weight"] = places["model.embed_tokens.weight"]  # tied
        return places

    def _place(self, places: dict[str, TensorShard], name: str, shape: tuple[int, ...]) -> TensorShard:
        if name not in places:
            raise InputError(f"The experts adapt {name}, which the base model does not have; use the base they share.")
        if not _as_loaded(places[name].live):
            raise InputError(
                f"vLLM keeps {name} packed or quantized, where it cannot be written in place; use a base model that is "
                "not quantized, without zentorch, or engine='transformers'."
            )
        whole = places[name].shape
        if whole != shape:
            raise InputError(
                f"{name} has shape {list(shape)} by the experts but {list(whole)} in the base model; "
                "use the base they share."
            )
        return places[name]

    def _spec(self, name: str) -> TensorSpec:
        return next(spec for spec in self._swarm_experts.layout.specs if spec.name == name)

    # LoRA slots

    def _attach_slots(self, modules: Sequence[LoraModule]) -> ServingMode:
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

        weights = self._weight_places()
        places: dict[str, tuple[Any, int]] = {}
        """Of each module, the layer that it is a part of, and which part."""
        for name, layer in manager.modules.items():
            parent, _, leaf = name.rpartition(".")
            parts = manager.packed_modules_mapping.get(leaf) or [leaf]
            if len(parts) == len(layer.lora_a_stacked):
                places |= {f"{parent}.{part}": (layer, index) for index, part in enumerate(parts)}
        parts_of: list[SlotPart] = []
        for module in modules:
            if module.name not in places:
                raise InputError(f"The base model has no LoRA slot for {module.name}; use serve='merged'.")
            layer, index = places[module.name]
            a, b = layer.lora_a_stacked[index], layer.lora_b_stacked[index]
            shard = weights[f"{module.name}.weight"]
            whole = (self._spec(module.b).shape[0], self._spec(module.a).shape[1])
            if shard.shape != whole or shard.live.shape != (b.shape[2], a.shape[3]):
                raise InputError(f"{module.a} does not fit {module.name} of the base model; use the base they share.")
            row, column = shard.start or (0, 0)
            parts_of.append(SlotPart(module, layer, index, row, column))
        fill = self._slots_that_are_rows if current_platform.is_cpu() else self._slots_that_are_stacked
        return fill(manager.lora_slots, parts_of)

    def _slots_that_are_rows(self, count: int, parts: Sequence[SlotPart]) -> ServingMode:
        """What vLLM takes for a slot's A and B are views of a row: of the experts' room, or else of its own.

        The scaling, which vLLM keeps in B, is left to GroupedPunicaWrapper, and ranks are not padded. A rank of a
        tensor-parallel engine has whole rows too, and its views show its part.
        """
        layout, dtype = self._swarm_experts.layout, parts[0].layer.lora_a_stacked[0].dtype
        slots = empty_rows(count, layout.size, dtype).zero_()
        room = self._swarm_experts.room
        if room.dtype != dtype:
            room = slots  # no row that is given lies there
        lying: dict[int, int] = {}

        def shown(rows: torch.Tensor, name: str) -> torch.Tensor:
            spec = self._spec(name)
            return rows[:, spec.offset : spec.end].view(len(rows), 1, *spec.shape)

        for module, layer, index, row, column in parts:
            outputs, inputs = layer.lora_b_stacked[index].shape[2], layer.lora_a_stacked[index].shape[3]
            a, lying_a = (shown(rows, module.a)[..., column : column + inputs] for rows in (slots, room))
            b, lying_b = (shown(rows, module.b)[:, :, row : row + outputs] for rows in (slots, room))
            layer.lora_a_stacked = (*layer.lora_a_stacked[:index], a, *layer.lora_a_stacked[index + 1 :])
            layer.lora_b_stacked = (*layer.lora_b_stacked[:index], b, *layer.lora_b_stacked[index + 1 :])
            layer.punica_wrapper.rows[b] = RowPart(module.scaling, lying_a, lying_b)
            layer.punica_wrapper.lying = lying
        line = TensorSpec("row", 0, (layout.size // layout.step, layout.step))
        plans = [WeightCopier([CopyTarget(line, own.view(line.shape))]) for own in slots]
        served = RowSlots(plans, self._swarm_experts.rows, room, lying)
        return ServingMode(served.load, served.load_mixture, lambda: None)

    def _slots_that_are_stacked(self, count: int, parts: Sequence[SlotPart]) -> ServingMode:
        """The stacked tensors that vLLM made, as its GPU kernels want them contiguous. vLLM keeps the scaling in B."""
        plans = []
        for slot in range(count):
            targets = []
            for module, layer, index, row, column in parts:
                a, b = layer.lora_a_stacked[index][slot, 0], layer.lora_b_stacked[index][slot, 0]
                targets.append(CopyTarget(self._spec(module.a), a[: module.rank], start=(0, column)))
                targets.append(CopyTarget(self._spec(module.b), b[:, : module.rank], module.scaling, (row, 0)))
            plans.append(WeightCopier(targets))
        return self._way(plans)

    # mixtures

    def _attach_mixture(self) -> ServingMode:
        """A forward hook on each adapted module, told by the model runner whose tokens a step has."""
        runner = self.model_runner
        if not hasattr(runner, "_prepare_inputs"):
            raise InputError(f"vLLM {vllm.__version__} lays out its batches in another way; use serve='merged'.")
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
        return ServingMode(server.load, server.load_mixture, server.restore, server.switch)

    def _linear_places(self) -> dict[str, OutputSlice]:
        """Name in the checkpoint → where the model computes that linear layer."""
        model = self.model_runner.get_model()
        packed = getattr(model, "packed_modules_mapping", {})
        weights = self._weight_places()
        places: dict[str, OutputSlice] = {}
        for name, module in model.named_modules():
            linear = getattr(module, "base_layer", module)
            if not isinstance(linear, LinearBase) or name.endswith(".base_layer"):
                continue
            parent, _, leaf = name.rpartition(".")
            split, add_up = linear.tp_size > 1, None
            if split and (getattr(linear, "gather_output", False) or not getattr(linear, "input_is_parallel", True)):
                continue  # its inputs or outputs are whole, and its weight is not
            if split and isinstance(linear, RowParallelLinear) and linear.reduce_results:
                add_up = tensor_model_parallel_all_reduce
            column = 0
            for part, size in zip(packed.get(leaf) or [leaf], linear.output_partition_sizes, strict=True):
                shard = weights.get(f"{parent}.{part}.weight")
                if shard is not None:
                    where = (module, column, size, shard.live.shape[1])
                    places[f"{parent}.{part}"] = OutputSlice(*where, shard.shape, shard.start or (0, 0), add_up)
                column += size
        return places


def _shard(owner: torch.nn.Module, index: int, live: torch.Tensor) -> TensorShard:
    """The part that a rank holds of a parameter; `index` is that of a layer among those fused in one."""
    if isinstance(owner, VocabParallelEmbedding):  # padded behind each rank's tokens
        first, stop = owner.shard_indices.org_vocab_start_index, owner.shard_indices.org_vocab_end_index
        return TensorShard(live[: stop - first], (owner.org_vocab_size, *live.shape[1:]), (first, 0))
    ranks, rank, rows = getattr(owner, "tp_size", 1), getattr(owner, "tp_rank", 0), len(live) if live.dim() else 0
    if ranks > 1 and isinstance(owner, ColumnParallelLinear):
        # Fewer key-value heads than ranks: several ranks hold the same.
        copies = owner.num_kv_head_replicas if isinstance(owner, QKVParallelLinear) and index else 1
        return TensorShard(live, (rows * ranks // copies, *live.shape[1:]), (rank // copies * rows, 0))
    if ranks > 1 and isinstance(owner, RowParallelLinear) and live.dim() == 2:
        return TensorShard(live, (rows, live.shape[1] * ranks), (0, rank * live.shape[1]))
    return TensorShard(live, tuple(live.shape))
