"""LoRA on a CPU in one step of a vLLM engine: several slots and the base model, without an engine."""

import pytest
import torch

pytest.importorskip("vllm")

from modelswarms_fast.engines.vllm import cpu_patches, low_rank
from modelswarms_fast.engines.vllm.cpu_patches import GroupedPunicaWrapper

pytestmark = pytest.mark.vllm

SLOTS, RANK, INPUTS, OUTPUTS = 4, 8, 24, (16, 8)


@pytest.mark.parametrize("broken", ["none", "a", "b"])
@pytest.mark.parametrize("compiled", [True, False])
def test_each_token_gets_its_own_slot(compiled, broken, monkeypatch):
    """With the extension and without it; the slot 3, which no token here uses, may hold NaN."""
    torch.manual_seed(0)
    slots = torch.tensor([2, 0, 0, -1, 2, 1, 1, -1, 2, 0])
    if not compiled:
        monkeypatch.setattr(low_rank, "_C", None)
    monkeypatch.setattr(cpu_patches.PunicaWrapperCPU, "__init__", lambda self: None)
    monkeypatch.setattr(cpu_patches.PunicaWrapperCPU, "update_metadata", lambda *args, **kwargs: None)
    monkeypatch.setattr(GroupedPunicaWrapper, "token_lora_indices", slots)
    wrapper = GroupedPunicaWrapper()
    for turn in range(3):  # nothing of the step before is left, and all of a slot's new tensors are seen
        a = [torch.randn(SLOTS, 1, RANK, INPUTS) for _ in OUTPUTS]
        b = [torch.randn(SLOTS, 1, size, RANK) for size in OUTPUTS]
        for one in {"none": [], "a": a, "b": b}[broken]:
            one[3] = torch.nan
        slots.copy_(slots.roll(turn))
        if turn == 2:
            slots.fill_(-1)
        x, y = torch.randn(len(slots), INPUTS), torch.randn(len(slots), sum(OUTPUTS))
        expected = y.clone()
        for token, slot in enumerate(slots.tolist()):
            if slot >= 0:
                expected[token] += 0.5 * torch.cat(
                    [q[slot, 0] @ (p[slot, 0] @ x[token]) for p, q in zip(a, b, strict=True)]
                )
        wrapper.update_metadata()
        wrapper.add_lora_linear(y, x, tuple(a), tuple(b), 0.5, OUTPUTS)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
        assert (wrapper._groups[0] is not None) == (compiled and turn < 2)


def test_another_layer_that_lies_where_one_was_is_not_taken_for_it(monkeypatch):
    """Layers are told apart by their tensors, which are kept; not by an address that may come again."""
    monkeypatch.setattr(cpu_patches.PunicaWrapperCPU, "__init__", lambda self: None)
    wrapper = GroupedPunicaWrapper()
    wrapper.group(torch.zeros(2, dtype=torch.long))
    for turn in range(20):
        a, b = (torch.full((1, 1, 1, 4), float(turn)),), (torch.ones(1, 1, 4, 1),)
        y = torch.zeros(2, 4)
        wrapper.add_lora_linear(y, torch.ones(2, 4), a, b, 1.0, (4,))
        assert torch.equal(y, torch.full((2, 4), 4.0 * turn))
