"""Serving several particles in one batch from vLLM's LoRA slots, which are filled in memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from vllm.platforms import current_platform

from modelswarms_fast.engines.vllm.cpu_patches import RowPart
from modelswarms_fast.engines.vllm.weight_map import WeightMap
from modelswarms_fast.errors import InputError
from modelswarms_fast.ops.extension import _C
from modelswarms_fast.weights.arena import empty_rows
from modelswarms_fast.weights.experts import Experts, LoraModule
from modelswarms_fast.weights.layout import TensorSpec
from modelswarms_fast.weights.weight_loader import CopyTarget, WeightCopier


class SlotPart(NamedTuple):
    """A LoRA module in vLLM's LoRA layer of which it is a part."""

    module: LoraModule
    layer: Any
    number: int
    """Of the module among those fused in the layer."""
    row: int
    """Of B, at which the part begins that this rank holds."""
    column: int
    """Of A."""


class RowSlots:
    """Slots on a CPU: a row of the experts' room is served where it lies, any other is copied into the slot's own."""

    def __init__(
        self,
        own: Sequence[WeightCopier],
        experts: torch.Tensor,
        room: torch.Tensor,
        in_room: dict[int, int],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """`experts` [n, D], `room` [R, D].

        `in_room` says which row of the room a slot serves, for slots that serve one. `changed` is called after each
        load. Loads are kept short: the caches have lost their code since the last one, so every call costs.
        """
        self._own, self._experts, self._room, self._in_room, self._changed = own, experts, room, in_room, changed

    def load(self, slot: int, row: torch.Tensor) -> None:
        """Serve a row [D]; one of the room must not change before what is asked of the slot has ended."""
        number = -1 if _C is None else _C.row_number(self._room, row)
        if number >= 0:
            self._in_room[slot] = number
        else:
            self._own[slot].load(row)
            self._in_room.pop(slot, None)
        self._changed()

    def load_mixture(self, slot: int, mixture: torch.Tensor) -> None:
        """Serve a mixture [n] of the experts."""
        self._own[slot].load_mixture(self._experts, mixture)
        self._in_room.pop(slot, None)
        self._changed()

    def restore(self) -> None:
        """Nothing is to be done: requests to the base model use no slot."""

    def switch(self, on: bool) -> None:
        """Nothing is to be switched: a slot acts only on the requests that name it."""


class StackedSlots:
    """Slots in the stacked tensors that vLLM made, as its GPU kernels want them; a load copies the row into them."""

    def __init__(self, slots: Sequence[WeightCopier], experts: torch.Tensor) -> None:
        """`experts` [n, D]."""
        self._slots, self._experts = slots, experts

    def load(self, slot: int, row: torch.Tensor) -> None:
        """Serve a row [D]."""
        self._slots[slot].load(row)

    def load_mixture(self, slot: int, mixture: torch.Tensor) -> None:
        """Serve a mixture [n] of the experts."""
        self._slots[slot].load_mixture(self._experts, mixture)

    def restore(self) -> None:
        """Nothing is to be done: requests to the base model use no slot."""

    def switch(self, on: bool) -> None:
        """Nothing is to be switched: a slot acts only on the requests that name it."""


def lora_slots(runner: Any, weights: WeightMap, experts: Experts) -> RowSlots | StackedSlots:
    """Take over the slots of vLLM's LoRA manager. Raises InputError for experts that do not fit the model."""
    manager = runner.lora_manager._adapter_manager
    dummy = manager.create_dummy_lora(1, 1, getattr(runner.get_model(), "embedding_modules", None))
    for slot in range(manager.lora_slots):
        manager.add_adapter(dummy.clone(slot + 1))
        manager.activate_adapter(slot + 1)
        manager.pin_adapter(slot + 1)  # or the least recently used slot could be evicted
    manager._last_mapping = None
    if manager.lora_index_to_id != [slot + 1 for slot in range(manager.lora_slots)]:
        raise RuntimeError(f"vLLM placed its adapters as {manager.lora_index_to_id}")
    places, found = weights.linear(experts.layer_shapes), []
    for module in experts.modules:
        weight = places[module.name]
        layer = manager.modules.get(weight.module)
        stacked = getattr(layer, "lora_b_stacked", None)
        if not isinstance(stacked, tuple):  # of a head, one tensor
            raise InputError(f"The base model has no LoRA slot for {module.name}; use serve='merged'.")
        live, start = weight.part
        firsts = list(itertools.accumulate((b.shape[2] for b in stacked), initial=0))  # rows of the layers fused in it
        number = firsts.index(weight.row) if weight.row in firsts[:-1] else 0
        if live.shape != (stacked[number].shape[2], layer.lora_a_stacked[number].shape[3]):
            raise InputError(f"vLLM's LoRA slot for {module.name} has not its weight's shape; use serve='merged'.")
        row, column = start or (0, 0)
        found.append(SlotPart(module, layer, number, row, column))
    if not current_platform.is_cpu():
        return stacked_slots(manager.lora_slots, found, experts)

    def changed() -> None:
        manager._last_mapping = None  # or a step of the same slots as the one before would be laid out as that

    return row_slots(manager.lora_slots, found, experts, changed)


def row_slots(
    count: int, parts: Sequence[SlotPart], experts: Experts, changed: Callable[[], None] = lambda: None
) -> RowSlots:
    """Make vLLM's A and B of each slot views of a row: of the experts' room, or else of the slot's own.

    The scaling, which vLLM keeps in B, is left to GroupedPunicaWrapper, and ranks are not padded. A rank of a
    tensor-parallel engine has whole rows too, and its views show its part.
    """
    layout, dtype = experts.layout, parts[0].layer.lora_a_stacked[0].dtype
    specs = {spec.name: spec for spec in layout.specs}
    slots = empty_rows(count, layout.size, dtype).zero_()
    room = experts.room
    if room.dtype != dtype:
        room = slots  # no row that is given lies there
    in_room: dict[int, int] = {}

    def shown(rows: torch.Tensor, name: str) -> torch.Tensor:
        spec = specs[name]
        return rows[:, spec.offset : spec.end].view(len(rows), 1, *spec.shape)

    for module, layer, number, row, column in parts:
        outputs, inputs = layer.lora_b_stacked[number].shape[2], layer.lora_a_stacked[number].shape[3]
        a, room_a = (shown(rows, module.a)[..., column : column + inputs] for rows in (slots, room))
        b, room_b = (shown(rows, module.b)[:, :, row : row + outputs] for rows in (slots, room))
        layer.lora_a_stacked = (*layer.lora_a_stacked[:number], a, *layer.lora_a_stacked[number + 1 :])
        layer.lora_b_stacked = (*layer.lora_b_stacked[:number], b, *layer.lora_b_stacked[number + 1 :])
        layer.punica_wrapper.rows[b] = RowPart(module.scaling, room_a, room_b)
        layer.punica_wrapper.in_room = in_room
    line = TensorSpec("row", 0, (layout.size // layout.step, layout.step))
    own = [WeightCopier([CopyTarget(line, slot.view(line.shape))]) for slot in slots]
    return RowSlots(own, experts.rows, room, in_room, changed)


def stacked_slots(count: int, parts: Sequence[SlotPart], experts: Experts) -> StackedSlots:
    """Keep the stacked tensors that vLLM made. It keeps the scaling in B."""
    specs, slots = {spec.name: spec for spec in experts.layout.specs}, []
    for slot in range(count):
        targets = []
        for module, layer, number, row, column in parts:
            a, b = layer.lora_a_stacked[number][slot, 0], layer.lora_b_stacked[number][slot, 0]
            targets.append(CopyTarget(specs[module.a], a[: module.rank], start=(0, column)))
            targets.append(CopyTarget(specs[module.b], b[:, : module.rank], module.scaling, (row, 0)))
        slots.append(WeightCopier(targets))
    return StackedSlots(slots, experts.rows)
